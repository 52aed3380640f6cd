"""Campaigns of clients that mean no good, against a running `burnish serve` of a tiny model.

    python benches/hostile_clients.py requests|departures|overload|isolation [--seconds S] [--count N] [--seed N] [--base MODEL]
        [--burnish target/release/burnish]

requests    Generated requests, half of them bodies made from valid ones, half raw bytes of HTTP: no status of 500 or more, no wait beyond 30 s,
            and no valid answer that is not as its format says. (503 stands for too many connections, and 429 for a full queue, by design.)
departures  Clients that leave at a random byte of their request or of the answer: afterwards every place is free again.
overload    As many clients as there are places, then requests at ten times the rate that these reached: the accepted ones' 99th percentile.
            Needs a --base whose answers take longer than these clients do: SmolLM2, say.
isolation   Requests of every kind under strace: while it serves, the program opens no file but the adapter's and the votes', and no connection.
            (Threads that start, and the allocator for them, ask the system for the number of processors, in `/proc/self/cgroup`,
            `/sys/fs/cgroup` and `/sys/devices/system/cpu/online`.)

In all of them `/healthz` answers within 100 ms (99.9th percentile, on an idle machine; the greatest time is printed), and the memory of the
first half is not exceeded in the second. A campaign ends after --seconds (60), or after --count requests where that is given. The exit code is 1 where
something does not hold. Needs Linux and the standard library; `isolation` needs strace.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from hostile_requests import hostile_bytes, request, valid_body

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "tests/fixtures/gguf/smollm.gguf"
WAIT = 30


class Server:
    """A server that ends with the `with` block."""

    def __init__(self, burnish, base, *arguments, tracer=()):
        self.began = time.perf_counter()
        command = [*tracer, str(burnish), "serve", "--base", str(base), "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:1"})
        for line in self.process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/ is the page", line):
                break
            print(line, end="", file=sys.stderr)
        else:
            sys.exit("the server did not start")
        self.port = int(found[1])
        self.ready = time.perf_counter()
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def __enter__(self):
        self.model = json.loads(self.ask("GET", "/v1/models")[1])["data"][0]["id"]
        return self

    def __exit__(self, *_):
        # Under a tracer the program is the child.
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def connect(self, seconds=WAIT):
        return socket.create_connection(("127.0.0.1", self.port), seconds)

    def ask(self, method, path, body=b""):
        """The status and the body of one request."""
        with self.connect() as connection:
            connection.sendall(request(method, path, body))
            head, _, rest = read_all(connection).partition(b"\r\n\r\n")
        return int(head.split()[1]), without_chunks(rest) if b"chunked" in head.lower() else rest

    def figure(self, name):
        return float(re.search(rf"^burnish_{name} (\S+)$", self.ask("GET", "/metrics")[1].decode(), re.M)[1])

    def memory(self):
        """Resident MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        resident = re.search(r"VmRSS:\s+(\d+)", status)
        return int(resident[1]) / 1024 if resident else sys.exit("FAILED  the server has ended")


def read_all(connection):
    pieces = []
    try:
        while piece := connection.recv(65536):
            pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces)


def without_chunks(data):
    body = b""
    while b"\r\n" in data:
        length, _, data = data.partition(b"\r\n")
        if int(length, 16) == 0:
            break
        body, data = body + data[: int(length, 16)], data[int(length, 16) + 2 :]
    return body


def watch_health(port, stop, found):
    """Asks for `/healthz` every 20 ms; sends the times in milliseconds at the end."""
    times = []
    while not stop.wait(0.02):
        begun = time.perf_counter()
        try:
            with socket.create_connection(("127.0.0.1", port), WAIT) as connection:
                connection.sendall(request("GET", "/healthz"))
                good = read_all(connection).startswith(b"HTTP/1.1 200")
        except OSError:
            good = False
        times.append((time.perf_counter() - begun) * 1e3 if good else WAIT * 1e3)
    found.put(times)


