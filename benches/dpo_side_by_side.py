"""Trains DPO with TRL and with burnish on the same model, pairs, batches and threads in bf16, and burnish on the same tokens without
preferences, and compares speed and memory.

    pip install -r tests/reference/requirements.txt trl
    python benches/dpo_side_by_side.py --model MODEL_FOLDER --burnish target/release/burnish [--base BASE] [--tools trl,dpo,plain]
        [--pairs 4] [--prompt-tokens 32] [--answer-tokens 96] [--steps 6] [--rounds 3] [--threads 2]

MODEL_FOLDER is the base as a Hugging Face folder with its tokenizer; BASE is what burnish calls the same base. Every measurement runs in a
process of its own; the tools alternate, round after round. One JSON object a measurement goes to stdout, a table of medians to stderr.

    trl     DPOTrainer over a PEFT model, bf16 autocast over bf16 weights, reference log-probabilities with the adapter off at every step
    dpo     burnish, the same
    plain   burnish on the same sequences, chosen and rejected answers learned alike (`sft`): twice as many sequences in a micro-batch

tokens_per_second counts the tokens of both sequences of a pair, prompts included, over the steps after the first two, in which a run also
computes the reference of its examples: once in burnish, at every step in TRL. peak_bytes is the largest resident size of the
process, interpreter and libraries included. The target is twice TRL's speed in a third of its memory, and at most 1.15 times the memory of
plain training.
"""

import argparse
import json
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from runs import measured_by

TOOLS = ["trl", "dpo", "plain"]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
WARM_UP_STEPS = 2
RANK, ALPHA, LEARNING_RATE, BETA = 8, 16, 2e-4, 0.1


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="base as a Hugging Face folder")
    parser.add_argument("--burnish", type=Path, help="the burnish binary")
    parser.add_argument("--base", help="what burnish calls the base (default: MODEL)")
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--pairs", type=int, default=4, help="pairs of a step")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--answer-tokens", type=int, default=96)
    parser.add_argument("--steps", type=int, default=6, help="measured steps")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", type=Path, metavar="DATA", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.tools = options.tools.split(",")
    if unknown := [tool for tool in options.tools if tool not in TOOLS]:
        parser.error(f"unknown: {', '.join(unknown)}; tools are {', '.join(TOOLS)}")
    return options


def write_pairs(folder, options):
    """Texts of words that are one token each, as pairs and as single examples."""
    vocabulary = json.loads((options.model / "tokenizer.json").read_text())["model"]["vocab"]
    words = sorted(token[1:] for token in vocabulary if re.fullmatch("Ġ[a-z]{3,8}", token))
    choice = random.Random(0)
    text = lambda count: "".join(" " + word for word in choice.choices(words, k=count))
    pairs, plain = folder / "pairs.jsonl", folder / "plain.jsonl"
    with pairs.open("w") as of_pairs, plain.open("w") as of_plain:
        for _ in range(options.pairs * (WARM_UP_STEPS + options.steps)):
            # With the end token, an answer has exactly as many tokens as asked for.
            prompt, answers = text(options.prompt_tokens), [text(options.answer_tokens - 1) for _ in range(2)]
            of_pairs.write(json.dumps(dict(prompt=prompt, chosen=answers[0], rejected=answers[1])) + "\n")
            for answer in answers:
                of_plain.write(json.dumps(dict(prompt=prompt, completion=answer)) + "\n")
    return {"trl": pairs, "dpo": pairs, "plain": plain}


def tokens_of_step(options):
    return 2 * options.pairs * (options.prompt_tokens + options.answer_tokens)


# --- TRL, in a process of its own -------------------------------------------------------------------------------------


def child(options):
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, logging
    from trl import DPOConfig, DPOTrainer

    logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    rows = [json.loads(line) for line in options.child.open()]
    times = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            times.append([time.perf_counter(), None])

        def on_step_end(self, *_, **__):
            times[-1][1] = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=options.pairs,
            max_steps=WARM_UP_STEPS + options.steps,
            learning_rate=LEARNING_RATE,
            beta=BETA,
            bf16=True,
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            max_length=options.prompt_tokens + options.answer_tokens + 8,
            dataloader_pin_memory=False,
        )
        trainer = DPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(options.model),
            peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM"),
            callbacks=[Clock()],
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    rates = [tokens_of_step(options) / (end - begin) for begin, end in times]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report = dict(steps=len(rates), first_loss=losses[0], last_loss=losses[-1], peak_bytes=peak)
    print(json.dumps(dict(report, tokens_per_second=statistics.median(rates[WARM_UP_STEPS:]))))


