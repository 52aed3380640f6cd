"""Trains a model resident and under a limit of memory below its size, and compares: the losses have to be equal to the last digit.

    python benches/larger_than_memory.py --tokenizer FOLDER [--shape tinyllama-1.1b] [--limit 600MiB] [--sequences 1] [--accumulate 1]
        [--tokens 512] [--steps 3] [--scheme nf4-double] [--work DIR] [--burnish target/release/burnish]

The weights are random (random_model.py), packed by `burnish quantize`. The limited run gets `--max-memory LIMIT` and, as root on Linux, a
memory cgroup (version 1 or 2) of the same size, which counts pages of files as well; elsewhere only the peak of the process is compared
with the limit. Before the limited run the packed files are taken out of the system's cache. With --work the model is kept there and used
again. Prints a table, and the facts as one JSON object.

`--shape llama-3.1-8b --limit 2GiB --sequences 8 --accumulate 8` takes 16 GB of disk for the model (removed once it is packed, unless
--keep-dense), 5 GB for the packed one, and a quarter of an hour or more. --sequences is the number of sequences in a step, --accumulate the
number of micro-batches that they are dealt to.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import speed
from random_model import SHAPES

RECIPE = """
[base]
model = {base}
compute = "bf16"

[data]
train = {data}
format = "text"
max_seq_tokens = {tokens}
overlong = "error"

[adapter]
rank = 16
targets = "attention"

[train]
micro_batch_seqs = {micro}
accumulate_steps = {accumulate}
recompute = "block"

[output]
dir = {out}
"""
UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer.json that is copied along")
    parser.add_argument("--shape", choices=SHAPES, default="tinyllama-1.1b")
    parser.add_argument("--limit", default="600MiB")
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--scheme", default="nf4-double")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path)
    parser.add_argument("--keep-dense", action="store_true")
    parser.add_argument("--burnish", type=Path, default=Path("target/release/burnish"))
    options = parser.parse_args()
    options.burnish = options.burnish.resolve()
    number, unit = re.fullmatch(r"([0-9.]+) *(|KiB|MiB|GiB)", options.limit).groups()
    options.limit_bytes = int(float(number) * UNITS[unit])
    return options


class Cgroup:
    """A memory cgroup of so many bytes; `path` is None where there can be none."""

    def __init__(self, limit):
        self.path, name = None, f"burnish-{os.getpid()}"
        for root, file in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]:
            path = Path(root) / name
            try:
                path.mkdir()
            except OSError:
                continue
            if (path / file).exists():
                try:
                    (path / file).write_text(str(limit))
                    self.path = path
                    return
                except OSError:
                    pass
            path.rmdir()

    def enter(self):
        """For the child: it joins the group before it becomes the program."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def peak(self):
        for file in ("memory.max_usage_in_bytes", "memory.peak"):
            if (self.path / file).exists():
                return int((self.path / file).read_text())
        return None

    def remove(self):
        if self.path is not None:
            self.path.rmdir()


def status(process, field):
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{field}:\s*(\d+) kB", text, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


class Watch(threading.Thread):
    """The largest parts of a process's memory: its own pages, and those of files."""

    def __init__(self, process):
        super().__init__(daemon=True)
        self.process, self.own, self.files = process, 0, 0

    def run(self):
        while self.process.poll() is None:
            self.own = max(self.own, status(self.process.pid, "RssAnon"))
            self.files = max(self.files, status(self.process.pid, "RssFile"))
            time.sleep(0.02)


def run(command, cgroup=None):
    """Runs a command; its stdout, its stderr, and the peaks of its memory."""
    enter = cgroup.enter if cgroup and cgroup.path else None
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=enter)
    watch = Watch(process)
    watch.start()
    out, error = process.communicate()
    if process.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit {process.returncode}: {error.strip()[-800:]}")
    return out, error, watch


