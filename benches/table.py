"""The table of speed and memory against PEFT for this machine: one command, the tools alternating in every row.

    python benches/table.py --model MODEL_FOLDER [--base BASE] [--burnish target/release/burnish] [--rows ROWS] [--rounds 5]
        [--wikisql FOLDER] [--ops "cargo bench --bench ops --"]

MODEL_FOLDER is SmolLM2-135M as a Hugging Face folder; BASE is what burnish calls the same base. ROWS are names of this file's ROWS,
separated by commas; `smallest` is the first of them with two steps, for a machine that only shows that the command works (without torch
and peft, burnish alone is measured). The row `wikisql` needs the folder of its data, and `linear` the benchmark of the kernels (--ops). The
table names the processor and the share of the time that AMX was "alone" (amx_state.py): before and after each row. Figures are medians;
"aim" is the factor that the project wants, on a processor with AMX. Nothing is compared with it: a shared machine decides the outcome.
"""

import argparse
import importlib.util
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import amx_state
import peft_side_by_side as side_by_side

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "BURNISH_ISA": "avx2"}
# name -> (title, workload, PEFT's mode, burnish's mode, figure, aim, environment); a memory's aim is PEFT's share.
ROWS = {
    "qv": ("4 x 256, q and v, bf16", "qv", "bf16", "bf16", "speed", 3, {}),
    "compiled": ("4 x 256, q and v, bf16, PEFT compiled", "qv", "bf16-compile", "bf16", "speed", 2, {}),
    "seven": ("4 x 256, all seven, bf16", "seven", "bf16", "bf16", "speed", 3, {}),
    "1k": ("1 x 1,024, q and v, bf16", "1k", "bf16", "bf16", "speed", 3, {}),
    "4k": ("1 x 4,096, q and v, bf16", "4k", "bf16", "bf16", "speed", 4, {}),
    "wikisql": ("WikiSQL, an epoch, bf16", "wikisql", "bf16", "bf16", "speed", 4, {}),
    "nf4": ("4 x 256 over NF4", "qv", "nf4", "nf4", "speed", 2.5, {}),
    "f32": ("4 x 256, f32", "qv", "f32", "f32", "speed", 1.5, {}),
    "avx2": ("4 x 256, bf16, both held to AVX2", "qv", "bf16", "bf16", "speed", 1.5, AVX2),
    "memory": ("memory, 4 x 256, bf16", "qv", "bf16", "bf16", "memory", 1 / 5, {}),
    "memory-recompute": ("memory, with recompute", "qv", "bf16", "bf16-recompute", "memory", 1 / 8, {}),
    "memory-nf4": ("memory, NF4 with recompute", "qv", "bf16", "nf4-recompute", "memory", 1 / 10, {}),
    "linear": ("frozen linear, bf16", None, None, None, "linear", 1.1, {}),
}  # fmt: skip
SHAPES = [(1024, 576, 1536), (1024, 1536, 576), (2048, 2048, 8192)]
PYTORCH_LINEAR = """
import sys, time, torch
tokens, width, out, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)
x, weight = torch.randn(tokens, width).bfloat16(), torch.randn(out, width).bfloat16()
rates = []
for _ in range(40):
    began = time.perf_counter()
    torch.nn.functional.linear(x, weight)
    rates.append(2 * tokens * width * out / (time.perf_counter() - began) / 1e9)
print(sorted(rates)[20])
"""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--base")
    parser.add_argument("--burnish", type=Path, default=Path("target/release/burnish"))
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--wikisql", type=Path)
    parser.add_argument("--wikisql-steps", type=int, default=250)
    parser.add_argument("--ops", help="the command of the benchmark of the kernels")
    # The table is that of a processor.
    parser.set_defaults(device="cpu")
    options = parser.parse_args()
    if options.rows == "smallest":
        options.rows, options.rounds, options.steps = next(iter(ROWS)), 1, 2
    options.rows = options.rows.split(",")
    unknown = [name for name in options.rows if name not in ROWS]
    if unknown:
        parser.error(f"unknown rows {', '.join(unknown)}; there are {', '.join(ROWS)}")
    return options


@contextmanager
def environment(variables):
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    yield
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def state():
    found = amx_state.state()
    return "no AMX" if found is None else f"alone {found['alone']:.0%}"


def has_peer():
    return all(importlib.util.find_spec(name) for name in ("torch", "peft", "transformers"))


def training(options, name, folder):
    """The medians of both tools: figures and ratio."""
    _, workload, peer_mode, mode, figure, _, variables = ROWS[name]
    if workload == "wikisql":
        if options.wikisql is None:
            return "needs --wikisql", None
        data = options.wikisql / "train.jsonl"
    else:
        data = folder / f"{workload}.jsonl"
        side_by_side.write_made_up(data, options.model, workload, options.steps)
    key = "peak_bytes" if figure == "memory" else "tokens_per_second"
    peers, ours = [], []
    with environment(variables):
        for _ in range(options.rounds):
            if has_peer():
                peers.append(side_by_side.measure_peft(options, peer_mode, workload, data, options.threads))
            ours.append(
                side_by_side.measure_burnish(options, options.burnish, mode, workload, data, options.threads, folder)
            )
    failed = next((result["error"] for result in peers + ours if "error" in result), None)
    if failed:
        return failed, None
    unit = 2**20 if figure == "memory" else 1
    median = lambda results: statistics.median(result[key] for result in results) / unit
    described = f"{median(ours):,.0f}{' MiB' if figure == 'memory' else ' tokens/s'}"
    if not peers:
        return f"burnish {described}; no torch or peft here", None
    return f"PEFT {median(peers):,.0f}, burnish {described}", median(ours) / median(peers)


def linear(options):
    """The worst ratio over the shapes, each beside PyTorch before and after."""
    if options.ops is None or not has_peer():
        return "needs --ops, and torch", None
    texts, ratios = [], []
    for tokens, width, out in SHAPES:
        command = [sys.executable, "-c", PYTORCH_LINEAR, *map(str, (tokens, width, out, options.threads))]
        pytorch = lambda: float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        before = pytorch()
        name = f"linear {tokens}x{width}x{out} on .*/forward/BF16"
        said = subprocess.run([*shlex.split(options.ops), name], check=True, stdout=subprocess.PIPE, text=True).stdout
        found = re.search(r"thrpt:\s*\[\S+ \S+ (\S+) (G|T)elem/s", said)
        if found is None:
            return f"{name}: no figure in the output of {options.ops}", None
        rate = float(found.group(1)) * (1000 if found.group(2) == "T" else 1)
        theirs = (before + pytorch()) / 2
        ratios.append(rate / theirs)
        texts.append(f"{tokens}x{width}x{out}: {theirs:.0f}, {rate:.0f} GFLOP/s")
    return "; ".join(texts), min(ratios)


def main():
    options = arguments()
    print(f"{side_by_side.processor()}, {options.threads} threads, {time.strftime('%Y-%m-%d')}", flush=True)
    print("| row | state | PEFT, burnish | ratio | aim |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="table_") as folder:
        for name in options.rows:
            title, *_, aim, _ = ROWS[name]
            before = state()
            text, ratio = linear(options) if name == "linear" else training(options, name, Path(folder))
            states = before if before == "no AMX" else f"{before}, {state()}"
            shown = "" if ratio is None else f"{ratio:.2f}"
            print(f"| {title} | {states} | {text} | {shown} | {aim:.2g} |", flush=True)


if __name__ == "__main__":
    main()
