"""Runs what `burnish export` writes in llama.cpp, for every family of tests/fixtures/families and a Llama of fixtures/models.

For each tiny model, with PEFT's adapter folded in where it has one: the file in f32 and in f16; then the base's own file with
the adapter as GGUF-LoRA. llama.cpp must say the same 64 tokens as transformers with PEFT, prompt for prompt (keys and
values in f32), and gguf-py must read every key and every tensor. A model that burnish refuses to export is named.

    pip install -r tests/reference/requirements.txt
    python tests/reference/check_exports.py target/release/burnish [NAME...]
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import torch
import xllamacpp
from peft import PeftModel
from safetensors.torch import load_file

import make_families
import make_gguf
import tiny

PROMPTS, LENGTH, ANSWER = 20, 12, 64
# Two tokens whose log probabilities are nearer than this may change places by the rounding of activations to f16.
NEAR = {"f32": 1e-4, "f16": 0.02, "bf16": 0.3}


class LlamaCpp(make_gguf.LlamaCpp):
    """llama.cpp's server with keys and values in f32, perhaps with an adapter."""

    def __init__(self, path, adapter=None):
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx = 128
        parameters.cpuparams.n_threads = 1
        parameters.warmup = False
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        if adapter:
            lora = xllamacpp.CommonAdapterLoraInfo()
            lora.path, lora.scale = str(adapter), 1.0
            parameters.lora_adapters = [lora]
        self.server = xllamacpp.Server(parameters)

    def answer(self, ids, count):
        options = dict(n_predict=count, temperature=0.0, cache_prompt=False, return_tokens=True, ignore_eos=False)
        # No token ends the answer: what is compared is the model.
        bias = [[token, False] for token in self.ends]
        return self.ask("/completion", prompt=ids, logit_bias=bias, **options)["tokens"]


@torch.no_grad()
def continuation(model, ids, ends, count):
    """The likeliest next tokens but those of `ends`, and the lead of each over the second."""
    ids, leads = list(ids), []
    for _ in range(count):
        # The whole text each time: LongRoPE changes all rotations with the length.
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1].double()
        logits[list(ends)] = -torch.inf
        best = torch.log_softmax(logits, -1).topk(2)
        leads.append((best.values[0] - best.values[1]).item())
        ids.append(best.indices[0].item())
    return ids[-count:], leads


def add_tokenizer(folder, size):
    """Letters and pairs of them, in SentencePiece's form."""
    words = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", *"abcdefghijklmnopqrstuvwxyz"][:size]
    letters = "abcdefghijklmnopqrstuvwxyz"[: size - len(words)]
    words += [f"▁{letter}" for letter in letters]
    special = [dict(id=id, content=words[id], special=True, single_word=False, lstrip=False, rstrip=False, normalized=False)
               for id in range(3)]  # fmt: skip
    tokenizer = dict(
        version="1.0", truncation=None, padding=None, added_tokens=special, pre_tokenizer=None, post_processor=None,
        normalizer=dict(type="Sequence", normalizers=[
            dict(type="Prepend", prepend="▁"), dict(type="Replace", pattern=dict(String=" "), content="▁")]),
        decoder=dict(type="Sequence", decoders=[
            dict(type="Replace", pattern=dict(String="▁"), content=" "), dict(type="ByteFallback"), dict(type="Fuse")]),
        model=dict(type="BPE", dropout=None, unk_token="<unk>", fuse_unk=True, byte_fallback=True,
                   continuing_subword_prefix=None, end_of_word_suffix=None, ignore_merges=False,
                   vocab={word: id for id, word in enumerate(words)}, merges=[["▁", letter] for letter in letters]),
    )  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")))


def burnish(program, *arguments):
    result = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    return result.stderr.strip() if result.returncode else None


def read_all(path):
    """Every key and tensor by gguf-py."""
    reader = gguf.GGUFReader(path)
    for field in reader.fields.values():
        field.contents()
    for tensor in reader.tensors:
        gguf.dequantize(tensor.data, tensor.tensor_type)
    return len(reader.fields), len(reader.tensors)


