"""Makes tests/fixtures/adapters/* and tests/fixtures/training/*: what PEFT writes, computes and trains.

adapters/NAME/   a PEFT adapter with random A and B, saved by PEFT, and `expected.safetensors`: `ids`, PEFT's `logits`
                 (f32), the mean next-token `loss` over the ids, and `grad.PATH.lora_A`, `grad.PATH.lora_B` of that loss.
adapters/bf16/merged.safetensors   two matrices W + s*B*A computed by numpy in f64, rounded once to bf16.
training/NAME/   a replayable run of torch.optim.AdamW over a PEFT model: `start/`, `final/` (adapters) and `run.json`.

    pip install -r tests/reference/requirements.txt
    python tests/reference/make_models.py && python tests/reference/make_adapters.py

`make_adapters.py NAME training/NAME …` makes only those adapters and runs.
"""

import json
import math
import shutil
import sys

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

import tiny

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
SEVEN = ATTENTION + ["gate_proj", "up_proj", "down_proj"]

# name -> (model, LoraConfig arguments)
ADAPTERS = {
    "qv": ("llama_gqa", dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])),
    "seven": ("llama_gqa", dict(r=3, lora_alpha=16, target_modules=SEVEN)),
    "seven_and_head": ("llama_gqa", dict(r=4, lora_alpha=4, target_modules=SEVEN + ["lm_head"])),
    "rslora": ("llama_gqa", dict(r=9, lora_alpha=5, target_modules=ATTENTION, use_rslora=True)),
    # Keys are regular expressions that must match the end of a module's path. None overlap: PEFT sorts them on saving.
    "patterns": (
        "llama_gqa",
        dict(
            r=4,
            lora_alpha=6,
            target_modules=SEVEN,
            rank_pattern={"model.layers.1.self_attn.q_proj": 7, "k_proj": 2, r"layers\.0\.mlp\..*": 5},
            alpha_pattern={"v_proj": 1, r"layers\.1\.mlp\.down_proj": 20},
        ),
    ),
    # `target_modules` is a regular expression: the second layer only.
    "regex": ("llama_gqa", dict(r=2, lora_alpha=2, target_modules=r".*\.layers\.1\.self_attn\.(q|o)_proj")),
    "odd": ("llama_odd", dict(r=5, lora_alpha=7, target_modules=SEVEN)),
    "biases": ("llama_bias", dict(r=4, lora_alpha=8, target_modules=SEVEN)),
    "tied": ("llama_tied", dict(r=4, lora_alpha=8, target_modules=ATTENTION)),
    "window": ("mistral_window", dict(r=4, lora_alpha=8, target_modules=SEVEN)),
    "qwen2": ("qwen2", dict(r=4, lora_alpha=8, target_modules=SEVEN)),
    "bf16": ("llama_bf16", dict(r=8, lora_alpha=12, target_modules=["q_proj", "down_proj"])),
    # Keys that match no module, in the way of a typo: PEFT ignores them.
    "unmatched": (
        "llama_gqa",
        dict(
            r=4,
            lora_alpha=8,
            target_modules=["q_proj", "v_proj", "query"],
            rank_pattern={"^q_proj": 9},
            alpha_pattern={"^v_proj": 64},
        ),
    ),
    # Layers by number, and modules left out of them.
    "layers": (
        "llama_gqa",
        dict(
            r=3,
            lora_alpha=9,
            target_modules=["q_proj", "o_proj", "mlp.down_proj", "model.layers.0.mlp.up_proj"],
            exclude_modules=["self_attn.o_proj"],
            layers_to_transform=[1],
            layers_pattern=["layers"],
        ),
    ),
    # GPT-NeoX: q, k and v of a head lie in one module, and the head is called otherwise.
    "neox_patterns": (
        "families/gpt_neox_parallel",
        dict(
            r=4,
            lora_alpha=6,
            target_modules=r"gpt_neox\.layers\.\d+\.(attention\.query_key_value|mlp\.dense_4h_to_h)",
            exclude_modules=["layers.0.mlp.dense_4h_to_h"],
            rank_pattern={"query_key_value": 2},
            alpha_pattern={r"layers\.1\.mlp\..*": 12},
        ),
    ),
    # A name that is a module's whole path is taken whatever the layers are. transformers 5 calls the head `lm_head`, which
    # checkpoints and transformers 4 call `embed_out`.
    "neox_layers": (
        "families/gpt_neox_parallel",
        dict(r=2, lora_alpha=4, target_modules=["query_key_value", "dense", "lm_head"], layers_to_transform=[1]),
    ),
    # The factors of an embedding are stored transposed; PEFT leaves a head that is tied to it alone.
    "embedding": ("llama_gqa", dict(r=4, lora_alpha=6, target_modules=["q_proj", "embed_tokens"])),
    "embedding_tied": ("llama_tied", dict(r=3, lora_alpha=6, target_modules=["v_proj", "embed_tokens"])),
    # Whole copies, and no pair inside of them. PEFT takes any module whose path ends with a name.
    "saved": (
        "llama_gqa",
        dict(r=2, lora_alpha=4, target_modules=SEVEN, modules_to_save=["embed_tokens", "lm_head", "norm", "0.mlp.up_proj"]),
    ),
    "saved_tied": ("llama_tied", dict(r=2, lora_alpha=4, target_modules=["q_proj"], modules_to_save=["lm_head"])),
    "saved_neox": (
        "families/gpt_neox_parallel",
        dict(r=2, lora_alpha=4, target_modules=["query_key_value"], modules_to_save=["embed_in", "input_layernorm"]),
    ),
    # Rows of some tokens. A head that is tied to the embedding has the same ones.
    "tokens_tied": ("llama_tied", dict(r=2, lora_alpha=4, target_modules=["q_proj"], trainable_token_indices=[20, 95, 83])),
    "tokens": (
        "llama_gqa",
        dict(
            r=2,
            lora_alpha=4,
            target_modules=["q_proj"],
            trainable_token_indices={"embed_tokens": [89, 34], "lm_head": [89, 34]},
        ),
    ),
    "bias_lora_only": (
        "llama_bias",
        dict(r=2, lora_alpha=4, target_modules=["q_proj", "o_proj"], bias="lora_only"),
    ),
    "bias_all": (
        "families/gpt_neox_parallel",
        dict(r=2, lora_alpha=4, target_modules=["query_key_value"], bias="all"),
    ),
    # PEFT writes out what `all-linear` stands for in this model.
    "all_linear": ("llama_gqa", dict(r=2, lora_alpha=3, target_modules="all-linear", exclude_modules=r".*\.0\..*")),
}

