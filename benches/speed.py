"""Speed and memory of burnish's training steps, on any device and at any number of threads.

    python benches/speed.py --base FOLDER [--burnish target/release/burnish] [--devices cpu,wgpu] [--threads 1,2]
        [--modes bf16,f32,f32/nf4] [--targets q-v,attention,all-linear] [--shape 4x256] [--steps 6] [--warm-up 2]

FOLDER is a model in Hugging Face's layout with its tokenizer.json, such as benches/random_model.py makes. A mode is what
products are computed in, then perhaps the quantisation, then perhaps `recompute`: `bf16`, `f32/nf4/recompute`. A shape is
sequences × tokens. Needs the standard library only.

Sequences of exactly that many tokens are made from words that are one token each. Every measurement is a process of its
own. Tokens per second are the median over the steps after the warm-up; the first step of each is given in seconds, since
a GPU's kernels are compiled there. Memory is the peak of the process; for a GPU also the rise of what nvidia-smi calls
used, where there is an nvidia-smi. Losses of a later device are compared with those of the first, step by step, where
mode, targets and shape are the same; `--tolerance` makes a difference above it an error.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
TARGETS = {
    "q-v": ["q_proj", "v_proj"],
    "attention": ATTENTION,
    "all-linear": ATTENTION + ["gate_proj", "up_proj", "down_proj"],
}
RANK, LEARNING_RATE = 8, 2e-4

RECIPE = """
[base]
model = {base}
compute = "{compute}"
quant = "{quant}"

[data]
train = {data}
format = "text"
max_seq_tokens = {tokens}
overlong = "error"

[adapter]
rank = {rank}
alpha = {alpha}
targets = {targets}

[train]
micro_batch_seqs = {sequences}
learning_rate = {rate}
recompute = "{recompute}"

[output]
dir = {out}
"""


def arguments():
    words = lambda text: text.split(",")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--burnish", type=Path, default=Path("target/release/burnish"))
    parser.add_argument("--devices", type=words, default=["cpu"])
    parser.add_argument("--threads", type=words, default=[str(os.cpu_count())])
    parser.add_argument("--modes", type=words, default=["bf16"])
    parser.add_argument("--targets", type=words, default=["q-v"])
    parser.add_argument("--shape", default="4x256")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=600, help="seconds after which a measurement is given up")
    parser.add_argument("--tolerance", type=float, help="the largest difference of losses between devices")
    options = parser.parse_args()
    unknown = [name for name in options.targets if name not in TARGETS]
    if unknown:
        parser.error(f"unknown targets {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    try:
        options.sequences, options.tokens = map(int, options.shape.split("x"))
    except ValueError:
        parser.error(f"--shape {options.shape}: expected sequences x tokens, as 4x256")
    return options


def write_data(path, options):
    """Texts of words that are one token each: with the end token, exactly the tokens of the shape."""
    vocabulary = json.loads((options.base / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    # A random model may have fewer tokens than its tokenizer (benches/random_model.py).
    rows = json.loads((options.base / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    known = (token for token, number in vocabulary.items() if number < rows)
    words = sorted(token[1:] for token in known if re.fullmatch("Ġ[a-z]{1,8}", token))
    choice = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(options.sequences * (options.warm_up + options.steps)):
            text = "".join(" " + word for word in choice.choices(words, k=options.tokens - 1))
            file.write(json.dumps({"text": text}) + "\n")


class DeviceMemory:
    """The largest use of the GPU's memory while it is open, in MiB above what it was before."""

    COMMAND = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]

    def __init__(self, device):
        self.measures = device != "cpu" and shutil.which("nvidia-smi") is not None
        self.before = self.peak = self.used() if self.measures else 0
        self.ended = threading.Event()

    def used(self):
        done = subprocess.run(self.COMMAND, stdout=subprocess.PIPE, text=True)
        return max((int(line) for line in done.stdout.split() if line.isdigit()), default=0)

    def watch(self):
        while not self.ended.wait(0.05):
            self.peak = max(self.peak, self.used())

    def __enter__(self):
        if self.measures:
            self.thread = threading.Thread(target=self.watch)
            self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        if self.measures:
            self.thread.join()

    def rise(self):
        return self.peak - self.before if self.measures else None


