"""Measures what SmolLM2 remembers of canaries: inserted once, eight times, and eight times with differential privacy.

    python benches/memorisation.py --base BASE --out RUNS [--burnish target/release/burnish] [--threads 2] [--epochs 4]

BASE is SmolLM2-135M-Instruct (a name, folder or .gguf). Trains on datasets/support_en (120 examples) with ten canaries, and ten that are nowhere,
and prints exposure and membership AUC of each run by `burnish check --memorisation`. Runs that are finished are not repeated. Needs the
standard library only. Three runs and their checks take about a quarter of an hour on two cores.
"""

import argparse
import json
from pathlib import Path

from runs import printed_by

ROOT = Path(__file__).resolve().parent.parent
COMMON = ["adapter.targets=[\"q_proj\", \"v_proj\"]", "train.learning_rate=1e-3", "sample.valid_prompts=0", "train.eval_steps=1000"]
# Far too few examples for a useful private run: the limit on noise is lifted, since only the canaries count here. ε is that of one line; the
# eight lines of a canary together have about eight times as much.
PRIVATE = ["privacy={target_epsilon=1.0, delta=1e-4, max_noise_to_signal=1e3}", "adapter.rank=2", "train.accumulate_steps=16"]
CASES = {
    "once": ["data.canaries.repeats=1"],
    "eight times": ["data.canaries.repeats=8"],
    "eight times, private": ["data.canaries.repeats=8", *PRIVATE],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--burnish", default=str(ROOT / "target/release/burnish"))
    parser.add_argument("--threads", default="2")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    recipe = options.out.resolve() / "recipe.toml"
    recipe.write_text(
        f"[base]\nmodel = {json.dumps(options.base)}\n[data]\ntrain = \"datasets/support_en.train.jsonl\"\n"
        f"valid = \"datasets/support_en.valid.jsonl\"\n[train]\nepochs = {options.epochs}\n[output]\ndir = \"unused\"\n"
    )
    burnish = [options.burnish, "--threads", options.threads, "--json", "--quiet"]
    print("| canaries | epsilon | exposure, inserted | never inserted | difference, 95% interval | AUC, 95% interval |\n|---|---|---|---|---|---|")
    for name, settings in CASES.items():
        folder = options.out.resolve() / name.replace(", ", "-").replace(" ", "-")
        record = folder / "run.json"
        if not (record.is_file() and (json.loads(record.read_text()).get("outcome") or {}).get("interrupted") is False):
            sets = [part for setting in [*COMMON, *settings, f"output.dir={folder}"] for part in ("--set", setting)]
            printed_by([*burnish, "train", str(recipe), "--resume", *sets], cwd=ROOT)
        found = printed_by([*burnish, "check", "--memorisation", str(folder)], cwd=ROOT)
        privacy = json.loads(record.read_text()).get("privacy")
        canaries, membership = found["canaries"], found["membership"]
        interval = lambda one, digits: f"{one['value']:.{digits}f} ({one['low']:.{digits}f} to {one['high']:.{digits}f})"
        print(
            f"| {name} | {privacy['epsilon']:.2f}" if privacy else f"| {name} | none",
            f"{canaries['inserted_mean']:.2f}", f"{canaries['held_out_mean']:.2f}",
            interval(canaries["difference"], 2), interval(membership["auc"], 3) + " |", sep=" | ", flush=True,
        )


if __name__ == "__main__":
    main()
