"""Ranks that fail in each phase of a run: a rank is killed, panics, is stopped, or its link is cut, while all start, in a step, in an
evaluation, or while the state is saved. Each time the job must end on every rank, with another exit code than 0, within the time-out and five
seconds; no process may be left; and `--resume` must go on from the last checkpoint to the adapter of a run that was not disturbed.

The phase is read from the run folder: its metrics, and the temporary folder of a state that is being saved. The panic is a real one:
a library that is loaded before the others lets the clock fail once for the training thread of a rank, and Rust's standard library
panics where the clock fails. It is compiled by `cc`.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import nullcontext

from ranks_job import GRACE, MPIRUN, SIGNS, TIMEOUT, Namespaces, claim

PHASES = ["start", "step", "evaluation", "save"]
# The clock is read by the training thread of every rank before the first step and in each step, by that of rank 0 in evaluations and saves too.
PANICS = {"start": [0, 1], "step": [0, 1], "evaluation": [0], "save": [0]}
EVERY = [
    *[(event, phase, victim) for event in ("kill", "stop") for phase in PHASES for victim in (0, 1)],
    *[("panic", phase, victim) for phase in PHASES for victim in PANICS[phase]],
    *[("link", phase, 1) for phase in PHASES],
]
FEW = [("kill", "start", 1), ("panic", "step", 1), ("stop", "start", 0), ("stop", "evaluation", 1), ("kill", "save", 0), ("link", "step", 1)]
# Steps are short, an evaluation takes seconds, and so does reading the training examples. The state is saved in between.
SETTINGS = ["data.train=many.jsonl", "data.valid=long.jsonl", "train.max_steps=40", "train.eval_steps=20"]
FIRST_STEP, EVALUATED_STEP = 12, 20
ROWS, VALID_ROWS = 40_000, 30_000

FAILING_CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void *of(void *address) {
    Dl_info found;
    return dladdr(address, &found) ? found.dli_fbase : NULL;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    const char *folder = getenv("FAILING_CLOCK"), *rank = getenv("OMPI_COMM_WORLD_RANK");
    int is_training = syscall(SYS_gettid) == getpid() && of(__builtin_return_address(0)) == of((void *)getauxval(AT_ENTRY));
    if (folder && rank && is_training) {
        char path[4096];
        snprintf(path, sizeof path, "%s/fail-%s", folder, rank);
        if (unlink(path) == 0) {
            errno = EINVAL;
            return -1;
        }
    }
    return syscall(SYS_clock_gettime, clock, now);
}
"""


