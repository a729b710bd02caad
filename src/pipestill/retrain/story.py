"""Retraining under a simulated clock: the real windows, decisions, gate, ledger and alias.

`play` walks through ticks in the order in which their runs start, so a late run, a repeated run and
a missed one are entries of a list. Only training and answering are handed in.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipestill.config import DataConfig
from pipestill.records import write_json
from pipestill.retrain import decide, rows
from pipestill.retrain.cron import parse
from pipestill.retrain.ledger import Book
from pipestill.retrain.promote import promote
from pipestill.retrain.settings import GateRule, TrainingRule
from pipestill.retrain.window import MANIFEST, read_manifest, rfc3339, window_of

# (training rows, folder to write) → None
Train = Callable[[str, str], None]
# (challenger's folder, champion's folder, evaluation rows, predictions to write) → None
Compare = Callable[[str, str, str, str], None]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the story: of which tick, and when it really starts."""

    tick: datetime
    starts: datetime | None = None
    reason: str = ""  # a person's, to promote whatever the rules say


@dataclass(frozen=True, kw_only=True)
class Plot:
    """What stays the same through the story."""

    retrain_dir: str
    dataset_uri: str
    cron: str
    time_zone: str = "UTC"
    champion: str = "pocket-base"
    work_dir: str = ""  # local folder for what the steps hand on; empty = in a local retrain_dir
    evaluation_data_uri: str = ""
    rows_from: str = "rows"
    log_share: float = 1.0
    training: TrainingRule = field(default_factory=TrainingRule)
    gate: GateRule = field(default_factory=GateRule)
    data: DataConfig = field(default_factory=DataConfig)


def play(
    plot: Plot,
    runs: Sequence[Run],
    *,
    train: Train,
    compare: Compare,
    label: Callable[[str, str], None] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Plays the runs one after another, each as the pipeline would.

    Args:
        plot: schedule, data and thresholds.
        runs: in the order in which they start.
        train: tunes a challenger.
        compare: lets challenger and champion answer the same rows.
        label: (unlabelled rows, rows to write): the teacher, needed for logs.
        say: gets a line for each run.

    Returns:
        For each run ``tick``, ``decision``, ``reason``, ``window``, ``trained`` and ``number`` (of
        the ledger's entry).
    """
    told = []
    for run in runs:
        found = step(plot, run, train, compare, label)
        told.append(found)
        late = f", started {rfc3339(run.starts)}" if run.starts and run.starts != run.tick else ""
        say(f"{found['tick']}{late}: {found['decision']}: {found['reason']}")
    return told


def step(
    plot: Plot,
    run: Run,
    train: Train,
    compare: Compare,
    label: Callable[[str, str], None] | None = None,
) -> dict[str, Any]:
    """One run, step by step as the pipeline has them."""
    now = run.starts or run.tick
    looked = decide.look(
        retrain_dir=plot.retrain_dir,
        dataset_uri=plot.dataset_uri,
        tick_time=rfc3339(run.tick),
        cron=plot.cron,
        time_zone=plot.time_zone,
        champion=plot.champion,
        rule=plot.training,
        data=plot.data,
        rows_from=plot.rows_from,
        log_share=plot.log_share,
        now=now,
    )
    if looked["train"]:
        gate = dataclasses.replace(plot.gate, gate_override=run.reason or plot.gate.gate_override)
        decision = _learn(plot, looked, gate, now, train, compare, label)
    else:
        decision = decide.skip(plot.retrain_dir, looked, now)
    entry = Book.at(plot.retrain_dir).entry(looked["tick"]) or {}
    return {
        "tick": looked["tick"],
        "decision": decision,
        "reason": entry["sentence"] if looked["train"] else looked["reason"],
        "window": [looked["start"], looked["end"]],
        "trained": looked["train"],
        "number": entry.get("number"),
    }


def _learn(
    plot: Plot,
    looked: dict[str, Any],
    gate: GateRule,
    now: datetime,
    train: Train,
    compare: Compare,
    label: Callable[[str, str], None] | None,
) -> str:
    book = Book.at(plot.retrain_dir)
    work = Path(plot.work_dir or book.uri("work"), looked["tick"])
    work.mkdir(parents=True, exist_ok=True)
    rows_path, asked_path = str(work / "train.jsonl"), str(work / "evaluation.jsonl")
    rows.assemble(
        book,
        read_manifest(book.tick(looked["tick"], MANIFEST)),
        config=plot.data,
        evaluation_data_uri=plot.evaluation_data_uri,
        tokenizer_reference="",
        train_path=rows_path,
        evaluation_path=asked_path,
        rejects_path=str(work / "rejects.jsonl"),
        log_share=plot.log_share if plot.rows_from == "logs" else 0.0,
    )
    if looked["path"] == decide.TEACHER and label is not None:
        labelled = str(work / "labelled.jsonl")
        label(rows_path, labelled)
        rows_path = labelled
    model, predictions = str(work / "model"), str(work / "predictions.jsonl")
    train(rows_path, model)
    compare(model, looked["champion"], asked_path, predictions)
    write_json(work / "looked.json", looked)
    return promote(
        retrain_dir=plot.retrain_dir,
        looked=looked,
        predictions_path=predictions,
        model_path=model,
        train_path=rows_path,
        decision_path=str(work / "decision.json"),
        rule=gate,
        now=now,
    )


def ticks(cron: str, time_zone: str, start: datetime, count: int) -> list[datetime]:
    """The next `count` ticks after `start`."""
    after = parse(cron, time_zone).after(start)
    return [next(after) for _ in range(count)]


def preview(
    cron: str, time_zone: str, count: int, now: datetime | None = None
) -> list[dict[str, str]]:
    """The next ticks: ``local``, ``utc``, ``offset``, ``window``, ``hours`` and ``note``.

    The note tells where the clocks change inside a window, or shows a time twice.
    """
    schedule = parse(cron, time_zone)
    found = []
    for tick in ticks(cron, time_zone, now or datetime.now(UTC), count):
        window = window_of(tick, schedule)
        local, before = (moment.astimezone(schedule.zone) for moment in (tick, window.start))
        notes = []
        if local.utcoffset() != before.utcoffset():
            changed = (local.utcoffset() or timedelta()) - (before.utcoffset() or timedelta())
            notes.append(f"clocks {changed.total_seconds() / 3600:+g} h in the window")
        if local.fold:
            notes.append("second time that the clock shows this")
        hours = (window.end - window.start).total_seconds() / 3600
        found.append(
            {
                "local": local.strftime("%a %Y-%m-%d %H:%M %Z"),
                "utc": rfc3339(tick),
                "window": window.words(),
                "hours": f"{hours:g}",
                "note": "; ".join(notes),
            }
        )
    return found
