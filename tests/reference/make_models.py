"""Makes tests/fixtures/models/*: tiny random LLaMA-family checkpoints with transformers' logits.

Each folder is a Hugging Face checkpoint (config.json, safetensors) plus `expected.safetensors`:
`ids` int64 [tokens] and `logits` f32 [tokens, vocab], computed by transformers in f32 from the stored weights.

    pip install -r tests/reference/requirements.txt
    python tests/reference/make_models.py [NAME…]
"""

import sys

import torch

import tiny

BASE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "max_position_embeddings": 128,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}


def llama(**changes):
    return {**BASE, **changes}


def mistral(**changes):
    config = {**BASE, "model_type": "mistral", "architectures": ["MistralForCausalLM"], **changes}
    del config["attention_bias"], config["mlp_bias"]
    return config


def qwen2(**changes):
    config = {**BASE, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], **changes}
    del config["attention_bias"], config["mlp_bias"]
    return config


# name -> (config, tokens, shards)
MODELS = {
    "llama_mha": (llama(), 24, None),
    "llama_gqa": (llama(num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=500000.0), 24, None),
    # One key/value head, tied head, several end tokens.
    "llama_tied": (llama(num_key_value_heads=1, tie_word_embeddings=True, eos_token_id=[2, 5]), 24, None),
    "llama_bias": (llama(num_key_value_heads=2, attention_bias=True, mlp_bias=True), 24, None),
    # heads * head_dim = 64, twice the hidden size.
    "llama_head_dim": (llama(head_dim=16, num_key_value_heads=2), 24, None),
    # head_dim 16: of the eight wavelengths some are kept, some smoothed, some divided by 8.
    "llama_rope_llama3": (
        llama(
            num_attention_heads=2,
            num_key_value_heads=1,
            rope_scaling={
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            tie_word_embeddings=True,
        ),
        48,
        None,
    ),
    # The key as older configurations spell it.
    "llama_rope_linear": (llama(rope_scaling={"type": "linear", "factor": 4.0}), 32, None),
    # transformers 5 writes `rope_parameters` and `dtype` instead of `rope_theta`, `rope_scaling` and `torch_dtype`.
    "llama_rope_parameters": (
        {
            **{key: value for key, value in BASE.items() if key not in ("rope_theta", "rope_scaling", "torch_dtype")},
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 50000.0},
            "dtype": "float32",
        },
        32,
        None,
    ),
    # Nothing is a multiple of a vector: 5 heads of 10 over a hidden size of 40, 23 tokens, a vocabulary of 131.
    "llama_odd": (
        llama(
            vocab_size=131,
            hidden_size=40,
            intermediate_size=72,
            num_hidden_layers=3,
            num_attention_heads=5,
            num_key_value_heads=1,
            head_dim=10,
        ),
        23,
        None,
    ),
    "llama_bf16": (llama(num_key_value_heads=2, torch_dtype="bfloat16"), 24, None),
    "llama_f16": (llama(num_key_value_heads=2, torch_dtype="float16"), 24, None),
    "llama_sharded": (llama(num_key_value_heads=2), 24, 3),
    # A query sees 7 positions, itself included; without the window the logits differ.
    "mistral_window": (mistral(num_key_value_heads=2, sliding_window=7), 24, None),
    "mistral_no_window": (mistral(num_key_value_heads=2, sliding_window=None, head_dim=8), 24, None),
    # `sliding_window` is given, and off.
    "qwen2": (
        qwen2(num_key_value_heads=2, sliding_window=5, use_sliding_window=False, max_window_layers=2, rms_norm_eps=1e-6),
        24,
        None,
    ),
    "qwen2_tied": (qwen2(num_key_value_heads=1, tie_word_embeddings=True), 24, None),
    # The second layer alone has the window. transformers 5 reads such a Mistral as "ministral".
    "mistral_layer_types": (
        mistral(head_dim=8, sliding_window=5, layer_types=["full_attention", "sliding_attention"]),
        24,
        None,
    ),
    "qwen2_max_window_layers": (qwen2(sliding_window=5, use_sliding_window=True, max_window_layers=1), 24, None),
    # What transformers sees through (see STORED_NAMES).
    "llama_bare_names": (llama(tie_word_embeddings=True, architectures=["LlamaModel"]), 24, None),
    "llama_head_for_both": (llama(tie_word_embeddings=True), 24, None),
    "llama_own_head": (llama(tie_word_embeddings=True), 24, None),
}

# How a checkpoint's names differ from those of `tiny.weight_shapes`.
STORED_NAMES = {
    # The decoder saved without its head.
    "llama_bare_names": lambda weights: {name.removeprefix("model."): weight for name, weight in weights.items()},
    # Of two names for one matrix a writer may keep the other.
    "llama_head_for_both": lambda weights: {
        name.replace("model.embed_tokens", "lm_head"): weight for name, weight in weights.items()
    },
    # A head that differs from the embedding, against `tie_word_embeddings`: transformers 5 takes it, 4 did not.
    "llama_own_head": lambda weights: {**weights, "lm_head.weight": weights["model.embed_tokens.weight"].flip(0).clone()},
}

STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main():
    only = sys.argv[1:]
    for seed, (name, (config, tokens, shards)) in enumerate(MODELS.items(), start=1):
        stored = STORED[config.get("torch_dtype", config.get("dtype"))]
        weights = {key: value.to(stored) for key, value in tiny.random_weights(config, seed).items()}
        weights = STORED_NAMES.get(name, dict)(weights)
        if only and name not in only:
            continue
        folder = tiny.FIXTURES / "models" / name
        tiny.write_checkpoint(folder, config, weights, shards)
        ids = tiny.random_ids(config, tokens, 1000 + seed)
        tiny.write_expected(folder / "expected.safetensors", ids, tiny.logits_of(tiny.open_model(folder), ids))


if __name__ == "__main__":
    main()
