"""Which held-out rows the page shows, and what of each: rationales side by side, rows won and lost.

`evaluate` uses the same choice to know which rows the student has to explain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pipestill.evaluation.arms import label, strongest_prompt
from pipestill.evaluation.charts import legend_mark
from pipestill.records import Prediction

EXPLAINED = 20  # rows the student explains
SHOWN = 8  # rows with rationales on the page
SHOWN_WON = 5
LONGEST = 700  # characters of one text on the page

ByRun = dict[tuple[str, int], dict[str, Prediction]]


def by_run(predictions: Iterable[Prediction]) -> ByRun:
    """(arm, seed) → row id → prediction."""
    runs: ByRun = {}
    for item in predictions:
        runs.setdefault((item.arm, item.seed), {})[item.id] = item
    return runs


def runs_of(runs: ByRun, arm: str) -> list[dict[str, Prediction]]:
    """The arm's runs in the order of seeds."""
    return [runs[key] for key in sorted(runs) if key[0] == arm]


def rows_to_explain(
    first: dict[str, Prediction], second: dict[str, Prediction], count: int = EXPLAINED
) -> list[str]:
    """Row ids, evenly from the four cases: only the first right, only the second, both, neither.

    Within a case the order is by a hash of the id: a choice that no one made by looking.
    """
    cases: dict[tuple[bool, bool], list[str]] = {}
    for row in sorted(first, key=shuffled_key):
        cases.setdefault((first[row].correct, second[row].correct), []).append(row)
    queues = [cases[key] for key in sorted(cases)]
    chosen: list[str] = []
    while len(chosen) < count and any(queues):
        chosen += [queue.pop(0) for queue in queues if queue]
    return chosen[:count]


def shuffled_key(row: str) -> str:
    """A sort key that is as good as chance and the same in every run."""
    return hashlib.sha256(row.encode("utf-8", "surrogatepass")).hexdigest()


def clip(text: str | None, longest: int = LONGEST) -> str:
    """The text, cut where it is too long for the page."""
    text = (text or "").strip()
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def side_by_side(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Gold, teacher and student rationales of up to `SHOWN` rows, half of them answered wrong."""
    runs = by_run(predictions)
    students = runs_of(runs, "dss") or runs_of(runs, "label_then_rationale")
    explained = [(row, item) for run in students for row, item in run.items() if item.rationale]
    if not explained:
        return []
    teacher = strongest_prompt(arm for arm, _ in runs)
    teacher_run = runs_of(runs, teacher)[0] if teacher else {}
    rows: dict[str, Prediction] = {}
    for row, item in explained:
        rows.setdefault(row, item)
    wrong = [row for row in rows if not rows[row].correct][: SHOWN // 2]
    right = [row for row in rows if rows[row].correct][: SHOWN - len(wrong)]
    return [_columns(rows[row], teacher_run.get(row), teacher) for row in right + wrong]


def _columns(student: Prediction, teacher: Prediction | None, arm: str | None) -> dict[str, Any]:
    gold = _column("Gold", rationale=clip(student.gold_rationale))
    teachers = _column("Teacher")
    if teacher and arm:
        teachers = _column(label(arm), arm, **_answer(teacher))
    students = _column(f"Student, {label(student.arm)}", student.arm, **_answer(student))
    return {**_row(student), "columns": [gold, teachers, students]}


def _column(name: str, arm: str = "", **filled: Any) -> dict[str, Any]:
    mark = legend_mark(arm) if arm else ""
    empty = {"answer": "", "right": False, "rationale": "", "answers": []}
    return {"name": name, "mark": mark, **empty, **filled}


def _answer(item: Prediction) -> dict[str, Any]:
    return {
        "answer": clip(item.output_text, 200) or f"no answer ({clip(item.error, 80) or 'empty'})",
        "right": item.correct,
        "rationale": clip(item.rationale),
    }


def _row(item: Prediction) -> dict[str, Any]:
    return {"id": clip(item.id, 80), "input": clip(item.input_text), "gold": clip(item.gold, 200)}


def won_and_lost(
    predictions: Sequence[Prediction], arms: tuple[str, str] = ("dss", "label_only")
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows that the first arm won and lost against the second, the largest difference first."""
    runs = by_run(predictions)
    first, second = (runs_of(runs, arm) for arm in arms)
    if not first or not second:
        return [], []

    def gap(row: str) -> float:
        return _share(first, row) - _share(second, row)

    won = _largest(first[0], gap)
    lost = _largest(first[0], lambda row: -gap(row))
    return (
        [_answers_of(row, first, second) for row in won],
        [_answers_of(row, first, second) for row in lost],
    )


def _share(runs: Sequence[dict[str, Prediction]], row: str) -> float:
    return sum(run[row].correct for run in runs) / len(runs)


def _largest(rows: Iterable[str], gap: Callable[[str], float]) -> list[str]:
    better = [row for row in rows if gap(row) > 1e-9]
    return sorted(better, key=lambda row: (-gap(row), shuffled_key(row)))[:SHOWN_WON]


def _answers_of(
    row: str, first: Sequence[dict[str, Prediction]], second: Sequence[dict[str, Prediction]]
) -> dict[str, Any]:
    columns = [
        _column(
            label(runs[0][row].arm),
            runs[0][row].arm,
            answers=[
                (clip(run[row].output_text, 120) or "no answer", run[row].correct) for run in runs
            ],
        )
        for runs in (first, second)
    ]
    return {**_row(first[0][row]), "columns": columns}
