"""The comparison of benches/targets.py in PyTorch on one GPU, every rate of the ladder and more seeds, in minutes.

    python benches/targets_gpu.py --model FOLDER --wikisql FOLDER --alpaca FILE --out RESULTS.jsonl [--seeds 6]
        [--datasets wikisql,alpaca] [--rates 1e-3,3e-3] [--steps N] [--device cuda]

FOLDER is SmolLM2-135M-Instruct in Hugging Face's layout, with its tokenizer. Data, adapters, scales, rates, schedule and
clipping are those of benches/targets.py, examples and loss those of burnish; the order of examples and the first values of
the factors come from PyTorch's generators. Base and activations are bf16, the factors and AdamW f32.

Many adapters train at once over one frozen base: every run has its own examples and its own factors, which one batched
product applies. Factors are padded with zeros to one rank and to all seven projections; a pair of zeros gets no gradient,
so the padding stays zero and changes nothing. All rates run with seed 0; the seeds after it then run at the best rate of
each adapter, and only they are reported. One JSON object a run is appended to RESULTS. `--report` reads RESULTS, of a run
that was cut short too, and trains nothing. Beside the interval over seeds stands one over validation examples: of the
difference from q and v at seed 0, both at their best rate, paired by example.
"""

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

import targets as comparison

