"""Makes tests/fixtures/sampling.json: what transformers' logits processors leave of random logits.

Each case: the settings, `history`, f32 `logits`, and the tokens that keep a probability, with it, the likeliest first.

    pip install -r tests/reference/requirements.txt
    python tests/reference/make_sampling.py
"""

import json
import pathlib

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures"
VOCABULARY = 64

CASES = [
    dict(),
    dict(temperature=0.7),
    dict(temperature=1.8, top_k=10),
    dict(top_p=0.9),
    dict(top_p=0.5, temperature=0.5),
    dict(min_p=0.1),
    dict(min_p=0.3, top_p=0.95, top_k=30, temperature=1.3),
    dict(repetition_penalty=1.3, temperature=0.8),
    dict(repetition_penalty=1.1, temperature=0.6, top_k=20, top_p=0.8, min_p=0.05),
    dict(top_k=1),
    dict(top_p=0.01),
]


def processors(case):
    """In the order of GenerationMixin._get_logits_processor."""
    steps = LogitsProcessorList()
    if "repetition_penalty" in case:
        steps.append(RepetitionPenaltyLogitsProcessor(case["repetition_penalty"]))
    if "temperature" in case:
        steps.append(TemperatureLogitsWarper(case["temperature"]))
    if "top_k" in case:
        steps.append(TopKLogitsWarper(case["top_k"]))
    if "top_p" in case:
        steps.append(TopPLogitsWarper(case["top_p"]))
    if "min_p" in case:
        steps.append(MinPLogitsWarper(case["min_p"]))
    return steps


def make(case, seed):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(VOCABULARY, generator=random) * 3
    history = torch.randint(0, VOCABULARY, (12,), generator=random)
    scores = processors(case)(history[None], logits[None].clone())[0]
    probabilities = torch.softmax(scores.double(), 0)
    order = torch.argsort(scores, descending=True)
    kept = [[token.item(), probabilities[token].item()] for token in order if scores[token] > -torch.inf]
    return {**case, "history": history.tolist(), "logits": [float(value) for value in logits], "kept": kept}


if __name__ == "__main__":
    with open(FIXTURES / "sampling.json", "w") as file:
        json.dump([make(case, seed) for seed, case in enumerate(CASES)], file)
        file.write("\n")
