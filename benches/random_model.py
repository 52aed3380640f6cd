"""Writes a model of a known shape with random weights, shard by shard: for measuring memory and speed, not for use.

    python benches/random_model.py --shape llama-3.1-8b --tokenizer FOLDER --out DIR [--positions 32768]

FOLDER holds the tokenizer.json (and tokenizer_config.json) that is copied along; where its vocabulary is larger than the shape's,
the model has a row for each of its tokens. Weights are bf16, normal with a standard deviation of 0.02; what is added to the residual
stream is smaller by the root of twice the number of layers, as models are initialised. Needs numpy only; 8B takes 16 GB of disk.
"""

import argparse
import json
import shutil
import struct
from pathlib import Path

import numpy as np

SHAPES = {
    "llama-3.1-8b": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
        "rope_theta": 500000.0, "tie_word_embeddings": False,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "tinyllama-1.1b": {
        "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "rope_scaling": None,
    },
    "smollm2-135m": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
        "rope_theta": 100000.0, "tie_word_embeddings": True, "rope_scaling": None,
    },
}  # fmt: skip
SHARD_BYTES = 2 << 30


def tensors(shape):
    hidden, inner, vocabulary = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    kv = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(shape["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        yield prefix + "self_attn.q_proj.weight", (hidden, hidden)
        yield prefix + "self_attn.k_proj.weight", (kv, hidden)
        yield prefix + "self_attn.v_proj.weight", (kv, hidden)
        yield prefix + "self_attn.o_proj.weight", (hidden, hidden)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        yield prefix + "mlp.gate_proj.weight", (inner, hidden)
        yield prefix + "mlp.up_proj.weight", (inner, hidden)
        yield prefix + "mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    if not shape["tie_word_embeddings"]:
        yield "lm_head.weight", (vocabulary, hidden)


def shards(shape):
    """Tensors grouped into files of at most SHARD_BYTES."""
    groups, filled = [], SHARD_BYTES
    for name, size in tensors(shape):
        count = 2 * int(np.prod(size))
        if filled + count > SHARD_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append((name, size))
        filled += count
    return groups


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--positions", type=int, help="the longest sequence, if not that of the real model")
    options = parser.parse_args()
    tokenizer = json.loads((options.tokenizer / "tokenizer.json").read_text())
    last = max([*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])])
    shape = dict(SHAPES[options.shape])
    shape["vocab_size"] = max(shape["vocab_size"], last + 1)
    shape["max_position_embeddings"] = options.positions or shape["max_position_embeddings"]
    options.out.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (options.tokenizer / name).exists():
            shutil.copy(options.tokenizer / name, options.out)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16", **shape,
    }  # fmt: skip
    (options.out / "config.json").write_text(json.dumps(config, indent=2))
    # One stretch of random values, read from another place for every row: drawing 8 billion would take minutes.
    random = np.random.default_rng(0)
    normal = random.standard_normal((1 << 24) + (1 << 20), dtype=np.float32) * np.float32(0.02)
    added = normal / np.float32((2 * shape["num_hidden_layers"]) ** 0.5)
    normal, added = ((values.view(np.uint32) >> 16).astype(np.uint16) for values in (normal, added))
    one = np.array([0x3F80], dtype=np.uint16)
    groups, index = shards(shape), {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        header, offset = {}, 0
        for name, size in group:
            end = offset + 2 * int(np.prod(size))
            header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [offset, end]}
            offset, index[name] = end, file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (options.out / file).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for name, size in group:
                if len(size) == 1:
                    out.write(np.repeat(one, size[0]).tobytes())
                    continue
                values = added if name.endswith(("o_proj.weight", "down_proj.weight")) else normal
                left = int(np.prod(size))
                while left > 0:
                    start = int(random.integers(0, 1 << 20))
                    part = values[start : start + min(left, 1 << 24)]
                    out.write(part.tobytes())
                    left -= len(part)
        print(file, offset)
    (options.out / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": sum(2 * int(np.prod(size)) for _, size in tensors(shape))}, "weight_map": index})
    )


if __name__ == "__main__":
    main()