SITES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# The largest rank of the comparison, rounded up to what matrix units take.
PADDED_RANK = 48
SEQUENCES, WARM_UP_STEPS, LONGEST = 4, 10, 512
# Activations are kept for the backward pass up to so many tokens of all runs together, and computed again above.
TOKENS_KEPT = 48_000
LOGIT_ROWS = 8192


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--wikisql", type=Path)
    parser.add_argument("--alpaca", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--datasets", default="wikisql,alpaca")
    parser.add_argument("--rates", help="these rates of the ladder alone, where the best is known to be among them")
    parser.add_argument("--steps", type=int, help="at most so many steps, for trying it out")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if not options.report and not (options.model and options.wikisql and options.alpaca):
        parser.error("--model, --wikisql and --alpaca are needed to train anything")
    return options


# --- examples ---------------------------------------------------------------------------------------------------------


def prompt_and_completion(row):
    if "prompt" in row:
        return row["prompt"], row["completion"], ""
    asked = row["instruction"] + ("\n\n" + row["input"] if row.get("input") else "")
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    prompt = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
    return prompt, row["output"], "\n"


def encode(lines, tokenizer):
    """Token ids, and the first position that is trained; the end token is, what follows it is not."""
    examples = []
    for line in filter(None, map(str.strip, lines)):
        prompt, completion, after = prompt_and_completion(json.loads(line))
        ids = lambda text: tokenizer(text, add_special_tokens=False).input_ids if text else []
        prompt_ids, end = ids(prompt), [tokenizer.convert_tokens_to_ids("<|im_end|>")]
        trained = ids(completion) + end
        whole = prompt_ids + trained + ids(after)
        if len(whole) <= LONGEST:
            examples.append((whole, len(prompt_ids), len(prompt_ids) + len(trained)))
    return examples


def read(dataset, options, tokenizer):
    if dataset == "wikisql":
        parts = [(options.wikisql / f"{part}.jsonl").read_text(encoding="utf-8").splitlines() for part in ("train", "valid")]
    else:
        rows = [line for line in options.alpaca.read_text(encoding="utf-8").splitlines() if line.strip()]
        parts = [rows[: comparison.ALPACA_TRAIN_ROWS], rows[-comparison.ALPACA_VALID_ROWS :]]
    train, valid = (encode(lines, tokenizer) for lines in parts)
    count = lambda examples: (
        f"{len(examples)} examples, {sum(len(ids) for ids, _, _ in examples)} tokens, "
        f"{sum(end - start for _, start, end in examples)} trained"
    )
    print(f"{dataset}: {count(train)}; validation {count(valid)}", file=sys.stderr, flush=True)
    return train, valid


def collate(batches, device):
    """Batches of all runs, padded on the right to one length: ids `[runs, sequences, tokens]`, and for every trained
    token the row of the hidden state that predicts it, its id, its run and its example in the batch."""
    longest = max(len(ids) for batch in batches for ids, _, _ in batch)
    sequences = max(len(batch) for batch in batches)
    padded = torch.zeros((len(batches), sequences, longest), dtype=torch.long)
    rows, wanted, runs, places = [], [], [], []
    for run, batch in enumerate(batches):
        for place, (ids, start, end) in enumerate(batch):
            padded[run, place, : len(ids)] = torch.tensor(ids)
            first = (run * sequences + place) * longest
            rows += range(first + start - 1, first + end - 1)
            wanted += ids[start:end]
            runs += [run] * (end - start)
            places += [place] * (end - start)
    move = lambda values: torch.tensor(values).to(device, non_blocking=True)
    return padded.to(device), move(rows), move(wanted), move(runs), move(places)


# --- the model --------------------------------------------------------------------------------------------------------


class Base:
    def __init__(self, folder, device):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device)
        config = model.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.eps, self.inv_freq = config.rms_norm_eps, model.model.rotary_emb.inv_freq.float()
        self.embedding, self.norm = model.model.embed_tokens.weight.detach(), model.model.norm.weight.detach()
        self.head = model.lm_head.weight.detach()
        self.layers = []
        for layer in model.model.layers:
            weights = {site: getattr(layer.self_attn, site, None) or getattr(layer.mlp, site) for site in SITES}
            weights = {site: linear.weight.detach() for site, linear in weights.items()}
            self.layers.append((weights, layer.input_layernorm.weight.detach(), layer.post_attention_layernorm.weight.detach()))

    def normed(self, x, weight):
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * weight

    def layer(self, index, x, shape, cos, sin, factors):
        weights, first_norm, second_norm = self.layers[index]

        def project(x, site):
            y = F.linear(x, weights[site])
            if factors is not None:
                a, b = (factor.to(x.dtype) for factor in factors[index][site])
                y = y + comparison.ALPHA_OVER_RANK * torch.bmm(torch.bmm(x, a.transpose(1, 2)), b.transpose(1, 2))
            return y

        def by_head(x, heads):
            return x.view(*shape, heads, -1).flatten(0, 1).transpose(1, 2)

        def rotated(x):
            left, right = x.float().chunk(2, -1)
            return torch.cat([left * cos - right * sin, right * cos + left * sin], -1).to(x.dtype)

        h = self.normed(x, first_norm)
        q, k = rotated(by_head(project(h, "q_proj"), self.heads)), rotated(by_head(project(h, "k_proj"), self.kv_heads))
        v = by_head(project(h, "v_proj"), self.kv_heads)
        # Padding stands on the right, where causal attention never looks.
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + project(mixed.transpose(1, 2).reshape(x.shape), "o_proj")
        h = self.normed(x, second_norm)
        return x + project(F.silu(project(h, "gate_proj")) * project(h, "up_proj"), "down_proj")

    def losses(self, batch, factors):
        """The loss of every trained token."""
        padded, rows, wanted, _, _ = batch
        runs, sequences, tokens = padded.shape
        angles = torch.arange(tokens, device=padded.device).float()[:, None] * self.inv_freq
        x = self.embedding[padded].view(runs, sequences * tokens, -1)
        again = torch.is_grad_enabled() and padded.numel() > TOKENS_KEPT
        for index in range(len(self.layers)):
            given = (index, x, padded.shape, angles.cos(), angles.sin(), factors)
            x = checkpoint(self.layer, *given, use_reentrant=False) if again else self.layer(*given)
        h = self.normed(x.flatten(0, 1)[rows], self.norm)
        of_rows = lambda h, wanted: F.cross_entropy(F.linear(h, self.head).float(), wanted, reduction="none")
        parts = zip(h.split(LOGIT_ROWS), wanted.split(LOGIT_ROWS))
        return torch.cat([checkpoint(of_rows, *part, use_reentrant=False) for part in parts])


