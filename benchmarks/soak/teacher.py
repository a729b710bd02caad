"""A teacher behind a bad server: no row lost, no answer paid twice that had been kept."""

import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.soak import children
from benchmarks.soak.bad_server import LOST, ODD, UNPAID
from benchmarks.soak.served import BadTeacher, journaled, short_waits, write_rows
from benchmarks.soak.tally import Tally
from pipestill.generation.label import failed_path, label_shard


def run(
    folder: Path, dice: random.Random, tally: Tally, minutes: float, rows: int = 400,
    kills: int = 12,
) -> None:  # fmt: skip
    """The whole group."""
    with short_waits():
        each_kind(folder / "kinds", tally)
        all_kinds(folder / "mixed", dice, tally, rows)
        killed_server(folder / "server", dice, tally, rows, kills)
        killed_step(folder / "step", dice, tally, rows, kills)


def label(teacher: BadTeacher, rows: Path, out: Path, state: Path, **changes: Any) -> Any:
    """The labelling step."""
    return label_shard(
        str(rows), str(rows), str(out), shard="0/1", state_dir=str(state),
        config=teacher.config(**changes),
    )  # fmt: skip


def each_kind(
    folder: Path, tally: Tally, kinds: Sequence[str] = (*UNPAID, *LOST, *ODD)
) -> None:  # fmt: skip
    """One kind of trouble after the other, on a few rows."""
    for kind in kinds:
        place = folder / kind.replace(" ", "-")
        count = 24 if kind in ODD else 6
        rows = write_rows(place / "rows.jsonl", count)
        with BadTeacher(place, "k", 0.9, kind) as teacher:
            outcome = children.call(
                lambda t=teacher, r=rows, p=place: label(t, r, p / "out.jsonl", p / "state",
                                                       concurrency=4),
                place / "log.txt", 120,
            )  # fmt: skip
            settle(tally, f"teacher: {kind}", outcome, place / "out.jsonl", count, teacher)


def all_kinds(folder: Path, dice: random.Random, tally: Tally, count: int) -> None:
    """Every kind mixed; the step is repeated as long as rows failed."""
    rows = write_rows(folder / "rows.jsonl", count)
    with BadTeacher(folder, str(dice.random()), 0.6) as teacher:
        outcome = children.Outcome(1)
        for _ in range(4):
            outcome = children.call(
                lambda: label(teacher, rows, folder / "out.jsonl", folder / "state"),
                folder / "log.txt", 240,
            )  # fmt: skip
            if not outcome.clear or outcome.code == 0:
                break
        troubled = [item for item in teacher.requests() if item["action"] != "answer"]
        kinds = Counter(item["action"] for item in troubled)
        fine = settle(tally, "teacher: all kinds mixed", outcome, folder / "out.jsonl", count,
                      teacher)  # fmt: skip
        tally.faults("teacher: bad answer among the others", len(troubled),
                     [] if fine else ["see the line above"])  # fmt: skip
        lost = sum(kinds[name] for name in LOST)
        tally.facts["bad answers"] = (
            f"{len(troubled)} of {len(teacher.requests())} requests for {count} rows, "
            f"{len(kinds)} kinds; {lost} answers that never arrived were paid again"
        )


def settle(
    tally: Tally, what: str, outcome: children.Outcome, out: Path, count: int, teacher: BadTeacher
) -> bool:
    """Every row has its own answer, and no answer that arrived was paid again."""
    if outcome.code != 0:
        return tally.fault(what, False, outcome.told)
    missing, foreign = results(out, count)
    twice = sum(times - 1 for times in teacher.paid().values() if times > 1)
    detail = f"{len(teacher.requests())} requests for {count} rows"
    if foreign:
        detail += f"; {foreign} rows have another row's answer"
    return tally.fault(what, not foreign, detail, lost=missing, twice=twice)


def results(out: Path, count: int) -> tuple[int, int]:
    """Rows without a label, and rows with another row's label."""
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    failed = failed_path(str(out)).read_text(encoding="utf-8").splitlines()
    foreign = sum(row["output_text"] != row["id"] for row in found)
    return count - len(found) + len(failed), foreign


