"""Makes tests/fixtures/choices.json: log-likelihoods of choices as lm-evaluation-harness defines them, by transformers.

The model is fixtures/gguf/smollm.gguf in f32. Each question has a context and choices; a choice follows the context after a
space, white space at the end of the context belongs to the choice, context and choice are encoded together, and the tokens
after as many as the context alone has are the choice's (`TemplateLM._encode_pair`). `acc` takes the greatest sum, `acc_norm`
the greatest sum over the characters of the choice; of equals the first (`np.argmax`).

    pip install -r tests/reference/requirements.txt
    python tests/reference/make_choices.py
"""

import json
import pathlib

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures"

QUESTIONS = [
    ("The river ran past the old", ["mill", "children who counted the boats", "sea"]),
    ("A model learns the shape of a", ["sentence", "small model", "SELECT name"]),
    ("def area(width, height):\n    return", ["width * height", "a gare", "w", "h"]),
    ("The children went to the ", ["mill and the boats", "sea"]),
    ("Question: what did they count?\nAnswer:", ["boats", "sentences", "models", "many towns"]),
    ("The children counted the boats: one, two,", ["three, four", "more", "name LIKE"]),
]


def encoded(tokenizer, context, continuation):
    spaces = len(context) - len(context.rstrip())
    if spaces > 0:
        continuation = context[-spaces:] + continuation
        context = context[:-spaces]
    whole = tokenizer.encode(context + continuation, add_special_tokens=False)
    start = len(tokenizer.encode(context, add_special_tokens=False))
    return whole, start


def main():
    folder = FIXTURES / "gguf"
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="smollm.gguf")
    for line in (folder / "smollm.tokens.jsonl").read_text().splitlines():
        case = json.loads(line)
        # transformers' reader of GGUF files does not split digits; the questions have none.
        if case["text"].isascii() and "<" not in case["text"] and not any(map(str.isdigit, case["text"])):
            assert tokenizer.encode(case["text"], add_special_tokens=False) == case["ids"], case
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="smollm.gguf", dtype=torch.float32).eval()
    questions = []
    for context, choices in QUESTIONS:
        sums, tokens = [], []
        for choice in choices:
            ids, start = encoded(tokenizer, context, " " + choice)
            with torch.no_grad():
                log = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
            sums.append(sum(log[at - 1, ids[at]].item() for at in range(start, len(ids))))
            tokens.append(len(ids) - start)
        characters = np.array([float(len(choice)) for choice in choices])
        questions.append({
            "prompt": context, "choices": choices, "log_likelihoods": sums, "tokens": tokens,
            "acc_choice": int(np.argmax(sums)), "acc_norm_choice": int(np.argmax(np.array(sums) / characters)),
        })
    (FIXTURES / "choices.json").write_text(json.dumps(questions, indent=1) + "\n")


if __name__ == "__main__":
    main()
