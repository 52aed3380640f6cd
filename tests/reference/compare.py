"""Checks burnish on a real model against transformers, PEFT and bitsandbytes, in f32 on the CPU.

    python tests/reference/compare.py decode        --gguf FILE --out DIR [--dtype bf16]
    python tests/reference/compare.py ids           --gguf FILE --data F... --out IDS.jsonl   token ids of every text field
    python tests/reference/compare.py make-logits   --model DIR --text FILE --out DUMP [--tokens 256] [--adapter DIR]
    python tests/reference/compare.py logits        --model DIR --dump DUMP [--adapter DIR]   against a dump of burnish:
                                                    cargo run --release --example logits -- BASE TEXT DUMP [ADAPTER]
    python tests/reference/compare.py adapter       --model DIR --adapter DIR                 strict reading by PEFT
    python tests/reference/compare.py make-adapter  --model DIR --out DIR --dump DUMP         a random PEFT adapter, its logits
    python tests/reference/compare.py merged        --model DIR --adapter DIR --merged DIR    merged against base + adapter
    python tests/reference/compare.py loss          --model DIR --data F.jsonl [--adapter DIR] [--nf4 | --nf4-double]
    python tests/reference/compare.py exact-match   --model DIR --data F.jsonl [--adapter DIR]
    python tests/reference/compare.py nf4           --model DIR --out FILE                    codes and scales by bitsandbytes

DIR of a model is a Hugging Face folder (`decode` makes one from a GGUF). A DUMP is a safetensors file with `ids` int64
[tokens] and `logits` f32 [tokens, vocab]. Every command prints one JSON object and ends with 1 where a check fails.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, logging

logging.set_verbosity_error()
logging.disable_progress_bar()
SEVEN = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"


def open_model(folder, adapter=None, quantization=None):
    """The folder in f32, its every tensor accounted for; with an adapter, read strictly."""
    more = {"quantization_config": quantization} if quantization else {}
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **more
    )
    if report["missing_keys"] or report["unexpected_keys"]:
        sys.exit(f"{folder}: missing {report['missing_keys']}, unexpected {report['unexpected_keys']}")
    for module in model.modules():
        # On processors with AVX512-BF16 bitsandbytes would repack the weights for a kernel that rounds the scales to bf16
        # (logits of SmolLM2 move by 0.5); without it the weights are decoded in f32.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        # A checkpoint that is packed already asks for its own types; compared is f32.
        if hasattr(module, "compute_dtype"):
            module.compute_dtype, module.compute_type_is_set = torch.float32, True
            module.weight.quant_state.dtype = torch.float32
    # transformers leaves the floats of a packed checkpoint in 16 bits, whatever it is asked for.
    for parameter in model.parameters():
        if parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
    if adapter:
        model = open_adapter(model, adapter)[0]
    return model.eval()


def open_adapter(model, folder):
    """PEFT over the model, and which keys of the file PEFT does not know or does not find."""
    from peft import PeftConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict
    from peft.utils import get_peft_model_state_dict

    config = PeftConfig.from_pretrained(folder)
    config.inference_mode = False
    tokens = config.trainable_token_indices or []
    tokens = [token for ids in tokens.values() for token in ids] if isinstance(tokens, dict) else tokens
    if max(tokens, default=-1) >= model.config.vocab_size:
        # New tokens: the base has no rows for them.
        model.resize_token_embeddings(max(tokens) + 1)
    model = get_peft_model(model, config)
    stored = load_peft_weights(folder, device="cpu")
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    missing, unexpected = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    shapes = {
        key: [list(stored[key].shape), list(wanted[key].shape)]
        for key in wanted.keys() & stored.keys()
        if stored[key].shape != wanted[key].shape
    }
    result = set_peft_model_state_dict(model, stored)
    unexpected += [key for key in result.unexpected_keys if key not in unexpected]
    return model, {"tensors": len(stored), "missing": missing, "unexpected": unexpected, "other_shape": shapes}


@torch.no_grad()
def logits_of(model, ids):
    return model(ids.view(1, -1), use_cache=False).logits[0].float().contiguous()


def difference(ours, theirs):
    """What a table of the issue asks for, and what shows whether a difference matters."""
    gap = (ours - theirs).abs()
    log_ours, log_theirs = torch.log_softmax(ours.double(), -1), torch.log_softmax(theirs.double(), -1)
    return {
        "tokens": ours.shape[0],
        "max_difference": gap.max().item(),
        "mean_difference": gap.mean().item(),
        "kl_divergence": (log_theirs.exp() * (log_theirs - log_ours)).sum(-1).mean().item(),
        "same_top_token": (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item(),
    }


def sequences(path, tokenizer):
    """(ids, prompt length): prompt and completion encoded apart and joined, the end token after them."""
    for line in Path(path).open(encoding="utf-8"):
        row = json.loads(line)
        prompt = tokenizer(row["prompt"], add_special_tokens=False).input_ids
        completion = tokenizer(row["completion"], add_special_tokens=False).input_ids
        yield prompt + completion + [tokenizer.eos_token_id], len(prompt), row["completion"]


def decode(options):
    """The decoded weights under plain names, without transformers' mark of a quantised model, and the tokenizer."""
    path = Path(options.gguf)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    settings = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    model = AutoModelForCausalLM.from_config(type(read.config).from_dict(settings), dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.to(dtype).save_pretrained(options.out)
    open_tokenizer(path).save_pretrained(options.out)
    return {"out": options.out, "parameters": sum(parameter.numel() for parameter in model.parameters())}


def open_tokenizer(path):
    """transformers' tokenizer of a GGUF, with the one thing put right that it leaves out.

    transformers 5.23 knows no pre-tokenizer `smollm` and falls back to GPT-2's, which cuts white space before a digit
    otherwise than the model's own tokenizer and llama.cpp do ("\\n\\n1").
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    pre = GGUFReader(path).get_field("tokenizer.ggml.pre")
    if pre is not None and pre.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    return tokenizer


def token_ids(options):
    tokenizer = open_tokenizer(Path(options.gguf))
    texts = tokens = 0
    with open(options.out, "w") as out:
        for data in options.data:
            for number, line in enumerate(Path(data).open(encoding="utf-8"), start=1):
                for field, text in json.loads(line).items():
                    if isinstance(text, str):
                        ids = tokenizer(text, add_special_tokens=False).input_ids
                        out.write(json.dumps({"file": data, "line": number, "field": field, "ids": ids}) + "\n")
                        texts, tokens = texts + 1, tokens + len(ids)
    return {"texts": texts, "tokens": tokens}


def make_logits(options):
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    ids = torch.tensor(tokenizer(Path(options.text).read_text(), add_special_tokens=False).input_ids[: options.tokens])
    logits = logits_of(open_model(options.model, options.adapter), ids)
    save_file({"ids": ids, "logits": logits}, options.out)
    return {"tokens": len(ids), "spread": logits.std().item()}


def compare_logits(options):
    dump = load_file(options.dump)
    result = difference(dump["logits"], logits_of(open_model(options.model, options.adapter), dump["ids"].long()))
    return {**result, "passed": result["max_difference"] <= options.tolerance}


def check_adapter(options):
    _, report = open_adapter(open_model(options.model), options.adapter)
    return {**report, "passed": not (report["missing"] or report["unexpected"] or report["other_shape"])}


def make_adapter(options):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(options.seed)
    ids = load_file(options.dump)["ids"].long()
    model = open_model(options.model)
    before = logits_of(model, ids)
    config = LoraConfig(
        r=options.rank, lora_alpha=options.alpha, target_modules=options.targets.split(","), task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, config).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(options.out, save_embedding_layers=False)
    logits = logits_of(model, ids)
    save_file({"ids": ids, "logits": logits}, Path(options.out) / "peft_logits.safetensors")
    return {"out": options.out, "changes_logits_by": (logits - before).abs().max().item()}


def compare_merged(options):
    dump = load_file(options.dump)
    ids = dump["ids"].long()
    result = difference(
        logits_of(open_model(options.merged), ids), logits_of(open_model(options.model, options.adapter), ids)
    )
    return {**result, "passed": result["max_difference"] <= options.tolerance}


@torch.no_grad()
def loss(options):
    quantization = None
    if options.nf4 or options.nf4_double:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=options.nf4_double,
            bnb_4bit_compute_dtype=torch.float32,
        )
    model = open_model(options.model, options.adapter, quantization)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    total, tokens, examples = 0.0, 0, 0
    for ids, prompt, _ in sequences(options.data, tokenizer):
        ids = torch.tensor(ids)
        predicted = logits_of(model, ids)[prompt - 1 : -1].double()
        total += cross_entropy(predicted, ids[prompt:], reduction="sum").item()
        tokens, examples = tokens + len(ids) - prompt, examples + 1
    result = {"loss": total / tokens, "tokens": tokens, "examples": examples}
    if options.expected is not None:
        result["passed"] = abs(result["loss"] - options.expected) <= options.tolerance
    return result


@torch.no_grad()
def exact_match(options):
    model = open_model(options.model, options.adapter)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    same = examples = 0
    answers = []
    for ids, prompt, completion in sequences(options.data, tokenizer):
        out = model.generate(
            torch.tensor([ids[:prompt]]),
            attention_mask=torch.ones((1, prompt), dtype=torch.long),
            max_new_tokens=options.max_tokens,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )[0, prompt:].tolist()
        ended = out[-1] == tokenizer.eos_token_id
        answer = tokenizer.decode(out[:-1] if ended else out, skip_special_tokens=False)
        same, examples = same + (answer == completion), examples + 1
        answers.append(answer)
    if options.out:
        Path(options.out).write_text("".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers))
    return {"exact_match": same / examples, "examples": examples}


def nf4(options):
    """For every matrix of the layers: `NAME.codes` u8 [n/2], `NAME.absmax` f32 [n/64], as bitsandbytes packs it."""
    import bitsandbytes

    tensors = {}
    for name, parameter in open_model(options.model).state_dict().items():
        if name.endswith("_proj.weight"):
            codes, state = bitsandbytes.functional.quantize_4bit(parameter, blocksize=64, quant_type="nf4")
            tensors[name + ".codes"], tensors[name + ".absmax"] = codes.flatten().contiguous(), state.absmax.contiguous()
    save_file(tensors, options.out)
    return {"matrices": len(tensors) // 2}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    def command(name, run, *needed, **optional):
        added = commands.add_parser(name)
        added.set_defaults(run=run)
        for option in needed:
            added.add_argument(f"--{option}", required=True, **({"nargs": "+"} if (name, option) == ("ids", "data") else {}))
        for option, default in optional.items():
            switch = "--" + option.replace("_", "-")
            if isinstance(default, bool):
                added.add_argument(switch, action="store_true")
            else:
                added.add_argument(switch, default=default, type=type(default) if default is not None else None)
        return added

    command("decode", decode, "gguf", "out", dtype="f32")
    command("ids", token_ids, "gguf", "data", "out")
    command("make-logits", make_logits, "model", "text", "out", adapter=None, tokens=256)
    command("logits", compare_logits, "model", "dump", adapter=None, tolerance=1e-3)
    command("adapter", check_adapter, "model", "adapter")
    command("make-adapter", make_adapter, "model", "out", "dump", targets=SEVEN, rank=8, alpha=16, seed=0)
    command("merged", compare_merged, "model", "adapter", "merged", "dump", tolerance=1e-3)
    added = command("loss", loss, "model", "data", adapter=None, nf4=False, nf4_double=False, tolerance=1e-3)
    added.add_argument("--expected", type=float)
    command("exact-match", exact_match, "model", "data", adapter=None, max_tokens=128, out=None)
    command("nf4", nf4, "model", "out")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main():
    options = arguments()
    torch.set_num_threads(options.threads)
    result = options.run(options)
    print(json.dumps(result))
    sys.exit(0 if result.get("passed", True) else 1)


if __name__ == "__main__":
    main()
