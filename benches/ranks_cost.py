"""The cost of several ranks, beside PEFT under torchrun with gloo: losses step by step, tokens/s, bytes and milliseconds of a step's exchange.

    /path/to/venv/bin/python benches/ranks_cost.py --model MODEL_FOLDER [--burnish target/release/burnish] [--parts training,exchange]
        [--rounds 3] [--steps 10] [--tokens 128] [--ranks 2,4,8] [--rate 1gbit]

MODEL_FOLDER is the base as a Hugging Face folder; burnish is built with `--features mpi`. Needs root, `ip` and `tc` (network namespaces),
and the packages of tests/reference/requirements.txt. The machine should be idle. One JSON object a measurement goes to stdout,
tables to stderr.

training: both tools train the same adapter in f32 on the same steps of 4 micro-batches of 2 sequences. burnish runs as 1 rank on 2 threads and
as 2 ranks on 1 thread each, PEFT as 2 ranks on 1 thread each; the bytes are those that went over the loopback device of a namespace.
Exit code 1 where the loss of a step differs by more than 1e-3.
exchange: the sum of a step, and gloo's sum of as many f32, by ranks in network namespaces of their own whose links have the rate; a model of
the cost, fitted to these measurements, and its extension to more hosts and faster links.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ranks_job import MPIRUN, ROOT, Namespaces

MICRO_BATCHES, SEQUENCES = 4, 2
# Higher rates amplify the rounding of f32 from step to step.
LEARNING_RATE = 2e-4
TOLERANCE = 1e-3
# Steps that are not measured.
WARM_UP = 2
TARGETS = {"attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
           "all-linear": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
# Values of the adapters that the model of the cost is extended to.
ADAPTERS = {"SmolLM2-135M, rank 8, attention": 0.92e6, "SmolLM2-135M, rank 8, all-linear": 2.44e6,
            "7B, rank 16, all-linear": 40e6, "70B, rank 16, all-linear": 207e6}
RATES = {"1 Gbit": 1, "10 Gbit": 10, "100 Gbit": 100}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--burnish", type=Path, default=ROOT / "target/release/burnish")
    parser.add_argument("--parts", default="training,exchange")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--ranks", default="2,4,8")
    parser.add_argument("--rate", default="1gbit")
    parser.add_argument("--peft", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--gloo", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def say(text):
    print(text, file=sys.stderr, flush=True)


# --- processes of PyTorch ---------------------------------------------------------------------------------------------


def loopback_bytes(devices):
    """The bytes that have gone over the loopback device of a network namespace, of which `devices` is the text of /proc/net/dev."""
    line = next(line for line in devices.splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[0])


def peft(options):
    """A rank of PEFT: trains the adapter in `start` of the folder, and rank 0 prints losses, tokens/s and bytes."""
    import torch
    import torch.distributed as dist
    from peft import PeftModel
    from torch.nn.parallel import DistributedDataParallel
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    texts = [json.loads(line)["text"] for line in (options.peft / "train.jsonl").open()]
    examples = [tokenizer(text, add_special_tokens=False).input_ids + [tokenizer.eos_token_id] for text in texts]
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    base.config.use_cache = False
    model = DistributedDataParallel(PeftModel.from_pretrained(base, options.peft / "start", is_trainable=True).train())
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    parts = [examples[first : first + SEQUENCES] for first in range(0, len(examples), SEQUENCES)]
    mine = [part for index, part in enumerate(parts) if index % ranks == rank]
    trained = sum(len(ids) - 1 for ids in examples)
    losses, seconds, traffic, devices = [], [], [], Path("/proc/net/dev")
    for _ in range(options.steps):
        dist.barrier()
        sent, begin, total = loopback_bytes(devices.read_text()), time.perf_counter(), torch.zeros(1)
        for index, part in enumerate(mine):
            model.require_backward_grad_sync = index == len(mine) - 1
            ids = torch.tensor(part)
            logits = model(input_ids=ids).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1), reduction="sum")
            # The mean over ranks is what DistributedDataParallel makes of gradients.
            (loss * ranks / trained).backward()
            total += loss.detach() / trained
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begin)
        dist.barrier()
        traffic.append((loopback_bytes(devices.read_text()) - sent) / ranks)
        dist.all_reduce(total)
        losses.append(total.item())
    if rank == 0:
        tokens = sum(len(ids) for ids in examples)
        print(json.dumps({
            "values": sum(parameter.numel() for parameter in parameters), "losses": losses,
            "tokens_per_second": tokens / statistics.median(seconds[WARM_UP:]), "bytes": statistics.median(traffic[WARM_UP:]),
        }))  # fmt: skip


def gloo(options):
    """A rank that sums `options.gloo` values; rank 0 prints the milliseconds."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    values, times = torch.ones(options.gloo), []
    for _ in range(8):
        dist.barrier()
        begin = time.perf_counter()
        dist.all_reduce(values)
        times.append(time.perf_counter() - begin)
    if dist.get_rank() == 0:
        print(json.dumps({"milliseconds": 1e3 * statistics.median(times[WARM_UP:])}))
    dist.destroy_process_group()


