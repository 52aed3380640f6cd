"""Measures on WikiSQL which regularisation helps small data sets: 200, 500 and 1,000 examples, three seeds.

    python benches/regularisation.py --base BASE --wikisql FOLDER --out RUNS [--chat FILE]
        [--burnish target/release/burnish] [--threads 1] [--seconds N] [--sizes 200,500,1000] [--seeds 0,1,2]
        [--variants plain,dropout,…] [--valid-rows 100] [--steps 500] [--eval-steps 100] [--report]

BASE is SmolLM2-135M-Instruct (a name, folder or .gguf); FOLDER holds train.jsonl and valid.jsonl; FILE is general chat data for
rehearsal, which is left out without it. Needs the standard library only. Everything that decides the outcome is a constant
below or one of the options above, which the tables repeat.

Every variant trains for the same number of steps, so the smaller the data, the more often it is seen: 10, 4 and 2 epochs. What
early stopping and dropout save on 100 examples in 30 epochs is

    … --sizes 100 --steps 750 --eval-steps 25 --variants "plain,dropout and early stopping" --seeds 0

Two validation losses are reported: of the best adapter, which burnish keeps, and of the last, which shows overfitting. Each is
compared with the plain run of the same seed and size; the interval is Student's t over the seeds.

One run at a time. Finished runs are read from RUNS, a run that was cut off goes on from its checkpoint, so the script can be
stopped (Ctrl-C, `--seconds`) and called again. `--report` prints the tables of what is there.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import runs as runs_of_burnish
from runs import with_interval

STEPS = 500
RATE = 1e-3

# What each variant adds to the recipe.
VARIANTS = {
    "plain": [],
    "dropout": ["adapter.dropout=0.1"],
    "dropout and early stopping": ["adapter.dropout=0.1", "train.early_stopping.patience_evals=3"],
    "weight decay": ["train.weight_decay=0.1"],
    "label smoothing": ["train.label_smoothing=0.1"],
    "NEFTune": ["train.neftune_alpha=5.0"],
    "wordings": [
        'data.augment.wordings=["{prompt}", "Write the SQL query.\\n{prompt}", "Answer with a query in SQL only.\\n{prompt}"]'
    ],
    "token dropout": ["data.augment.token_dropout=0.05"],
    "typing errors": ["data.augment.typing_errors=0.02"],
    "rehearsal": ["data.rehearsal.share=0.2"],
    "LoRA+": ["train.b_rate_ratio=16.0", f"train.learning_rate={RATE / 4}"],
}


def numbers(text):
    return [int(part) for part in text.split(",")]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--burnish", type=Path, default=Path("target/release/burnish"))
    parser.add_argument("--base")
    parser.add_argument("--wikisql", type=Path)
    parser.add_argument("--chat", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--sizes", type=numbers, default=[200, 500, 1000])
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    parser.add_argument("--variants", type=lambda text: text.split(","), default=list(VARIANTS))
    parser.add_argument("--valid-rows", type=int, default=100)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--eval-steps", type=int, default=100)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if not options.report and not (options.base and options.wikisql):
        parser.error("--base and --wikisql are needed to run anything")
    unknown = set(options.variants) - set(VARIANTS)
    if unknown:
        parser.error(f"unknown variants {sorted(unknown)}; known are {list(VARIANTS)}")
    if not options.chat and not options.report:
        options.variants = [name for name in options.variants if name != "rehearsal"]
    return options


def folder_of(options, run):
    size, seed, variant = run
    return options.out / f"{variant.replace(' ', '-')}-{size}-{seed}"


def read(options, run):
    """Validation losses of a finished run: before, of the best adapter, of the last; and its facts."""
    folder = folder_of(options, run)
    about = runs_of_burnish.about(folder)
    if about is None:
        return None
    outcome = about["outcome"]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["valid_loss"] for line in metrics if "valid_loss" in line]
    return {
        "before": outcome["validation"]["loss_before"],
        "best": outcome["validation"]["loss_after"],
        "last": losses[-1],
        "best_step": outcome["best_step"],
        "steps": outcome["steps"],
        "tokens_per_second": outcome["tokens_per_second"],
        "valid_tokens": outcome["validation"]["tokens"],
    }


def train(options, run, left):
    size, seed, variant = run
    folder = folder_of(options, run)
    recipe = folder.with_suffix(".toml")
    if not recipe.exists():
        runs_of_burnish.write_recipe(
            recipe,
            base=options.base,
            train=options.out / f"train-{size}.jsonl",
            valid=options.out / "valid.jsonl",
            format="prompt-completion",
            rank=8,
            alpha=16,
            targets="attention",
            epochs=f"1000\nmax_steps = {options.steps}",
            rate=RATE,
            eval_steps=options.eval_steps,
            seed=seed,
            out=folder,
        )
    more = ["--resume"] if folder.exists() else []
    for setting in VARIANTS[variant] + ([f"data.rehearsal.path={options.chat}"] if variant == "rehearsal" else []):
        more += ["--set", setting]
    child = runs_of_burnish.start(options, recipe, *more)
    try:
        _, error = child.communicate(timeout=None if math.isinf(left) else max(left, 1))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        # A signal ends the run with its state saved.
        child.terminate()
        child.communicate()
        return False
    runs_of_burnish.check(child, error, recipe)
    return True


def run_all(options, runs):
    options.out.mkdir(parents=True, exist_ok=True)
    for size in options.sizes:
        rows = runs_of_burnish.rows(options.wikisql / "train.jsonl", size)
        runs_of_burnish.write_rows(options.out / f"train-{size}.jsonl", rows[:size])
    rows = runs_of_burnish.rows(options.wikisql / "valid.jsonl", options.valid_rows)
    runs_of_burnish.write_rows(options.out / "valid.jsonl", rows[: options.valid_rows])
    began = time.monotonic()
    for run in runs:
        left = options.seconds - (time.monotonic() - began)
        if left <= 0:
            return
        if read(options, run) is None and not train(options, run, left):
            return
        found = read(options, run)
        print(f"{time.monotonic() - began:6.0f} s  {run}  best {found['best']:.4f}  last {found['last']:.4f}", file=sys.stderr, flush=True)


def report(options, runs):
    results = {run: found for run in runs if (found := read(options, run))}
    print(f"{len(results)} of {len(runs)} runs finished.")
    for size in options.sizes:
        of_size = {run: found for run, found in results.items() if run[0] == size}
        if not of_size:
            continue
        some = next(iter(of_size.values()))
        print(f"\n{size} examples, {some['steps']} steps of {runs_of_burnish.MICRO_BATCH_SEQS}; validation loss on {some['valid_tokens']} tokens, {some['before']:.4f} before:\n")
        print("| variant | seeds | best adapter | less plain | last adapter | less plain | best step |")
        print("|---|---|---|---|---|---|---|")
        for variant in options.variants:
            found = {run[1]: result for run, result in of_size.items() if run[2] == variant}
            if not found:
                continue
            cells = [variant, ", ".join(map(str, found))]
            for kind in ("best", "last"):
                cells.append(with_interval([result[kind] for result in found.values()]))
                plain = {seed: of_size.get((size, seed, "plain")) for seed in found}
                differences = [found[seed][kind] - plain[seed][kind] for seed in found if plain[seed]]
                cells.append("" if variant == "plain" or not differences else with_interval(differences, "+"))
            cells.append(", ".join(str(result["best_step"]) for result in found.values()))
            print("| " + " | ".join(cells) + " |")


def main():
    options = arguments()
    runs = [(size, seed, variant) for seed in options.seeds for size in options.sizes for variant in options.variants]
    if not options.report:
        run_all(options, runs)
    report(options, runs)


if __name__ == "__main__":
    main()
