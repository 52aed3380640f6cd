"""The planned peak of memory beside the measured one, over twelve runs: `burnish train --json` reports both.

    python benches/planned_memory.py --model MODEL_FOLDER [--base BASE] [--burnish target/release/burnish] [--limit 0.05]

MODEL_FOLDER holds the tokenizer.json by which texts of known lengths are made; BASE is what burnish calls the base (default:
MODEL_FOLDER). Every cell is two steps. Ends with code 1 where the two differ by more than --limit of the measured one.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import speed

# Sequences, tokens of each, mode (of speed.py), targets.
CELLS = [
    ("4x256", "bf16", "q-v"),
    ("4x256", "bf16/recompute", "q-v"),
    ("4x256", "bf16", "all-linear"),
    ("4x256", "bf16/nf4", "q-v"),
    ("4x256", "bf16/nf4/recompute", "q-v"),
    ("4x256", "f32", "q-v"),
    ("1x1024", "bf16", "q-v"),
    ("1x2048", "bf16", "q-v"),
    ("1x2048", "bf16/recompute", "q-v"),
    ("1x4096", "bf16", "q-v"),
    ("1x4096", "bf16/recompute", "q-v"),
    ("1x8192", "bf16/recompute", "q-v"),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--base")
    parser.add_argument("--burnish", type=Path, default=Path("target/release/burnish"))
    parser.add_argument("--threads", default=str(os.cpu_count()))
    parser.add_argument("--limit", type=float, default=0.05)
    parser.add_argument("--only", help="the shapes to measure, as 4x256,1x1024")
    options = parser.parse_args()
    only = options.only.split(",") if options.only else None
    options.steps, options.warm_up, options.timeout = 2, 0, 3600
    name, worst = options.base or str(options.model), 0.0
    print(f"{Path(name).name}, {time.strftime('%Y-%m-%d')}", flush=True)
    print("| shape | mode | targets | planned MiB | measured MiB | difference |\n|---|---|---|---|---|---|", flush=True)
    for shape, mode, targets in CELLS:
        if only and shape not in only:
            continue
        options.shape = shape
        options.sequences, options.tokens = map(int, shape.split("x"))
        with tempfile.TemporaryDirectory(prefix="planned_") as folder:
            data = Path(folder) / "data.jsonl"
            options.base = options.model
            speed.write_data(data, options)
            options.base = name
            result = speed.measure(options, Path(folder), data, "cpu", mode, targets, options.threads)
            runs = list(Path(folder).glob("run-*/run.json"))
            planned = json.loads(runs[0].read_text())["planned_bytes"] / 2**20 if runs else float("nan")
        if result["error"]:
            sys.exit(f"{shape} {mode} {targets}: {result['error']}")
        measured = result["peak_mib"]
        difference = planned / measured - 1
        worst = max(worst, abs(difference))
        print(f"| {shape} | {mode} | {targets} | {planned:,.0f} | {measured:,.0f} | {difference:+.1%} |", flush=True)
    print(f"the largest difference is {worst:.1%}")
    sys.exit(0 if worst <= options.limit else 1)


if __name__ == "__main__":
    main()
