"""A wall clock that jumps back and forth: nothing that matters is told by it."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch

from benchmarks.soak import checkpoint, children
from benchmarks.soak.tally import Tally

WRONG = Path(__file__).parent / "wrong_clock"


def run(folder: Path, dice: random.Random, tally: Tally, minutes: float, times: int = 3) -> None:
    """The whole group."""
    torch.set_num_threads(1)
    journals(folder / "journal", dice, tally, times)
    trainings(folder / "training", dice, tally, min(times, 2))
    latencies(folder / "training", dice, tally)
    schedules(folder / "ticks", dice, tally, times)
    logs(folder / "requests", dice, tally, times)


def wrong(name: str, folder: Path, option: str, dice: random.Random) -> tuple[Any, str]:
    """A piece of work in a process whose clock jumps; its result, or None and what it said."""
    environment = {"PYTHONPATH": str(WRONG), "SOAK_CLOCK": str(dice.random())}
    command = ["-m", "benchmarks.soak.clock_work", name, str(folder), option]
    done = children.command(command, environment=environment)
    last = done.told
    return (json.loads(last) if done.code == 0 else None), last


def journals(folder: Path, dice: random.Random, tally: Tally, times: int) -> None:
    """The first record of a key wins, and all are found, whatever the names of segments say."""
    for number in range(times):
        found, told = wrong("journal", folder, str(number), dice)
        kept = found["found"] if found else -1
        tally.fault("clock: journal", kept == 10 * number, told,
                    lost=max(0, 10 * number - kept))  # fmt: skip


def trainings(folder: Path, dice: random.Random, tally: Tally, times: int) -> None:
    """Weights are those of a run with a right clock, also where a run goes on."""
    base = checkpoint.make_inputs(folder)
    calm = children.call(lambda: checkpoint.train(base, base / "calm", ""), folder / "calm.log")
    state = checkpoint.interrupted(base, 20)
    saved = folder / "saved"
    shutil.copytree(state, saved)
    for number in range(times):
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(saved, state)
        out = f"wrong-{number}"
        found, told = wrong("training", base, out, dice)
        same = calm.code == 0 and found is not None and not found["negative"]
        same = same and found["resumed"] > 0
        same = same and checkpoint.weights(base / out) == checkpoint.weights(base / "calm")
        tally.fault("clock: training goes on", same, told)


def latencies(folder: Path, dice: random.Random, tally: Tally) -> None:
    """Latencies are spans, never negative, never a year."""
    found, told = wrong("answering", folder, "x", dice)
    tally.fault("clock: latency", found is not None and found["fine"], told)


def schedules(folder: Path, dice: random.Random, tally: Tally, times: int) -> None:
    """A tick's window follows from the tick, not from the clock; the ledger's chain holds."""
    (folder / "rows").mkdir(parents=True)
    for day in range(1, 6):
        path = folder / "rows" / f"rows-2026-02-{day:02d}.jsonl"
        path.write_text('{"input_text": "a", "output_text": "b"}\n')
    for number in range(times):
        found, told = wrong("ticks", folder, str(number), dice)
        wanted = {"tick": f"202602{number + 2:02d}T030000Z", "files": 1, "lines": number + 1}
        tally.fault("clock: tick", found == wanted, told)


def logs(folder: Path, dice: random.Random, tally: Tally, times: int) -> None:
    """No line of the request log is lost or overwritten."""
    for number in range(times):
        found, told = wrong("requests", folder, str(number), dice)
        lines = found["lines"] if found else 0
        tally.fault("clock: request log", found is not None, told, lost=40 * (number + 1) - lines)
