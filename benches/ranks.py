"""Trains a tiny model on one, two and four ranks under mpirun, and holds what they must hold: the same adapter to the byte, over LoRA
and NF4, over shared memory, TCP and network namespaces; and a job that ends on every rank when one fails (ranks_faults.py).

    python3 benches/ranks.py [--burnish target/release/burnish] [--kills 2] [--seed 0] [--all-faults] [--without-namespaces]
    python3 benches/ranks.py --device wgpu [--burnish ...]

burnish must be built with `--features mpi`; `mpirun` is Open MPI's. Namespaces need root, `ip` and `unshare`. A long campaign:
`--kills 20 --all-faults`. Exit code 1 at the first claim that does not hold. Needs the standard library and a C compiler.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from ranks_faults import EVERY, FEW, Faults
from ranks_job import GRACE, ROOT, TIMEOUT, Job, Namespaces, claim

# The seconds from a signal to mpirun to SIGTERM for the ranks, and from there to SIGKILL: one by default.
PATIENT = ["--mca", "odls_base_sigkill_timeout", "2"]
# A run that is long enough to be killed in its midst.
LONG = ["adapter.dropout=0.2", "train.epochs=400"]
TRANSPORTS = {"shared memory": [], "TCP": ["--mca", "btl", "self,tcp"]}
KINDS = {"LoRA": ["adapter.dropout=0.2"], "NF4": ["base.quant=nf4", "base.compute=bf16", "adapter.targets=all-linear"]}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--burnish", type=Path, default=ROOT / "target/release/burnish")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="trains on this device only, one process and two")
    parser.add_argument("--all-faults", action="store_true", help="every fault in every phase, rather than a few")
    parser.add_argument("--without-namespaces", action="store_true")
    return parser.parse_args()


def equal_adapters(job):
    for kind, settings in KINDS.items():
        settings = [*settings, "train.epochs=4"]
        job.done(1, job.train(f"{kind}-1", settings))
        expected = job.adapter(f"{kind}-1")
        for ranks in (2, 4):
            for transport, options in TRANSPORTS.items():
                name = f"{kind}-{ranks}-{transport}".replace(" ", "-")
                began = time.monotonic()
                job.done(ranks, job.train(name, settings), ["-x", "BURNISH_THREADS=1", *options])
                claim(job.adapter(name) == expected, f"{kind} on {ranks} ranks over {transport} gives the adapter of one")
                print(f"{kind}, {ranks} ranks × {4 // ranks} micro-batches over {transport}: the adapter of 1 × 4 "
                      f"({time.monotonic() - began:.1f} s)", flush=True)


def on_device(job, device):
    """Two processes that share a device train the adapter of one, over LoRA and NF4."""
    for kind, settings in KINDS.items():
        settings = [*settings, "base.compute=f32", "train.epochs=2"]
        for ranks in (1, 2):
            job.done(ranks, job.train(f"{kind}-{ranks}", settings, ["--device", device]), ["-x", "BURNISH_THREADS=1"])
        claim(job.adapter(f"{kind}-1") == job.adapter(f"{kind}-2"), f"{kind} on two processes gives the adapter of one")
        print(f"{kind}, 2 processes on {device}: the adapter of one", flush=True)


def killed_ranks(job, kills, generator):
    job.done(1, job.train("whole", LONG))
    done = 0
    while done < kills:
        shutil.rmtree(job.folder / "runs/killed", ignore_errors=True)
        ranks = generator.choice([2, 4])
        process = job.start(ranks, job.train("killed", LONG, ["--resume"]))
        job.wait_for("killed", generator.randint(8, 150), process)
        victim = generator.randrange(ranks)
        process_id = job.processes("killed").get(victim)
        if process_id is None:
            process.communicate()
            continue
        os.kill(process_id, signal.SIGKILL)
        _, seconds = job.ended("killed", process, TIMEOUT + GRACE)
        other = generator.choice([count for count in (1, 2, 4) if count != ranks])
        job.done(other, job.train("killed", LONG, ["--resume"]))
        claim(job.adapter("killed") == job.adapter("whole"), f"{ranks} ranks, rank {victim} killed, {other} go on")
        done += 1
        print(f"{ranks} ranks, rank {victim} killed: all ended after {seconds:.1f} s; {other} went on to the same adapter", flush=True)


def failed_ranks(job):
    """An error on one rank alone, before the first step, and one that all find."""
    train = job.train("failed", [])
    with_other = [*train, ":", "-n", "1", *job.train("failed", ["base.model=/nowhere"])]
    output, seconds = job.ended("failed", job.start(1, with_other, ["-x", "BURNISH_THREADS=1"]), TIMEOUT + GRACE)
    claim(f"rank 1 on {os.uname().nodename}" in output and "/nowhere" in output, f"named:\n{output}")
    print(f"an error on rank 1: all ended after {seconds:.1f} s, by name", flush=True)
    with_other = [*train, ":", "-n", "1", *job.train("failed", ["train.seed=7"])]
    output = job.done(1, with_other, ["-x", "BURNISH_THREADS=1"], code=2)
    claim("train.seed is 7, and 0 there" in output and output.count("train.seed is 7") == 1, f"named, and once:\n{output}")
    claim(not (job.folder / "runs/failed").exists(), "nothing is written")
    print("another seed on rank 1: refused by name", flush=True)


def asked_to_stop(job):
    process = job.start(4, job.train("asked", LONG), PATIENT)
    job.wait_for("asked", 10, process)
    process.send_signal(signal.SIGTERM)
    output, seconds = job.ended("asked", process, 20)
    claim("stopping" in output and (job.folder / "runs/asked/checkpoints").is_dir(), output)
    output = job.done(2, job.train("asked", LONG, ["--resume"]))
    claim("going on from the checkpoint" in output, output)
    claim(job.adapter("asked") == job.adapter("whole"), "a run that was asked to stop and went on has the same adapter")
    print(f"SIGTERM on 4 ranks: the state was saved after {seconds:.1f} s; 2 went on to the same adapter", flush=True)


def check_of_time(job):
    """`burnish check --time` on two ranks measures their exchange."""
    command = [job.burnish, "check", "recipe.toml", "--time", "--json", "--set", "adapter.targets=all-linear",
               "--set", "output.dir=runs/checked"]
    output = job.done(2, [str(word) for word in command], ["-x", "BURNISH_THREADS=1"])
    report = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    found, parameters = report["time"]["communication"], report["adapter_parameters"]
    claim(found["ranks"] == 2 and found["steps_per_epoch"] == 3 and 0 < found["share"] < 1, f"an exchange:\n{found}")
    claim(4 * parameters < found["bytes"] < 7.5 * parameters, f"packed to fewer than 60 bits a value of {parameters}:\n{found}")
    print(f"check --time on 2 ranks: {found['bytes'] / parameters:.2f} bytes sent a value, {1e3 * found['seconds']:.1f} ms of a step", flush=True)


def over_namespaces(job):
    settings = [*KINDS["LoRA"], "train.epochs=4"]
    with Namespaces(job.folder) as machines:
        job.done(2, job.train("two", settings), ["-x", "BURNISH_THREADS=1"], machines.mpirun())
        claim(job.adapter("two") == job.adapter("LoRA-1"), "two namespaces give the adapter of one process")
        print("LoRA, 2 × 2 over network namespaces: the adapter of 1 × 4", flush=True)


def main():
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="burnish-ranks-") as folder:
        job = Job(Path(folder), options.burnish.resolve())
        if options.device:
            on_device(job, options.device)
            print("all holds")
            return
        with_namespaces = not options.without_namespaces and Namespaces.can_be_made()
        if not with_namespaces:
            print("without network namespaces", flush=True)
        equal_adapters(job)
        killed_ranks(job, options.kills, random.Random(options.seed))
        asked_to_stop(job)
        failed_ranks(job)
        check_of_time(job)
        if with_namespaces:
            over_namespaces(job)
        Faults(job, with_namespaces).all_hold(EVERY if options.all_faults else FEW)
    print("all holds")


if __name__ == "__main__":
    sys.exit(main())