def result_of(words, **more):
    """The JSON object that a command prints last."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **more)
    if done.returncode != 0:
        sys.exit(f"exit code {done.returncode} of {' '.join(map(str, words))}:\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])


# --- burnish ----------------------------------------------------------------------------------------------------------


def write_job(options, folder, tokens):
    """Texts of words that are one token each, an adapter of PEFT to begin with, and a recipe whose steps are an epoch each."""
    import re

    vocabulary = json.loads((options.model / "tokenizer.json").read_text())["model"]["vocab"]
    words = sorted(token[1:] for token in vocabulary if re.fullmatch("Ġ[a-z]{3,8}", token))
    choice = random.Random(0)
    texts = ["".join(" " + word for word in choice.choices(words, k=tokens - 1)) for _ in range(MICRO_BATCHES * SEQUENCES)]
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "recipe.toml").write_text(f"""
        [base]
        model = "{options.model.resolve()}"
        compute = "f32"
        [data]
        train = "train.jsonl"
        max_seq_tokens = {tokens}
        [adapter]
        rank = 8
        alpha = 16
        dropout = 0.0
        targets = "all-linear"
        [train]
        epochs = {options.steps}
        micro_batch_seqs = {SEQUENCES}
        accumulate_steps = {MICRO_BATCHES}
        learning_rate = {LEARNING_RATE}
        schedule = "constant"
        [sample]
        valid_prompts = 0
        [output]
        dir = "run"
        """)


def write_start(options, folder):
    """The first adapter, by PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=TARGETS["all-linear"], task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(folder / "start")


def trained(options, folder, ranks, machine):
    """Trains in the namespace; losses, tokens/s, and the bytes over its loopback device for each step and rank."""
    run = folder / f"run-{ranks}-{time.time_ns()}"
    command = [options.burnish.resolve(), "train", "recipe.toml", "--quiet", "--from-adapter", "start", "--set", f"output.dir={run.name}"]
    threads = 2 if ranks == 1 else 1
    launcher = [] if ranks == 1 else [*MPIRUN, "--mca", "btl", "self,tcp", "-n", ranks]
    words = machine.inside(machine.hosts[0], [*launcher, *command, "--threads", threads])
    process = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    counted = {}
    read = ["ip", "netns", "exec", machine.hosts[0], "cat", "/proc/net/dev"]
    while process.poll() is None:
        try:
            lines = len((run / "metrics.jsonl").read_text().splitlines())
        except FileNotFoundError:
            lines = 0
        if lines in (WARM_UP, options.steps - 1) and lines not in counted:
            counted[lines] = loopback_bytes(subprocess.check_output(read, text=True))
        time.sleep(0.01)
    if process.returncode != 0:
        sys.exit(f"burnish, {ranks} ranks: exit code {process.returncode}:\n{process.stdout.read()}")
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    steps = [json.loads(line) for line in (run / "timings.jsonl").open()]
    traffic = (counted[options.steps - 1] - counted[WARM_UP]) / (options.steps - 1 - WARM_UP) / ranks
    return {"losses": [line["loss"] for line in metrics if "loss" in line], "bytes": traffic,
            "tokens_per_second": statistics.median(step["tokens_per_second"] for step in steps[WARM_UP:])}


def training(options, folder):
    write_job(options, folder, options.tokens)
    write_start(options, folder)
    found = {"burnish, 1 rank × 2 threads": [], "burnish, 2 ranks × 1 thread": [], "PEFT + gloo, 2 ranks × 1 thread": []}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-addr", "127.0.0.1", "--master-port", 29511]
    with Namespaces(folder, 1) as machine:
        for number in range(options.rounds):
            for tool, results in found.items():
                if tool.startswith("PEFT"):
                    child = [__file__, "--model", options.model.resolve(), "--steps", options.steps, "--peft", folder]
                    result = result_of(machine.inside(machine.hosts[0], [*torchrun, *child]), env=environment)
                else:
                    result = trained(options, folder, int(tool.split()[1]), machine)
                results.append(result)
                print(json.dumps({"part": "training", "tool": tool, "round": number, **result}), flush=True)
    alone, ours, theirs = found.values()
    values = theirs[0]["values"]
    say(f"\n| {options.steps} steps of {MICRO_BATCHES * SEQUENCES} × {options.tokens} tokens, f32 | tokens/s | MB sent by a rank in a step | bytes a value |")
    say("|---|---|---|---|")
    for tool, results in found.items():
        speed, traffic = (statistics.median(result[key] for result in results) for key in ("tokens_per_second", "bytes"))
        sent = "| |" if tool.startswith("burnish, 1") else f"| {traffic / 1e6:.1f} | {traffic / values:.2f} |"
        say(f"| {tool} | {speed:.0f} {sent}")
    speeds = [statistics.median(result["tokens_per_second"] for result in results) for results in (alone, ours)]
    difference = max(abs(a - b) for a, b in zip(ours[0]["losses"], theirs[0]["losses"], strict=True))
    say(f"2 ranks × 1 thread: {speeds[1] / speeds[0]:.2f} of the tokens/s of 1 rank × 2 threads; {values} values")
    say(f"losses from {ours[0]['losses'][0]:.4f} to {ours[0]['losses'][-1]:.4f}, at most {difference:.1e} from PEFT's in a step")
    return alone[0]["losses"] == ours[0]["losses"] and difference <= TOLERANCE


