"""Makes tests/fixtures/optimisers/*: fifty updates of one LoRA pair by PyTorch, transformers, bitsandbytes and PEFT, and the
rates of transformers' schedules.

`updates.safetensors` holds the pair before the first update (`start.a`, `start.b`), its gradients (`gradients.a`,
`gradients.b`, `[50, …]`) and for every case of `cases.json` the pair after 10 and after 50 updates (`NAME.10.a`, …).
`schedules.json` holds the rate of every step.

    pip install -r tests/reference/requirements.txt bitsandbytes
    python tests/reference/make_optimisers.py
"""

import json

import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import save_file
from torch import nn
from transformers import Adafactor, get_scheduler

import tiny

FOLDER = tiny.FIXTURES / "optimisers"
STEPS, IN, OUT, RANK = 50, 7, 5, 3


def adamw(parameters, rate, beta1, beta2, weight_decay, **_):
    return torch.optim.AdamW(parameters, lr=rate, betas=(beta1, beta2), eps=1e-8, weight_decay=weight_decay)


def lion(parameters, rate, beta1, beta2, weight_decay, **_):
    import bitsandbytes

    return bitsandbytes.optim.Lion32bit(parameters, lr=rate, betas=(beta1, beta2), weight_decay=weight_decay)


def adafactor(parameters, rate, weight_decay, **_):
    return Adafactor(
        parameters, lr=rate, weight_decay=weight_decay, scale_parameter=False, relative_step=False, warmup_init=False
    )


MAKERS = {"adamw": adamw, "lion": lion, "adafactor": adafactor}

# `b_rate_ratio` other than 1: the groups and rates of PEFT's LoRA+.
CASES = {
    "adamw": dict(optimiser="adamw", rate=1e-2, beta1=0.9, beta2=0.999, weight_decay=0.0, b_rate_ratio=1.0),
    "adamw_decay": dict(optimiser="adamw", rate=3e-3, beta1=0.8, beta2=0.95, weight_decay=0.1, b_rate_ratio=1.0),
    "adamw_plus": dict(optimiser="adamw", rate=1e-3, beta1=0.9, beta2=0.999, weight_decay=0.0, b_rate_ratio=16.0),
    "lion": dict(optimiser="lion", rate=1e-3, beta1=0.9, beta2=0.99, weight_decay=0.0, b_rate_ratio=1.0),
    "lion_decay": dict(optimiser="lion", rate=1e-3, beta1=0.95, beta2=0.98, weight_decay=0.5, b_rate_ratio=1.0),
    "adafactor": dict(optimiser="adafactor", rate=1e-2, beta1=0.9, beta2=0.999, weight_decay=0.0, b_rate_ratio=1.0),
    "adafactor_decay": dict(optimiser="adafactor", rate=1e-2, beta1=0.9, beta2=0.999, weight_decay=0.1, b_rate_ratio=1.0),
}

# (kind here, transformers' name, warm-up, decay); the decay is that of warm-up-stable-decay.
SCHEDULES = [
    ("constant", "constant_with_warmup", 0, 0),
    ("constant", "constant_with_warmup", 7, 0),
    ("linear", "linear", 0, 0),
    ("linear", "linear", 7, 0),
    ("cosine", "cosine", 0, 0),
    ("cosine", "cosine", 7, 0),
    ("warmup-stable-decay", "warmup_stable_decay", 0, 10),
    ("warmup-stable-decay", "warmup_stable_decay", 7, 20),
    ("warmup-stable-decay", "warmup_stable_decay", 10, 40),
]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(IN, OUT, bias=False)


def pair_of(model):
    layer = model.base_model.model.proj
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def updates(case, start, gradients):
    model = get_peft_model(Model(), LoraConfig(r=RANK, target_modules=["proj"]))
    pair = pair_of(model)
    with torch.no_grad():
        for parameter, values in zip(pair, start):
            parameter.copy_(values)
    maker = MAKERS[case["optimiser"]]
    if case["b_rate_ratio"] == 1.0:
        optimizer = maker(list(pair), **case)
    else:
        optimizer = create_loraplus_optimizer(
            model,
            torch.optim.AdamW,
            lr=case["rate"],
            loraplus_lr_ratio=case["b_rate_ratio"],
            betas=(case["beta1"], case["beta2"]),
            eps=1e-8,
        )
    after = {}
    for step in range(STEPS):
        for parameter, of_step in zip(pair, gradients):
            parameter.grad = of_step[step].clone()
        optimizer.step()
        if step + 1 in (10, STEPS):
            for name, parameter in zip("ab", pair):
                after[f"{step + 1}.{name}"] = parameter.detach().clone()
    return after


def rates(name, warmup, decay):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3e-4)
    specific = {"num_decay_steps": decay} if name == "warmup_stable_decay" else None
    scheduler = get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=STEPS, scheduler_specific_kwargs=specific
    )
    found = []
    for _ in range(STEPS):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(11)

    def normal(*shape, scale):
        return torch.randn(*shape, generator=random) * scale

    start = normal(RANK, IN, scale=0.3), normal(OUT, RANK, scale=0.1)
    # A steady part and noise of changing size, so that means and squares matter.
    sizes = torch.linspace(0.2, 2.0, STEPS).view(-1, 1, 1)
    gradients = [normal(1, *values.shape, scale=0.02) + normal(STEPS, *values.shape, scale=0.03) * sizes for values in start]
    tensors = dict(zip(("start.a", "start.b", "gradients.a", "gradients.b"), (*start, *gradients)))
    for name, case in CASES.items():
        for key, values in updates(case, start, gradients).items():
            tensors[f"{name}.{key}"] = values
    save_file({key: values.contiguous() for key, values in tensors.items()}, FOLDER / "updates.safetensors")
    (FOLDER / "cases.json").write_text(json.dumps(CASES, indent=1) + "\n")
    schedules = [
        {"kind": kind, "warmup_steps": warmup, "decay_steps": decay, "rates": rates(name, warmup, decay)}
        for kind, name, warmup, decay in SCHEDULES
    ]
    (FOLDER / "schedules.json").write_text(json.dumps(schedules) + "\n")


if __name__ == "__main__":
    main()
