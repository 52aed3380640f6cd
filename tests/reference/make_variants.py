"""Makes tests/fixtures/variants/NAME/: what PEFT begins with, trains, saves and merges for each variant of LoRA.

start.safetensors    `MODULE.lora_A`, `.lora_B` and with DoRA `.lora_magnitude_vector` as PEFT initialises them
run.json             five steps of torch.optim.AdamW in f32, in the format of training/NAME/run.json, with `adapter` (PEFT's settings)
trained.safetensors  the same tensors after these steps
adapter/             the trained adapter as PEFT saves it; of PiSSA and OLoRA, converted to a plain LoRA
unconverted/         of PiSSA and OLoRA, the adapter as it was trained: PEFT decomposes the base again as it loads it
merged.safetensors   the weights that the adapter changes, after PEFT's own `merge_and_unload`
expected.safetensors `ids` and PEFT's `logits` with the trained adapter

    python tests/reference/make_models.py && python tests/reference/make_variants.py
"""

import json
import shutil

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import tiny
from make_adapters import SEVEN, WEIGHT_DECAY, folder_of, make_batches, train

STEPS = 5
TRAINING = dict(learning_rate=5e-3, schedule="constant", warmup_steps=0, clip=None, accumulate_steps=1, sequences=4)

# name -> (model, LoraConfig arguments)
VARIANTS = {
    "dora": ("llama_gqa", dict(r=4, lora_alpha=8, target_modules=SEVEN + ["lm_head"], use_dora=True)),
    # A bias is not scaled.
    "dora_bias": ("llama_bias", dict(r=4, lora_alpha=5, target_modules=SEVEN, use_dora=True, use_rslora=True)),
    "pissa": ("llama_gqa", dict(r=4, lora_alpha=8, target_modules=SEVEN, init_lora_weights="pissa")),
    "pissa_rslora": (
        "llama_odd",
        dict(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights="pissa", use_rslora=True),
    ),
    "pissa_dora": (
        "llama_gqa",
        dict(r=2, lora_alpha=2, target_modules=SEVEN, init_lora_weights="pissa", use_dora=True),
    ),
    "olora": ("llama_gqa", dict(r=4, lora_alpha=4, target_modules=SEVEN, init_lora_weights="olora")),
    "orthogonal": ("llama_gqa", dict(r=4, lora_alpha=8, target_modules=SEVEN, init_lora_weights="orthogonal")),
}
# The longest sequence that is compared.
TOKENS = 40


def tensors_of(model):
    """The adapter's tensors by module path."""
    tensors = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            name = name.removeprefix("base_model.model.").replace(".default", "").removesuffix(".weight")
            tensors[name] = parameter.detach().clone().contiguous()
    return tensors


def save_adapter(model, folder, start, base, converted):
    """PEFT's own folder, with the base named relative to the repository and without the model card."""
    shutil.rmtree(folder, ignore_errors=True)
    more = dict(path_initial_model_for_weight_conversion=str(start)) if converted else {}
    model.peft_config["default"].base_model_name_or_path = f"tests/fixtures/{folder_of(base)}"
    model.save_pretrained(folder, save_embedding_layers=False, **more)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def make_variant(name, base, arguments, seed):
    folder = tiny.FIXTURES / "variants" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    base_folder = tiny.FIXTURES / folder_of(base)
    original = load_file(base_folder / "model.safetensors")
    model = get_peft_model(tiny.open_model(base_folder), LoraConfig(task_type="CAUSAL_LM", **arguments))
    save_file(tensors_of(model), folder / "start.safetensors")
    subtracts = arguments.get("init_lora_weights") in ("pissa", "olora")
    has_magnitudes = arguments.get("use_dora", False)
    # What PEFT needs to convert such an adapter later.
    beginning = folder / "beginning"
    if subtracts:
        model.save_pretrained(beginning)
    batches = make_batches(model.config.vocab_size, 1, TRAINING["sequences"], np.random.default_rng(seed))[:STEPS]
    records = train(model, batches, TRAINING, torch.float32)
    trained = tensors_of(model)
    save_file(trained, folder / "trained.safetensors")
    run = {
        "base": f"tests/fixtures/{folder_of(base)}",
        "adapter": arguments,
        "optimizer": {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": WEIGHT_DECAY},
        **{key: TRAINING[key] for key in ("learning_rate", "schedule", "warmup_steps", "accumulate_steps", "clip")},
        "steps": records,
    }
    (folder / "run.json").write_text(json.dumps(run) + "\n")
    truth = load_file(base_folder / "expected.safetensors")
    ids = truth["ids"][:TOKENS]
    logits = tiny.logits_of(model.eval(), ids)
    change = (logits - truth["logits"][:TOKENS]).abs().max().item()
    assert change > 0.1, f"{name}: five steps change the logits by {change} only"
    # PEFT's conversion loses the magnitudes.
    if not (subtracts and has_magnitudes):
        save_adapter(model, folder / "adapter", beginning, base, subtracts)
    if subtracts:
        save_adapter(model, folder / "unconverted", None, base, False)
    shutil.rmtree(beginning, ignore_errors=True)
    merged = model.merge_and_unload().state_dict()
    changed = sorted({key.rsplit(".", 1)[0] + ".weight" for key in trained})
    assert all((merged[key] - original[key]).abs().max() > 0 for key in changed)
    save_file({key: merged[key].contiguous() for key in changed}, folder / "merged.safetensors")
    tiny.write_expected(folder / "expected.safetensors", ids, logits)
    print(f"variants/{name}: losses {[round(record['loss'], 4) for record in records]}, logits move by {change:.2f}")


def main():
    for seed, (name, (base, arguments)) in enumerate(VARIANTS.items(), start=300):
        make_variant(name, base, arguments, seed)


if __name__ == "__main__":
    main()
