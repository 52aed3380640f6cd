"""Trains a tiny model on one, two and four ranks under mpirun, and holds what they must hold: the same adapter to the byte, over LoRA
and NF4, over shared memory, TCP and network namespaces; and a job that ends on every rank when one fails.

    python3 benches/ranks.py [--burnish target/release/burnish] [--kills 2] [--seed 0] [--without-namespaces]

burnish must be built with `--features mpi`; `mpirun` is Open MPI's. Namespaces need root, `ip` and `unshare`. A long campaign:
`--kills 20`. Exit code 1 at the first claim that does not hold. Needs the standard library only.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The claim is the time-out and five seconds.
GRACE = 5
TIMEOUT = 3
# Seconds in which signs of life, which name the step, have come: they are sent five times a second.
SIGNS = 1
# Ranks outnumber cores: they yield.
MPIRUN = ["mpirun", "--oversubscribe", "--allow-run-as-root", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"]
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
    parser.add_argument("--without-namespaces", action="store_true")
    return parser.parse_args()


class Job:
    """A folder with a tiny job; its runs lie in it."""

    def __init__(self, folder, burnish):
        self.folder, self.burnish = folder, burnish
        rows = [f'{{"prompt": "{a} and {b} is ", "completion": "{a + b}"}}\n' for a in range(1, 6) for b in range(1, 6)]
        (folder / "train.jsonl").write_text("".join(rows[:21]))
        (folder / "valid.jsonl").write_text("".join(rows[10:]))
        (folder / "recipe.toml").write_text(f"""
            [base]
            model = "{ROOT}/tests/fixtures/gguf/smollm.gguf"
            compute = "f32"
            [data]
            train = "train.jsonl"
            valid = "valid.jsonl"
            max_seq_tokens = 64
            [adapter]
            rank = 4
            [train]
            micro_batch_seqs = 2
            accumulate_steps = 4
            learning_rate = 1e-2
            eval_steps = 50
            checkpoint_steps = 5
            [parallel]
            timeout_seconds = {TIMEOUT}
            [sample]
            valid_prompts = 0
            [output]
            dir = "runs"
            """)

    def train(self, name, settings, more=()):
        """The command that trains into `runs/NAME`."""
        settings = [f"output.dir=runs/{name}", *settings]
        words = [self.burnish, "train", "recipe.toml", *more]
        return [str(word) for word in words + [part for setting in settings for part in ("--set", setting)]]

    def start(self, ranks, command, options=(), mpirun=MPIRUN):
        if ranks == 1 and not options:
            words = [*command, "--threads", "1"]
        else:
            words = [*mpirun, "-n", str(ranks), *options, *command]
        return subprocess.Popen(words, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                start_new_session=True)

    def done(self, ranks, command, options=(), mpirun=MPIRUN, code=0):
        process = self.start(ranks, command, options, mpirun)
        try:
            output, _ = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        claim(process.returncode == code, f"exit code {code} of {' '.join(command)}, not {process.returncode}:\n{output}")
        return output

    def adapter(self, name):
        return hashlib.sha256((self.folder / "runs" / name / "adapter_model.safetensors").read_bytes()).hexdigest()

    def lines(self, name):
        """The lines of the metrics."""
        try:
            return len((self.folder / "runs" / name / "metrics.jsonl").read_text().splitlines())
        except FileNotFoundError:
            return 0

    def processes(self, name):
        """The processes that train into `runs/NAME`, by their rank."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if words[0] == str(self.burnish).encode() and f"output.dir=runs/{name}".encode() in words:
                    environment = (entry / "environ").read_bytes().split(b"\0")
                    rank = [word.split(b"=")[1] for word in environment if word.startswith(b"OMPI_COMM_WORLD_RANK=")]
                    found[int(rank[0]) if rank else 0] = int(entry.name)
            except (OSError, IndexError, ValueError):
                pass
        return found

    def wait_for(self, name, lines, process):
        began = time.monotonic()
        while self.lines(name) < lines:
            if process.poll() is not None or time.monotonic() - began > 60:
                raise SystemExit(f"{name}: no step comes:\n{process.communicate()[0]}")
            time.sleep(0.01)

    def ended(self, name, process, within):
        """The output of a job that must end by itself, with another exit code than 0 and no process left."""
        began = time.monotonic()
        try:
            output, _ = process.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            for left in self.processes(name).values():
                os.kill(left, signal.SIGKILL)
            raise SystemExit(f"{name}: still there after {within} s:\n{process.communicate()[0]}")
        seconds = time.monotonic() - began
        claim(process.returncode != 0, f"{name}: exit code 0:\n{output}")
        while self.processes(name) and time.monotonic() - began < within:
            time.sleep(0.05)
        claim(not self.processes(name), f"{name}: processes are left: {self.processes(name)}:\n{output}")
        return output, seconds


def claim(holds, text):
    if not holds:
        raise SystemExit(f"does not hold: {text}")


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


