"""A tiny job under mpirun, and network namespaces as machines, for the scripts that train on several ranks. Needs the standard library only."""

import hashlib
import os
import shutil
import signal
import subprocess
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


class Namespaces:
    """Machines, as far as the network goes: namespaces with names of their own, on a bridge. `rate`, as tc has it, limits every link."""

    def __init__(self, folder, count=2, rate=None):
        self.folder, self.rate = folder, rate
        self.shell = folder / "shell"
        self.hosts = [f"burnish{number}" for number in range(1, count + 1)]

    def __enter__(self):
        self.__exit__()
        call = lambda words: subprocess.run(words.split(), check=True)
        call("ip link add burnish0 type bridge")
        call("ip link set burnish0 up")
        for number, host in enumerate(self.hosts, 1):
            call(f"ip netns add {host}")
            call(f"ip link add {host}b type veth peer name eth0 netns {host}")
            call(f"ip link set {host}b master burnish0 up")
            call(f"ip -n {host} addr add 10.77.0.{number}/24 dev eth0")
            call(f"ip -n {host} link set eth0 up")
            call(f"ip -n {host} link set lo up")
            if self.rate:
                shape = f"root tbf rate {self.rate} burst 256kb latency 50ms"
                call(f"tc qdisc add dev {host}b {shape}")
                call(f"tc -n {host} qdisc add dev eth0 {shape}")
        self.shell.write_text("#!/bin/bash\nhost=burnish${1##*.}; shift\n"
                              'exec ip netns exec "$host" unshare -u bash -c "hostname $host; $*"\n')
        self.shell.chmod(0o755)
        (self.folder / "hosts").write_text("".join(f"10.77.0.{number} slots=1\n" for number in range(1, len(self.hosts) + 1)))
        return self

    def end(self):
        """Ends the processes in them: without a link, nobody else can."""
        for host in self.hosts:
            found = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True).stdout.split()
            for process in found:
                os.kill(int(process), signal.SIGKILL)

    def __exit__(self, *_):
        self.end()
        for host in self.hosts:
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

    def inside(self, host, words):
        """The command that runs `words` in the namespace `host`, under its name."""
        return ["ip", "netns", "exec", host, "unshare", "-u", "bash", "-c", f'hostname {host}; exec "$@"', "-", *map(str, words)]

    def mpirun(self):
        options = ["--hostfile", str(self.folder / "hosts"), "--mca", "plm_rsh_agent", str(self.shell)]
        for layer in ("btl_tcp_if_include", "oob_tcp_if_include"):
            options += ["--mca", layer, "eth0"]
        return self.inside(self.hosts[0], MPIRUN + options)

    def cut(self, host):
        subprocess.run(["ip", "link", "set", f"{host}b", "down"], check=True)

    def ended(self, job, name, process):
        """The output of a job whose ranks must end by themselves once a link was cut."""
        began = time.monotonic()
        while job.processes(name) and time.monotonic() - began < TIMEOUT + GRACE:
            time.sleep(0.05)
        seconds, left = time.monotonic() - began, job.processes(name)
        # mpirun waits for its daemon at the other end.
        self.end()
        output, _ = process.communicate()
        claim(not left, f"{name}: ranks are left {seconds:.1f} s after the link was cut: {left}:\n{output}")
        return output, seconds