def made(options, work):
    """The packed model."""
    packed = work / f"{options.shape}-{options.scheme}"
    if packed.exists():
        return packed
    dense = work / options.shape
    if not dense.exists():
        script = Path(__file__).with_name("random_model.py")
        arguments = ["--shape", options.shape, "--tokenizer", str(options.tokenizer), "--out", str(dense)]
        subprocess.run([sys.executable, str(script), *arguments], check=True, stdout=subprocess.DEVNULL)
    began = time.monotonic()
    _, _, watch = run([options.burnish, "quantize", "--base", dense, "--out", packed, "--scheme", options.scheme])
    mib = lambda count: f"{count / 2**20:,.0f} MiB"
    print(
        f"packed in {time.monotonic() - began:.0f} s; at most {mib(watch.own)} of memory of its own and {mib(watch.files)} of files",
        file=sys.stderr,
    )
    if not options.keep_dense:
        shutil.rmtree(dense)
    return packed


def forget(folder):
    """Takes the files out of the system's cache."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def trained(options, folder, packed, data, name, more, cgroup=None):
    out, recipe = folder / name, folder / f"{name}.toml"
    recipe.write_text(
        RECIPE.format(
            base=json.dumps(str(packed)),
            data=json.dumps(str(data)),
            tokens=options.tokens,
            micro=options.sequences // options.accumulate,
            accumulate=options.accumulate,
            out=json.dumps(str(out)),
        )
    )
    command = [options.burnish, "train", recipe, "--json", "--threads", str(options.threads), *more]
    stdout, stderr, watch = run(command, cgroup)
    lines = lambda file: [json.loads(line) for line in (out / file).open(encoding="utf-8")]
    report = json.loads(stdout)
    rates = [step["tokens_per_second"] for step in lines("timings.jsonl")]
    return {
        "run": name,
        "losses": [line["loss"] for line in lines("metrics.jsonl") if "loss" in line],
        "gradient_norms": [line["grad_norm"] for line in lines("metrics.jsonl") if "grad_norm" in line],
        # The first step reads all of the base for the first time.
        "tokens_per_second": statistics.median(rates[1:] or rates),
        "peak_bytes": report["peak_bytes"],
        "planned_bytes": report["planned_bytes"],
        "own_bytes": watch.own,
        "file_bytes": watch.files,
        "cgroup_bytes": cgroup.peak() if cgroup and cgroup.path else None,
        "layout": json.loads((out / "run.json").read_text())["layout"],
        "said": [line for line in stderr.splitlines() if "disk" in line],
    }


def main():
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="larger_") as folder:
        folder = Path(folder)
        work = options.work or folder
        work.mkdir(parents=True, exist_ok=True)
        packed = made(options, work)
        data = folder / "data.jsonl"
        options.base, options.warm_up = packed, 0
        speed.write_data(data, options)
        results = [trained(options, folder, packed, data, "resident", [])]
        forget(packed)
        cgroup = Cgroup(options.limit_bytes)
        try:
            results.append(trained(options, folder, packed, data, "limited", ["--max-memory", options.limit], cgroup))
        finally:
            cgroup.remove()
    weights = sum(path.stat().st_size for path in packed.glob("*.safetensors"))
    resident, limited = results
    equal = all(resident[key] == limited[key] for key in ("losses", "gradient_norms"))
    mib = lambda count: "" if count is None else f"{count / 2**20:,.0f}"
    print(f"{options.shape}, {options.scheme}, {mib(weights)} MiB, {options.sequences} x {options.tokens} tokens in "
          f"{options.accumulate} micro-batches, limit {options.limit}, {time.strftime('%Y-%m-%d')}")  # fmt: skip
    print("| run | tokens/s | peak MiB | planned | own memory | files | cgroup | parts a pass |")
    print("|" + "---|" * 8)
    for result in results:
        memory = [result[f"{key}_bytes"] for key in ("peak", "planned", "own", "file", "cgroup")]
        print(f"| {result['run']} | {result['tokens_per_second']:.1f} | {' | '.join(map(mib, memory))} | "
              f"{result['layout']['parts_a_pass'] or ''} |")  # fmt: skip
    print(f"losses and gradient norms are {'equal' if equal else 'DIFFERENT'}: {limited['losses']}")
    print("\n".join(limited["said"]))
    print(json.dumps(results), file=sys.stderr)
    sys.exit(0 if equal and limited["layout"]["parts_a_pass"] else 1)


if __name__ == "__main__":
    main()
