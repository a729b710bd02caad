"""The gate on files of predictions: read, pair, slice, decide. What `pipestill gate` calls."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipestill.errors import UserError
from pipestill.evaluation.gate_pairs import TESTS
from pipestill.evaluation.gate_power import GAIN
from pipestill.evaluation.gate_tasks import BETTER, NOT_WORSE, promote_over_tasks, right_or_wrong

LABEL, LENGTH = "label", "length"
_OF_RUN = "artifacts/*/evaluate*/predictions"  # where a run on this machine leaves its answers
MOST_VALUES = 20
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ReleaseRule:
    """What a release has to show."""

    require: str = BETTER  # better | not_worse
    test: str = "interval"  # of `TESTS`: how better is shown
    margin: float = 0.02  # share of right answers by which it may be worse
    min_rows: int = 100  # rows wanted on every task
    slices: tuple[str, ...] = ()  # label, length, or a field of the new file's rows
    slice_rows: int = 20  # a slice is tested from so many rows on
    primary: tuple[str, ...] = ()  # tasks on which better counts; empty = all
    gain: float = GAIN  # share of right answers whose power is stated


def release(
    tasks: Mapping[str, tuple[str, str]], rule: ReleaseRule, override: str = ""
) -> dict[str, Any]:
    """Whether the new model may take the old one's place, by their answers to the same rows.

    Args:
        tasks: name → (new, old), each ``FILE``, ``FILE#ARM`` or ``FILE#ARM#SEED``: JSONL of
            `pipestill.records.Prediction`, or of any rows with ``id`` and ``correct``. FILE may be
            the folder of a run on this machine.
        rule: what has to be shown.
        override: a person's reason to promote whatever the rules say.

    Returns:
        What `pipestill.evaluation.gate_tasks.promote_over_tasks` returns, and ``files`` (task → new
        and old: what was given, and the file's sha256).

    Raises:
        UserError: ``GATE_SETTING``, ``PREDICTIONS_…``, ``ROWS_DIFFER``, ``SLICE_UNKNOWN``.
    """
    check(rule, tasks)
    evidence, files = {}, {}
    for name, (new_name, old_name) in tasks.items():
        new, old = read_answers(new_name), read_answers(old_name)
        order = _same_rows(new, old, name, new_name, old_name)
        rows = [new[key] for key in order]
        evidence[name] = right_or_wrong(
            np.array([float(row["correct"]) for row in rows]),
            np.array([float(old[key]["correct"]) for key in order]),
            margin=rule.margin,
            min_rows=rule.min_rows,
            test=rule.test,
            slices=slices_by(rows, rule.slices, new_name) if rule.slices else None,
            # Shared by the tasks, so that their number does not make a false veto likelier.
            slice_level=0.05 / len(tasks),
            slice_rows=rule.slice_rows,
            gain=rule.gain,
            tasks=len(rule.primary) or len(tasks),
        )
        files[name] = {
            side: {"name": given, "sha256": _digest(given)}
            for side, given in (("new", new_name), ("old", old_name))
        }
    found = promote_over_tasks(
        evidence, require=rule.require, primary=rule.primary, override=override
    )
    return {**found, "test": rule.test, "margin": rule.margin, "files": files}


def check(rule: ReleaseRule, tasks: Mapping[str, Any]) -> None:
    """Refuses settings that make no sense.

    Raises:
        UserError: ``GATE_SETTING``.
    """
    known = ", ".join(tasks)
    rules = {
        "margin": (rule.margin, 0 < rule.margin < 1, "above 0 and less than 1"),
        "min-rows": (rule.min_rows, rule.min_rows >= 1, "1 or more"),
        "slice-rows": (rule.slice_rows, rule.slice_rows >= 1, "1 or more"),
        "gain": (rule.gain, 0 < rule.gain < 1, "above 0 and less than 1"),
        "test": (rule.test, rule.test in TESTS, ", ".join(TESTS)),
        "require": (rule.require, rule.require in (BETTER, NOT_WORSE), f"{BETTER}, {NOT_WORSE}"),
        "primary": (", ".join(rule.primary), set(rule.primary) <= set(tasks), known),
    }
    for name, (found, fine, allowed) in rules.items():
        if not fine:
            raise UserError("GATE_SETTING", f"--{name}: found {found!r}, allowed: {allowed}")


def read_answers(given: str) -> dict[str, Row]:
    """The rows of one model, by id.

    Args:
        given: ``FILE``, ``FILE#ARM`` or ``FILE#ARM#SEED``.

    Raises:
        UserError: ``PREDICTIONS_FILE``, ``PREDICTIONS_ROW``, ``PREDICTIONS_ARM``,
            ``PREDICTIONS_TWICE``.
    """
    path, arm, seed = _parts(given)
    lines = _lines(path)
    rows = [row for row in lines if not arm or str(row.get("arm", "")) == arm]
    rows = [row for row in rows if not seed or str(row.get("seed", "")) == seed]
    models = {f"{row.get('arm', '')}#{row.get('seed', '')}" for row in rows}
    if len(models) != 1:
        every = {f"{row.get('arm', '')}#{row.get('seed', '')}" for row in lines}
        raise UserError(
            "PREDICTIONS_ARM",
            f"{given}: {len(models)} models fit, wanted one of: {', '.join(sorted(every)) or '–'}",
            f"name one, as in {given.partition('#')[0]}#ARM or …#ARM#SEED",
        )
    found: dict[str, Row] = {}
    for row in rows:
        if str(row["id"]) in found:
            raise UserError(
                "PREDICTIONS_TWICE",
                f"{given}: id {row['id']!r} stands there twice",
                "every row is answered once; give each row an id of its own",
            )
        found[str(row["id"])] = row
    return found


def _parts(given: str) -> tuple[str, str, str]:
    """File, arm and seed; a file that has a # in its name is taken as it is.

    Of a run's folder, the newest answers that an evaluation left there.
    """
    if Path(given).is_file():
        return given, "", ""
    path, _, rest = given.partition("#")
    arm, _, seed = rest.partition("#")
    left = sorted(Path(path).glob(_OF_RUN), key=lambda file: file.stat().st_mtime)
    return (str(left[-1]) if left else path), arm, seed


def _lines(path: str) -> list[Row]:
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(
            "PREDICTIONS_FILE",
            f"{path}: {error.strerror or error}",
            "give the answers that an evaluation wrote, or the folder of its run",
        ) from error
    return [_row(path, at, line) for at, line in enumerate(lines, 1) if line.strip()]


def _row(path: str, at: int, line: bytes) -> Row:
    try:
        row = json.loads(line)
        fine = str(row["id"]) != "" and row["correct"] in (0, 1)  # true and false are 1 and 0
    except (ValueError, KeyError, TypeError, RecursionError):
        fine = False
    if not fine:
        raise UserError(
            "PREDICTIONS_ROW",
            f"{path}, line {at}: not an answer with id and correct (true, false, 1 or 0)",
            "give the answers that an evaluation wrote",
        )
    answer: Row = row
    return answer


def _same_rows(
    new: Mapping[str, Row], old: Mapping[str, Row], task: str, new_name: str, old_name: str
) -> list[str]:
    """The ids in order.

    Raises:
        UserError: ``ROWS_DIFFER``: other ids, or the same id with another question or answer.
    """
    alone = sorted(new.keys() ^ old.keys())
    other = [
        key
        for key in sorted(new.keys() & old.keys())
        for name in ("input_text", "gold")
        if new[key].get(name) != old[key].get(name)
    ]
    if alone or other:
        what = (
            f"{len(alone)} rows are in one of the files only, such as {alone[0]!r}"
            if alone
            else f"row {other[0]!r} has another question or right answer in each"
        )
        raise UserError(
            "ROWS_DIFFER",
            f"task {task}: {new_name} and {old_name} did not answer the same rows: {what}",
            "let both models answer one held-out set, as `pipestill run evaluate` does",
        )
    return sorted(new)


def slices_by(rows: Sequence[Row], fields: Sequence[str], name: str = "") -> dict[str, list[int]]:
    """Slices of the rows: name → row numbers.

    Args:
        rows: answers.
        fields: ``label`` (by ``gold``), ``length`` (thirds of ``input_text`` by words), or the name
            of any field; of each the 20 most common values.
        name: of the file, for the message.

    Raises:
        UserError: ``SLICE_UNKNOWN`` where no row has the field.
    """
    found: dict[str, list[int]] = {}
    for field in fields:
        source = {LABEL: "gold", LENGTH: "input_text"}.get(field, field)
        if rows and not any(source in row for row in rows):
            raise UserError(
                "SLICE_UNKNOWN",
                f"slices: {field!r}: no row of {name} has a field {source!r}",
                f"allowed: {LABEL}, {LENGTH}, or a field of its rows",
            )
        values = [row.get(source) for row in rows]
        found |= _thirds(values) if field == LENGTH else _values(field, values)
    return found


def _values(field: str, values: Sequence[Any]) -> dict[str, list[int]]:
    common = Counter(str(value) for value in values).most_common(MOST_VALUES)
    found: dict[str, list[int]] = {}
    for at, value in enumerate(map(str, values)):
        if len(common) > 1 and value in dict(common):
            found.setdefault(f"{field} {value[:60]}", []).append(at)
    return found


def _thirds(texts: Sequence[Any]) -> dict[str, list[int]]:
    lengths = [len(str(text or "").split()) for text in texts]
    edges = np.quantile(lengths, (1 / 3, 2 / 3)) if lengths else np.zeros(2)
    found: dict[str, list[int]] = {}
    for at, length in enumerate(lengths):
        third = ("short", "middle", "long")[int((length > edges).sum())]
        found.setdefault(f"{third} inputs", []).append(at)
    return found


def _digest(given: str) -> str:
    return hashlib.sha256(Path(_parts(given)[0]).read_bytes()).hexdigest()
