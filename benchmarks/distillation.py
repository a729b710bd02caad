"""Distillation against its alternatives, as ratios: ``python -m benchmarks.distillation``.

One thread, fp32; each system in a process of its own, all take turns in an order that turns round
every time, and every round draws other rows. A line is the median of the rounds' ratios, with their
range. CPU time of the process is measured. Compared are

- the forward KL through both LM heads in chunks, and with the whole logits of student and teacher,
  in time and in peak memory, at two sizes of the vocabulary;
- a step of distillation from stored top-k log-probabilities, and one that asks the teacher, which
  has four times the student's weights;
- a step online against TRL's `GKDTrainer` (lmbda 0) and `DistillationTrainer` (given targets
  instead of samples): the same Llamas, the same first weights and rows, forward KL, AdamW and
  gradient clipping included; TRL with its defaults in fp32, and as fast as it can be made here.
  TRL runs in the interpreter that ``--peer-python`` names.

Takes about ten minutes of one core.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.training import LLAMA, asked, line
from benchmarks.training_data import chat_rows

PEERS = Path(__file__).with_name("distillation_peers.py")
TEACHER = {
    **LLAMA, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 13,
}  # fmt: skip
CHATS = 256  # rows to draw from
BATCH, STEPS, TOP_K = 4, 2, 64
KL = {"width": 256, "positions": {"32768": 4096, "151936": 1024}}

# system, mode → what it is called
RUNS = {
    ("kl", "chunked@32768"): "chunked KL, 32,768 words",
    ("kl", "naive@32768"): "naive KL, 32,768 words",
    ("kl", "chunked@151936"): "chunked KL, 151,936 words",
    ("kl", "naive@151936"): "naive KL, 151,936 words",
    ("ours", "online"): "ours, online teacher",
    ("ours", "stored"): f"ours, stored top-{TOP_K}",
    ("ours", "online_measured"): "ours, online, gradient shares measured in every step",
    ("trl", "gkd"): "TRL GKDTrainer",
    ("trl", "gkd_best"): "TRL GKDTrainer without checkpointing",
    ("trl", "distillation"): "TRL DistillationTrainer",
    (
        "trl",
        "distillation_best",
    ): "TRL DistillationTrainer without checkpointing, heads as on a GPU",
}
Key = tuple[str, str]
Results = dict[Key, list[dict[str, float]]]
# what is compared, over, under, and the target of the ratio
RATIOS = [
    ("cpu", ("kl", "chunked@32768"), ("kl", "naive@32768"), ""),
    ("cpu", ("kl", "chunked@151936"), ("kl", "naive@151936"), ""),
    ("peak", ("kl", "chunked@32768"), ("kl", "naive@32768"), ""),
    ("peak", ("kl", "chunked@151936"), ("kl", "naive@151936"), "at most 0.33"),
    ("cpu", ("ours", "stored"), ("ours", "online"), ""),
    ("peak", ("ours", "stored"), ("ours", "online"), ""),
    ("cpu", ("ours", "online_measured"), ("ours", "online"), ""),
    ("speed", ("ours", "online"), ("trl", "gkd"), "at least 1"),
    ("speed", ("ours", "online"), ("trl", "gkd_best"), "at least 1"),
    ("speed", ("ours", "online"), ("trl", "distillation"), "at least 1"),
    ("speed", ("ours", "online"), ("trl", "distillation_best"), "at least 1"),
    ("peak", ("ours", "online"), ("trl", "gkd_best"), ""),
    ("peak", ("ours", "online"), ("trl", "distillation_best"), ""),
]
MEASURES: dict[str, tuple[str, Callable[[dict[str, float]], float]]] = {
    "cpu": ("CPU time", lambda one: one["cpu"]),
    "peak": ("peak memory", lambda one: one["peak"]),
    "speed": ("loss tokens a CPU-second", lambda one: one["tokens"] / one["cpu"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="measurements of every system")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has TRL")
    parser.add_argument("--only", default="", help="kl, ours or trl: runs of one system alone")
    given = parser.parse_args()
    began = time.perf_counter()
    keys = [key for key in RUNS if given.only in ("", key[0])]
    with tempfile.TemporaryDirectory() as folder:
        what = write_spec(Path(folder))
        workers = started({key[0] for key in keys}, Path(folder), given.peer_python)
        try:
            results = measured(workers, keys, given.rounds)
        finally:
            for worker in workers.values():
                worker.kill()
                worker.wait()
    report(results, what)
    print(f"{time.perf_counter() - began:.0f} s in all")


def write_spec(folder: Path) -> str:
    """Rows and models for the workers; returns what the rows are."""
    rows, what = chat_rows(CHATS)
    (folder / "scratch").mkdir()
    spec = {
        "models": {"student": LLAMA, "teacher": TEACHER},
        "rows": rows,
        "batch": BATCH,
        "top_k": TOP_K,
        "kl": KL,
        "scratch": str(folder / "scratch"),
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    return what


def started(systems: set[str], folder: Path, peer_python: str) -> dict[str, Any]:
    """A process for every system that can run here."""
    workers = {}
    for system in sorted(systems):
        python = peer_python if system == "trl" else sys.executable
        worker = subprocess.Popen(  # noqa: S603
            [python, str(PEERS), system, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / f"{system}.log").open("w"),
            text=True,
        )
        if worker.stdout and worker.stdout.readline().strip() == "ready":
            workers[system] = worker
        else:
            log = (folder / f"{system}.log").read_text().strip().splitlines() or ["no message"]
            print(f"{system}: skipped, it does not start in {python} ({log[-1]})")
    return workers


def measured(workers: dict[str, Any], keys: list[Key], rounds: int) -> Results:
    """Results of every run, round by round; a first round of one step warms the processes up."""
    keys = [key for key in keys if key[0] in workers]
    results: Results = {key: [] for key in keys}
    for number in range(rounds + 1):
        for key in keys if number % 2 else reversed(keys):
            order = f"{key[1]} {number} {STEPS if number else 1}"
            found = asked(workers[key[0]], order)
            if number:
                results[key].append(found)
        print(f"round {number} of {rounds} done", file=sys.stderr, flush=True)
    return results


def report(results: Results, what: str) -> None:
    print(f"rows: {what}, {BATCH} a step; one thread, fp32")
    for key, found in results.items():
        spent = median(one["cpu"] for one in found)
        rate = median(one["tokens"] / one["cpu"] for one in found)
        peak = median(one["peak"] for one in found) / 2**20
        print(f"  {RUNS[key]}: {rate:.1f} loss tokens/s, {spent:.2f} s, peak {peak:.0f} MiB")
    for measure, over, under, target in RATIOS:
        if over in results and under in results:
            name, value = MEASURES[measure]
            pairs = zip(results[over], results[under], strict=True)
            goal = f" [target: {target}]" if target else ""
            title = f"{name}: {RUNS[over]} / {RUNS[under]}{goal}"
            line(title, [value(a) / value(b) for a, b in pairs], None)


if __name__ == "__main__":
    main()