def measure(options, folder, data, device, mode, targets, threads):
    compute, *rest = mode.split("/")
    recompute = "block" if "recompute" in rest else "none"
    quant = next((word for word in rest if word != "recompute"), "none")
    out = folder / f"run-{time.time_ns()}"
    recipe = folder / "recipe.toml"
    recipe.write_text(
        RECIPE.format(
            base=json.dumps(str(options.base)),
            compute=compute,
            quant=quant,
            data=json.dumps(str(data)),
            tokens=options.tokens,
            rank=RANK,
            alpha=2 * RANK,
            targets=json.dumps(TARGETS[targets]),
            sequences=options.sequences,
            rate=LEARNING_RATE,
            recompute=recompute,
            out=json.dumps(str(out)),
        )
    )
    command = [str(options.burnish), "train", str(recipe), "--device", device, "--threads", threads, "--json"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with DeviceMemory(device) as memory:
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=options.timeout
            )
            said = " ".join(done.stderr.split())[-300:]
            error = f"exit {done.returncode}: {said}" if done.returncode else None
        except subprocess.TimeoutExpired:
            error = f"not finished after {options.timeout:.0f} s"
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)

    def lines(name):
        return [json.loads(line) for line in (out / name).open(encoding="utf-8")] if (out / name).exists() else []

    steps = lines("timings.jsonl")
    odd = next((step["tokens"] for step in steps if step["tokens"] != options.sequences * options.tokens), None)
    if error is None and odd is not None:
        error = f"a step of {odd} tokens, not {options.shape}: the tokenizer splits words"
    rates = [step["tokens_per_second"] for step in steps[options.warm_up :]]
    return {
        "device": device,
        "mode": mode,
        "targets": targets,
        "shape": options.shape,
        "threads": int(threads),
        "error": error,
        "tokens_per_second": statistics.median(rates) if rates else None,
        "first_step_seconds": steps[0]["tokens"] / steps[0]["tokens_per_second"] if steps else None,
        "peak_mib": max(step["peak_bytes"] for step in steps) / 2**20 if steps else None,
        "device_mib": memory.rise(),
        "wall_seconds": wall,
        # Of the processor, loading included: what a GPU's steps leave to the host.
        "user_seconds": after.ru_utime - before.ru_utime,
        "system_seconds": after.ru_stime - before.ru_stime,
        "losses": [line["loss"] for line in lines("metrics.jsonl") if "loss" in line],
    }


def number(value, form=",.0f"):
    return "" if value is None else f"{value:{form}}"


def main():
    options = arguments()
    reference, failed = {}, False
    print(f"{options.base.name}, {options.shape}, {time.strftime('%Y-%m-%d')}", flush=True)
    print("| device | mode | targets | threads | tokens/s | first step, s | peak MiB | device MiB | all in all, s | losses |")
    print("|" + "---|" * 10, flush=True)
    with tempfile.TemporaryDirectory(prefix="speed_") as folder:
        folder = Path(folder)
        data = folder / "data.jsonl"
        write_data(data, options)
        combinations = [
            (device, mode, targets, threads)
            for mode in options.modes
            for targets in options.targets
            for device in options.devices
            for threads in (options.threads if device == "cpu" else options.threads[-1:])
            for _ in range(options.rounds)
        ]
        for device, mode, targets, threads in combinations:
            result = measure(options, folder, data, device, mode, targets, threads)
            print(json.dumps(result), file=sys.stderr, flush=True)
            key, remark = (mode, targets), result["error"] or ""
            if result["error"]:
                failed = True
            elif key not in reference:
                reference[key] = (device, result["losses"])
            elif reference[key][0] != device:
                difference = max(abs(a - b) for a, b in zip(result["losses"], reference[key][1], strict=True))
                remark = f"{difference:.1e} from {reference[key][0]}"
                failed |= options.tolerance is not None and not difference <= options.tolerance
            print(
                f"| {device} | {mode} | {targets} | {threads} | {number(result['tokens_per_second'])} | "
                f"{number(result['first_step_seconds'], '.2f')} | {number(result['peak_mib'])} | "
                f"{number(result['device_mib'])} | {number(result['wall_seconds'], '.1f')} | {remark} |",
                flush=True,
            )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
