"""Adapters that burnish trains, opened and merged by PEFT: no key missing or unexpected, the same logits, the same merged weights.

    cargo build --release --example logits --bin burnish && python tests/reference/check_adapters.py target/release [NAME...]

The bases are tiny random models of tests/fixtures/models, trained for five steps at a high rate, so that the update is seen.
Prints the largest differences for each kind of adapter, and ends with 1 where one is above its limit.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import compare
import tiny
from check_exports import add_tokenizer

ALL = 'adapter.targets="all-linear"'
# name -> (base, settings)
KINDS = {
    "lora": ("llama_gqa", [ALL]),
    "gaussian": ("qwen2", [ALL, "adapter.init=gaussian"]),
    "rslora": ("llama_bias", [ALL, "adapter.rslora=true"]),
    "dora": ("llama_gqa", [ALL, "adapter.dora=true"]),
    "dora_rslora": ("llama_bias", [ALL, "adapter.dora=true", "adapter.rslora=true"]),
    "pissa": ("llama_gqa", [ALL, "adapter.init=pissa"]),
    "pissa_rslora": ("llama_gqa", [ALL, "adapter.init=pissa", "adapter.rslora=true"]),
    "olora": ("llama_gqa", [ALL, "adapter.init=olora"]),
    "orthogonal": ("llama_gqa", [ALL, "adapter.init=orthogonal"]),
    "patterns": ("llama_gqa", [ALL, 'adapter.rank_pattern={"layers\\\\.0\\\\..*"=2}', "adapter.alpha_pattern={down_proj=3}"]),
    "layers": ("llama_gqa", ['adapter.targets=["q_proj","up_proj"]', "adapter.layers=[1]"]),
    "regex": ("llama_gqa", ['adapter.targets=".*self_attn\\\\.[qk]_proj"', 'adapter.exclude=["layers.0.self_attn.k_proj"]']),
    "head": ("llama_gqa", ['adapter.targets=["q_proj","lm_head"]']),
    "embedding": ("llama_gqa", ['adapter.targets=["q_proj","embed_tokens"]']),
    "whole": ("llama_gqa", ['adapter.targets=["v_proj"]', 'adapter.modules_to_save=["lm_head","embed_tokens"]']),
    "whole_norm": ("llama_gqa", ['adapter.targets=["v_proj"]', 'adapter.modules_to_save=["model.norm","down_proj"]']),
    "bias_lora_only": ("llama_bias", ['adapter.targets=["q_proj","down_proj"]', "adapter.bias=lora_only"]),
    "bias_all": ("llama_bias", ['adapter.targets=["q_proj"]', "adapter.bias=all"]),
    "known_tokens": ("llama_gqa", ['adapter.targets=["q_proj"]', 'adapter.new_tokens=["a","b"]']),
    "new_tokens": ("llama_gqa", ['adapter.targets=["q_proj"]', 'adapter.new_tokens=["<|tool|>"]']),
}
LOGITS, MERGED = 1e-3, 1e-4


def run(*arguments):
    result = subprocess.run([str(argument) for argument in arguments], capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(map(str, arguments))}\n{result.stderr}")


def largest(ours, theirs):
    """The largest difference as a share of the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def check(programs, name, base, settings):
    with tempfile.TemporaryDirectory() as temporary:
        temporary = Path(temporary)
        folder = temporary / "base"
        folder.mkdir()
        for file in (tiny.FIXTURES / "models" / base).iterdir():
            if file.name != "expected.safetensors":
                (folder / file.name).write_bytes(file.read_bytes())
        add_tokenizer(folder, json.loads((folder / "config.json").read_text())["vocab_size"])
        text = "a b c d e f g h a c e g b d f h " * 3
        data, sample = temporary / "data.jsonl", temporary / "sample.txt"
        data.write_text("".join(json.dumps({"text": text[start : start + 60]}) + "\n" for start in range(8)))
        sample.write_text(text)
        adapter, merged, dump = temporary / "run", temporary / "merged", temporary / "dump.safetensors"
        chosen = [f"base.model={folder}", "base.compute=f32", f"data.train={data}", "data.format=text", "adapter.rank=4",
                  "train.learning_rate=0.02", "train.max_steps=5", f"output.dir={adapter}", *settings]  # fmt: skip
        recipe = temporary / "recipe.toml"
        recipe.write_text("")
        run(programs / "burnish", "train", recipe, *[word for setting in chosen for word in ("--set", setting)])
        run(programs / "examples/logits", folder, sample, dump, adapter)
        run(programs / "burnish", "merge", "--base", folder, "--adapter", adapter, "--out", merged)

        plain = compare.open_model(folder)
        model, keys = compare.open_adapter(plain, adapter)
        ours = load_file(dump)
        theirs = model.eval()(ours["ids"][None]).logits[0].detach()
        theirs = theirs[:, : ours["logits"].shape[1]]
        by_logits = largest(ours["logits"], theirs)
        before = compare.open_model(folder)(ours["ids"][None]).logits[0].detach()
        moved = largest(before, theirs[:, : before.shape[1]])
        # What our merged folder computes in transformers, and its weights beside those that PEFT merges.
        own = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
        by_merge = largest(own(ours["ids"][None]).logits[0].detach()[:, : theirs.shape[1]], theirs)
        weights = model.merge_and_unload().state_dict()
        by_weight = max(largest(value, weights[key][: value.shape[0]]) for key, value in own.state_dict().items())
        is_right = not any(keys[what] for what in ("missing", "unexpected", "other_shape"))
        is_right = is_right and by_logits <= LOGITS and by_merge <= LOGITS and by_weight <= MERGED and moved > 10 * LOGITS
        print(f"{name:15} keys {keys['tensors']:3} logits {by_logits:.1e} merged folder {by_merge:.1e} weights {by_weight:.1e}"
              f" (the adapter moves logits by {moved:.2f})" + ("" if is_right else f"  WRONG {keys}"))  # fmt: skip
        return is_right


def main():
    torch.set_num_threads(1)
    programs, names = Path(sys.argv[1]).resolve(), sys.argv[2:]
    results = [check(programs, name, *kind) for name, kind in KINDS.items() if not names or name in names]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