# The longest sequence that is compared.
TOKENS = 40

MERGED = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]


def folder_of(base):
    """A base's folder within the fixtures: `models/NAME`, unless the name has a folder in it."""
    return base if "/" in base else f"models/{base}"


def fill(model, seed):
    """Random A and B, large enough that the adapter clearly changes the logits."""
    random = np.random.default_rng(seed)
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad and "lora_" not in name:
            # A module or a bias that is trained as a whole stays near the base's.
            values = random.standard_normal(tuple(parameter.shape)).astype(np.float32) * 0.2
            parameter.data.add_(torch.from_numpy(values))
        elif parameter.requires_grad:
            scale = 0.25 if "lora_B" in name else 1.0 / math.sqrt(parameter.shape[1])
            values = random.standard_normal(tuple(parameter.shape)).astype(np.float32) * scale
            parameter.data.copy_(torch.from_numpy(values.astype(np.float32)))


def save(model, folder, base):
    """PEFT's own folder, with the base named relative to the repository and without the model card."""
    shutil.rmtree(folder, ignore_errors=True)
    model.peft_config["default"].base_model_name_or_path = f"tests/fixtures/{folder_of(base)}"
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    # PEFT writes sets in arbitrary order; sorted, the file is the same on every run.
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def short(name, renamed):
    """`base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight` -> module path and factor; a whole tensor's name."""
    name = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "").replace(".base_layer", "")
    name = name.replace(".token_adapter.trainable_tokens_delta.default", ".rows")
    if ".lora_" in name:
        name = name.removesuffix(".weight").removesuffix(".default")
    module, factor = name.rsplit(".", 1)
    return f"{renamed.get(module, module)}.{factor}"


def mean_loss(model, ids):
    return cross_entropy(model(ids.view(1, -1), use_cache=False).logits[0, :-1].float(), ids[1:])


