"""`pipestill serve` under load, against a plain server: ``python -m benchmarks.serving``.

Both servers and the client are processes of their own on 127.0.0.1. The peers are FastAPI with one
generate call a request (`benchmarks.serving_peer`), on FastAPI's thread pool and on its event
loop; the faster of the two counts. All load the same weights in fp32, compute with one thread, and
get the same texts with the same limits. Every system is measured in every round, in turn; a client
asks again as soon as it is answered. The table holds medians over the rounds. CPU is that of the
server's process, a request: unlike the other figures it means the same on a busy machine, where
threads that wait for a core decide the rest.

Workloads: a T5 that labels (2 tokens), a T5 that explains (about 30 tokens, some up to the limit),
and a decoder that explains with a limit of 8 to 64 tokens drawn for each request.

    --quick   one short round, 1 and 8 clients
    --only    one workload: t5-label, t5-explain or decoder
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from pipestill.models.loading import resolve_reference

ROOT = Path(__file__).resolve().parent
SYSTEMS = ("ours", "def", "async")
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Workload:
    model: str
    prefix: str
    limits: tuple[int, ...]


WORKLOADS = {
    "t5-label": Workload("pocket-base", "predict: ", (64,)),
    "t5-explain": Workload("pocket-base", "explain: ", (64,)),
    "decoder": Workload("pocket-teacher", "", (8, 16, 32, 64)),
}


@dataclass(frozen=True)
class Load:
    """What one measurement gave: seconds of each request, and the time of all."""

    seconds: list[float]
    whole: float
    answers: dict[int, str]
    cpu: float  # seconds of the server's process

    @property
    def cpu_ms(self) -> float:
        return 1e3 * self.cpu / len(self.seconds)

    @property
    def rate(self) -> float:
        return len(self.seconds) / self.whole

    def quantile(self, share: float) -> float:
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))]


def bodies(workload: Workload) -> list[dict[str, Any]]:
    """Requests of one text each, the notes of the refund desk."""
    dice = random.Random(0)  # noqa: S311
    path = Path(resolve_reference("pocket-base")).parent.parent / "data" / "eval.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        {
            "instances": [workload.prefix + row["input_text"]],
            "parameters": {"max_output_tokens": dice.choice(workload.limits)},
        }
        for row in rows
    ]


def model_folder(workload: Workload, folder: Path) -> Path:
    """The pocket model as a tuned one without an instruction, so that both read the same text."""
    shutil.copytree(resolve_reference(workload.model), folder)
    info = {"objective": "tuned", "style": "plain", "instruction": ""}
    limits = {"max_input_tokens": 512, "max_output_tokens": 64}
    (folder / "pipestill.json").write_text(json.dumps(info | limits))
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    (folder / "ends.json").write_text(json.dumps(ends))
    return folder


def free_port() -> int:
    with socket.create_server((HOST, 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def server(system: str, folder: Path) -> Iterator[tuple[str, int]]:
    """A server process; gives its address and its id once it answers."""
    port = str(free_port())
    if system == "ours":
        command = ["-m", "pipestill.cli.main", "serve", str(folder), "--port", port]
    else:
        command = [str(ROOT / "serving_peer.py"), system, str(folder), port]
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(process, f"http://{HOST}:{port}")
        yield f"http://{HOST}:{port}", process.pid
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_for(process: "subprocess.Popen[bytes]", address: str) -> None:
    end = time.monotonic() + 90
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{address}/health", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"the server at {address} did not start")


def cpu_seconds(process: int) -> float:
    """What the process has used so far, all its threads together."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(
    target: tuple[str, int], asked: Sequence[dict[str, Any]], clients: int, span: float
) -> Load:
    """So many clients that ask for `span` seconds, each again as soon as it is answered."""
    (address, process), before = target, cpu_seconds(target[1])
    numbers, seconds, answers = itertools.count(), list[float](), dict[int, str]()
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits) as http:

        async def client(end: float) -> None:
            while (begun := time.perf_counter()) < end:
                number = next(numbers) % len(asked)
                found = await http.post("/predict", json=asked[number])
                seconds.append(time.perf_counter() - begun)
                found.raise_for_status()
                answers[number] = found.json()["predictions"][0]["output_text"]

        began = time.perf_counter()
        await asyncio.gather(*(client(began + span) for _ in range(clients)))
        whole = time.perf_counter() - began
    return Load(seconds, whole, answers, cpu_seconds(process) - before)


def measure(
    name: str, counts: Sequence[int], rounds: int, span: float
) -> dict[tuple[str, int], list[Load]]:
    """Rounds of all systems and numbers of clients, in turn."""
    workload = WORKLOADS[name]
    asked = bodies(workload)
    found: dict[tuple[str, int], list[Load]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = model_folder(workload, Path(temporary) / "model")
        with server("ours", folder) as a, server("def", folder) as b, server("async", folder) as c:
            targets = dict(zip(SYSTEMS, (a, b, c), strict=True))
            for target in targets.values():
                asyncio.run(load(target, asked, 8, 1.0))  # warm
            for number, clients in itertools.product(range(rounds), counts):
                for system in SYSTEMS if number % 2 == 0 else SYSTEMS[::-1]:
                    got = asyncio.run(load(targets[system], asked, clients, span))
                    found.setdefault((system, clients), []).append(got)
    return found


def show(name: str, found: dict[tuple[str, int], list[Load]]) -> None:
    """The table of one workload, and whether the systems said the same."""
    print(
        f"\n{name}\n| clients | server | requests/s | p50 ms | p95 ms | p99 ms | CPU ms |"
        " requests/s, ours to this | CPU, this to ours |"
    )
    print("| --- " * 9 + "|")
    for clients in sorted({clients for _, clients in found}):
        rates = {s: median(got.rate for got in found[s, clients]) for s in SYSTEMS}
        spent = {s: median(got.cpu_ms for got in found[s, clients]) for s in SYSTEMS}
        for system in SYSTEMS:
            loads = found[system, clients]
            times = [median(g.quantile(q) for g in loads) * 1e3 for q in (0.5, 0.95, 0.99)]
            cells = " | ".join(f"{value:.1f}" for value in (rates[system], *times, spent[system]))
            ratios = f"{rates['ours'] / rates[system]:.2f} | {spent[system] / spent['ours']:.2f}"
            print(f"| {clients} | {system} | {cells} | {ratios} |")
    said: dict[str, dict[int, str]] = {system: {} for system in SYSTEMS}
    for (system, _), loads in found.items():
        for got in loads:
            said[system] |= got.answers
    shared = set(said["ours"]) & set(said["def"])
    same = sum(said["ours"][number] == said["def"][number] for number in shared)
    print(f"same answer as the plain server: {same} of {len(shared)} texts", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=WORKLOADS)
    args = parser.parse_args()
    counts, rounds, span = ((1, 8), 1, 1.5) if args.quick else ((1, 8, 32), 3, 3.0)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start")
    for name in [args.only] if args.only else WORKLOADS:
        show(name, measure(name, counts, rounds, span))


if __name__ == "__main__":
    main()