def stopped_ranks(job):
    for victim in (1, 0):
        name = f"stopped-{victim}"
        process = job.start(2, job.train(name, ["train.epochs=100000"]))
        job.wait_for(name, 8, process)
        time.sleep(SIGNS)
        os.kill(job.processes(name)[victim], signal.SIGSTOP)
        output, seconds = job.ended(name, process, TIMEOUT + GRACE)
        claim(f"rank {victim} on {os.uname().nodename} in step " in output and "no sign of life" in output, f"named:\n{output}")
        print(f"rank {victim} stopped: all ended after {seconds:.1f} s (time-out {TIMEOUT} s), by name", flush=True)


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


class Namespaces:
    """Two machines, as far as the network goes: namespaces with names of their own, on a bridge."""

    HOSTS = ["burnish1", "burnish2"]

    def __init__(self, folder):
        self.folder = folder
        self.shell = folder / "shell"

    def __enter__(self):
        self.__exit__()
        call = lambda words: subprocess.run(words.split(), check=True)
        call("ip link add burnish0 type bridge")
        call("ip link set burnish0 up")
        for number, host in enumerate(self.HOSTS, 1):
            call(f"ip netns add {host}")
            call(f"ip link add {host}b type veth peer name eth0 netns {host}")
            call(f"ip link set {host}b master burnish0 up")
            call(f"ip -n {host} addr add 10.77.0.{number}/24 dev eth0")
            call(f"ip -n {host} link set eth0 up")
            call(f"ip -n {host} link set lo up")
        self.shell.write_text("#!/bin/bash\nhost=burnish${1##*.}; shift\n"
                              'exec ip netns exec "$host" unshare -u bash -c "hostname $host; $*"\n')
        self.shell.chmod(0o755)
        (self.folder / "hosts").write_text("10.77.0.1 slots=1\n10.77.0.2 slots=1\n")
        return self

    def end(self):
        """Ends the processes in them: without a link, nobody else can."""
        for host in self.HOSTS:
            found = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True).stdout.split()
            for process in found:
                os.kill(int(process), signal.SIGKILL)

    def __exit__(self, *_):
        self.end()
        for host in self.HOSTS:
            # A namespace goes away in its own time; its link has to be gone at once.
            subprocess.run(["ip", "link", "del", f"{host}b"], stderr=subprocess.DEVNULL)
            subprocess.run(["ip", "netns", "del", host], stderr=subprocess.DEVNULL)
        subprocess.run(["ip", "link", "del", "burnish0"], stderr=subprocess.DEVNULL)

    @staticmethod
    def can_be_made():
        """Whether this user, in this container, may make them."""
        if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
            return False
        probe = "ip netns add burnish1 && ip link add burnish0 type bridge && ip netns exec burnish1 unshare -u true"
        is_made = subprocess.run(["bash", "-c", probe], stderr=subprocess.DEVNULL).returncode == 0
        subprocess.run(["bash", "-c", "ip netns del burnish1; ip link del burnish0"], stderr=subprocess.DEVNULL)
        return is_made

    def mpirun(self):
        options = ["--hostfile", str(self.folder / "hosts"), "--mca", "plm_rsh_agent", str(self.shell)]
        for layer in ("btl_tcp_if_include", "oob_tcp_if_include"):
            options += ["--mca", layer, "eth0"]
        inside = ["ip", "netns", "exec", self.HOSTS[0], "unshare", "-u", "bash", "-c", f'hostname {self.HOSTS[0]}; exec "$@"', "-"]
        return inside + MPIRUN + options

    def cut(self, host):
        subprocess.run(["ip", "link", "set", f"{host}b", "down"], check=True)


def over_namespaces(job):
    settings = [*KINDS["LoRA"], "train.epochs=4"]
    with Namespaces(job.folder) as machines:
        job.done(2, job.train("two", settings), ["-x", "BURNISH_THREADS=1"], machines.mpirun())
        claim(job.adapter("two") == job.adapter("LoRA-1"), "two namespaces give the adapter of one process")
        print("LoRA, 2 × 2 over network namespaces: the adapter of 1 × 4", flush=True)
        process = job.start(2, job.train("cut", ["train.epochs=100000"]), [], machines.mpirun())
        job.wait_for("cut", 8, process)
        time.sleep(SIGNS)
        machines.cut("burnish2")
        began = time.monotonic()
        while job.processes("cut") and time.monotonic() - began < TIMEOUT + GRACE:
            time.sleep(0.05)
        seconds = time.monotonic() - began
        left = job.processes("cut")
        # mpirun waits for its daemon at the other end.
        machines.end()
        output, _ = process.communicate()
        claim(not left, f"ranks are left {seconds:.1f} s after the link was cut: {left}:\n{output}")
        claim("rank 1 on burnish2 in step " in output, f"named:\n{output}")
        print(f"link cut: both ranks ended after {seconds:.1f} s (time-out {TIMEOUT} s), by name", flush=True)


def main():
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="burnish-ranks-") as folder:
        job = Job(Path(folder), options.burnish.resolve())
        equal_adapters(job)
        killed_ranks(job, options.kills, random.Random(options.seed))
        asked_to_stop(job)
        stopped_ranks(job)
        failed_ranks(job)
        if not options.without_namespaces and Namespaces.can_be_made():
            over_namespaces(job)
        else:
            print("without network namespaces", flush=True)
    print("all holds")


if __name__ == "__main__":
    sys.exit(main())
