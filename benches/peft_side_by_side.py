"""Trains LoRA with PEFT + PyTorch and with burnish on the same model, data, batches and threads, and compares.

    pip install -r tests/reference/requirements.txt
    python benches/peft_side_by_side.py --model MODEL_FOLDER [--burnish target/release/burnish --base BASE]
        [--workloads qv,seven,1k,4k,wikisql] [--modes f32,bf16,...] [--rounds 5] [--threads 2,16] [--device cpu]

MODEL_FOLDER is the base as a Hugging Face folder (f32 or bf16 weights, with its tokenizer); BASE is what burnish calls
the same base (a name, folder or .gguf). Several binaries of burnish are compared if --burnish names several, as
`NAME=PATH,NAME=PATH`. Every measurement runs in a process of its own; the tools alternate, round after round. One JSON
object a measurement goes to stdout, a table of medians to stderr. On a processor with AMX the object has the state of AMX
after the measurement (benches/amx_state.py).

tokens_per_second counts all tokens that are no padding, prompts included, over the steps after the first two.
peak_bytes is the largest resident size of the whole process (`ru_maxrss`), interpreter and libraries included. With `--device
cuda` both tools run on the GPU; device_bytes is then the rise of its used memory as nvidia-smi gives it, contexts and caches
included.

Modes of PEFT:
    f32            weights and arithmetic in f32
    bf16           weights in bf16, autocast to bf16, adapters in f32: what the transformers Trainer does with bf16=True
    bf16-plain     weights in bf16, no autocast: PEFT then computes the adapters in f32
    bf16-recompute bf16 with gradient checkpointing
    bf16-compile   bf16 under torch.compile; the compiling (first two steps) is reported apart
    nf4            bitsandbytes NF4 weights, bf16 compute

Modes of burnish: f32, bf16, or a quantisation (nf4, nf4-double, int8, keep) with bf16 compute; each with -recompute.
"""

import argparse
import json
import os
import platform
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import amx_state
from runs import measured_by
from speed import DeviceMemory