def make_adapter(name, base, arguments, seed):
    folder = tiny.FIXTURES / "adapters" / name
    model = get_peft_model(tiny.open_model(tiny.FIXTURES / folder_of(base)), LoraConfig(task_type="CAUSAL_LM", **arguments))
    fill(model, seed)
    save(model, folder, base)
    reread = PeftModel.from_pretrained(tiny.open_model(tiny.FIXTURES / folder_of(base)), folder, is_trainable=True).eval()
    truth = load_file(tiny.FIXTURES / folder_of(base) / "expected.safetensors")
    ids = truth["ids"][:TOKENS]
    logits = tiny.logits_of(reread, ids)
    change = (logits - truth["logits"][:TOKENS]).abs().max().item()
    assert change > 0.3, f"{name}: the adapter changes the logits by {change} only"
    loss = mean_loss(reread, ids)
    loss.backward()
    head = {"lm_head": "embed_out"} if "gpt_neox" in base else {}
    gradients = {f"grad.{short(key, head)}": value.grad for key, value in reread.named_parameters() if value.requires_grad}
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())
    tiny.write_expected(folder / "expected.safetensors", ids, logits, loss=loss.detach().reshape(1), **gradients)


def to_bf16_once(values):
    """f64 to bf16 by one rounding to nearest, ties to even (a step over f32 could round twice)."""
    with np.errstate(all="ignore"):
        exponent = np.floor(np.log2(np.abs(np.where(values == 0, 1.0, values))))
    unit = np.exp2(exponent - 7)
    return torch.from_numpy(np.rint(values / unit) * unit).to(torch.bfloat16)


def make_merged():
    folder = tiny.FIXTURES / "adapters" / "bf16"
    base = load_file(tiny.FIXTURES / "models" / "llama_bf16" / "model.safetensors")
    adapter = load_file(folder / "adapter_model.safetensors")
    scale = 12 / 8
    merged, steps = {}, 0
    for path in MERGED:
        a = adapter[f"base_model.model.{path}.lora_A.weight"].double().numpy()
        b = adapter[f"base_model.model.{path}.lora_B.weight"].double().numpy()
        weight = base[path + ".weight"].double().numpy()
        merged[path + ".weight"] = to_bf16_once(weight + scale * (b @ a))
        in_f32 = torch.from_numpy((weight + (scale * (b @ a)).astype(np.float32)).astype(np.float32)).to(torch.bfloat16)
        steps += (in_f32 != merged[path + ".weight"]).sum().item()
    save_file(merged, folder / "merged.safetensors")
    print(f"adapters/bf16/merged.safetensors: {steps} values round otherwise when the sum is taken in f32")


