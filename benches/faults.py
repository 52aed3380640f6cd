"""Lets a training run fail at every system call on files, resumes it, and compares the result with the unbroken run's.

    python benches/faults.py [--fault SIGKILL|ENOSPC|EIO|EINTR|lost] [--from-then-on] [--stride N] [--jobs N]
        [--burnish target/release/burnish]

A tiny model is trained for a few steps, with a checkpoint after every second and two that are kept. The run fails at the K-th
call of each kind, for every K there is: once from the beginning, and once while it resumes from a run that was killed half-way.
Between them lie every call of a save, of the removal of an old checkpoint, of the best adapter and of the final write. At the
call the run is killed, or the call fails with an error of the system, or (`lost`) a write says that it wrote a byte and wrote
none. `--from-then-on`: so does every call of the kind after it; of EINTR every second. A run that says it is done must be done:
the adapter, its card, the metrics, the recipe and the verdict are those of the unbroken run, to the byte. After any other end, resuming
must lead there. Exit code 1 where one does not. `--stride 5` takes every fifth K. Needs Linux, strace and the standard library.
"""

import argparse
import collections
import concurrent.futures
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "tests/fixtures/gguf/smollm.gguf"
CALLS = "openat,read,pread64,write,pwrite64,lseek,ftruncate,fsync,fdatasync,flock,mkdir,rename,unlink,unlinkat,rmdir,statx"
FAULTS = {
    "SIGKILL": "signal=SIGKILL",
    "ENOSPC": "error=ENOSPC",
    "EIO": "error=EIO",
    "EINTR": "error=EINTR",
    "lost": "retval=1",
}
SECONDS = 120
RECIPE = f"""[base]
model = "{MODEL}"
compute = "f32"
[data]
train = "train.jsonl"
valid = "valid.jsonl"
max_seq_tokens = 64
[adapter]
rank = 2
targets = ["q_proj"]
[train]
epochs = 4
max_steps = 8
learning_rate = 1e-2
eval_steps = 3
checkpoint_steps = 2
[output]
dir = "run"
"""


def rows(first, last):
    return "".join(
        json.dumps({"prompt": f"{a} and 2 is ", "completion": str(a + 2)}) + "\n" for a in range(first, last)
    )


def job(folder):
    """A folder with the recipe and its data."""
    folder.mkdir()
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "train.jsonl").write_text(rows(1, 13))
    (folder / "valid.jsonl").write_text(rows(20, 32))
    return folder


def result(folder):
    """The hashes of all that a run is about, and the names that must not be there."""
    run = folder / "run"
    files = ["adapter_model.safetensors", "adapter_config.json", "README.md", "metrics.jsonl", "recipe.toml"]
    found = {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in files}
    outcome = json.loads((run / "run.json").read_text())["outcome"]
    timed = {"tokens_per_second", "peak_bytes"}
    found["verdict"] = {key: value for key, value in outcome.items() if key not in timed}
    found["checkpoints"] = sorted(path.name for path in (run / "checkpoints").iterdir())[-1]
    return found