QV = ["q_proj", "v_proj"]
SEVEN = QV + ["k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MODES = ["f32", "bf16", "bf16-plain", "bf16-recompute", "bf16-compile", "nf4"]
# name -> (sequences in a batch, tokens in a sequence, targets); wikisql's sequences are as long as they are.
WORKLOADS = {
    "qv": (4, 256, QV),
    "seven": (4, 256, SEVEN),
    "1k": (1, 1024, QV),
    "4k": (1, 4096, QV),
    "wikisql": (4, None, QV),
}
WARM_UP_STEPS = 2
RANK, ALPHA, LEARNING_RATE = 8, 16, 2e-4


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="base as a Hugging Face folder")
    parser.add_argument("--workloads", default="qv,seven,1k,4k,wikisql")
    parser.add_argument("--modes", default="f32,bf16,bf16-recompute,bf16-compile")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="measured steps of a made-up workload")
    parser.add_argument("--threads", default="2", help="numbers of threads, each a table of its own")
    parser.add_argument("--device", default="cpu", help="of both tools: cpu or cuda (for burnish also wgpu)")
    parser.add_argument("--wikisql", type=Path, help="folder of train.jsonl and valid.jsonl, for the workload wikisql")
    parser.add_argument("--wikisql-steps", type=int, default=250, help="250 is one epoch in batches of 4")
    parser.add_argument("--burnish", help="the burnish binary, or several with names; without it only PEFT is measured")
    parser.add_argument("--base", help="what burnish calls the base (default: MODEL)")
    parser.add_argument("--burnish-modes", default="f32,bf16,bf16-recompute")
    parser.add_argument("--child", nargs=3, metavar=("MODE", "WORKLOAD", "DATA"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.wikisql is None and options.child is None and "wikisql" in options.workloads.split(","):
        parser.error("the workload wikisql needs --wikisql FOLDER (or leave it out of --workloads)")
    # By name, in the order of the table.
    named = [text.split("=", 1) if "=" in text else ["burnish", text] for text in (options.burnish or "").split(",") if text]
    options.binaries = {name: Path(path) for name, path in named}
    if len(options.binaries) < len(named):
        parser.error("--burnish: several binaries need different names, as before=PATH,after=PATH")
    options.threads = [int(text) for text in options.threads.split(",")]
    return options


# --- the data: one file both tools read -------------------------------------------------------------------------------


def write_made_up(path, model, workload, steps):
    """Texts of words that are one token each: with the end token, exactly the tokens of the workload."""
    sequences, tokens, _ = WORKLOADS[workload]
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    words = sorted(token[1:] for token in vocabulary if re.fullmatch("Ġ[a-z]{1,8}", token))
    choice = random.Random(0)
    with path.open("w") as file:
        for _ in range(sequences * (WARM_UP_STEPS + steps)):
            text = "".join(" " + word for word in choice.choices(words, k=tokens - 1))
            file.write(json.dumps({"text": text}) + "\n")


def read_examples(path, tokenizer):
    """Token ids and how many of them, from the start, are not trained on."""
    examples = []
    for line in path.open(encoding="utf-8"):
        row = json.loads(line)
        prompt, completion = (row["prompt"], row["completion"]) if "prompt" in row else ("", row["text"])
        prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids if prompt else []
        ids = tokenizer(completion, add_special_tokens=False).input_ids
        examples.append((prompt_ids + ids + [tokenizer.eos_token_id], len(prompt_ids)))
    return examples


# --- PEFT, in a process of its own ------------------------------------------------------------------------------------


def collate(torch, examples, padding):
    """Padded to the longest of the batch, no loss on prompt and padding: how a PEFT user does it."""
    longest = max(len(ids) for ids, _ in examples)
    ids = torch.full((len(examples), longest), padding)
    mask = torch.zeros((len(examples), longest), dtype=torch.long)
    labels = torch.full((len(examples), longest), -100)
    for row, (tokens, prompt) in enumerate(examples):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
        labels[row, prompt : len(tokens)] = torch.tensor(tokens[prompt:])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def open_peft(torch, options, mode, targets):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    more = {}
    if mode == "nf4":
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    dtype = torch.float32 if mode == "f32" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype, **more)
    model.config.use_cache = False
    model = model if mode == "nf4" else model.to(options.device)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(model, config).train()
    if mode == "bf16-recompute":
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def validation_loss(torch, model, examples, padding, autocast):
    model.eval()
    total, tokens = 0.0, 0
    with torch.no_grad(), autocast():
        for example in examples:
            batch = collate(torch, [example], padding)
            trained = (batch["labels"][:, 1:] != -100).sum().item()
            batch = {name: part.to(model.device) for name, part in batch.items()}
            total += model(**batch).loss.item() * trained
            tokens += trained
    return total / tokens


def child(options):
    mode, workload, data = options.child
    started = time.time()
    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(options.threads[0])
    torch.manual_seed(0)
    sequences, _, targets = WORKLOADS[workload]
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    examples = read_examples(Path(data), tokenizer)
    model = open_peft(torch, options, mode, targets)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    order = list(range(len(examples)))
    if workload == "wikisql":
        random.Random(0).shuffle(order)
    batches = [[examples[at] for at in order[start : start + sequences]] for start in range(0, len(order), sequences)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(batches))
    forward = torch.compile(model) if mode == "bf16-compile" else model

    def autocast():
        return torch.autocast(options.device, torch.bfloat16, enabled=mode not in ("f32", "bf16-plain"))

    if workload == "wikisql":
        batches = batches[: options.wikisql_steps]
    loaded = time.time()
    seconds, processor_seconds, tokens, losses = [], [], [], []
    for examples_of_step in batches:
        begin, processor_begin = time.perf_counter(), time.process_time()
        batch = {name: part.to(options.device) for name, part in collate(torch, examples_of_step, padding).items()}
        with autocast():
            loss = forward(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if options.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
        processor_seconds.append(time.process_time() - processor_begin)
        tokens.append(sum(len(ids) for ids, _ in examples_of_step))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report = {
        "load_seconds": round(loaded - started, 2),
        "first_steps_seconds": round(sum(seconds[:WARM_UP_STEPS]), 2),
        "steps": len(seconds),
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }
    if workload == "wikisql":
        measured = slice(WARM_UP_STEPS, None)
        report["tokens_per_second"] = sum(tokens[measured]) / sum(seconds[measured])
        if len(batches) * sequences >= len(examples):
            valid = read_examples(options.wikisql / "valid.jsonl", tokenizer)
            report["valid_loss"] = validation_loss(torch, model, valid, padding, autocast)
    else:
        rates = [count / second for count, second in zip(tokens, seconds)]
        report["tokens_per_second"] = statistics.median(rates[WARM_UP_STEPS:])
    # Of all threads together: where the machine is not idle, twice this is nearer the truth than the clock.
    report["tokens_per_processor_second"] = sum(tokens[WARM_UP_STEPS:]) / sum(processor_seconds[WARM_UP_STEPS:])
    report["peak_bytes"] = peak
    print(json.dumps(report))


def measure_peft(options, mode, workload, data, threads):
    command = [sys.executable, __file__, "--model", str(options.model), "--threads", str(threads)]
    command += ["--wikisql-steps", str(options.wikisql_steps), "--device", options.device]
    if options.wikisql is not None:
        command += ["--wikisql", str(options.wikisql)]
    command += ["--child", mode, workload, str(data)]
    return measured_by(command, threads)


# --- burnish ----------------------------------------------------------------------------------------------------------

RECIPE = """
[base]
model = {base}
compute = "{compute}"
quant = "{quant}"

[data]
train = {data}
max_seq_tokens = 8192

[adapter]
rank = {rank}
alpha = {alpha}
dropout = 0.0
targets = {targets}

[train]
epochs = 1
micro_batch_seqs = {sequences}
learning_rate = {learning_rate}
schedule = "linear"
recompute = "{recompute}"
seed = 0

[output]
dir = {output}
"""


def measure_burnish(options, binary, mode, workload, data, threads, folder):
    """`burnish train RECIPE --json`; the figures come from the run folder's metrics.jsonl and timings.jsonl."""
    sequences, _, targets = WORKLOADS[workload]
    output = folder / f"burnish-{workload}-{mode}-{time.time_ns()}"
    recipe = folder / "recipe.toml"
    kind = mode.removesuffix("-recompute")
    recipe.write_text(
        RECIPE.format(
            base=json.dumps(options.base or str(options.model)),
            compute=kind if kind in ("f32", "bf16") else "bf16",
            quant="none" if kind in ("f32", "bf16") else kind,
            recompute="block" if mode.endswith("-recompute") else "none",
            data=json.dumps(str(data)),
            rank=RANK,
            alpha=ALPHA,
            targets=json.dumps(targets),
            sequences=sequences,
            learning_rate=LEARNING_RATE,
            output=json.dumps(str(output)),
        )
    )
    command = [str(binary), "train", str(recipe), "--json", "--threads", str(threads)]
    command += ["--device", options.device]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        return {"error": f"exit {done.returncode}: {done.stderr.strip()[-300:]}"}
    metrics = [json.loads(line) for line in (output / "metrics.jsonl").open()]
    losses = [line["loss"] for line in metrics if "loss" in line]
    steps = [json.loads(line) for line in (output / "timings.jsonl").open()]
    rates = [step["tokens_per_second"] for step in steps[WARM_UP_STEPS:]]
    return {
        "steps": len(steps),
        "last_loss": losses[-1],
        "tokens_per_second": statistics.median(rates),
        "peak_bytes": max(step["peak_bytes"] for step in steps),
    }


# --- rounds and table -------------------------------------------------------------------------------------------------


def main():
    options = arguments()
    if options.child:
        return child(options)
    modes, workloads = options.modes.split(","), options.workloads.split(",")
    unknown = [name for name in modes if name not in MODES] + [name for name in workloads if name not in WORKLOADS]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; modes are {', '.join(MODES)}; workloads {', '.join(WORKLOADS)}")
    results = {}
    with tempfile.TemporaryDirectory(prefix="side_by_side_") as folder:
        folder = Path(folder)
        for workload in workloads:
            if workload == "wikisql":
                data = options.wikisql / "train.jsonl"
            else:
                data = folder / f"{workload}.jsonl"
                write_made_up(data, options.model, workload, options.steps)
            contestants = [("peft", mode) for mode in modes]
            for mode in options.burnish_modes.split(","):
                contestants += [(name, mode) for name in options.binaries]
            for round_number in range(options.rounds):
                for threads in options.threads:
                    for tool, mode in contestants:
                        load = os.getloadavg()[0]
                        with DeviceMemory(options.device) as memory:
                            if tool == "peft":
                                result = measure_peft(options, mode, workload, data, threads)
                            else:
                                binary = options.binaries[tool]
                                result = measure_burnish(options, binary, mode, workload, data, threads, folder)
                        if memory.measures:
                            result["device_bytes"] = memory.rise() << 20
                        line = {"tool": tool, "mode": mode, "workload": workload, "threads": threads}
                        line |= {"round": round_number, **result, "load_before": round(load, 2), "amx": amx_state.state()}
                        print(json.dumps(line), flush=True)
                        if "error" not in result:
                            results.setdefault((threads, workload, tool, mode), []).append(result)
    report(results, options)


def processor():
    """The processor's name, as Linux gives it."""
    try:
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def report(results, options):
    def median(key, what):
        return statistics.median(result[what] for result in results[key])

    say = lambda text: print(text, file=sys.stderr)
    # The memory that counts is the GPU's where there is one.
    memory = "device_bytes" if options.device == "cuda" else "peak_bytes"
    say(f"\n{time.strftime('%Y-%m-%d')}, {processor()}, {os.cpu_count()} processors, {options.device}")
    say("| threads | workload | tool | mode | runs | tokens/s | lowest to highest | peak MiB | against PEFT: speed | memory |")
    say("|---|---|---|---|---|---|---|---|---|---|")
    for key in results:
        threads, workload, tool, mode = key
        speed, peak = median(key, "tokens_per_second"), median(key, memory)
        every = [result["tokens_per_second"] for result in results[key]]
        # PEFT in the same mode, or else in bf16.
        against = next((key for key in [(threads, workload, "peft", m) for m in (mode, "bf16")] if key in results), None)
        ratios = " | "
        if against is not None:
            ratios = f"{speed / median(against, 'tokens_per_second'):.2f} | {peak / median(against, memory):.2f}"
        say(
            f"| {threads} | {workload} | {tool} | {mode} | {len(every)} | {speed:.0f} | {min(every):.0f} to {max(every):.0f} "
            f"| {peak / 2**20:.0f} | {ratios} |"
        )


if __name__ == "__main__":
    main()
