"""Makes tests/fixtures/scores.json: ROUGE-L by rouge-score, and bootstrap intervals by numpy.

rouge: [reference, prediction, F1]. References in ASCII letters go through rouge-score as it is; Chinese and Japanese
ones through rouge-score with a tokenizer of characters (letters and digits after NFKC and case folding); others with
one of words.
bootstrap: examples with different token counts, `after - before` by token resampled 400,000 times by numpy, and the
percentiles 2.5 and 97.5.

    pip install -r tests/reference/requirements.txt
    python tests/reference/make_scores.py
"""

import json
import pathlib
import unicodedata

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures"

ASCII_PAIRS = [
    ("SELECT name FROM table WHERE age = 30", "SELECT name FROM table WHERE age > 30"),
    ("The cat sat on the mat.", "On the mat, the cat was sitting!"),
    ("one two three four five", "five four three two one"),
    ("Running runners ran quickly", "A runner runs quick"),
    ("a b c d e f g", "g a b x c d y"),
    ("It's a test -- isn't it?", "its a test isnt it"),
    ("same words", "same words"),
    ("nothing in common", "else altogether"),
    ("answer", ""),
    ("line one\nline two\n", "line two\nline one"),
]
CHARACTER_PAIRS = [
    ("北京是中国的首都。", "中国的首都是北京。"),
    ("今天天气很好", "今天的天气非常好!"),
    ("使用 LoRA 微调模型", "用LoRA来微调大模型"),
    ("日本語のテストです", "これは日本語です"),
    ("答案是42", "the answer is 42"),
]
WORD_PAIRS = [
    ("Москва является столицей России", "Столица России — Москва"),
    ("Das Mädchen läuft schnell", "das mädchen läuft sehr schnell"),
]


class Characters:
    def tokenize(self, text):
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        return [character for character in folded if character.isalnum()]


class Words:
    def tokenize(self, text):
        kept = "".join(c if c.isalnum() else " " for c in unicodedata.normalize("NFKC", text).casefold())
        return kept.split()


def rouge():
    cases = []
    for pairs, tokenizer in [(ASCII_PAIRS, None), (CHARACTER_PAIRS, Characters()), (WORD_PAIRS, Words())]:
        scorer = RougeScorer(["rougeL"], use_stemmer=False, tokenizer=tokenizer)
        cases += [[a, b, scorer.score(a, b)["rougeL"].fmeasure] for a, b in pairs]
    return cases


def bootstrap(examples, shift, seed):
    random = np.random.default_rng(seed)
    tokens = random.integers(1, 40, examples)
    before = random.gamma(2.0, 1.0, examples) * tokens
    after = before + random.normal(shift, 1.0, examples) * tokens
    difference = after - before
    results = []
    for _ in range(400):
        drawn = random.integers(0, examples, (1000, examples))
        results.append(difference[drawn].sum(axis=1) / tokens[drawn].sum(axis=1))
    low, high = np.percentile(np.concatenate(results), [2.5, 97.5])
    return {
        "tokens": tokens.tolist(),
        "before": before.tolist(),
        "after": after.tolist(),
        "mean_before": before.sum() / tokens.sum(),
        "mean_after": after.sum() / tokens.sum(),
        "low": low,
        "high": high,
    }


if __name__ == "__main__":
    cases = [bootstrap(30, -0.8, 1), bootstrap(100, 0.0, 2), bootstrap(50, 0.6, 3)]
    with open(FIXTURES / "scores.json", "w") as file:
        json.dump({"rouge": rouge(), "bootstrap": cases}, file, indent=1, ensure_ascii=False)
        file.write("\n")
