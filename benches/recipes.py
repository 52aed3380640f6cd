"""Runs the recipes of docs/recipes.md one after another on the real base and prints its table.

    python benches/recipes.py --out RUNS [--burnish target/release/burnish] [--base BASE] [--only NAME,...] [--set KEY=VALUE]

BASE is SmolLM2-135M-Instruct (a name, folder or .gguf). Needs the standard library only. Every recipe is trained as it stands; then base and
adapter answer its validation rows, a language at a time. Every run writes its run folder under RUNS, and its figures beside it
(NAME.json): a second call prints those and runs what is missing.
"""

import argparse
import json
import shutil
import time
import tomllib
from pathlib import Path

from runs import printed_by

# The recipe, the measure of its answers beside the loss, and the longest answer in tokens; none for those that give no text.
RECIPES = {
    "quickstart": ("exact_match", 32),
    "classify": (None, 0),
    "preferences": ("accuracy", 0),
    "service": ("rouge_l", 64),
    "reading": ("exact_match", 24),
    "teaching": ("exact_match", 48),
    "creative": ("rouge_l", 40),
    "code": ("rouge_l", 96),
    "sql": ("exact_match", 64),
    "tools": ("tool_calls", 48),
}


def language(path):
    """The language that a data file has in its name."""
    return "zh" if "_zh" in path else "en" if "_en" in path else "both"


def measure(options, name, recipe):
    """Trains a recipe and has its validation rows answered; the figures."""
    settings = tomllib.loads(recipe.read_text())
    folder = options.out / name
    if folder.exists():
        shutil.rmtree(folder)
    burnish = str(options.burnish)
    overrides = [f"base.model={json.dumps(options.base)}", f"output.dir={json.dumps(str(folder))}", *options.set]
    began = time.monotonic()
    trained = printed_by([burnish, "train", str(recipe), "--json", "--quiet", *(word for one in overrides for word in ("--set", one))])
    seconds = time.monotonic() - began
    valid = settings["data"]["valid"]
    score, tokens = RECIPES[name]
    scores = {}
    for path in [valid] if isinstance(valid, str) else valid:
        if score is None:
            break
        command = [burnish, "eval", "--base", options.base, "--adapter", str(folder), "--data", path, "--json", "--quiet"]
        if tokens:
            command += ["--generate", "--max-tokens", str(tokens)]
        answers = printed_by(command)
        scores[language(path)] = {"loss": answers["scores"].get("loss"), score: answers["scores"].get(score)}
    return {"trained": trained, "seconds": seconds, "scores": scores}


def share(value, name):
    """A score for people."""
    return f"{value:.2f}" if name == "rouge_l" else f"{100 * value:.0f}%"


def row(name, figures):
    """The line of the table."""
    trained = figures["trained"]
    verdict = trained["validation"]
    difference = f"{verdict['difference']:+.3f} ({verdict['low']:+.3f} to {verdict['high']:+.3f})"
    score, _ = RECIPES[name]
    parts = []
    if verdict.get("classes"):
        accuracy = verdict["classes"]["accuracy"]
        parts.append(f"accuracy {100 * accuracy['before']:.0f}% → {100 * accuracy['after']:.0f}%")
    for tongue, found in figures["scores"].items():
        if not found[score]:
            continue
        against = found[score]["against_base"]
        change = f"{share(against['before'], score)} → {share(against['after'], score)} ({against['verdict']})"
        parts.append(f"{score.replace('_', ' ')}{'' if tongue == 'both' else ', ' + tongue}: {change}")
    cells = [
        f"`{name}`",
        f"{verdict['examples']}",
        f"{verdict['loss_before']:.3f} → {verdict['loss_after']:.3f}",
        difference,
        verdict["verdict"],
        "; ".join(parts),
        f"{figures['seconds'] / 60:.1f} min",
        f"{trained['peak_bytes'] / 2**20:.0f} MiB",
    ]
    return "| " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--burnish", type=Path, default=Path("target/release/burnish"))
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    names = options.only.split(",") if options.only else list(RECIPES)
    print("| recipe | validation rows | loss | difference, 95% interval | verdict | answers, base → adapter | time | peak memory |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name in names:
        kept = options.out / f"{name}.json"
        if not kept.exists():
            kept.write_text(json.dumps(measure(options, name, Path("recipes") / f"{name}.toml"), indent=1))
        print(row(name, json.loads(kept.read_text())), flush=True)


main()