class Faults:
    """Runs that are disturbed, all from the same checkpoint."""

    def __init__(self, job, with_namespaces):
        self.job, self.with_namespaces = job, with_namespaces
        row = lambda number: json.dumps({"prompt": f"{number} and {number % 7} is ", "completion": str(number + number % 7)})
        for name, numbers in (("many.jsonl", range(ROWS)), ("long.jsonl", range(ROWS, ROWS + VALID_ROWS))):
            (job.folder / name).write_text("\n".join(map(row, numbers)) + "\n")
        (job.folder / "clock.c").write_text(FAILING_CLOCK)
        self.clock = job.folder / "clock.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", self.clock, job.folder / "clock.c", "-ldl"], check=True)
        job.done(1, job.train("undisturbed", SETTINGS))
        process = job.start(1, job.train("begun", SETTINGS))
        self.wait_for("step", "begun", process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        # The lines behind the checkpoint, which a run that goes on writes again, would be taken for its own.
        metrics = job.folder / "runs/begun/metrics.jsonl"
        lines = metrics.read_text().splitlines(keepends=True)
        metrics.write_text("".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] < FIRST_STEP - 1))

    def last(self, name):
        """The step of the last line of the metrics, and whether it is an evaluation's."""
        try:
            lines = (self.job.folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
            line = json.loads(lines[-1])
            return line["step"], "valid_loss" in line
        except (FileNotFoundError, IndexError, json.JSONDecodeError):
            return 0, False

    def is_saving(self, name):
        try:
            return any(entry.name.startswith(".tmp-") for entry in os.scandir(self.job.folder / "runs" / name / "checkpoints"))
        except FileNotFoundError:
            return False

    def is_in(self, phase, name):
        step, is_evaluation = self.last(name)
        match phase:
            case "step":
                return FIRST_STEP <= step < EVALUATED_STEP
            case "evaluation":
                return step == EVALUATED_STEP and not is_evaluation
            case "save":
                return self.is_saving(name)

    def wait_for(self, phase, name, process):
        began = time.monotonic()
        while not self.is_in(phase, name):
            if process.poll() is not None or time.monotonic() - began > 60:
                raise SystemExit(f"{name}: no {phase} comes:\n{process.communicate()[0]}")

    def disturbed(self, event, phase, victim):
        """Disturbs a run of two ranks. None where the phase was over before the fault came."""
        job, name = self.job, f"{event}-{phase}-{victim}"
        shutil.rmtree(job.folder / "runs" / name, ignore_errors=True)
        shutil.copytree(job.folder / "runs/begun", job.folder / "runs" / name)
        at_first = self.last(name)
        # An empty cache: otherwise the encoded examples are in it.
        options = ["-x", f"BURNISH_CACHE={job.folder}/cache-{time.time_ns()}", "-x", "BURNISH_THREADS=1"]
        options += ["-x", f"LD_PRELOAD={self.clock}", "-x", f"FAILING_CLOCK={job.folder}"] if event == "panic" else []
        with Namespaces(job.folder) if event == "link" else nullcontext() as machines:
            mpirun = machines.mpirun() if machines else MPIRUN
            process = job.start(2, job.train(name, SETTINGS, ["--resume"]), options, mpirun)
            while len(job.processes(name)) < 2:
                claim(process.poll() is None, f"{name}: it has ended")
            process_id = job.processes(name)[victim]
            if phase == "start":
                # Before MPI has begun, and after.
                time.sleep(0.05 if victim == 0 else 0.6)
            else:
                self.wait_for(phase, name, process)
            if phase == "evaluation" or (phase == "step" and event in ("stop", "link")):
                time.sleep(SIGNS / 4)
            match event:
                case "kill":
                    os.kill(process_id, signal.SIGKILL)
                case "stop":
                    os.kill(process_id, signal.SIGSTOP)
                case "panic":
                    (job.folder / f"fail-{victim}").touch()
                case "link":
                    machines.cut(machines.hosts[1])
            was_there = self.last(name) == at_first if phase == "start" else phase == "step" or self.is_in(phase, name)
            if event == "link":
                output, seconds = machines.ended(job, name, process)
            else:
                output, seconds = job.ended(name, process, TIMEOUT + GRACE)
        return (output, seconds) if was_there or (phase == "save" and victim == 1) else None

    def holds(self, event, phase, victim):
        for _ in range(20):
            if (found := self.disturbed(event, phase, victim)) is not None:
                break
        else:
            raise SystemExit(f"{event} in {phase}: the phase is always over before")
        output, seconds = found
        name = f"{event}-{phase}-{victim}"
        if event in ("stop", "link"):
            claim("no sign of life" in output or "was not done by all ranks" in output, f"{name}: said:\n{output}")
        if event == "panic":
            claim("this is a bug in burnish" in output, f"{name}: said:\n{output}")
        if event in ("stop", "link") and phase == "step":
            claim(f"rank {victim} on " in output and " in step " in output, f"{name}: named:\n{output}")
        output = self.job.done(1, self.job.train(name, SETTINGS, ["--resume"]))
        claim("going on from the checkpoint" in output, f"{name}: a checkpoint is left:\n{output}")
        claim(self.job.adapter(name) == self.job.adapter("undisturbed"), f"{name}: the adapter of a run that was not disturbed")
        shutil.rmtree(self.job.folder / "runs" / name)
        print(f"{event} of rank {victim} in {phase}: all ended after {seconds:.1f} s; the run went on to the same adapter", flush=True)

    def all_hold(self, cases):
        for event, phase, victim in cases:
            if event != "link" or self.with_namespaces:
                self.holds(event, phase, victim)
