"""Whether a tick trains: the cheap step in front, which writes down its reason."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipestill.config import DataConfig
from pipestill.data.digest import code_digest
from pipestill.records import Example
from pipestill.retrain import rows as tick_rows
from pipestill.retrain.cron import parse
from pipestill.retrain.drift import drift
from pipestill.retrain.ledger import NOT_TRAINED, Book
from pipestill.retrain.settings import TrainingRule, check
from pipestill.retrain.window import MANIFEST, freeze, parse_time, window_of

DAY_S = 86_400.0
ROWS, TEACHER, NONE = "rows", "teacher", "none"  # what a tick takes: the pipeline's branches


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Train or not, why in one sentence, and the figures behind it."""

    train: bool
    reason: str
    figures: Mapping[str, Any] = field(default_factory=dict)


def worth_training(
    new: Sequence[Example],
    old: Sequence[Example],
    rule: TrainingRule,
    *,
    age_days: float | None,
) -> Verdict:
    """Three reasons to train: enough new rows, drift against the last training set, age.

    Args:
        new: rows that no training has seen.
        old: the last training set, empty before the first.
        rule: the thresholds.
        age_days: since the last training; None before the first.
    """
    figures: dict[str, Any] = {"new_rows": len(new), "old_rows": len(old), "age_days": age_days}
    counted = f"{len(new)} new rows"
    if len(new) < rule.least_new_rows or not new:
        least = max(1, rule.least_new_rows)
        return Verdict(train=False, reason=f"No: {counted}, wanted {least} at least.",
                       figures=figures)  # fmt: skip
    enough = len(new) >= rule.min_new_rows
    reasons = [f"{counted}, wanted {rule.min_new_rows}"] if enough else []
    others = [] if enough else [f"{counted} of {rule.min_new_rows}"]
    if age_days is None:
        reasons.append("nothing was trained before")
    elif rule.max_age_days:
        old_enough = age_days >= rule.max_age_days
        words = f"the last training is {age_days:.1f} days old (limit {rule.max_age_days})"
        (reasons if old_enough else others).append(words)
    if old and rule.drift_level:
        found = drift(
            old, new, level=rule.drift_level, effect=rule.drift_effect, seed=rule.drift_seed
        )
        figures["drift"] = found
        (reasons if found["drifted"] else others).append(_drift_words(found))
    shown = "; ".join(reasons or others)
    return Verdict(
        train=bool(reasons), reason=f"{'Yes' if reasons else 'No'}: {shown}.", figures=figures
    )


def _drift_words(found: Mapping[str, Any]) -> str:
    views = [view for view in found["views"] if view["drifted"]] or found["views"]
    shown = ", ".join(
        f"{view['name']} {view['divergence']:.3f} bits (p {view['adjusted']:.2g})" for view in views
    )
    return f"{'drift' if found['drifted'] else 'no drift'}: {shown}"


def look(
    *,
    retrain_dir: str,
    dataset_uri: str,
    tick_time: str,
    cron: str,
    time_zone: str,
    champion: str,
    rule: TrainingRule,
    data: DataConfig,
    rows_from: str = "rows",
    log_share: float = 1.0,
    now: datetime | None = None,
) -> dict[str, Any]:
    """Freezes the tick's window and decides whether it trains. What component `should_train` calls.

    Args:
        retrain_dir: the retraining's folder.
        dataset_uri: files of rows or logs; each belongs to the window that holds its time.
        tick_time: the tick, or any later moment before the next one; empty = now.
        cron, time_zone: the schedule, which says where the windows end.
        champion: the model to compare with before any promotion.
        rule: when to train.
        data: how rows are read.
        rows_from: rows | logs.
        log_share: share of the logged inputs that is taken.
        now: the clock, where `tick_time` is empty.

    Returns:
        ``tick``, ``start``, ``end``, ``since``, ``manifest_digest``, ``cache_key``, ``train``,
        ``path`` (rows, teacher or none), ``reason``, ``champion``, ``champion_tick``,
        ``decided`` (the ledger's decision where the tick has one), ``figures``.

    Raises:
        UserError: ``CRON_…``, ``TIME_ZONE``, ``TICK_TIME``, ``RETRAIN_…``, and what reading raises.
    """
    check(training=rule)
    tick_rows.check_source(rows_from, log_share)
    book, schedule = Book.at(retrain_dir), parse(cron, time_zone)
    moment = parse_time(tick_time) if tick_time else now or datetime.now(UTC)
    window = window_of(moment, schedule)
    tick = window.tick
    before = book.last_trained(tick)
    since = parse_time(before["end"]) if before else None
    base = str(before["tick"]) if before else ""
    manifest = freeze(book.tick(tick, MANIFEST), dataset_uri, window, since, base)
    alias = book.production()
    facts: dict[str, Any] = {
        "tick": tick,
        "start": manifest.start,
        "end": manifest.end,
        "since": manifest.since,
        "files": len(manifest.files),
        "manifest_digest": manifest.digest,
        "cache_key": f"{manifest.digest}-{code_digest()}",
        "champion": book.model_of(alias) if alias else champion,
        "champion_tick": alias["tick"] if alias else "",
        "decided": "",
        "path": NONE,
    }
    known = book.entry(tick)
    if known:
        reason = f"No: the tick was decided already ({known['decision']}, {known['recorded']})."
        return {**facts, "train": False, "reason": reason, "decided": known["decision"],
                "figures": {}}  # fmt: skip
    share = log_share if rows_from == "logs" else 0.0
    found = tick_rows.gather(manifest, data, share)
    old = tick_rows.last_training(book, manifest)
    usable = found.rows if share else found.labelled
    began = parse_time(manifest.since) if manifest.base else None
    age = (window.end - began).total_seconds() / DAY_S if began else None
    verdict = worth_training(tick_rows.unseen(usable, old), old, rule, age_days=age)
    figures = {
        **verdict.figures,
        "rejected": found.rejected,
        "duplicates": found.duplicates,
        "conflicting": found.conflicting,
    }
    path = (TEACHER if share else ROWS) if verdict.train else NONE
    return {**facts, "train": verdict.train, "path": path, "reason": verdict.reason,
            "figures": figures}  # fmt: skip


def skip(retrain_dir: str, looked: Mapping[str, Any], now: datetime | None = None) -> str:
    """Enters a tick that does not train; of one that is entered already, gives its decision.

    Where a run died between its entry and the alias, the alias is moved now.
    """
    book = Book.at(retrain_dir)
    known = book.entry(str(looked["tick"]))
    if known:
        book.point(known)
        return str(known["decision"])
    entry, _ = book.append(
        {
            **ledger_facts(looked),
            "decision": NOT_TRAINED,
            "by_rules": NOT_TRAINED,
            "override": "",
            "sentence": looked["reason"],
            "numbers": looked["figures"],
        },
        now,
    )
    return str(entry["decision"])


def skip_tick(tick_path: str, retrain_dir: str) -> str:
    """`skip` for a tick as `look` found it (its JSON)."""
    return skip(retrain_dir, json.loads(Path(tick_path).read_text(encoding="utf-8")))


def ledger_facts(looked: Mapping[str, Any]) -> dict[str, Any]:
    """What every entry says about its tick."""
    kept = ("tick", "start", "end", "since", "manifest_digest", "champion", "champion_tick")
    return {key: looked[key] for key in kept} | {"reason": looked["reason"]}