# --- the exchange -----------------------------------------------------------------------------------------------------


def exchange(options, folder):
    import numpy

    write_job(options, folder, 8)
    measured = []
    say("\n| ranks | values | burnish, ms | MB sent by a rank | bytes a value | gloo f32, ms |\n|---|---|---|---|---|---|")
    for ranks in map(int, options.ranks.split(",")):
        with Namespaces(folder, ranks, options.rate) as machines:
            for name in TARGETS:
                command = [options.burnish.resolve(), "check", "recipe.toml", "--time", "--json", "--threads", 1,
                           "--set", f"adapter.targets={json.dumps(TARGETS[name])}", "--set", f"train.accumulate_steps={ranks}",
                           "--set", "train.micro_batch_seqs=1"]
                report = result_of([*machines.mpirun(), "-n", ranks, *command], cwd=folder)
                ours, values = report["time"]["communication"], report["adapter_parameters"]
                theirs = gloo_milliseconds(machines, ranks, values)
                measured.append((ranks, values, ours["bytes"], ours["seconds"]))
                say(f"| {ranks} | {values} | {1e3 * ours['seconds']:.1f} | {ours['bytes'] / 1e6:.2f} | {ours['bytes'] / values:.2f} | {theirs:.1f} |")
                print(json.dumps({"part": "exchange", "ranks": ranks, "values": values, "rate": options.rate,
                                  "bytes": ours["bytes"], "milliseconds": 1e3 * ours["seconds"], "gloo_milliseconds": theirs}), flush=True)
    # seconds = hop · (N − 1) + wire · bytes: what a message costs, and what a byte costs, packing included.
    terms = numpy.array([(ranks - 1, sent) for ranks, _, sent, _ in measured])
    seconds = numpy.array([row[3] for row in measured])
    # Relative errors count.
    (hop, wire), *_ = numpy.linalg.lstsq(terms / seconds[:, None], numpy.ones(len(seconds)), rcond=None)
    errors = terms @ [hop, wire] / seconds - 1
    # Both phases together, over the share that goes to others.
    bits = statistics.median(8 * sent / values * ranks / (2 * (ranks - 1)) for ranks, values, sent, _ in measured)
    say(f"\nfitted at {options.rate}: {1e3 * hop:.2f} ms for each further rank, {1e-6 / wire:.0f} MB/s, {bits:.1f} bits a value each way; "
        f"off by {100 * errors.min():.0f}% to {100 * errors.max():.0f}%")
    gigabits = float(options.rate.removesuffix("gbit"))
    say("\n| adapter | MB a rank sends, N = 64 | " + " | ".join(f"{rate}, N = 2 / 8 / 64" for rate in RATES) + " |")
    say("|---|---|" + "---|" * len(RATES))
    for adapter, values in ADAPTERS.items():
        sent = lambda ranks: 2 * (ranks - 1) / ranks * values * bits / 8
        cell = lambda rate: " / ".join(f"{hop * (ranks - 1) + wire * gigabits / rate * sent(ranks):.3g}" for ranks in (2, 8, 64))
        say(f"| {adapter} | {sent(64) / 1e6:.1f} | " + " | ".join(map(cell, RATES.values())) + " |")


def gloo_milliseconds(machines, ranks, values):
    """The time of gloo's sum of f32 between the namespaces."""
    common = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0", "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29512"}
    processes = []
    for rank, host in enumerate(machines.hosts):
        words = machines.inside(host, [sys.executable, __file__, "--model", "none", "--gloo", values])
        environment = {**common, "RANK": str(rank), "WORLD_SIZE": str(ranks)}
        processes.append(subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    outputs = [process.communicate() for process in processes]
    if any(process.returncode for process in processes):
        sys.exit(f"gloo: {outputs}")
    return json.loads(outputs[0][0].splitlines()[-1])["milliseconds"]


def main():
    options = arguments()
    if options.peft:
        return peft(options)
    if options.gloo:
        return gloo(options)
    parts, holds = options.parts.split(","), True
    with tempfile.TemporaryDirectory(prefix="burnish-cost-") as folder:
        if "training" in parts:
            holds = training(options, Path(folder))
        if "exchange" in parts:
            exchange(options, Path(folder))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