class Factors:
    """The factors of all runs in one buffer `[runs, values]`, with AdamW over it."""

    def __init__(self, base, runs, device):
        sizes = [(layer[0][site].shape, index, site) for index, layer in enumerate(base.layers) for site in SITES]
        width = sum(PADDED_RANK * (out + into) for (out, into), _, _ in sizes)
        self.values = torch.zeros((len(runs), width), device=device)
        self.gradients, self.mean, self.square = (torch.zeros_like(self.values) for _ in range(3))
        self.by_layer, at, self.step_number = [{} for _ in base.layers], 0, 0
        generators = [torch.Generator().manual_seed(run.seed) for run in runs]
        for (out, into), index, site in sizes:
            pair = []
            for shape in ((PADDED_RANK, into), (out, PADDED_RANK)):
                part = slice(at, at + shape[0] * shape[1])
                factor = self.values[:, part].view(len(runs), *shape)
                if shape[1] == into and not pair:
                    for number, run in enumerate(runs):
                        bound = 1 / math.sqrt(into)
                        drawn = torch.empty((run.rank, into)).uniform_(-bound, bound, generator=generators[number])
                        if site in comparison.TARGETS[run.targets]:
                            factor[number, : run.rank] = drawn.to(device)
                factor = factor.detach().requires_grad_()
                factor.grad = self.gradients[:, part].view(len(runs), *shape)
                pair.append(factor)
                at = part.stop
            self.by_layer[index][site] = pair
        self.parameters = [
            sum(run.rank * sum(base.layers[0][0][site].shape) for site in comparison.TARGETS[run.targets]) * len(base.layers)
            for run in runs
        ]

    @torch.no_grad()
    def step(self, rates):
        """AdamW after clipping each run's gradient to a norm of 1. `rates` `[runs, 1]`."""
        self.step_number += 1
        norms = torch.linalg.vector_norm(self.gradients, dim=1, keepdim=True)
        self.gradients *= (1 / (norms + 1e-6)).clamp(max=1)
        self.mean.lerp_(self.gradients, 0.1)
        self.square.mul_(0.999).addcmul_(self.gradients, self.gradients, value=0.001)
        corrected = (self.square / (1 - 0.999**self.step_number)).sqrt_().add_(1e-8)
        self.values -= rates / (1 - 0.9**self.step_number) * self.mean / corrected
        self.gradients.zero_()


# --- runs -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(base, valid, count, factors, device):
    """Summed loss of each run on each example, `[runs, examples]`, on the same examples for all."""
    found = torch.zeros((count, len(valid)), device=device, dtype=torch.float64)
    order = sorted(range(len(valid)), key=lambda at: len(valid[at][0]))
    for start in range(0, len(order), 10):
        places = order[start : start + 10]
        batch = collate([[valid[at] for at in places]] * count, device)
        losses = base.losses(batch, factors).double()
        found.index_put_((batch[3], torch.tensor(places, device=device)[batch[4]]), losses, accumulate=True)
    return found