def compare(name, kind, path, model, prompts, near, adapter=None):
    llama_cpp = LlamaCpp(path, adapter)
    config = model.config.get_text_config()
    if config.model_type == "gpt_neox":
        # llama.cpp looks GELU up in a table of f16, by its tanh form.
        near = max(near, NEAR["f16"])
    eos = config.eos_token_id
    llama_cpp.ends = {2, *(eos if isinstance(eos, list) else [eos])}
    # llama.cpp passes over the window of this architecture: prompt and answer stay within it.
    window = config.sliding_window if config.model_type == "phi3" else None
    count = min(ANSWER, window - LENGTH) if window else ANSWER
    same = close = 0
    for ids in prompts:
        expected, leads = continuation(model, ids, llama_cpp.ends, count)
        found = llama_cpp.answer(ids, count)
        same += found == expected
        if found != expected:
            first = next(index for index, pair in enumerate(zip(found, expected)) if pair[0] != pair[1])
            assert leads[first] < near, f"{name} {kind}: token {first} is {found[first]}, expected {expected[first]}, whose lead is {leads[first]}"
            close += 1
    print(f"{name} {kind}: {same} of {len(prompts)} prompts go on with the same {count} tokens, {close} part at a tie")


def rounded(model, dtype):
    """The model with its matrices rounded as in the file."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.to(dtype).float()
    return model


def check(program, fixture, adapter):
    name = fixture.name
    with tempfile.TemporaryDirectory() as temporary:
        folder, out = Path(temporary) / "base", Path(temporary) / "m.gguf"
        shutil.copytree(fixture, folder)
        plain = make_families.open_model(fixture)
        vocabulary = plain.config.get_text_config().vocab_size
        add_tokenizer(folder, vocabulary)
        ids = load_file(fixture / "expected.safetensors")["ids"].tolist()
        # LongRoPE changes with the length in transformers, with the size of the context in llama.cpp: longer than the first.
        is_long = (getattr(plain.config, "rope_parameters", None) or {}).get("rope_type") == "longrope"
        length = LENGTH + 8 if is_long else LENGTH
        step = max(1, (len(ids) - length) // PROMPTS)
        prompts = [ids[start : start + length] for start in range(0, len(ids) - length, step)]
        prompts = prompts[:PROMPTS]
        model = ["--base", folder, *(["--adapter", adapter] if adapter else [])]
        for kind, dtype in [("f32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)]:
            out.unlink(missing_ok=True)
            problem = burnish(program, "export", *model, "--format", "gguf", "--type", kind, "--out", out)
            if problem:
                print(f"{name}: refused: {problem.splitlines()[0]}")
                return
            read_all(out)
            merged = make_families.open_model(fixture)
            if adapter:
                merged = PeftModel.from_pretrained(merged, adapter).merge_and_unload()
            compare(name, kind, out, rounded(merged, dtype).eval(), prompts, NEAR[kind])
        if not adapter:
            return
        base, lora = Path(temporary) / "base.gguf", Path(temporary) / "lora.gguf"
        problem = burnish(program, "export", "--base", folder, "--format", "gguf", "--type", "f32", "--out", base)
        assert not problem, problem
        problem = burnish(program, "export", *model, "--format", "gguf-lora", "--out", lora)
        if problem:
            print(f"{name}: GGUF-LoRA refused: {problem.splitlines()[0]}")
            return
        read_all(lora)
        compare(name, "GGUF-LoRA", base, PeftModel.from_pretrained(plain, adapter).eval(), prompts, NEAR["f32"], lora)


def main():
    # The models are tiny: threads only wait for each other.
    torch.set_num_threads(1)
    program, names = Path(sys.argv[1]).resolve(), sys.argv[2:]
    models = [(path, path / "adapter") for path in sorted(make_families.FOLDER.iterdir()) if path.is_dir()]
    models += [(tiny.FIXTURES / "models" / name, None) for name in ("llama_rope_llama3", "llama_bias", "qwen2")]
    models += [(tiny.FIXTURES / "models/llama_gqa", tiny.FIXTURES / "adapters" / name) for name in ("seven", "rslora", "patterns")]
    for fixture, adapter in models:
        if not names or fixture.name in names:
            check(program, fixture, adapter)


if __name__ == "__main__":
    main()
