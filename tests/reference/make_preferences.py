"""Makes tests/fixtures/preferences/*: twenty steps of AdamW on preferences by TRL's own losses over a PEFT model.

`data.json` holds the examples: pairs, and answers with labels. `cases.json` holds for every case the objective, its settings in
TRL's names, the examples of each step and what TRL computed there: the loss, and the margin between the rewards. `CASE.safetensors`
holds the factors after the last step. Base and first factors are those of tests/fixtures/training/seven_and_head.

The losses are those of TRL's trainers: `DPOTrainer._compute_loss`, `KTOTrainer._compute_loss`, `ORPOTrainer.odds_ratio_loss` and
`CPOTrainer.cpo_loss`, called with the log-probabilities of the same batches. What is not TRL's: the log-probabilities come from
plain logits; the smoothed DPO is the loss of the CPO trainer on log-ratios, since the DPO trainer smooths no sigmoid; ORPO's likelihood is
that of the answer alone, as in the paper, where TRL's trainer includes the prompt; KTO's mismatched answers are drawn from the
whole data rather than from a batch.

    pip install -r tests/reference/requirements.txt trl
    python tests/reference/make_preferences.py
"""

import json
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch.nn.functional import log_softmax
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

import make_adapters
import tiny

FOLDER = tiny.FIXTURES / "preferences"
START = tiny.FIXTURES / "training" / "seven_and_head" / "start"
STEPS, AT_ONCE, EXAMPLES, RATE = 20, 4, 12, 2e-3

# name -> (objective, settings)
CASES = {
    "dpo": ("dpo", dict(beta=0.3)),
    "dpo_smoothed": ("dpo", dict(beta=0.5, label_smoothing=0.2)),
    "dpo_normalised": ("dpo", dict(beta=2.0, length_normalised=True)),
    "dpo_rpo": ("dpo", dict(beta=0.1, rpo_alpha=0.4)),
    "ipo": ("ipo", dict(beta=0.4)),
    "orpo": ("orpo", dict(beta=0.5)),
    "kto": ("kto", dict(beta=0.2, desirable_weight=1.2, undesirable_weight=0.8)),
    "simpo": ("simpo", dict(beta=2.0, target_margin=0.6, label_smoothing=0.1)),
}


def examples():
    """Random pairs and labelled answers of different lengths."""
    random = np.random.default_rng(23)
    vocabulary = json.loads((tiny.FIXTURES / "models" / "llama_gqa" / "config.json").read_text())["vocab_size"]
    ids = lambda least, most: random.integers(0, vocabulary, random.integers(least, most + 1)).tolist()
    pairs = [dict(prompt=ids(2, 7), chosen=ids(1, 9), rejected=ids(1, 9)) for _ in range(EXAMPLES)]
    labelled = [dict(prompt=ids(2, 7), completion=ids(1, 9), label=bool(index % 3)) for index in range(EXAMPLES)]
    return dict(pairs=pairs, labelled=labelled)


def mismatched(labelled):
    """Each prompt with the answer before it in the data, no longer than the longer of the two examples."""
    found = []
    for index, example in enumerate(labelled):
        other = labelled[index - 1]
        assert other["prompt"] != example["prompt"]
        longest = max(len(one["prompt"]) + len(one["completion"]) for one in (example, other))
        found.append((example["prompt"], other["completion"][: longest - len(example["prompt"])]))
    return found


def padded(sequences):
    """Ids, attention and completion mask of (prompt, answer) pairs, padded on the right."""
    longest = max(len(prompt) + len(answer) for prompt, answer in sequences)
    ids, attention, completion = (torch.zeros(len(sequences), longest, dtype=torch.long) for _ in range(3))
    for row, (prompt, answer) in enumerate(sequences):
        length = len(prompt) + len(answer)
        ids[row, :length] = torch.tensor(prompt + answer)
        attention[row, :length] = 1
        completion[row, len(prompt) : length] = 1
    return dict(input_ids=ids, attention_mask=attention, completion_mask=completion)


