"""Champion against challenger: the rules, the decision, the ledger's entry and the alias."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from pipestill.data.digest import code_digest
from pipestill.errors import WorkError
from pipestill.evaluation.gate import PROMOTE, Rule, decide, enough_rows
from pipestill.evaluation.gate_files import LABEL, LENGTH, slices_by
from pipestill.evaluation.gate_slices import more_right, no_slice_worse, not_fewer_right
from pipestill.evaluation.statistics import Scores
from pipestill.records import Prediction, read_jsonl, write_json
from pipestill.retrain import store
from pipestill.retrain.decide import ledger_facts
from pipestill.retrain.ledger import Book, Entry
from pipestill.retrain.rows import NEW, REGRESSION, keep_training_set
from pipestill.retrain.settings import GateRule, check
from pipestill.serving.files import is_model_file

CHALLENGER, CHAMPION = "tuned", "base"  # arms of `evaluate_tuned`


def promote(
    *,
    retrain_dir: str,
    looked: Mapping[str, Any],
    predictions_path: str,
    model_path: str,
    train_path: str,
    decision_path: str,
    rule: GateRule,
    now: datetime | None = None,
) -> str:
    """Decides a tick that trained, enters it, and moves the alias where it promotes.

    In this order: the model is copied, the entry written, the alias moved. A run that dies in
    between is finished by its repetition, and a tick that is entered is never decided again.

    Args:
        retrain_dir: the retraining's folder.
        looked: what `pipestill.retrain.decide.look` found.
        predictions_path: JSONL of `Prediction`; arm ``tuned`` is the challenger, ``base`` the
            champion.
        model_path: the challenger's folder.
        train_path: JSONL of `Example`, its training set, kept for the next tick.
        decision_path: JSON of the entry, written.
        rule: what a challenger has to show.
        now: the clock.

    Returns:
        promote, keep or cannot_tell.

    Raises:
        UserError: ``RETRAIN_SETTING``, ``LEDGER_BROKEN``.
        WorkError: ``NO_PREDICTIONS``, ``ROWS_DIFFER``, ``CHAMPION_MOVED``.
    """
    check(gate=rule)
    book, tick = Book.at(retrain_dir), str(looked["tick"])
    entry = book.entry(tick)
    if entry is None:
        refuse_old_champion(book, looked)
        outcome = judge(list(read_jsonl(predictions_path, Prediction)), rule)
        keep_training_set(book, tick, train_path)
        entry = _enter(book, looked, outcome, model_path, train_path, now)
    book.point(entry)
    write_json(decision_path, entry)
    return str(entry["decision"])


def refuse_old_champion(book: Book, looked: Mapping[str, Any]) -> None:
    """Refuses a comparison with a model that is no longer in production.

    Raises:
        WorkError: ``CHAMPION_MOVED``.
    """
    alias = book.production()
    now = str(alias["tick"]) if alias else ""
    if now != looked["champion_tick"]:
        raise WorkError(
            "CHAMPION_MOVED",
            f"tick {looked['tick']}: the model of tick {now or '(none)'} is in production by now; "
            f"compared was the one of {looked['champion_tick'] or '(none)'}",
            "run the tick again; let one run be at work at a time",
        )


def promote_tick(tick_path: str, **options: Any) -> str:
    """`promote` for a tick as `pipestill.retrain.decide.look` found it (its JSON)."""
    looked = json.loads(Path(tick_path).read_text(encoding="utf-8"))
    return promote(looked=looked, **options)


def _enter(
    book: Book,
    looked: Mapping[str, Any],
    outcome: Mapping[str, Any],
    model_path: str,
    train_path: str,
    now: datetime | None,
) -> Entry:
    model = ""
    if outcome["decision"] == PROMOTE:
        model = f"models/{looked['tick']}"
        store.put_model(Path(model_path), book.uri(model))
    rest = {key: outcome[key] for key in ("decision", "by_rules", "override", "sentence")}
    entry, _ = book.append(
        {
            **ledger_facts(looked),
            **rest,
            "model": model,
            "model_digest": model_digest(Path(model_path)),
            "train_digest": hashlib.sha256(Path(train_path).read_bytes()).hexdigest(),
            "code_digest": code_digest(),
            "numbers": {
                "rules": outcome["rules"],
                "accuracy": outcome["accuracy"],
                "should_train": looked["figures"],
            },
        },
        now,
    )
    return entry


def judge(predictions: Sequence[Prediction], rule: GateRule) -> dict[str, Any]:
    """All rules, the decision, and both models' shares of right answers.

    Returns:
        What `pipestill.evaluation.gate.decide` returns, and ``accuracy`` (set → arm → share).

    Raises:
        WorkError: ``NO_PREDICTIONS``, ``ROWS_DIFFER``.
    """
    new, old, rows = paired(predictions)
    places = {
        part: np.array([at for at, row in enumerate(rows) if row.id.startswith(part)], dtype=int)
        for part in (NEW, REGRESSION)
    }
    fresh, frozen = places[NEW], places[REGRESSION]
    # Where no new row is wanted and none is labelled, all rests on the regression set.
    ground = fresh if len(fresh) or rule.gate_min_new else frozen
    name = "new_rows" if ground is fresh else "regression"
    if rule.gate_require == "better":
        main = more_right(f"{name}_better", new[ground], old[ground])
    else:
        main = not_fewer_right(name, new[ground], old[ground], margin=rule.gate_margin)
    rules = [
        _renamed(enough_rows(len(fresh), rule.gate_min_new), "enough_new_rows"),
        _renamed(enough_rows(len(frozen), rule.gate_min_regression), "enough_regression_rows"),
        main,
        not_fewer_right("regression", new[frozen], old[frozen], margin=rule.gate_margin),
        no_slice_worse(
            slices_of(rows), new, old, level=rule.gate_level, least_rows=rule.gate_slice_rows
        ),
    ]
    accuracy = {
        part.rstrip("/"): {
            "challenger": float(new[where].mean()) if len(where) else None,
            "champion": float(old[where].mean()) if len(where) else None,
        }
        for part, where in places.items()
    }
    return {**decide(rules, rule.gate_override), "accuracy": accuracy}


def _renamed(rule: Rule, name: str) -> Rule:
    return Rule(name=name, outcome=rule.outcome, text=rule.text, numbers=rule.numbers)


def paired(predictions: Sequence[Prediction]) -> tuple[Scores, Scores, list[Prediction]]:
    """Scores of challenger and champion in the same order of rows, and the rows.

    Raises:
        WorkError: ``NO_PREDICTIONS``, ``ROWS_DIFFER``.
    """
    arms = {
        arm: {row.id: row for row in predictions if row.arm == arm}
        for arm in (CHALLENGER, CHAMPION)
    }
    new, old = arms[CHALLENGER], arms[CHAMPION]
    if not new:
        raise WorkError("NO_PREDICTIONS", "the challenger answered no row")
    if new.keys() != old.keys():
        raise WorkError("ROWS_DIFFER", "champion and challenger did not answer the same rows")
    order = sorted(new)
    return (
        np.array([float(new[name].correct) for name in order]),
        np.array([float(old[name].correct) for name in order]),
        [new[name] for name in order],
    )


def slices_of(rows: Sequence[Prediction]) -> dict[str, list[int]]:
    """Slices by label (the most common ones) and by length of the input (thirds)."""
    shown = [{"gold": row.gold, "input_text": row.input_text} for row in rows]
    return slices_by(shown, (LABEL, LENGTH))


def model_digest(folder: Path) -> str:
    """sha256 over the names and contents of a model's files."""
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and is_model_file(path):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            whole.update(f"{path.name}\0{content}\n".encode())
    return whole.hexdigest()
