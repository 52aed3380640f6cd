"""Makes tests/fixtures/classify/*: a classifier of transformers with a PEFT adapter, trained for twenty steps of AdamW.

`data.json` holds texts as ids with the numbers of their labels. `cases.json` holds for every case the weight of each label (none: equal
ones), and for each step its texts and the loss. `CASE.safetensors` holds the factors and the head of labels after the last step, and
`log_probabilities` of all texts then. `start/` is the adapter before the first step and `final/` that after the last of the case
`plain`, as PEFT saves them (`task_type` SEQ_CLS).

The loss of the case `weighted` is the sum of the weighted losses over the texts of the step, by the mean weight of all texts: torch's
`cross_entropy(weight=…)` divides by the weights of the batch instead.

    pip install -r tests/reference/requirements.txt
    python tests/reference/make_classify.py
    python tests/reference/make_classify.py --check BASE ADAPTER PREDICTIONS.jsonl

The last form loads an adapter that burnish trained over a Hugging Face folder, and compares its probabilities with what `burnish
predict --compute f32` wrote.
"""

import json
import shutil
import sys

import numpy as np
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy, log_softmax
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import make_adapters
import tiny

FOLDER = tiny.FIXTURES / "classify"
BASE = tiny.FIXTURES / "models" / "llama_gqa"
TEXTS, AT_ONCE, STEPS, RATE, PAD = 24, 4, 20, 2e-3, 0
LABELS = 3
CASES = {"plain": None, "weighted": [0.5, 1.0, 4.0]}


def examples():
    """Random texts of different lengths; a label is the remainder of the last id, but for a few."""
    random = np.random.default_rng(31)
    vocabulary = json.loads((BASE / "config.json").read_text())["vocab_size"]
    texts = [random.integers(3, vocabulary, random.integers(2, 13)).tolist() for _ in range(TEXTS)]
    # Not as many of each.
    labels = [text[-1] % LABELS if index % 3 else 0 for index, text in enumerate(texts)]
    return dict(texts=texts, labels=labels)


def base():
    model = AutoModelForSequenceClassification.from_pretrained(
        BASE, num_labels=LABELS, pad_token_id=PAD, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def save(model, name):
    """PEFT's folder, with the base relative to the repository."""
    shutil.rmtree(FOLDER / name, ignore_errors=True)
    model.peft_config["default"].base_model_name_or_path = f"tests/fixtures/models/{BASE.name}"
    model.save_pretrained(FOLDER / name)
    (FOLDER / name / "README.md").unlink(missing_ok=True)


def make_start():
    torch.manual_seed(7)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=4, lora_alpha=8, target_modules=make_adapters.SEVEN, lora_dropout=0.0
    )
    model = get_peft_model(base(), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
            elif parameter.requires_grad and "score" in name:
                parameter.normal_(std=0.3)
    save(model, "start")


def load():
    return PeftModel.from_pretrained(base(), FOLDER / "start", is_trainable=True)


def logits(model, texts):
    longest = max(map(len, texts))
    ids = torch.tensor([text + [PAD] * (longest - len(text)) for text in texts])
    return model(input_ids=ids, attention_mask=(ids != PAD).long()).logits.float()


def run(name, data):
    model = load()
    weights = CASES[name]
    of_label = torch.tensor(weights or [1.0] * LABELS)
    labels = torch.tensor(data["labels"])
    mean = of_label[labels].mean()
    trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, weight_decay=0.0)
    random = np.random.default_rng(5)
    steps = []
    while len(steps) < STEPS:
        for step in random.permutation(TEXTS).reshape(-1, AT_ONCE).tolist()[: STEPS - len(steps)]:
            optimizer.zero_grad()
            found = logits(model, [data["texts"][index] for index in step])
            losses = cross_entropy(found, labels[step], weight=of_label, reduction="none")
            loss = losses.sum() / (len(step) * mean)
            loss.backward()
            optimizer.step()
            steps.append(dict(texts=step, loss=float(loss)))
    with torch.no_grad():
        after = log_softmax(logits(model, data["texts"]), -1)
    renamed = {}
    tensors = {}
    for key, values in trained.items():
        short = "score" if "score" in key else make_adapters.short(key, renamed)
        tensors[short] = values.detach().contiguous()
    save_file(dict(tensors, log_probabilities=after.contiguous()), FOLDER / f"{name}.safetensors")
    if name == "plain":
        save(model, "final")
    print(f"{name}: loss {steps[0]['loss']:.4f} to {steps[-1]['loss']:.4f}")
    return dict(weights=weights, rate=RATE, steps=steps)


def check(folder, adapter, predictions):
    """An adapter of burnish in PEFT against the probabilities of `burnish predict`."""
    with safe_open(f"{adapter}/adapter_model.safetensors", "pt") as file:
        labels = json.loads(file.metadata()["burnish.labels"])
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=len(labels), id2label=dict(enumerate(labels)), dtype=torch.float32
    )
    model = PeftModel.from_pretrained(model.eval(), adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    worst = 0.0
    rows = [json.loads(line) for line in open(predictions)]
    for row in rows:
        with torch.no_grad():
            found = model(**tokenizer(row["text"], return_tensors="pt")).logits[0].softmax(-1)
        assert model.config.id2label[int(found.argmax())] == row["label"], row
        worst = max(worst, max(abs(row["probabilities"][name] - float(p)) for name, p in zip(labels, found)))
    print(f"{len(rows)} texts: the same labels, probabilities within {worst:.2e}")


def main():
    if sys.argv[1:2] == ["--check"]:
        return check(*sys.argv[2:])
    FOLDER.mkdir(parents=True, exist_ok=True)
    data = examples()
    (FOLDER / "data.json").write_text(json.dumps(data) + "\n")
    make_start()
    (FOLDER / "cases.json").write_text(json.dumps({name: run(name, data) for name in CASES}) + "\n")


if __name__ == "__main__":
    main()
