"""Speed of several answers at once from one server, two adapters mixed, beside one answer at a time; and whether each is the same as alone.

    python benches/several_answers.py BASE --adapter FOLDER --adapter FOLDER [--burnish target/release/burnish] [--answers 8]
        [--tokens 128] [--rounds 3] [--threads 2]

Every answer has a prompt, a seed and an adapter of its own, is sampled at temperature 0.7, and has all of its tokens (the end token is held back
by a bias). First each is asked for alone, then all of them at once, `--rounds` times. The speed is that of all tokens from the
first request to the end of the last answer, prompts included, the median of the rounds. Exit code 1 where an answer differs from the one
that it is alone, or all at once are less than four times as fast. Needs the standard library.
"""

import argparse
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hostile_clients import ROOT, Server

LEAST = 4
THINGS = ["harbour", "mill", "orchard", "bridge", "library", "market", "lighthouse", "railway", "garden", "quarry"]


def ask(server, body):
    """The text of an answer and the number of its tokens."""
    status, answer = server.ask("POST", "/v1/completions", json.dumps(body).encode())
    answer = json.loads(answer)
    if status != 200:
        sys.exit(f"{status}: {answer}")
    return answer["choices"][0]["text"], answer["usage"]["completion_tokens"]


def timed(bodies, server, at_once):
    """The answers, and the tokens per second of all of them."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(at_once) as clients:
        answers = list(clients.map(lambda body: ask(server, body), bodies))
    return [text for text, _ in answers], sum(tokens for _, tokens in answers) / (time.perf_counter() - begun)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("--adapter", type=Path, action="append", required=True)
    parser.add_argument("--burnish", type=Path, default=ROOT / "target/release/burnish")
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", default="2")
    parser.add_argument("--end-token", default="2", help="the id of the token that ends an answer")
    options = parser.parse_args()
    named = [(f"adapter{index}", folder) for index, folder in enumerate(options.adapter)]
    served = [part for name, folder in named for part in ("--adapter", f"{name}={folder}")]
    with Server(options.burnish, options.base, *served, "--threads", options.threads, "--max-running", str(options.answers)) as server:
        bodies = [
            {"model": named[index % len(named)][0], "prompt": f"The {THINGS[index % len(THINGS)]} in the year {1900 + index} was", "seed": index,
             "temperature": 0.7, "max_tokens": options.tokens, "logit_bias": {options.end_token: -100}}
            for index in range(options.answers)
        ]
        rounds = [(timed(bodies, server, 1), timed(bodies, server, options.answers)) for _ in range(options.rounds)]
    differing = sum(alone != together for (alone_texts, _), (texts, _) in rounds for alone, together in zip(alone_texts, texts))
    one, all_at_once = (statistics.median(round[index][1] for round in rounds) for index in range(2))
    print(f"{options.answers} answers of {options.tokens} tokens by {len(named)} adapters, {options.threads} threads, {options.rounds} rounds")
    print(f"one at a time {one:.0f} tokens/s, all at once {all_at_once:.0f}: {all_at_once / one:.2f} times; {differing} answers differ")
    sys.exit(0 if differing == 0 and all_at_once >= LEAST * one else 1)


if __name__ == "__main__":
    main()
