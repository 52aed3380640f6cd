"""Processes for the scripts that compare runs: recipes of burnish, other tools in Python, and means with intervals."""

import json
import math
import os
import statistics
import subprocess
import sys

RECIPE = """
[base]
model = {base}
compute = "bf16"

[data]
train = {train}
valid = {valid}
format = "{format}"
max_seq_tokens = 512

[adapter]
rank = {rank}
alpha = {alpha}
targets = {targets}

[train]
epochs = {epochs}
micro_batch_seqs = 4
learning_rate = {rate}
schedule = "linear"
warmup_steps = 10
eval_steps = {eval_steps}
seed = {seed}

[output]
dir = {out}
"""
QUOTED = {"base", "train", "valid", "targets", "out"}
MICRO_BATCH_SEQS = 4

# Two-sided 95% quantiles of Student's t, by degrees of freedom.
STUDENT_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def write_recipe(path, **values):
    """Writes a recipe with these values."""
    quoted = lambda value: json.dumps(value if isinstance(value, list) else str(value))
    path.write_text(RECIPE.format(**{key: quoted(value) if key in QUOTED else value for key, value in values.items()}))


def start(options, recipe, *more):
    """Starts a training on the recipe, with further arguments."""
    command = [str(options.burnish), "train", str(recipe), "--json", "--quiet", "--threads", str(options.threads), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def printed_by(command, **more):
    """The JSON object that a command prints; ends the script where the command fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **more)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit {done.returncode}: {done.stderr.strip()[-800:]}")
    return json.loads(done.stdout)


def check(child, error, recipe):
    """Ends the script where a training failed."""
    if child.returncode != 0:
        raise RuntimeError(f"{recipe}: exit {child.returncode}: {error.strip()[-800:]}")


def about(folder):
    """`run.json` of a run folder; None where there is no run, or it is not at its end."""
    try:
        record = json.loads((folder / "run.json").read_text())
    except FileNotFoundError:
        return None
    outcome = record.get("outcome") or {}
    return record if outcome.get("validation") and not outcome.get("interrupted") else None


def rows(file, count):
    """The rows of a data file, of which there must be so many."""
    found = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(found) < count:
        sys.exit(f"{file}: {len(found)} rows, {count} are needed")
    return found


def write_rows(file, lines):
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def with_interval(values, sign=""):
    """The mean with its 95% interval (Student's t); no interval for one value."""
    text = f"{statistics.fmean(values):{sign}.4f}"
    if len(values) < 2:
        return text
    return f"{text} ± {STUDENT_T[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values)):.4f}"



def measured_by(command, threads):
    """The object that a measuring process prints last, or `{"error": …}`; PyTorch in it has so many threads."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    if done.returncode != 0:
        return {"error": f"exit {done.returncode}: {done.stderr.strip()[-300:]}"}
    return json.loads(done.stdout.splitlines()[-1])
