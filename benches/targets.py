"""Compares what `adapter.targets` can name: q and v, the attention projections, all linear layers.

    python benches/targets.py --base BASE --wikisql FOLDER --alpaca FILE --out RUNS
        [--burnish target/release/burnish] [--jobs 8] [--threads 2] [--seconds N] [--report]

BASE is SmolLM2-135M-Instruct (a name, folder or .gguf); FOLDER holds train.jsonl and valid.jsonl; FILE is one file of
examples in the alpaca form. Needs the standard library only. Everything that decides the outcome is a constant below.

For every data set and adapter, the learning rate is chosen by the validation loss of one seed: three rates first, then
the neighbours of the best until it lies between two worse ones or at an end of the ladder. Three other seeds then run at
the chosen rate, and only they are reported: the mean of their validation losses, its 95% interval (Student's t over the
seeds), and the same for the difference from q and v at the same seed.

Every run writes its run folder under RUNS. A second call goes on where the first stopped: finished runs are read, others
start again. `--seconds` stops the whole after so long; `--report` prints the tables of what is there and runs nothing.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import runs as runs_of_burnish
from runs import with_interval

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
TARGETS = {
    "q, v": ["q_proj", "v_proj"],
    "attention": ATTENTION,
    "all-linear": ATTENTION + ["gate_proj", "up_proj", "down_proj"],
}
# (targets, rank). At rank 8, attention has twice the parameters of q and v, all linear layers 5.3 times as many. Ranks 42
# and 21 give q and v and attention 0.94% fewer parameters than all linear layers have at rank 8: no whole ranks of this
# size come closer.
ADAPTERS = [("q, v", 8), ("attention", 8), ("all-linear", 8), ("q, v", 42), ("attention", 21)]
COMPARISONS = {
    "equal rank": [("q, v", 8), ("attention", 8), ("all-linear", 8)],
    "equal parameters": [("q, v", 42), ("attention", 21), ("all-linear", 8)],
}
# The update is scaled by alpha / rank, so every adapter has the same scale.
ALPHA_OVER_RANK = 2
RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
FIRST_RATES = [3e-4, 1e-3, 3e-3]
TUNING_SEED = 0
SEEDS = [1, 2, 3]
# Of the alpaca file: the first rows are trained on, the last are the validation split.
ALPACA_TRAIN_ROWS = 500
ALPACA_VALID_ROWS = 100
# What a run of each data set takes, relative to each other: longer runs start first.
COST = {"wikisql": 1.0, "alpaca": 1.1}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--burnish", type=Path, default=Path("target/release/burnish"))
    parser.add_argument("--base")
    parser.add_argument("--wikisql", type=Path)
    parser.add_argument("--alpaca", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if not options.report and not (options.base and options.wikisql and options.alpaca):
        parser.error("--base, --wikisql and --alpaca are needed to run anything")
    return options


# --- what to run ------------------------------------------------------------------------------------------------------


def name_of(run):
    dataset, (targets, rank), rate, seed = run
    return f"{dataset}-{targets.replace(', ', '')}-{rank}-{rate:g}-{seed}"


def all_runs():
    for dataset in COST:
        for adapter in ADAPTERS:
            for rate in RATES:
                for seed in [TUNING_SEED, *SEEDS]:
                    yield dataset, adapter, rate, seed


def chosen_rate(dataset, adapter, results):
    """The best rate of the tuning seed, and the rates to try before it is known to be the best."""
    tried = {rate: results[run].loss for rate in RATES if (run := (dataset, adapter, rate, TUNING_SEED)) in results}
    missing = [rate for rate in FIRST_RATES if rate not in tried]
    if missing:
        return None, missing
    best = min(tried, key=tried.get)
    at = RATES.index(best)
    missing = [rate for rate in RATES[max(at - 1, 0) : at + 2] if rate not in tried]
    return best, missing


def wanted(results):
    """The runs to do next: tuning before the rest, longer ones first."""
    tuning, rest = [], []
    for dataset in COST:
        for adapter in ADAPTERS:
            best, missing = chosen_rate(dataset, adapter, results)
            tuning += [(dataset, adapter, rate, TUNING_SEED) for rate in missing]
            if not missing:
                rest += [(dataset, adapter, best, seed) for seed in SEEDS]
    rest.sort(key=lambda run: run[3])
    order = lambda runs: sorted(runs, key=lambda run: -COST[run[0]])
    return [run for run in order(tuning) + rest if run not in results]


# --- running ----------------------------------------------------------------------------------------------------------


class Result:
    def __init__(self, about):
        outcome = about["outcome"]
        validation = outcome["validation"]
        loss = validation["loss_after"]
        # A run that diverged is worse than any other.
        self.loss = loss if isinstance(loss, (int, float)) and math.isfinite(loss) else math.inf
        self.before = validation["loss_before"]
        self.parameters = outcome["parameters"]
        self.tokens_per_second = outcome["tokens_per_second"]
        self.peak_bytes = outcome["peak_bytes"]
        self.valid_tokens = validation["tokens"]
        self.train = about["data"]["train"]


def read(out, run):
    about = runs_of_burnish.about(out / name_of(run))
    return about and Result(about)


def split_alpaca(file, folder):
    rows = runs_of_burnish.rows(file, ALPACA_TRAIN_ROWS + ALPACA_VALID_ROWS)
    parts = {"train": rows[:ALPACA_TRAIN_ROWS], "valid": rows[-ALPACA_VALID_ROWS:]}
    folder.mkdir(parents=True, exist_ok=True)
    for part, lines in parts.items():
        runs_of_burnish.write_rows(folder / f"{part}.jsonl", lines)
    return folder


class Runner:
    def __init__(self, options, folders):
        self.options, self.folders = options, folders
        self.lock, self.running, self.stopped = threading.Lock(), {}, False

    def run(self, run):
        dataset, (targets, rank), rate, seed = run
        folder = self.options.out / name_of(run)
        shutil.rmtree(folder, ignore_errors=True)
        recipe = self.options.out / f"{name_of(run)}.toml"
        runs_of_burnish.write_recipe(
            recipe,
            base=self.options.base,
            train=self.folders[dataset] / "train.jsonl",
            valid=self.folders[dataset] / "valid.jsonl",
            format={"wikisql": "prompt-completion", "alpaca": "alpaca"}[dataset],
            rank=rank,
            alpha=ALPHA_OVER_RANK * rank,
            targets=TARGETS[targets],
            epochs=1,
            rate=rate,
            eval_steps=100000,
            seed=seed,
            out=folder,
        )
        with self.lock:
            if self.stopped:
                return run, None
            child = runs_of_burnish.start(self.options, recipe)
            self.running[run] = child
        _, error = child.communicate()
        with self.lock:
            del self.running[run]
            stopped = self.stopped
        if stopped:
            return run, None
        runs_of_burnish.check(child, error, recipe)
        return run, read(self.options.out, run)

    def stop(self):
        with self.lock:
            self.stopped = True
            for child in self.running.values():
                child.kill()


def run_all(options, results):
    folders = {"wikisql": options.wikisql, "alpaca": split_alpaca(options.alpaca, options.out / "alpaca")}
    runner, began, futures = Runner(options, folders), time.monotonic(), {}
    left = lambda: options.seconds - (time.monotonic() - began)
    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            while True:
                for run in wanted(results):
                    if len(futures) < options.jobs and run not in futures.values() and left() > 0:
                        futures[pool.submit(runner.run, run)] = run
                if not futures:
                    break
                timeout = None if math.isinf(options.seconds) else max(left(), 0)
                done, _ = wait(futures, timeout=timeout, return_when=FIRST_COMPLETED)
                if not done:
                    break
                for future in done:
                    run = futures.pop(future)
                    _, result = future.result()
                    results[run] = result
                    elapsed = time.monotonic() - began
                    print(
                        f"{elapsed:6.0f} s  {name_of(run)}  loss {result.loss:.4f}  "
                        f"{result.tokens_per_second:.0f} tokens/s",
                        file=sys.stderr,
                        flush=True,
                    )
        finally:
            runner.stop()
    return len(wanted(results))


# --- tables -----------------------------------------------------------------------------------------------------------


def losses(dataset, adapter, results, seeds):
    rate, _ = chosen_rate(dataset, adapter, results)
    found = {seed: results.get((dataset, adapter, rate, seed)) for seed in seeds}
    return rate, {seed: result for seed, result in found.items() if result}


def report(results, seeds=SEEDS):
    for dataset in COST:
        some = next((result for run, result in results.items() if run[0] == dataset), None)
        if some is None:
            continue
        print(
            f"\n{dataset}: {some.train['examples']} examples, {some.train['tokens']} tokens in an epoch; validation loss on "
            f"{some.valid_tokens} tokens, {some.before:.4f} before training\n"
        )
        print("| comparison | targets | rank | parameters | rate | seeds " + ", ".join(map(str, seeds)), end="")
        print(" | mean, 95% | less q, v, 95% | tokens/s |\n|" + "---|" * 9)
        for comparison, adapters in COMPARISONS.items():
            _, reference = losses(dataset, adapters[0], results, seeds)
            for adapter in adapters:
                rate, found = losses(dataset, adapter, results, seeds)
                if not found:
                    continue
                both = [seed for seed in found if seed in reference]
                differences = [found[seed].loss - reference[seed].loss for seed in both]
                less = "" if adapter == adapters[0] or not both else with_interval(differences, "+")
                speeds = [result.tokens_per_second for result in found.values() if result.tokens_per_second]
                speed = f"{statistics.median(speeds):.0f}" if speeds else ""
                values = ", ".join(f"{found[seed].loss:.4f}" if seed in found else "–" for seed in seeds)
                mean = with_interval([result.loss for result in found.values()])
                parameters = next(iter(found.values())).parameters
                print(f"| {comparison} | {adapter[0]} | {adapter[1]} | {parameters:,} | {rate:g} | ", end="")
                print(f"{values} | {mean} | {less} | {speed} |")
        print(f"\nValidation loss of seed {TUNING_SEED} by learning rate:\n")
        print("| targets | rank | " + " | ".join(f"{rate:g}" for rate in RATES) + " |\n|" + "---|" * (2 + len(RATES)))
        for adapter in ADAPTERS:
            found = [results.get((dataset, adapter, rate, TUNING_SEED)) for rate in RATES]
            cells = " | ".join(f"{result.loss:.4f}" if result else "" for result in found)
            print(f"| {adapter[0]} | {adapter[1]} | {cells} |")


def main():
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    results = {run: result for run in all_runs() if (result := read(options.out, run))}
    missing = 0 if options.report else run_all(options, results)
    report(results)
    if missing:
        print(f"\nNot finished: at least {missing} runs are missing.")


if __name__ == "__main__":
    main()
