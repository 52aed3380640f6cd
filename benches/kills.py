"""Kills a training run of a real model again and again, resumes it, and compares it with the unbroken run.

    python benches/kills.py --recipe RECIPE --out RUNS [--kills 20] [--seed 0] [--checkpoint-steps 10] [--set KEY=VALUE …]
        [--burnish target/release/burnish] [--threads 2]

Steps to die at are drawn from the seed. The run gets SIGKILL a moment after it reports one of them (the moment is random too), and
`--resume` goes on. At the end the adapter, the metrics, the recipe and the verdict must be those of the unbroken run to the byte.
Printed are the steps that each kill cost, which are promised to be at most `--checkpoint-steps`. Exit code 1 where the runs
differ or a kill cost more. Needs the standard library only.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

COMPARED = ["adapter_model.safetensors", "adapter_config.json", "metrics.jsonl", "verdict.json", "recipe.toml"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-steps", type=int, default=10)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--burnish", default="target/release/burnish")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def command(options, folder, resume):
    settings = [f"train.checkpoint_steps={options.checkpoint_steps}", f"output.dir={json.dumps(str(folder))}", *options.set]
    words = [options.burnish, "train", options.recipe, "--threads", str(options.threads)]
    return words + [word for setting in settings for word in ("--set", setting)] + (["--resume"] if resume else [])


def last_step(folder):
    """The last training step that the metrics of a run report, 0 before the first."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0
    steps = [0]
    for line in lines:
        try:
            steps.append(json.loads(line).get("step", 0))
        except json.JSONDecodeError:
            pass  # The line that the kill cut.
    return max(steps)


def saved_step(folder):
    """The step of the newest checkpoint."""
    names = [path.name for path in folder.glob("checkpoints/step-*")]
    return max((int(name.removeprefix("step-")) for name in names if name.removeprefix("step-").isdigit()), default=0)


def hashes(folder):
    found = {}
    for name in COMPARED:
        path = folder / name
        content = path.read_bytes() if path.exists() else b"absent"
        # The folder's own name stands in the recipe.
        found[name] = hashlib.sha256(content.replace(str(folder).encode(), b"RUN")).hexdigest()
    return found


def main():
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    whole, killed = options.out / "whole", options.out / "killed"
    began = time.monotonic()
    subprocess.run(command(options, whole, False), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds, total = time.monotonic() - began, last_step(whole)
    print(f"unbroken: {total} steps, {seconds:.0f} s", flush=True)

    dice = random.Random(options.seed)
    targets = sorted(dice.sample(range(1, total), options.kills))
    lost, failed = [], False
    for target in targets:
        with open(options.out / "log", "ab") as log:
            process = subprocess.Popen(command(options, killed, True), stdout=log, stderr=log)
        while last_step(killed) < target and process.poll() is None:
            time.sleep(0.005)
        time.sleep(dice.random() * seconds / total)
        ended = process.poll()
        process.kill()
        process.wait()
        if ended is not None:
            print(f"step {target}: the run ended by itself, exit code {ended}; {options.out / 'log'} says why")
            return 1
        lost.append(last_step(killed) - saved_step(killed))
    with open(options.out / "log", "ab") as log:
        subprocess.run(command(options, killed, True), check=True, stdout=log, stderr=log)
    print(f"killed after steps {targets}; steps done again: {lost}, {sum(lost)} of {total}")
    if max(lost) > options.checkpoint_steps:
        print(f"a kill cost more than {options.checkpoint_steps} steps")
        failed = True
    ours, theirs = hashes(killed), hashes(whole)
    for name in COMPARED:
        same = ours[name] == theirs[name]
        failed |= not same
        print(f"{'equal' if same else 'DIFFERENT'}: {name} {ours[name][:16]}")
    return int(failed)


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parent.parent)
    sys.exit(main())