def train(base, examples, valid, runs, options):
    device, began = options.device, time.monotonic()
    factors = Factors(base, runs, device)
    orders = []
    for run in runs:
        order = list(range(len(examples)))
        random.Random(run.seed).shuffle(order)
        orders.append(order)
    total = math.ceil(len(examples) / SEQUENCES)
    peaks = torch.tensor([[run.rate] for run in runs], device=device)
    for step in range(min(total, options.steps or total)):
        part = slice(step * SEQUENCES, (step + 1) * SEQUENCES)
        batch = collate([[examples[at] for at in order[part]] for order in orders], device)
        of_run = torch.zeros(len(runs), device=device)
        losses = base.losses(batch, factors.by_layer)
        counts = torch.bincount(batch[3], minlength=len(runs))
        of_run.index_add(0, batch[3], losses).div(counts).sum().backward()
        # As burnish and transformers: 0 at the first step of the warm-up, then down in a straight line.
        left = 1 - (step - WARM_UP_STEPS) / max(total - WARM_UP_STEPS, 1)
        factors.step(peaks * (step / WARM_UP_STEPS if step < WARM_UP_STEPS else left))
    found = evaluate(base, valid, len(runs), factors.by_layer, device).cpu()
    print(f"{len(runs)} runs, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return found, factors.parameters


def by_example(results, dataset):
    """The difference from q and v at the tuning seed with its 95% interval over the validation examples."""
    print("\n| comparison | targets | rank | rate | loss | less q, v, 95% over examples |\n|" + "---|" * 6)
    for name, adapters in comparison.COMPARISONS.items():
        reference = None
        for adapter in adapters:
            rate, _ = comparison.chosen_rate(dataset, adapter, results)
            if rate is None:
                continue
            run = results[dataset, adapter, rate, comparison.TUNING_SEED]
            reference, less = reference or run, ""
            if run is not reference:
                total = sum(run.tokens)
                summed = [a - b for a, b in zip(run.losses, reference.losses, strict=True)]
                mean = sum(summed) / total
                # Of a ratio of sums: what each example adds to it beyond its share of the tokens.
                rest = [difference - mean * tokens for difference, tokens in zip(summed, run.tokens)]
                half = 1.984 * math.sqrt(len(rest) / (len(rest) - 1) * sum(value * value for value in rest)) / total
                less = f"{mean:+.4f} ± {half:.4f}"
            print(f"| {name} | {adapter[0]} | {adapter[1]} | {rate:g} | {run.loss:.4f} | {less} |")


def as_result(line):
    """A line of RESULTS as benches/targets.py reads its own."""
    line = dict(line)
    key = line["dataset"], (line["targets"], line["rank"]), line["rate"], line["seed"]
    loss = line["loss"] if math.isfinite(line["loss"]) else math.inf
    more = {"valid_tokens": sum(line["tokens"]), "tokens_per_second": None, "train": line.get("train", {"examples": "?", "tokens": "?"})}
    return key, SimpleNamespace(**{**line, "loss": loss, **more})


def print_tables(results, seeds):
    comparison.report(results, seeds)
    for dataset in dict.fromkeys(key[0] for key in results):
        by_example(results, dataset)


def main():
    options = arguments()
    if options.report:
        with options.out.open(encoding="utf-8") as file:
            results = dict(as_result(json.loads(line)) for line in file)
        return print_tables(results, list(range(1, options.seeds + 1)))
    base, tokenizer = Base(options.model, options.device), AutoTokenizer.from_pretrained(options.model)
    results, seeds = {}, list(range(1, options.seeds + 1))
    for dataset in options.datasets.split(","):
        examples, valid = read(dataset, options, tokenizer)
        tokens = [end - start for _, start, end in valid]
        before = evaluate(base, valid, 1, None, options.device)[0].sum().item() / sum(tokens)
        print(f"{dataset}: {before:.4f} before", file=sys.stderr, flush=True)

        def go(runs):
            found, parameters = train(base, examples, valid, runs, options)
            with options.out.open("a") as file:
                for run, losses, count in zip(runs, found, parameters):
                    result = {"dataset": dataset, **vars(run), "loss": losses.sum().item() / sum(tokens), "before": before}
                    result |= {"parameters": count, "tokens": tokens, "losses": [round(loss, 4) for loss in losses.tolist()]}
                    result["train"] = {"examples": len(examples), "tokens": sum(len(ids) for ids, _, _ in examples)}
                    file.write(json.dumps(result) + "\n")
                    key, value = as_result(result)
                    results[key] = value

        run = lambda adapter, rate, seed: SimpleNamespace(targets=adapter[0], rank=adapter[1], rate=rate, seed=seed)
        rates = [float(rate) for rate in options.rates.split(",")] if options.rates else comparison.RATES
        go([run(adapter, rate, comparison.TUNING_SEED) for adapter in comparison.ADAPTERS for rate in rates])
        best = {adapter: comparison.chosen_rate(dataset, adapter, results)[0] for adapter in comparison.ADAPTERS}
        go([run(adapter, best[adapter], seed) for adapter in comparison.ADAPTERS for seed in seeds])
    print_tables(results, seeds)


if __name__ == "__main__":
    main()
