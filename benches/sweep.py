"""Trains the trials of a sweep to their end, and again with its rungs, and compares rankings and times.

    python benches/sweep.py --burnish target/release/burnish --recipe recipes/sweep.toml --out DIR [--set KEY=VALUE …] [--parallel N]

Asked: the best three of the full runs are the best three of the sweep with rungs, in the same order, in at most half of the time.
Both sweeps train into new folders in DIR. Exits with 1 where the answer is no. Needs Python's standard library only; run it on an idle
machine.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from runs import printed_by

MOST_TIME = 0.5
BEST = 3


def sweep(options, name, more):
    """The report of a sweep and the seconds that it took."""
    folder = options.out / name
    settings = [f"output.dir={json.dumps(str(folder))}", *options.set, *more]
    command = [str(options.burnish), "sweep", str(options.recipe), "--json", "--parallel", str(options.parallel)]
    command += [part for setting in settings for part in ("--set", setting)]
    began = time.monotonic()
    report = printed_by(command)
    return report, time.monotonic() - began


def show(title, report, seconds):
    print(f"{title}: {seconds:.1f} s; {report['sentence']}")
    for place, trial in enumerate(report["trials"], 1):
        values = ", ".join(f"{key} = {value}" for key, value in trial["values"].items())
        print(f"  {place:2}  {trial['name']}  {trial['state']:8}  loss {trial['loss'] or float('nan'):.4f}  "
              f"{trial['steps']:4} of {trial['total_steps']} steps  {trial['seconds']:6.1f} s  {values}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--burnish", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/sweep.toml"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--parallel", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    full, full_seconds = sweep(options, "full", ["sweep.rungs=[]"])
    show("full", full, full_seconds)
    halved, halved_seconds = sweep(options, "halved", [])
    show("with rungs", halved, halved_seconds)
    best = [[trial["name"] for trial in report["trials"][:BEST]] for report in (full, halved)]
    losses = [{trial["name"]: trial["loss"] for trial in report["trials"]} for report in (full, halved)]
    same_bits = all(losses[0][name] == losses[1][name] for name in best[1])
    ratio = halved_seconds / full_seconds
    agrees = best[0] == best[1]
    print(f"best {BEST} in full: {', '.join(best[0])}; with rungs: {', '.join(best[1])}: {'the same' if agrees else 'OTHERS'}")
    print(f"losses of those that went on: {'equal to the full runs' if same_bits else 'DIFFERENT FROM THE FULL RUNS'}")
    print(f"time: {ratio:.2f} of that of full runs, at most {MOST_TIME} asked")
    sys.exit(0 if agrees and same_bits and ratio <= MOST_TIME else 1)


if __name__ == "__main__":
    main()