# name -> (model, LoraConfig arguments, training arguments)
RUNS = {
    "qv": (
        "llama_gqa",
        dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
        dict(learning_rate=1e-2, schedule="linear", warmup_steps=2, clip=1.25, accumulate_steps=2, sequences=3),
    ),
    "seven_and_head": (
        "llama_gqa",
        dict(r=4, lora_alpha=16, target_modules=SEVEN + ["lm_head"], use_rslora=True),
        dict(learning_rate=1e-3, schedule="cosine", warmup_steps=3, clip=0.5, accumulate_steps=2, sequences=2),
    ),
    "odd": (
        "llama_odd",
        dict(r=3, lora_alpha=6, target_modules=SEVEN),
        dict(learning_rate=1e-2, schedule="constant", warmup_steps=0, clip=None, accumulate_steps=1, sequences=4),
    ),
    "saved": (
        "llama_gqa",
        dict(r=3, lora_alpha=6, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head", "model.norm"]),
        dict(learning_rate=2e-3, schedule="linear", warmup_steps=0, clip=1.0, accumulate_steps=2, sequences=2),
    ),
    "tokens_tied": (
        "llama_tied",
        dict(r=3, lora_alpha=6, target_modules=["q_proj"], trainable_token_indices=list(range(0, 96, 5))),
        dict(learning_rate=2e-3, schedule="linear", warmup_steps=0, clip=1.0, accumulate_steps=2, sequences=2),
    ),
    # A bias of keys has no gradient but rounding, which AdamW would turn into steps.
    "bias_lora_only": (
        "llama_bias",
        dict(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], bias="lora_only"),
        dict(learning_rate=2e-3, schedule="linear", warmup_steps=0, clip=1.0, accumulate_steps=1, sequences=3),
    ),
    "embedding_tied": (
        "llama_tied",
        dict(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj", "embed_tokens"]),
        dict(learning_rate=5e-3, schedule="linear", warmup_steps=0, clip=1.0, accumulate_steps=2, sequences=2),
    ),
}
STEPS, WEIGHT_DECAY = 8, 0.01


def make_batches(vocabulary, accumulate_steps, sequences, random):
    """Ragged sequences: a prompt that is not trained, then a completion that is; now and then all of it is trained."""
    steps = []
    for _ in range(STEPS):
        micro_batches = []
        for _ in range(accumulate_steps):
            batch = []
            for _ in range(sequences):
                length = int(random.integers(5, 20))
                prompt = 0 if random.random() < 0.2 else int(random.integers(2, length - 1))
                batch.append(
                    {
                        "ids": random.integers(0, vocabulary, length).tolist(),
                        "trained": [False] * prompt + [True] * (length - prompt),
                    }
                )
            micro_batches.append(batch)
        steps.append(micro_batches)
    return steps


def schedule_of(name, optimizer, warmup_steps):
    if name == "linear":
        return get_linear_schedule_with_warmup(optimizer, warmup_steps, STEPS)
    if name == "cosine":
        return get_cosine_schedule_with_warmup(optimizer, warmup_steps, STEPS)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def started(base, start, dtype):
    """The base with the adapter that a run begins with."""
    model = PeftModel.from_pretrained(tiny.open_model(tiny.FIXTURES / folder_of(base)), start, is_trainable=True)
    return model.to(dtype)


def train(model, batches, training, dtype):
    """Runs the steps; the loss of a step is the sum over its trained tokens divided once by their number."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=training["learning_rate"], betas=(0.9, 0.999), eps=1e-8, weight_decay=WEIGHT_DECAY
    )
    schedule = schedule_of(training["schedule"], optimizer, training["warmup_steps"])
    records = []
    for micro_batches in batches:
        # A token at position 0 has nothing before it to be predicted from.
        tokens = sum(sum(sequence["trained"][1:]) for batch in micro_batches for sequence in batch)
        total = 0.0
        for batch in micro_batches:
            loss = 0
            for sequence in batch:
                ids, trained = torch.tensor(sequence["ids"]), torch.tensor(sequence["trained"])[1:]
                logits = model(ids.view(1, -1), use_cache=False).logits[0, :-1].to(dtype)
                loss = loss + cross_entropy(logits[trained], ids[1:][trained], reduction="sum")
            (loss / tokens).backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(parameters, training["clip"] or math.inf)
        records.append(
            {
                "micro_batches": micro_batches,
                "trained_tokens": tokens,
                "loss": total / tokens,
                "grad_norm": norm.item(),
                "learning_rate": optimizer.param_groups[0]["lr"],
            }
        )
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return records


def make_run(name, base, arguments, training, seed):
    folder = tiny.FIXTURES / "training" / name
    torch.manual_seed(seed)
    model = get_peft_model(tiny.open_model(tiny.FIXTURES / folder_of(base)), LoraConfig(task_type="CAUSAL_LM", **arguments))
    save(model, folder / "start", base)
    vocabulary = model.config.vocab_size
    batches = make_batches(
        vocabulary, training["accumulate_steps"], training["sequences"], np.random.default_rng(seed)
    )
    model = started(base, folder / "start", torch.float32)
    records = train(model, batches, training, torch.float32)
    save(model, folder / "final", base)
    exact_model = started(base, folder / "start", torch.float64)
    exact = train(exact_model, batches, training, torch.float64)
    for record, truth in zip(records, exact):
        record["loss_f64"], record["grad_norm_f64"] = truth["loss"], truth["grad_norm"]
    drift = max(
        (value - exact_model.get_parameter(key)).abs().max().item()
        for key, value in model.named_parameters()
        if value.requires_grad
    )
    run = {
        "base": f"tests/fixtures/{folder_of(base)}",
        "optimizer": {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": WEIGHT_DECAY},
        **{key: training[key] for key in ("learning_rate", "schedule", "warmup_steps", "accumulate_steps", "clip")},
        "f32_against_f64": {"largest_parameter_difference": drift},
        "steps": records,
    }
    (folder / "run.json").write_text(json.dumps(run) + "\n")
    print(
        f"training/{name}: losses {[round(record['loss'], 4) for record in records]}, "
        f"norms {[round(record['grad_norm'], 3) for record in records]}, "
        f"lr {[round(record['learning_rate'], 5) for record in records]}, f32 against f64 {drift:.1e}"
    )


def main():
    chosen = sys.argv[1:]
    for seed, (name, (base, arguments)) in enumerate(ADAPTERS.items(), start=100):
        if not chosen or name in chosen:
            make_adapter(name, base, arguments, seed)
    if not chosen:
        make_merged()
    for seed, (name, (base, arguments, training)) in enumerate(RUNS.items(), start=200):
        if not chosen or f"training/{name}" in chosen:
            make_run(name, base, arguments, training, seed)


if __name__ == "__main__":
    main()
