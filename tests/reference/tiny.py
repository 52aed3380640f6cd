"""Shared by the fixture scripts here: seeded random LLaMA-family weights in the Hugging Face layout, and their logits.

Not run by itself. Everything is computed in f32 on the CPU with transformers' plain ("eager") attention.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, logging

logging.disable_progress_bar()

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


def head_dim(config):
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def weight_shapes(config):
    """Every tensor of the checkpoint: name -> shape, in the order a checkpoint lists them."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * head_dim(config)
    keys = config.get("num_key_value_heads", config["num_attention_heads"]) * head_dim(config)
    qkv_bias = config.get("attention_bias", config["model_type"] == "qwen2")
    o_bias, mlp_bias = config.get("attention_bias", False), config.get("mlp_bias", False)
    shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes[at + "input_layernorm.weight"] = (hidden,)
        for name, rows, columns, bias in [
            ("self_attn.q_proj", queries, hidden, qkv_bias),
            ("self_attn.k_proj", keys, hidden, qkv_bias),
            ("self_attn.v_proj", keys, hidden, qkv_bias),
            ("self_attn.o_proj", hidden, queries, o_bias),
            ("mlp.gate_proj", inner, hidden, mlp_bias),
            ("mlp.up_proj", inner, hidden, mlp_bias),
            ("mlp.down_proj", hidden, inner, mlp_bias),
        ]:
            shapes[at + name + ".weight"] = (rows, columns)
            if bias:
                shapes[at + name + ".bias"] = (rows,)
        shapes[at + "post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def random_weights(config, seed):
    """Weights of a scale that gives logits of a few units, so that a wrong detail shows."""
    random = np.random.default_rng(seed)
    weights = {}
    for name, shape in weight_shapes(config).items():
        values = random.standard_normal(shape).astype(np.float32)
        if name.endswith(".bias"):
            values *= 0.3
        elif "norm" in name:
            values = 1.0 + 0.25 * values
        elif name == "model.embed_tokens.weight":
            values *= 0.4
        else:
            values *= 1.6 / np.sqrt(shape[-1])
        weights[name] = torch.from_numpy(values.astype(np.float32))
    return weights


def random_ids(config, count, seed):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, config["vocab_size"], count))


def open_model(folder):
    """The folder in f32, with plain attention. Fails if transformers misses a tensor or does not know one."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    return model.eval()


@torch.no_grad()
def logits_of(model, ids):
    """[tokens, vocab] in f32 of one sequence."""
    return model(ids.view(1, -1), use_cache=False).logits[0].float().contiguous()


def write_checkpoint(folder, config, weights, shards=None):
    """config.json and the weights: one file, or `shards` files with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.is_file():
            old.unlink()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if not shards:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(weights)
    files = {}
    for shard in range(shards):
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        files.update({name: file for name in part})
    total = sum(weight.numel() * weight.element_size() for weight in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_expected(path, ids, logits, **more):
    save_file({"ids": ids.to(torch.int64).contiguous(), "logits": logits.contiguous(), **more}, path)
    spread = logits.std().item()
    assert spread > 0.5, f"{path}: logits too small to show a mistake (standard deviation {spread})"
    print(f"{path.relative_to(FIXTURES)}: {logits.shape[0]} tokens, logits {spread:.2f} +- , max {logits.abs().max():.2f}")