class Model:
    """The model as TRL's losses call it: labels in, log-probabilities of the tokens out."""

    training = True

    def __init__(self, model):
        self.model = model

    def __call__(self, input_ids, attention_mask, labels, **_):
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits.float()[:, :-1]
        targets = labels[:, 1:]
        log_probs = log_softmax(logits, -1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        log_probs = log_probs * (targets != -100)
        zeros = torch.zeros_like(log_probs)
        return SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

    def sums(self, sequences):
        """The log-probability of each answer."""
        batch = padded(sequences)
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        return self(batch["input_ids"], batch["attention_mask"], labels).log_probs.sum(-1)


def trainer(**fields):
    """As much of a trainer as its loss reads."""
    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    common = dict(
        accelerator=accelerator,
        aux_loss_enabled=False,
        use_weighting=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        label_smoothing=0.0,
        alpha=0.0,
        model=SimpleNamespace(training=True),
        calculate_KL=True,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    return SimpleNamespace(**{**common, **fields})


def pairs_of(pairs):
    return [(one["prompt"], one["chosen"]) for one in pairs] + [(one["prompt"], one["rejected"]) for one in pairs]


def last(trainer, name):
    return trainer._metrics["train"][name][-1]


def dpo(model, reference, data, step, settings, loss_type="sigmoid"):
    sequences = pairs_of([data["pairs"][index] for index in step])
    of_reference = reference.sums(sequences).detach()
    smoothing = settings.get("label_smoothing", 0.0)
    if smoothing:
        ratios = model.sums(sequences) - of_reference
        fake = trainer(beta=settings["beta"], loss_type="sigmoid", label_smoothing=smoothing)
        losses, chosen, rejected = CPOTrainer.cpo_loss(fake, *ratios.chunk(2))
        return losses.mean(), (chosen - rejected).mean()
    if settings.get("length_normalised"):
        loss_type = "sigmoid_norm"
    weight = settings.get("rpo_alpha")
    types, weights = ([loss_type, "sft"], [1.0, weight]) if weight else ([loss_type], [1.0])
    fake = trainer(beta=settings["beta"], loss_types=types, loss_weights=weights)
    chosen, rejected = of_reference.chunk(2)
    inputs = dict(padded(sequences), ref_chosen_logps=chosen, ref_rejected_logps=rejected)
    loss = DPOTrainer._compute_loss(fake, model, inputs, False)
    return loss, last(fake, "rewards/margins")


def ipo(model, reference, data, step, settings):
    return dpo(model, reference, data, step, settings, "ipo")


def means(model, sequences):
    lengths = torch.tensor([len(answer) for _, answer in sequences])
    return model.sums(sequences) / lengths, lengths


def orpo(model, reference, data, step, settings):
    sequences = pairs_of([data["pairs"][index] for index in step])
    mean, lengths = means(model, sequences)
    chosen, rejected = mean.chunk(2)
    of_chosen = lengths.chunk(2)[0]
    likelihood = -(chosen * of_chosen).sum() / of_chosen.sum()
    losses, chosen_rewards, rejected_rewards, *_ = ORPOTrainer.odds_ratio_loss(trainer(beta=settings["beta"]), chosen, rejected)
    return likelihood - losses.mean(), (chosen_rewards - rejected_rewards).mean()


def simpo(model, reference, data, step, settings):
    mean, _ = means(model, pairs_of([data["pairs"][index] for index in step]))
    fake = trainer(
        beta=settings["beta"],
        simpo_gamma=settings["target_margin"],
        label_smoothing=settings["label_smoothing"],
        loss_type="simpo",
    )
    losses, chosen, rejected = CPOTrainer.cpo_loss(fake, *mean.chunk(2))
    return losses.mean(), (chosen - rejected).mean()


def kto(model, reference, data, step, settings):
    labelled = [data["labelled"][index] for index in step]
    sequences = [(one["prompt"], one["completion"]) for one in labelled]
    others = [mismatched(data["labelled"])[index] for index in step]
    fake = trainer(loss_type="kto", _compute_kl_logps=lambda model, _: model.sums(others).detach(), **settings)
    inputs = dict(
        padded(sequences),
        label=torch.tensor([one["label"] for one in labelled]),
        ref_logps=reference.sums(sequences).detach(),
        ref_KL_logps=reference.sums(others).detach(),
    )
    loss = KTOTrainer._compute_loss(fake, model, inputs, False)
    of = lambda wanted: [index for index, one in enumerate(labelled) if one["label"] == wanted]
    rewards = settings["beta"] * (model.sums(sequences) - inputs["ref_logps"])
    return loss, rewards[of(True)].mean() - rewards[of(False)].mean()


LOSSES = dict(dpo=dpo, ipo=ipo, orpo=orpo, kto=kto, simpo=simpo)


def load():
    model = tiny.open_model(tiny.FIXTURES / "models" / "llama_gqa")
    return PeftModel.from_pretrained(model, START, is_trainable=True)


def run(name, data):
    objective, settings = CASES[name]
    peft = load()
    model, reference = Model(peft), Model(load())
    parameters = [parameter for parameter in peft.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    random = np.random.default_rng(5)
    steps = []
    while len(steps) < STEPS:
        order = random.permutation(EXAMPLES)
        for step in order.reshape(-1, AT_ONCE).tolist()[: STEPS - len(steps)]:
            optimizer.zero_grad()
            loss, margin = LOSSES[objective](model, reference, data, step, settings)
            loss.backward()
            optimizer.step()
            margin = float(margin)
            steps.append(dict(examples=step, loss=float(loss), margin=None if np.isnan(margin) else margin))
    renamed = {}
    factors = {
        make_adapters.short(key, renamed): values.detach().contiguous()
        for key, values in peft.named_parameters()
        if values.requires_grad
    }
    save_file(factors, FOLDER / f"{name}.safetensors")
    print(f"{name}: loss {steps[0]['loss']:.4f} to {steps[-1]['loss']:.4f}")
    return dict(objective=objective, settings=settings, rate=RATE, steps=steps)


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    data = examples()
    (FOLDER / "data.json").write_text(json.dumps(data) + "\n")
    cases = {name: run(name, data) for name in CASES}
    (FOLDER / "cases.json").write_text(json.dumps(cases) + "\n")


if __name__ == "__main__":
    main()