class Watch:
    """Health and memory during a campaign."""

    def __init__(self, server):
        self.server, self.memory = server, []
        self.stop, self.found = multiprocessing.Event(), multiprocessing.Queue()
        self.process = multiprocessing.Process(target=watch_health, args=(server.port, self.stop, self.found), daemon=True)
        self.process.start()

    def note(self):
        self.memory.append(self.server.memory())

    def end(self):
        """Whether health and memory held."""
        self.note()
        self.stop.set()
        times = sorted(self.found.get())
        tenths = [self.memory[len(self.memory) * tenth // 10] for tenth in range(10)] + [self.memory[-1]]
        early = max(self.memory[: len(self.memory) // 2 + 1])
        most = times[min(len(times) - 1, int(len(times) * 0.999))]
        print(f"health: {len(times)} answers, median {statistics.median(times):.1f} ms, 99.9 % within {most:.1f} ms, greatest {times[-1]:.1f} ms")
        print("memory, MiB after each tenth:", *(f"{one:.0f}" for one in tenths))
        return all([holds("health within 100 ms", most < 100), holds("memory is flat", self.memory[-1] < early * 1.05 + 8)])


def holds(name, condition, found=""):
    print("ok     " if condition else "FAILED ", name, found)
    return bool(condition)


def send_hostile(port, model, seed, ends_at, count, found):
    """One client's part of `requests`; sends counts by status, and what does not hold."""
    rng, statuses, wrong = random.Random(seed), Counter(), []
    while time.time() < ends_at and (count is None or sum(statuses.values()) < count):
        data, is_whole, held = hostile_bytes(rng, model)
        begun, answer = time.perf_counter(), b""
        try:
            with socket.create_connection(("127.0.0.1", port), WAIT) as connection:
                try:
                    connection.sendall(data)
                    # Nothing more comes: what waits for the rest of a request need not.
                    if not is_whole:
                        connection.shutdown(socket.SHUT_WR)
                except OSError:
                    pass
                answer = read_all(connection)
        except TimeoutError:
            wrong.append(("no end within 30 s", data[:3000]))
        except OSError:
            pass
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head.split()[1]) if head.startswith(b"HTTP/1.") else 0
        statuses[status] += 1
        if status >= 500:
            wrong.append((status, data[:3000]))
        if held and status == 200:
            for choice in json.loads(body)["choices"]:
                try:
                    if choice["finish_reason"] == "stop":
                        json.loads(choice["message"]["content"])
                except ValueError:
                    wrong.append((choice, data[:3000]))
        if time.perf_counter() - begun > 5:
            print(f"{time.perf_counter() - begun:.1f} s for {data[:300]}")
        if len(wrong) > 20:
            break
    found.put((statuses, wrong))


def requests(server, arguments):
    watch, found = Watch(server), multiprocessing.Queue()
    count = arguments.count and arguments.count // 2
    clients = [
        multiprocessing.Process(target=send_hostile, args=(server.port, server.model, arguments.seed * 2 + index, time.time() + arguments.seconds, count, found))
        for index in range(2)
    ]
    for client in clients:
        client.start()
    while any(client.is_alive() for client in clients) and found.qsize() < 2:
        time.sleep(0.5)
        watch.note()
    statuses, wrong = Counter(), []
    for _ in clients:
        of_client, wrong_of_client = found.get()
        statuses, wrong = statuses + of_client, wrong + wrong_of_client
    for one in wrong[:10]:
        print(*one)
    print(f"{sum(statuses.values())} requests; by status (0: closed without one): {dict(sorted(statuses.items()))}")
    return all([holds("no status from 500 on, no hang, valid answers", not wrong, f"{len(wrong)} wrong" if wrong else ""), is_free(server), watch.end()])


def is_free(server):
    """Whether every place comes back within ten seconds."""
    busy = lambda: server.figure("answers_running") + server.figure("answers_waiting") + server.figure("connections") - 1
    ends_at = time.time() + 10
    while busy() > 1 and time.time() < ends_at:
        time.sleep(0.1)
    answers = server.figure("answers_running") + server.figure("answers_waiting")
    return holds("all places are free", answers == 0 and busy() <= 1, f"{answers:.0f} answers, {server.figure('connections'):.0f} connections")


def departures(server, arguments):
    rng, watch, left = random.Random(arguments.seed), Watch(server), Counter()
    ends_at = time.time() + arguments.seconds
    while time.time() < ends_at and (arguments.count is None or sum(left.values()) < arguments.count):
        body = {"model": server.model, "messages": [{"role": "user", "content": "Tell me"}], "n": rng.choice([1, 4, 16]), "max_tokens": 90, "temperature": 1}
        body |= {"stream": rng.random() < 0.7} | rng.choice([{}, {"response_format": {"type": "json_object"}}])
        data = request("POST", "/v1/chat/completions", json.dumps(body).encode())
        with server.connect() as connection:
            if rng.random() < 0.5:
                # The connection is reset rather than closed.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if rng.random() < 0.4:
                connection.sendall(data[: rng.randrange(len(data))])
                left["in the request"] += 1
            else:
                connection.sendall(data)
                bytes_read = int(2 ** rng.uniform(0, 15)) - 1
                while bytes_read > 0 and (piece := connection.recv(bytes_read)):
                    bytes_read -= len(piece)
                left["in the answer"] += 1
        if sum(left.values()) % 200 == 0:
            watch.note()
    print(f"{sum(left.values())} clients left: {dict(left)}; {server.figure('answers_cancelled_total'):.0f} answers were cancelled")
    return all([is_free(server), watch.end()])


PLACES = 16


async def timed(port, data, times, statuses):
    begun = time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        answer = await asyncio.wait_for(reader.read(), 120)
        writer.close()
        status = int(answer.split(b" ", 2)[1])
    except OSError:
        status = 0
    statuses[status] += 1
    if status == 200:
        times.append(time.perf_counter() - begun)


async def phases(server, seconds, watch):
    body = {"model": server.model, "messages": [{"role": "user", "content": "Tell me"}], "max_tokens": 64, "temperature": 0, "logit_bias": {"0": 0}}
    data = request("POST", "/v1/chat/completions", json.dumps(body).encode())
    calm, loaded, of_calm, of_loaded = [], [], Counter(), Counter()
    ends_at = time.perf_counter() + max(10, seconds / 5)

    async def client():
        while time.perf_counter() < ends_at:
            await timed(server.port, data, calm, of_calm)

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(PLACES)))
    rate = len(calm) / (time.perf_counter() - begun)
    tasks, sent, begun = set(), 0, time.perf_counter()
    while (passed := time.perf_counter() - begun) < seconds:
        for _ in range(int(passed * rate * 10) - sent):
            sent += 1
            tasks.add(task := asyncio.create_task(timed(server.port, data, loaded, of_loaded)))
            task.add_done_callback(tasks.discard)
        watch.note()
        await asyncio.sleep(0.01)
    await asyncio.gather(*tasks)
    return (calm, of_calm, rate), (loaded, of_loaded, sum(of_loaded.values()) / (time.perf_counter() - begun))


def overload(server, arguments):
    watch = Watch(server)
    percentile = lambda times, share: sorted(times)[int(len(times) * share)]
    calm, loaded = asyncio.run(phases(server, arguments.seconds, watch))
    for name, (times, statuses, rate) in (("calm", calm), ("overload", loaded)):
        figures = ", ".join(f"{share:.0%} within {percentile(times, share):.3f} s" for share in (0.5, 0.95, 0.99))
        print(f"{name}: {rate:.1f} requests/s; {dict(statuses)}; accepted: {figures}")
    ratio = percentile(loaded[0], 0.99) / percentile(calm[0], 0.99)
    good = set(loaded[1]) <= {200, 429} and set(calm[1]) == {200}
    holding = holds("each request is answered or told to come back", good), holds("99th percentile within 1.5 times", ratio <= 1.5, f"{ratio:.2f}")
    return all([*holding, is_free(server), watch.end()])


def isolation(arguments):
    """Serves under strace; checks every file that is opened and every connection that is begun after the server listens."""
    with tempfile.TemporaryDirectory() as folder:
        log, votes, adapters = Path(folder, "log"), Path(folder, "votes.jsonl"), Path(folder, "adapters")
        adapters.mkdir()
        tracer = ["strace", "-f", "-qq", "-o", str(log), "-e", "trace=%file,%network", "-e", "signal=none"]
        with Server(arguments.burnish, arguments.base, "--votes", str(votes), "--adapter-folder", str(adapters), tracer=tracer) as server:
            # The source of an adapter that comes while the server runs; its weights are missing, so it is refused.
            Path(adapters, "new").mkdir()
            Path(adapters, "new", "adapter_config.json").write_text("{}")
            rng = random.Random(arguments.seed)
            for _ in range(300):
                path, body = valid_body(rng, server.model)
                server.ask("POST", path, json.dumps(body).encode())
            image = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}]
            for body in ({"model": "../../etc/passwd"}, {"messages": [{"role": "user", "content": image}]}):
                server.ask("POST", "/v1/chat/completions", json.dumps({"model": server.model, "messages": [{"role": "user", "content": "x"}]} | body).encode())
            for path in ("/", "/healthz", "/metrics", "/v1/models", "/api/tags", "/api/votes", "/v1/models/..%2f..%2fetc%2fpasswd", "/etc/passwd"):
                server.ask("GET", path)
            print("reload:", server.ask("POST", "/v1/adapters/reload", b"{}")[1].decode())
            vote = {"prompt": "x", "answers": ["a", "b"], "models": [server.model, "other"], "winner": server.model}
            print("vote:", server.ask("POST", "/api/votes", json.dumps(vote).encode())[0])
            children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
            for child in children:
                os.kill(int(child), signal.SIGTERM)
            server.process.wait(60)
        calls = log.read_text(errors="replace").splitlines()
    listens = next(index for index, call in enumerate(calls) if " listen(" in call)
    serving = calls[listens:]
    opened = [call for call in serving if re.search(r" (open|openat|openat2|creat)\(", call)]
    given = [folder, str(arguments.base), '"/proc/self/cgroup"', '"/sys/fs/cgroup/', '"/sys/devices/system/cpu/online"']
    foreign = [call for call in opened if not any(place in call for place in given)]
    connections = [call for call in serving if re.search(r" (connect|sendto|sendmsg)\(", call) and "sa_family=" in call]
    print(f"{len(serving)} calls on files and sockets while serving; {len(opened)} files opened, {len(opened) - len(foreign)} of them as given")
    for call in [*foreign[:10], *connections[:10]]:
        print(call)
    return all([holds("no file outside the given folders", not foreign), holds("no connection out", not connections)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaign", choices=["requests", "departures", "overload", "isolation"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", type=Path, default=TINY)
    parser.add_argument("--burnish", type=Path, default=ROOT / "target/release/burnish")
    arguments = parser.parse_args()
    if arguments.count:
        arguments.seconds = float("inf")
    if arguments.campaign == "isolation":
        if not shutil.which("strace"):
            sys.exit("needs strace")
        sys.exit(0 if isolation(arguments) else 1)
    limits = ["--max-cache", "64MiB"]
    if arguments.campaign == "overload":
        limits = ["--max-answers", str(PLACES), "--max-running", str(PLACES)]
    with Server(arguments.burnish, arguments.base, *limits) as server:
        campaign = {"requests": requests, "departures": departures, "overload": overload}[arguments.campaign]
        held = campaign(server, arguments)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
