"""Makes tests/fixtures/report.json: what a report says about an adapter, by numpy and by transformers with PEFT.

For some adapters of tests/fixtures/adapters: the singular values of each dense update B·A·scale by numpy (its Frobenius norm, the largest one,
the effective rank of Roy and Vetterli 2007) and the norm of the weight; the loss of each token of the ids in
`expected.safetensors` with the base and with the adapter; and the mean loss with B set to zero at one module, at the modules of
one name, in one layer.

    pip install -r tests/reference/requirements.txt
    python tests/reference/make_report.py
"""

import json

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file

import tiny

ADAPTERS = ["seven", "rslora", "qwen2"]


@torch.no_grad()
def token_losses(model, ids):
    logits = model(ids.view(1, -1), use_cache=False).logits[0].double()
    return torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")


def update_of(layer):
    a, b = (getattr(layer, name)["default"].weight.double().numpy() for name in ["lora_A", "lora_B"])
    return layer.scaling["default"] * b @ a


def figures(layer):
    values = np.linalg.svd(update_of(layer), compute_uv=False)
    shares = values[values > 0] / values.sum()
    return {
        "update_norm": float(np.sqrt((values**2).sum())),
        "spectral_norm": float(values[0]),
        "effective_rank": float(np.exp(-(shares * np.log(shares)).sum())),
        "weight_norm": float(np.linalg.norm(layer.base_layer.weight.double().numpy())),
    }


@torch.no_grad()
def without(model, ids, layers):
    """The mean loss with the updates of `layers` switched off."""
    kept = [layer.lora_B["default"].weight.clone() for layer in layers]
    for layer in layers:
        layer.lora_B["default"].weight.zero_()
    loss = token_losses(model, ids).mean().item()
    for layer, weight in zip(layers, kept):
        layer.lora_B["default"].weight.copy_(weight)
    return loss


@torch.no_grad()
def of(name):
    folder = tiny.FIXTURES / "adapters" / name
    config = json.loads((folder / "adapter_config.json").read_text())
    path = tiny.FIXTURES.parent.parent / config["base_model_name_or_path"]
    base = tiny.open_model(path)
    ids = load_file(folder / "expected.safetensors")["ids"]
    before = token_losses(base, ids)
    model = PeftModel.from_pretrained(base, folder).eval()
    layers = {
        module.removeprefix("base_model.model."): layer
        for module, layer in model.named_modules()
        if hasattr(layer, "lora_A") and len(layer.lora_A)
    }
    after = token_losses(model, ids)
    by_name, by_layer = {}, {}
    for module, layer in layers.items():
        by_name.setdefault(module.rsplit(".", 1)[1], []).append(layer)
        by_layer.setdefault(module.split(".")[2], []).append(layer)
    assert (after - before).abs().max() > 0.01, "the adapter changes nothing"
    return {
        "adapter": name,
        "base": str(path.relative_to(tiny.FIXTURES)),
        "ids": ids.tolist(),
        "map": {module: figures(layer) for module, layer in layers.items()},
        "before": before.tolist(),
        "after": after.tolist(),
        "loss": after.mean().item(),
        "by_name": {name: without(model, ids, layers) for name, layers in by_name.items()},
        "by_layer": {layer: without(model, ids, layers) for layer, layers in by_layer.items()},
        "by_module": {module: without(model, ids, [layer]) for module, layer in layers.items()},
    }


if __name__ == "__main__":
    path = tiny.FIXTURES / "report.json"
    path.write_text(json.dumps([of(name) for name in ADAPTERS]) + "\n")
    print(path.name, path.stat().st_size, "bytes")