def measure_trl(options, data):
    command = [sys.executable, __file__, "--model", str(options.model), "--threads", str(options.threads)]
    for key in ["pairs", "prompt_tokens", "answer_tokens", "steps"]:
        command += ["--" + key.replace("_", "-"), str(getattr(options, key))]
    command += ["--child", str(data)]
    return measured_by(command, options.threads)


# --- burnish ----------------------------------------------------------------------------------------------------------

RECIPE = """
[base]
model = {base}
compute = "bf16"

[data]
train = {data}
max_seq_tokens = 4096

[adapter]
rank = {rank}
alpha = {alpha}
targets = {targets}

[train]
{objective}
epochs = 1
micro_batch_seqs = {sequences}
learning_rate = {learning_rate}

[output]
dir = {output}
"""


def measure_burnish(options, tool, data, folder):
    output = folder / f"{tool}-{time.time_ns()}"
    recipe = folder / "recipe.toml"
    recipe.write_text(
        RECIPE.format(
            base=json.dumps(options.base or str(options.model)),
            data=json.dumps(str(data)),
            rank=RANK,
            alpha=ALPHA,
            targets=json.dumps(TARGETS),
            objective=f'objective = "dpo"\nbeta = {BETA}' if tool == "dpo" else "",
            sequences=options.pairs * (1 if tool == "dpo" else 2),
            learning_rate=LEARNING_RATE,
            output=json.dumps(str(output)),
        )
    )
    command = [str(options.burnish), "train", str(recipe), "--json", "--threads", str(options.threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        return {"error": f"exit {done.returncode}: {done.stderr.strip()[-300:]}"}
    losses = [line["loss"] for line in map(json.loads, (output / "metrics.jsonl").open()) if "loss" in line]
    steps = [json.loads(line) for line in (output / "timings.jsonl").open()]
    assert all(step["tokens"] == tokens_of_step(options) for step in steps), "the tools have other tokens"
    return dict(
        steps=len(steps),
        first_loss=losses[0],
        last_loss=losses[-1],
        peak_bytes=max(step["peak_bytes"] for step in steps),
        tokens_per_second=statistics.median(step["tokens_per_second"] for step in steps[WARM_UP_STEPS:]),
    )


def main():
    options = arguments()
    if options.child:
        return child(options)
    if options.burnish is None and options.tools != ["trl"]:
        sys.exit("--burnish is missing; `--tools trl` does without")
    results = {tool: [] for tool in options.tools}
    with tempfile.TemporaryDirectory(prefix="dpo_side_by_side_") as folder:
        folder = Path(folder)
        data = write_pairs(folder, options)
        for number in range(options.rounds):
            for tool in options.tools:
                found = measure_trl(options, data[tool]) if tool == "trl" else measure_burnish(options, tool, data[tool], folder)
                print(json.dumps(dict(tool=tool, round=number, **found)), flush=True)
                if "error" not in found:
                    results[tool].append(found)
    median = lambda tool, key: statistics.median(one[key] for one in results[tool])
    for tool in [tool for tool in options.tools if results[tool]]:
        speed, peak = median(tool, "tokens_per_second"), median(tool, "peak_bytes")
        print(f"{tool:6} {speed:8.0f} tokens/s  {peak / 2**20:8.0f} MiB", file=sys.stderr)
    for against, of in [("trl", "dpo"), ("plain", "dpo")]:
        if results.get(against) and results.get(of):
            speed = median(of, "tokens_per_second") / median(against, "tokens_per_second")
            peak = median(of, "peak_bytes") / median(against, "peak_bytes")
            print(f"{of} against {against}: {speed:.2f} times the speed, {peak:.2f} times the memory", file=sys.stderr)


if __name__ == "__main__":
    main()
