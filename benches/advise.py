"""Compares what `burnish advise` predicts with runs: peak memory and time, of models by methods.

    python benches/advise.py --burnish target/release/burnish --tokenizer FOLDER --work DIR [--data FILE] [--steps 6]

Makes models of random weights (random_model.py) in DIR, asks for advice about each, and trains a few steps of the advised recipe by each
method. Asked: the peak within 10% and the time within 20%, in every cell. Exits with 1 where a cell is off by more.
FOLDER holds the tokenizer.json for the models, as for random_model.py, which needs numpy. Run it on an idle machine; the models take 2.5 GB of
disk.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from runs import printed_by

HERE = Path(__file__).parent
# Shapes of random_model.py by methods, as `advise` names them.
SHAPES = ["smollm2-135m", "tinyllama-1.1b"]
METHODS = [("none", "none"), ("nf4", "none"), ("nf4", "block")]
PEAK, TIME = 0.10, 0.20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--burnish", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=HERE.parent / "datasets/support_en.train.jsonl")
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    off = 0
    print("shape            method         peak MiB: planned, measured        tokens/s: predicted, measured")
    for shape in SHAPES:
        base = options.work / shape
        if not base.exists():
            model = [sys.executable, HERE / "random_model.py", "--shape", shape, "--tokenizer", options.tokenizer, "--out", base]
            subprocess.run(model, check=True, stdout=subprocess.DEVNULL)
        advise = [options.burnish, "advise", "--base", base, "--data", options.data, "--memory", "64GiB", "--json"]
        advice = printed_by(advise)
        predicted = {(method["quant"], method["recompute"]): method for method in advice["models"][0]["methods"]}
        recipe = options.work / f"{shape}.toml"
        recipe.write_text(advice["recipe"])
        for quant, recompute in METHODS:
            name = f"{shape}-{quant}-{recompute}"
            out = options.work / "runs" / name
            settings = {"base.quant": quant, "train.recompute": recompute, "train.max_steps": options.steps, "output.dir": json.dumps(str(out))}
            more = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
            report = printed_by([options.burnish, "train", recipe, "--json", "--quiet", *more])
            timings = [json.loads(line) for line in (out / "timings.jsonl").read_text().splitlines()][1:]
            # The first step pays for memory and threads.
            speed = sum(line["tokens"] for line in timings) / sum(line["seconds"] for line in timings)
            method = predicted[quant, recompute]
            peak_off = method["peak_bytes"] / report["peak_bytes"] - 1
            time_off = speed / method["tokens_per_second"] - 1
            bad = abs(peak_off) > PEAK or abs(time_off) > TIME
            off += bad
            print(f"{shape:<16} {quant + ', ' + recompute:<14} {method['peak_bytes'] / 2**20:8.0f} {report['peak_bytes'] / 2**20:8.0f} "
                  f"({peak_off:+.1%})      {method['tokens_per_second']:8.1f} {speed:8.1f} ({time_off:+.1%})  {'OFF' if bad else ''}")
    print(f"{off} cells are off by more than {PEAK:.0%} of the peak or {TIME:.0%} of the time" if off else "every cell within the limits")
    sys.exit(1 if off else 0)


if __name__ == "__main__":
    main()