def killed_server(
    folder: Path, dice: random.Random, tally: Tally, count: int, kills: int
) -> None:  # fmt: skip
    """The server is killed and comes back, sometimes too late for the step, which is repeated."""
    rows = write_rows(folder / "rows.jsonl", count)
    kept: set[str] = set()
    done = twice = stopped = 0
    with BadTeacher(folder, "s", 0.9, "slow") as teacher:
        step = _step(teacher, rows, folder)
        while done < kills:
            time.sleep(dice.uniform(0.02, 0.3))
            if step.running():
                teacher.kill()
                time.sleep(dice.choice((0.05, 0.2, 1.5)))
                teacher.start()
                done += 1
            if step.running():
                continue
            outcome = step.end()
            twice += _asked_again(teacher, kept)
            if outcome.code == 0 or not outcome.clear:
                break
            stopped += 1
            kept = journaled(folder / "state")
            step = _step(teacher, rows, folder)
        outcome = step.end()
        for _ in range(3):
            if outcome.code == 0 or not outcome.clear:
                break
            outcome = _step(teacher, rows, folder).end()
        twice += _asked_again(teacher, kept)
    missing, foreign = results(folder / "out.jsonl", count) if outcome.code == 0 else (count, 0)
    fine = outcome.code == 0 and not foreign
    tally.faults("teacher: server killed", done, [] if fine else [outcome.told])
    tally.fault("teacher: server killed, the end", fine, f"step stopped {stopped} times with one "
                f"clear line, and repeated: {count} rows", lost=missing, twice=twice)  # fmt: skip
    paid = Counter(item["row"] for item in teacher.requests() if item["paid"])
    again = sum(times - 1 for times in paid.values())
    tally.facts["server killed"] = (
        f"{done} times; {again} answers died with it, and were paid again"
    )


def _step(teacher: BadTeacher, rows: Path, folder: Path) -> children.Child:
    return children.Child(
        lambda: label(teacher, rows, folder / "out.jsonl", folder / "state", max_retries=4),
        folder / "log.txt",
    )


def _asked_again(teacher: BadTeacher, kept: set[str]) -> int:
    """Requests, since the last count, for rows whose answers the journal held by then."""
    seen = getattr(teacher, "seen", 0)
    requests = teacher.requests()
    teacher.seen = len(requests)  # type: ignore[attr-defined]
    return sum(item["row"] in kept for item in requests[seen:])


def killed_step(
    folder: Path, dice: random.Random, tally: Tally, count: int, kills: int
) -> None:  # fmt: skip
    """The labelling step is killed again and again, and repeated."""
    rows = write_rows(folder / "rows.jsonl", count)
    in_flight = 0
    with BadTeacher(folder, "w", 0.5, "slow,429,500,html") as teacher:
        for number in range(kills + 1):
            kept = journaled(folder / "state")
            _asked_again(teacher, set())
            step = _step(teacher, rows, folder)
            if number < kills:
                asked = len(teacher.requests())
                while step.running() and len(teacher.requests()) == asked and dice.random() > 0.01:
                    time.sleep(0.01)  # mostly until it asks, now and then before
                time.sleep(dice.uniform(0.0, 0.4))
                step.kill()
            outcome = step.end()
            twice = _asked_again(teacher, kept)
            now = journaled(folder / "state")
            in_flight += len(set(teacher.paid()) - now) if number < kills else 0
            if number < kills:
                tally.fault("teacher: labelling step killed", len(now) >= len(kept) and (
                    outcome.code in (0, -9)), f"{len(now)} of {count} answers kept",
                    lost=len(kept - now), twice=twice)  # fmt: skip
        missing, foreign = results(folder / "out.jsonl", count)
        tally.fault("teacher: labelling step, after all kills", outcome.code == 0 and not foreign,
                    f"{count} rows", lost=missing)  # fmt: skip
    tally.facts["labelling step killed"] = (
        f"{kills} times; {in_flight} answers were in flight, paid and not yet kept"
    )
