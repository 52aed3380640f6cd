"""Makes tests/fixtures/privacy/*: the gradients of a private step by Opacus, without its noise.

`step.json` holds the examples, the clipping norms and what Opacus finds: the norm of each example's gradient and the loss of each.
`gradients.safetensors` holds the mean of the clipped gradients under each clipping norm, by PEFT's names (`CLIP/NAME`).

    pip install -r tests/reference/requirements.txt opacus==1.6.0
    python tests/reference/make_privacy.py
"""

import json

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from peft import PeftModel
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

import tiny

FOLDER = tiny.FIXTURES / "privacy"
BASE = "models/llama_gqa"
ADAPTER = "training/seven_and_head/final"
LENGTHS = [12, 5, 20, 9, 16, 7]
# Below every norm, among them, above every norm.
CLIPS = [5.0, 20.0, 1e6]


def examples(vocabulary):
    random = np.random.default_rng(41)
    made = []
    for length in LENGTHS:
        begin = int(random.integers(1, length - 1))
        ids = [int(id) for id in random.integers(0, vocabulary, length)]
        made.append({"ids": ids, "trained": [position >= begin for position in range(length)]})
    return made


def losses_of(model, made):
    """The mean loss of each example over its trained tokens."""
    longest = max(LENGTHS)
    ids = torch.zeros(len(made), longest, dtype=torch.long)
    trained = torch.zeros(len(made), longest, dtype=torch.bool)
    for row, example in enumerate(made):
        ids[row, : len(example["ids"])] = torch.tensor(example["ids"])
        trained[row, : len(example["ids"])] = torch.tensor(example["trained"])
    # What follows an example is seen by no token of it.
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    by_token = cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * trained[:, 1:]
    return by_token.sum(1) / trained[:, 1:].sum(1)


def step(clip, made):
    torch.manual_seed(0)
    model = PeftModel.from_pretrained(tiny.open_model(tiny.FIXTURES / BASE), tiny.FIXTURES / ADAPTER, is_trainable=True)
    private = GradSampleModule(model, loss_reduction="sum").train()
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    parameters = [parameter for _, parameter in named]
    optimizer = DPOptimizer(
        torch.optim.SGD(parameters, lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=clip,
        expected_batch_size=len(made),
        loss_reduction="mean",
    )
    losses = losses_of(private, made)
    losses.sum().backward()
    by_example = torch.stack([p.grad_sample.flatten(1).norm(dim=1) for p in parameters]).norm(dim=0)
    assert optimizer.pre_step()
    gradients = {name.replace(".default", ""): parameter.grad.detach().clone() for name, parameter in named}
    return losses.detach(), by_example.detach(), gradients


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    vocabulary = json.loads((tiny.FIXTURES / BASE / "config.json").read_text())["vocab_size"]
    made = examples(vocabulary)
    tensors = {}
    for clip in CLIPS:
        losses, norms, gradients = step(clip, made)
        tensors.update({f"{clip:g}/{name}": values.contiguous() for name, values in gradients.items()})
    print("norms", norms.tolist())
    save_file(tensors, FOLDER / "gradients.safetensors")
    record = {"examples": made, "clips": CLIPS, "losses": losses.tolist(), "norms": norms.tolist()}
    (FOLDER / "step.json").write_text(json.dumps(record) + "\n")


main()
