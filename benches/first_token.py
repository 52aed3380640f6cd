"""The time from the start of `burnish serve` to the first token of a prompt of 200 tokens and some, and of a second one with its beginning.

    python benches/first_token.py BASE [--burnish target/release/burnish] [--runs 5]

Prints the medians: from the start of the process to the first token; of the first request alone; of a second request that begins as the
first and ends otherwise. Exit code 1 where the first takes more than 1.5 s, or the last more than a fifth of the second. Needs the standard
library.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from hostile_clients import ROOT, Server
from hostile_requests import request

WORDS = "The harbour lies at the mouth of a river that comes down from the hills in the north and brings sand with it each spring. "


def first_token(server, question):
    """Seconds from the request to the first piece of the answer, with the tokens of the prompt and those in the cache."""
    body = {"model": server.model, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 4}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    begun, at, text = time.perf_counter(), None, b""
    with server.connect() as connection:
        connection.sendall(request("POST", "/v1/chat/completions", json.dumps(body).encode()))
        while piece := connection.recv(65536):
            text += piece
            # The first object has the role and no text.
            if at is None and text.count(b'"delta"') > 1:
                at = time.perf_counter()
    usage = json.loads(text[text.rindex(b'"usage":{') + 8 :].split(b"}}", 1)[0] + b"}}")
    return at, at - begun, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("--burnish", type=Path, default=ROOT / "target/release/burnish")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    starts, firsts, seconds = [], [], []
    for _ in range(arguments.runs):
        with Server(arguments.burnish, arguments.base) as server:
            at, first, tokens, _ = first_token(server, WORDS * 7 + "Where does the sand come from?")
            _, second, _, cached = first_token(server, WORDS * 7 + "When does it come?")
        starts.append(at - server.began)
        firsts.append(first)
        seconds.append(second)
    start, first, second = map(statistics.median, (starts, firsts, seconds))
    print(f"prompt of {tokens} tokens, {cached} of the second's in the cache; medians of {arguments.runs} runs:")
    print(f"start to first token {start:.3f} s; first request {first * 1e3:.1f} ms; second {second * 1e3:.1f} ms, {second / first:.2f} of it")
    sys.exit(0 if start <= 1.5 and second <= first / 5 else 1)


if __name__ == "__main__":
    main()
