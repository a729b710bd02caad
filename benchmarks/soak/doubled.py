"""The same step twice at the same time on one state folder: the end is that of a single one."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.soak import checkpoint, children
from benchmarks.soak.served import BadTeacher, short_waits, write_rows
from benchmarks.soak.tally import Tally
from benchmarks.soak.teacher import label, results


def run(
    folder: Path, dice: random.Random, tally: Tally, minutes: float, times: int = 3
) -> None:  # fmt: skip
    """The whole group."""
    torch.set_num_threads(1)
    with short_waits():
        for number in range(times):
            labelling(folder / f"label-{number}", dice, tally, killed=number == 1)
            trained(folder / f"train-{number}", dice, tally, killed=number == 1)
            batch(folder / f"batch-{number}", dice, tally, kept_state=number != 1)
    ledgers(folder / "ledgers", tally)


def both(work: Callable[[int], Any], folder: Path, dice: random.Random,
         killed: bool = False) -> list[children.Outcome]:  # fmt: skip
    """Two children, the second a moment later; the first may be killed while the other waits."""
    first = children.Child(lambda: work(0), folder / "first.log")
    time.sleep(dice.uniform(0.0, 0.3))
    second = children.Child(lambda: work(1), folder / "second.log")
    if killed:
        time.sleep(dice.uniform(0.1, 0.5))
        first.kill()
    return [first.end(), second.end()]


def waited(folder: Path) -> str:
    """Whether one of them said that it waited."""
    logs = [path.read_text(encoding="utf-8") for path in folder.glob("*.log")]
    return "one waited" if any("waiting for it" in text for text in logs) else "none waited"


def labelling(folder: Path, dice: random.Random, tally: Tally, killed: bool) -> None:
    """Two labelling steps with the same rows: each answer is paid for once."""
    count = 60
    with BadTeacher(folder, "d", 1.0, "slow") as teacher:
        rows = write_rows(folder / "rows.jsonl", count)
        ended = both(
            lambda n: label(teacher, rows, folder / f"out{n}.jsonl", folder / "state"),
            folder, dice, killed,
        )  # fmt: skip
        requests = len(teacher.requests())
    alive = ended[1:] if killed else ended
    fine = all(outcome.code == 0 for outcome in alive)
    told = "; ".join(outcome.told for outcome in alive)
    missing = foreign = 0
    for number in (1,) if killed else (0, 1):
        if fine:
            lost, other = results(folder / f"out{number}.jsonl", count)
            missing, foreign = missing + lost, foreign + other
    in_flight = 8 if killed else 0  # what the killed one had asked and not kept
    twice = max(0, requests - count - in_flight)
    tally.fault(f"doubled labelling{', the first killed' * killed}", fine and not foreign,
                f"{requests} calls for {count} rows, {waited(folder)}; {told}",
                lost=missing, twice=twice)  # fmt: skip


def trained(folder: Path, dice: random.Random, tally: Tally, killed: bool) -> None:
    """Two trainings of the same run: both end with the weights of a single one."""
    base = checkpoint.make_inputs(folder)
    calm = children.call(lambda: checkpoint.train(base, base / "calm", ""), folder / "calm.txt")
    ended = both(
        lambda n: checkpoint.train(base, base / f"out{n}", base / "state"), folder, dice, killed
    )
    alive = ended[1:] if killed else ended
    fine = calm.code == 0 and all(outcome.code == 0 for outcome in alive)
    if fine:
        wanted = checkpoint.weights(base / "calm")
        numbers = (1,) if killed else (0, 1)
        fine = all(checkpoint.weights(base / f"out{n}") == wanted for n in numbers)
        fine = fine and not list((base / "state").glob("checkpoints/*/*"))
    tally.fault(f"doubled training{', the first killed' * killed}", fine,
                f"{waited(folder)}; {'; '.join(outcome.told for outcome in alive)}")  # fmt: skip


def batch(folder: Path, dice: random.Random, tally: Tally, kept_state: bool) -> None:
    """Two batch steps with the same shard: the same answers, byte by byte."""
    from pipestill.serving.batch import predict_shard

    base = checkpoint.make_inputs(folder)
    source = folder / "source.jsonl"
    lines = [json.dumps({"id": f"b{n}", "input_text": "red green blue"}) for n in range(48)]
    source.write_text("\n".join(lines), encoding="utf-8")

    def work(number: int) -> Any:
        torch.set_num_threads(1)
        return predict_shard(
            str(source), str(folder / "out.jsonl"), str(folder / f"rejects{number}.jsonl"),
            model_reference=str(base / "model"), batch_size=2, max_output_tokens=8,
            state_dir=str(folder / "state") if kept_state else "",
        )  # fmt: skip

    single = children.call(lambda: work(2), folder / "calm.txt")
    wanted = (folder / "out.jsonl").read_bytes() if single.code == 0 else b""
    for path in (folder / "out.jsonl", *folder.glob("state/**/segment-*")):
        path.unlink()
    ended = both(work, folder, dice)
    fine = all(outcome.code == 0 for outcome in [single, *ended])
    fine = fine and (folder / "out.jsonl").read_bytes() == wanted
    lost = 48 - len((folder / "out.jsonl").read_bytes().splitlines()) if fine else 0
    tally.fault(f"doubled batch shard{'' if kept_state else ', state beside the output'}", fine,
                f"{waited(folder)}; {'; '.join(outcome.told for outcome in ended)}",
                lost=lost)  # fmt: skip


def ledgers(folder: Path, tally: Tally) -> None:
    """Six writers of the same ticks: each tick has one line."""
    from pipestill.retrain.ledger import Book

    def work() -> None:
        book = Book.at(folder / "book")
        for number in range(20):
            book.append({"tick": f"t{number:02d}", "decision": "keep"})

    folder.mkdir(parents=True)
    writers = [children.Child(work, folder / f"{n}.log") for n in range(6)]
    ended = [writer.end() for writer in writers]
    ticks = [entry["tick"] for entry in Book.at(folder / "book").entries()]
    fine = all(outcome.code == 0 for outcome in ended) and sorted(ticks) == sorted(set(ticks))
    tally.fault("doubled ticks: six writers of one ledger", fine and len(ticks) == 20,
                f"{len(ticks)} lines")  # fmt: skip
