"""Makes tests/fixtures/blocks/*: packed weights and what gguf-py and bitsandbytes decode them to.

`gguf.safetensors`: for every block type `NAME.blocks` (bytes) and `NAME.values` (f32, gguf-py's decoding). Random
blocks, with scales that cover normal and subnormal numbers of both signs.
`nf4.safetensors`, `int8.safetensors`: values, and the codes, scales and decoded values of bitsandbytes on the CPU.
`tiny.gguf`: models/llama_gqa written as GGUF by gguf-py the way llama.cpp's converter does it (q and k permuted), its
projections as Q8_0; `tiny_values.safetensors` holds what must come out, under Hugging Face's names.
`nf4_model/`, `nf4_double_model/`, `int8_model/`: a checkpoint that transformers and bitsandbytes quantised, with
`expected.safetensors`: every quantised weight as bitsandbytes decodes it.

    pip install -r tests/reference/requirements.txt
    python tests/reference/make_blocks.py
"""

import json
import pathlib
import shutil

import bitsandbytes.functional as bnb
import gguf
import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
OUT = FIXTURES / "blocks"
BLOCKS = 24

# Where the f16 scales lie in a block.
SCALES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}


def gguf_blocks():
    random = np.random.default_rng(1)
    tensors = {}
    for name, offsets in SCALES.items():
        kind = gguf.GGMLQuantizationType[name]
        _, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
        for offset in offsets:
            scales = (random.standard_normal(BLOCKS) * 10.0 ** random.integers(-7, 2, BLOCKS)).astype(np.float16)
            blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(BLOCKS, 2)
        tensors[f"{name}.blocks"] = blocks
        tensors[f"{name}.values"] = gguf.quants.dequantize(blocks, kind).reshape(-1)
    tensors["llama3.rope_freqs"] = llama3_factors()
    save_file(tensors, OUT / "gguf.safetensors")


def llama3_factors():
    """What llama.cpp's converter writes as rope_freqs.weight for Llama 3.1 8B (conversion/llama.py)."""
    base, width, factor, low, high, original = 500000.0, 128, 8.0, 1.0, 4.0, 8192
    factors = []
    for index in range(width // 2):
        wavelength = 2 * np.pi * base ** (2 * index / width)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


def decode_nf4(packed, state):
    """Decoded as one row: bitsandbytes 0.50.2 on the CPU takes blocks to begin anew with each row, which they do not
    (it decodes 64 x 96 to something else than it quantised)."""
    shape = state.shape
    state.shape = torch.Size([1, shape.numel()])
    return bnb.dequantize_4bit(packed, state).reshape(shape)


def nf4():
    tensors = {}
    torch.manual_seed(2)
    # One shape with many nested blocks, one of odd length, one with a block of zeros and values on thresholds.
    ties = torch.zeros(4, 64)
    ties[0] = torch.linspace(-1, 1, 64)
    ties[1, :16] = bnb.get_4bit_type("nf4", device="cpu")
    ties[1, 16:31] = (ties[1, :15] + ties[1, 1:16]) / 2
    ties[3, ::3] = 1e-30
    cases = {"wide": torch.randn(40, 704) * 0.05, "odd": torch.randn(3, 67), "ties": ties}
    for name, values in cases.items():
        packed, state = bnb.quantize_4bit(values, blocksize=64, quant_type="nf4")
        tensors[f"{name}.input"] = values
        tensors[f"{name}.packed"] = packed.flatten()
        tensors[f"{name}.absmax"] = state.absmax
        tensors[f"{name}.values"] = decode_nf4(packed, state)
    packed, state = bnb.quantize_4bit(cases["wide"], blocksize=64, quant_type="nf4", compress_statistics=True)
    tensors["double.codes"] = state.absmax
    tensors["double.nested_absmax"] = state.state2.absmax
    tensors["double.map"] = state.state2.code
    tensors["double.offset"] = state.offset.reshape(1)
    tensors["double.values"] = decode_nf4(packed, state)
    save_torch({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, OUT / "nf4.safetensors")


def int8():
    torch.manual_seed(3)
    values = torch.randn(7, 50)
    values[4] = 0
    codes, scales, _ = bnb.int8_vectorwise_quant(values.half())
    decoded = bnb.int8_vectorwise_dequant(codes, scales)
    save_torch(
        {"input": values.half().float(), "codes": codes, "absmax": scales, "values": decoded.float()},
        OUT / "int8.safetensors",
    )


def permute(rows, heads):
    """llama.cpp's converter on q and k: halves of a head become interleaved pairs."""
    split = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def tiny_gguf():
    source = FIXTURES / "models" / "llama_gqa"
    config = json.loads((source / "config.json").read_text())
    weights = load_file(source / "model.safetensors")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(OUT / "tiny.gguf", "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    expected = {}
    for name, values in sorted(weights.items()):
        values = values.astype(np.float32)
        stored = values
        if "q_proj" in name or "k_proj" in name:
            stored = permute(values, heads if "q_proj" in name else kv_heads)
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if "_proj" in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quants.quantize(stored, kind), raw_dtype=kind)
            # Blocks lie within rows, so quantising and permuting rows commute.
            expected[name] = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
        elif "embed" in name:
            writer.add_tensor(target, stored.astype(np.float16))
            expected[name] = values.astype(np.float16).astype(np.float32)
        else:
            writer.add_tensor(target, stored)
            expected[name] = values
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, OUT / "tiny_values.safetensors")


def quantised_models():
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(4)
    plain = OUT / "plain"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(plain)
    schemes = {
        "nf4_model": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "nf4_double_model": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        "int8_model": {"load_in_8bit": True},
    }
    for name, scheme in schemes.items():
        quantised = BitsAndBytesConfig(**scheme)
        model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=quantised, device_map="cpu")
        folder = OUT / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        expected = {}
        for path, module in model.named_modules():
            weight = getattr(module, "weight", None)
            if getattr(weight, "quant_state", None) is not None:
                state = weight.quant_state
                state.dtype = torch.float32
                expected[f"{path}.weight"] = decode_nf4(weight.data, state)
            elif weight is not None and weight.dtype == torch.int8:
                expected[f"{path}.weight"] = bnb.int8_vectorwise_dequant(weight.data, weight.SCB).float()
        save_torch({name: value.contiguous() for name, value in expected.items()}, folder / "expected.safetensors")
    shutil.rmtree(plain)


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    gguf_blocks()
    nf4()
    int8()
    tiny_gguf()
    quantised_models()