class Runs:
    def __init__(self, burnish, injection):
        self.burnish, self.injection = str(burnish.resolve()), injection
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("BURNISH_", "HF_"))}
        self.environment = {**kept, "HF_ENDPOINT": "http://127.0.0.1:1"}

    def run(self, folder, resume, *strace):
        """Trains; returns the exit code and stderr."""
        if strace:
            strace = ["strace", "-f", "-qq", *strace]
        command = [*strace, self.burnish, "--threads", "1", "train", "recipe.toml", *(["--resume"] if resume else [])]
        done = subprocess.run(command, cwd=folder, env=self.environment, capture_output=True, timeout=SECONDS)
        return done.returncode, done.stderr.decode(errors="replace")

    def count(self, folder, resume):
        """The number of calls of each kind in one run, of the thread that makes the most of them: strace counts by thread."""
        trace = folder / "trace"
        code, stderr = self.run(folder, resume, "-o", str(trace), "-e", f"trace={CALLS}", "-e", "signal=none")
        if code:
            sys.exit(f"the run under strace failed with {code}: {stderr}")
        by_thread = collections.Counter()
        for line in trace.read_text().splitlines():
            thread, _, rest = line.partition(" ")
            call = rest.strip().partition("(")[0]
            if call.isidentifier():
                by_thread[call, thread] += 1
        counts = {}
        for (call, _), count in by_thread.items():
            counts[call] = max(count, counts.get(call, 0))
        return counts

    def fail(self, folder, resume, call, when):
        """Runs with the fault, and resumes until the run is done. Returns the first exit code."""
        inject = f"inject={call}:{self.injection}:when={when}"
        first, stderr = self.run(folder, resume, "-o", os.devnull, "-e", f"trace={call}", "-e", inject)
        if first == 101 or "bug in burnish" in stderr:
            raise RuntimeError(f"panicked: {stderr}")
        if first:
            code, stderr = self.run(folder, True)
            if code:
                raise RuntimeError(f"ended with {first}; resuming ended with {code}: {stderr}")
        return first


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--burnish", type=Path, default=ROOT / "target/release/burnish")
    parser.add_argument("--fault", choices=FAULTS, default="SIGKILL")
    parser.add_argument("--from-then-on", action="store_true")
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    if not shutil.which("strace"):
        sys.exit("strace is not installed")
    after = ("+2" if arguments.fault == "EINTR" else "+") if arguments.from_then_on else ""
    runs = Runs(arguments.burnish, FAULTS[arguments.fault])
    begin, wrong, ends = time.monotonic(), 0, collections.Counter()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        whole = job(scratch / "whole")
        code, stderr = runs.run(whole, False)
        if code:
            sys.exit(f"the unbroken run failed with {code}: {stderr}")
        expected = result(whole)

        # Half-way: killed at the first rename after which there are two checkpoints.
        half = job(scratch / "half")
        for number in range(1, 1000):
            shutil.rmtree(half / "run", ignore_errors=True)
            runs.run(half, False, "-o", os.devnull, "-e", f"inject=rename:signal=SIGKILL:when={number}")
            if len(list((half / "run").glob("checkpoints/step-*"))) == 2:
                break

        def start(name, folder):
            if name == "resume":
                shutil.copytree(half, folder)
            else:
                job(folder)
            return folder

        def attempt(point):
            name, call, number = point
            if number % arguments.stride:
                return point, None, None
            folder = start(name, scratch / f"{name}-{call}-{number}")
            try:
                code = runs.fail(folder, name == "resume", call, f"{number}{after}")
                found = result(folder)
                differing = [key for key in found if found[key] != expected[key]]
                return point, code, f"differs in {', '.join(differing)}" if differing else None
            except (RuntimeError, OSError, ValueError, KeyError, subprocess.TimeoutExpired) as error:
                return point, None, repr(error)
            finally:
                shutil.rmtree(folder)

        todo = []
        for name in ["begin", "resume"]:
            counts = runs.count(start(name, scratch / f"count-{name}"), name == "resume")
            if arguments.fault == "lost":
                counts = {"write": counts["write"]}
            print(f"{name}: {dict(sorted(counts.items()))}", flush=True)
            todo += [(name, call, number) for call in counts for number in range(1, counts[call] + 1)]
        with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
            for done, (point, code, error) in enumerate(pool.map(attempt, todo), 1):
                if code is not None:
                    ends[code] += 1
                if error:
                    wrong += 1
                    print(*point, error, flush=True)
                if done % 200 == 0:
                    print(f"{done} of {len(todo)}, {time.monotonic() - begin:.0f} s", flush=True)
    ended = ", ".join(f"{count} with {code}" for code, count in sorted(ends.items()))
    print(f"{arguments.fault}{after}: runs that ended {ended}; {wrong} wrong; {time.monotonic() - begin:.0f} s")
    sys.exit(bool(wrong) or set(ends) <= {0})


if __name__ == "__main__":
    main()
