"""Makes tests/fixtures/mlx/*: adapters as mlx-lm saves them, and the logits that it computes with them.

mlx/NAME/   `adapters.safetensors` and `adapter_config.json`, saved as `mlx_lm.lora` saves them, over a tiny base of
            tests/fixtures, and `expected.safetensors`: `ids` and mlx-lm's `logits` (f32).

    pip install 'mlx[cpu]' mlx-lm
    python tests/reference/make_mlx.py

`make_mlx.py --check BASE ADAPTER EXPECTED` loads the adapter folder ADAPTER, which `burnish export --format mlx` wrote, with mlx-lm's
own `load_adapters` over the base folder BASE, and compares the logits with those in EXPECTED.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import load_model, save_config
from safetensors.numpy import load_file, save_file

FIXTURES = Path(__file__).parent.parent / "fixtures"
TOKENS = 24

# name -> (base, number of layers, settings)
ADAPTERS = {
    # Without keys mlx-lm changes every linear layer.
    "llama": ("models/llama_gqa", 1, dict(rank=4, scale=3.0, dropout=0.0)),
    "llama_head": ("models/llama_gqa", 2, dict(rank=2, scale=1.5, dropout=0.1, keys=["self_attn.q_proj", "lm_head"])),
    "llama_dora": ("models/llama_gqa", 1, dict(rank=2, scale=2.5, dropout=0.0, keys=["self_attn.q_proj", "mlp.up_proj"])),
    "llama_embedding": (
        "models/llama_gqa",
        2,
        dict(rank=3, scale=2.0, dropout=0.0, keys=["self_attn.v_proj", "model.embed_tokens"]),
    ),
    "gpt_neox": (
        "families/gpt_neox_parallel",
        2,
        dict(rank=3, scale=2.0, dropout=0.0, keys=["attention.query_key_value", "mlp.dense_4h_to_h"]),
    ),
    "qwen3": ("families/qwen3_grouped", 2, dict(rank=2, scale=4.0, dropout=0.0, keys=["self_attn.v_proj"])),
}


def load(base):
    """The model of a base's folder in f32."""
    rope = json.loads((Path(base) / "config.json").read_text()).get("rope_parameters", {})
    # mlx-lm knows the names of these settings that older files have.
    older = {}
    if "rope_theta" in rope:
        older = dict(rope_theta=rope["rope_theta"], rotary_emb_base=rope["rope_theta"])
        older["rotary_pct"] = rope.get("partial_rotary_factor", 1.0)
    model, config = load_model(Path(base), strict=False, model_config=older)
    model.apply(lambda values: values.astype(mx.float32))
    return model, config


def logits(model, ids):
    # Without dropout.
    model.eval()
    return np.array(model(mx.array(ids)[None])[0].astype(mx.float32))


def make(name):
    base, layers, settings = ADAPTERS[name]
    model, config = load(FIXTURES / base)
    model.freeze()
    kind = "dora" if name.endswith("dora") else "lora"
    linear_to_lora_layers(model, layers, settings, use_dora=kind == "dora")
    random = np.random.default_rng(sum(map(ord, name)))
    weights = []
    for path, values in tree_flatten(model.trainable_parameters()):
        if path.endswith(".m"):
            weights.append((path, values * mx.array((1 + 0.2 * random.standard_normal(values.shape)).astype(np.float32))))
            continue
        scale = 0.25 if path.endswith("lora_b") else 1.0 / np.sqrt(values.shape[0])
        weights.append((path, mx.array((random.standard_normal(values.shape) * scale).astype(np.float32))))
    model.load_weights(weights, strict=False)
    folder = FIXTURES / "mlx" / name
    folder.mkdir(parents=True, exist_ok=True)
    # As `train_model` in mlx_lm/lora.py does, with the settings that decide something.
    mx.save_safetensors(str(folder / "adapters.safetensors"), dict(tree_flatten(model.trainable_parameters())))
    save_config(
        dict(fine_tune_type=kind, lora_parameters=settings, model="org/tiny", num_layers=layers, seed=0),
        folder / "adapter_config.json",
    )
    ids = np.random.default_rng(7).integers(0, config["vocab_size"], TOKENS)
    save_file(
        {"ids": ids.astype(np.int64), "logits": logits(model, ids).astype(np.float32)}, folder / "expected.safetensors"
    )
    print(name, len(weights) // 2, "modules")


def check(base, adapter, expected):
    model, _ = load(base)
    load_adapters(model, adapter)
    expected = load_file(expected)
    difference = np.abs(logits(model, expected["ids"].reshape(-1)) - expected["logits"].reshape(-1, expected["logits"].shape[-1]))
    print(json.dumps({"largest_difference": float(difference.max())}))
    if not difference.max() <= 1e-3:
        sys.exit(1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--check"]:
        check(*sys.argv[2:])
    else:
        for name in sys.argv[1:] or ADAPTERS:
            make(name)
