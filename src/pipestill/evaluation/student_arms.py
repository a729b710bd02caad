"""The arms that are models of ours: trained students and the untrained base."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipestill.config import EvalConfig
from pipestill.errors import UserError
from pipestill.evaluation.latency import time_rows
from pipestill.evaluation.row_views import by_run, rows_to_explain
from pipestill.evaluation.scoring import answers_match
from pipestill.models.student import INFO_FILE, Generated, Student
from pipestill.records import Example, Prediction

EXPLAINING = ("dss", "label_then_rationale")
CURVE_POINTS = 150
# Models are timed side by side only where they fit into memory together.
TOGETHER_BYTES = 2_000_000_000

Run = tuple[str, int]
Arms = dict[str, dict[str, Any]]
AskedLike = Mapping[str, Mapping[str, Any]]
NO_OTHER: AskedLike = MappingProxyType({})


def student_runs(student_paths: Sequence[str]) -> dict[str, Run]:
    """Folder → (objective, seed), from the `pipestill.json` of every student.

    Raises:
        UserError: ``STUDENT_UNREADABLE``, ``STUDENT_TWICE``.
    """
    runs: dict[str, Run] = {}
    for folder in student_paths:
        path = Path(folder) / INFO_FILE
        try:
            info = json.loads(path.read_text(encoding="utf-8"))
            run = str(info["objective"]), int(info["seed"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                "STUDENT_UNREADABLE",
                f"{path}: no objective and seed of a student ({type(error).__name__}: {error})",
                "give folders that student_train wrote",
            ) from error
        if run in runs.values():
            raise UserError(
                "STUDENT_TWICE",
                f"{folder}: a second student of objective {run[0]} and seed {run[1]}",
                "give every run its own seed",
            )
        runs[folder] = run
    return runs


def answer_all(
    models: Mapping[str, Run],
    rows: Sequence[Example],
    config: EvalConfig,
    metric: str,
    asked_like: AskedLike = NO_OTHER,
) -> tuple[list[Prediction], Arms]:
    """Answers of every model, one model in memory at a time.

    Args:
        models: folder or reference → (arm, seed).
        rows: held-out rows.
        config: sizes.
        metric: of `pipestill.evaluation.scoring.METRICS`.
        asked_like: folder or reference → description of the model whose prompts it is to read.

    Returns:
        The predictions, and per arm mean tokens per row, parameters and bytes.

    Raises:
        UserError: what loading a model raises.
    """
    predictions: list[Prediction] = []
    arms: Arms = {}
    limit = answer_limit(rows, config)
    inputs = [row.input_text for row in rows]
    for path, (arm, seed) in models.items():
        begun = time.perf_counter()
        student = Student.load(path, asked_like.get(path, {}))
        found = student.answer(inputs, batch_size=config.eval_batch_size, max_new_tokens=limit)
        own = [_prediction(*pair, arm, seed, metric) for pair in zip(rows, found, strict=True)]
        predictions += own
        facts = arms.setdefault(arm, {"truncated_inputs": 0})
        facts |= {"params": student.parameters, "bytes": student.bytes}
        facts["truncated_inputs"] += sum(item.truncated_input for item in found)
        _tell(arm, seed, own, time.perf_counter() - begun)
    for arm, facts in arms.items():
        every = [item for item in predictions if item.arm == arm]
        facts["prompt_tokens"] = sum(item.prompt_tokens for item in every) / len(every)
        facts["output_tokens"] = sum(item.output_tokens for item in every) / len(every)
    return predictions, arms


def answer_limit(rows: Sequence[Example], config: EvalConfig) -> int:
    """Most tokens of an answer: twice the longest gold answer's bytes, and never above the setting.

    An answer beyond that cannot be right, and an untrained base that never stops would otherwise
    take most of the evaluation's time.
    """
    longest = max(len((row.output_text or "").encode("utf-8", "replace")) for row in rows)
    return min(config.max_output_tokens, 2 * longest + 8)


def _prediction(row: Example, found: Generated, arm: str, seed: int, metric: str) -> Prediction:
    gold = row.output_text or ""
    return Prediction(
        id=row.id,
        arm=arm,
        seed=seed,
        input_text=row.input_text,
        gold=gold,
        output_text=found.text,
        correct=answers_match(found.text, gold, metric),
        prompt_tokens=found.prompt_tokens,
        output_tokens=found.output_tokens,
        gold_rationale=row.rationale,
    )


def read_curve(folder: str) -> list[list[float | None]]:
    """[step, label loss, validation label loss] from a student's ``train_log.jsonl``, thinned out.

    Steps with a validation loss are always kept.
    """
    path = Path(folder) / "train_log.jsonl"
    if not path.is_file():
        return []
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    points = [[e.get("step"), e.get("label_loss"), e.get("val_label_loss")] for e in entries]
    every = max(1, len(points) // CURVE_POINTS)
    return [point for at, point in enumerate(points) if at % every == 0 or point[2] is not None]


def explain_some(
    predictions: Sequence[Prediction], first: Mapping[str, Run], config: EvalConfig
) -> list[Prediction]:
    """Adds the rationales of the first DSS seed on the few rows that the report shows.

    Args:
        predictions: of all models.
        first: folder or reference → (arm, seed), one seed per arm (`first_seeds`).
        config: sizes.
    """
    runs = by_run(predictions)
    explained: dict[tuple[str, int, str], str] = {}
    for path, (arm, seed) in first.items():
        if arm not in EXPLAINING:
            continue
        own = runs[arm, seed]
        other = next((runs[key] for key in sorted(runs) if key[0] == "label_only"), own)
        chosen = rows_to_explain(own, other)
        found = Student.load(path).explain(
            [own[row].input_text for row in chosen],
            batch_size=config.eval_batch_size,
            max_new_tokens=config.max_output_tokens,
        )
        for row, item in zip(chosen, found, strict=True):
            explained[arm, seed, row] = item.text
    return [
        dataclasses.replace(item, rationale=explained.get((item.arm, item.seed, item.id)))
        for item in predictions
    ]


def first_seeds(models: Mapping[str, Run]) -> dict[str, Run]:
    """Of every arm the model with the smallest seed."""
    smallest: dict[str, tuple[int, str]] = {}
    for path, (arm, seed) in models.items():
        smallest[arm] = min(smallest.get(arm, (seed, path)), (seed, path))
    return {path: (arm, seed) for arm, (seed, path) in smallest.items()}


def time_models(
    first: Mapping[str, Run],
    arms: Arms,
    inputs: Sequence[str],
    limit: int,
    asked_like: AskedLike = NO_OTHER,
) -> dict[str, list[float]]:
    """Milliseconds per row of each arm's first model at batch size 1.

    Args:
        first: from `first_seeds`.
        arms: from `answer_all`, for the sizes.
        inputs: the rows to time.
        limit: most tokens of an answer.
        asked_like: as in `answer_all`.
    """
    together = sum(arms[arm]["bytes"] for arm, _ in first.values()) <= TOGETHER_BYTES
    groups = [list(first)] if together else [[path] for path in first]
    spent: dict[str, list[float]] = {}
    for group in groups:
        callers = {
            first[path][0]: _one_by_one(Student.load(path, asked_like.get(path, {})), limit)
            for path in group
        }
        spent |= time_rows(callers, inputs)
    return spent


def _one_by_one(student: Student, limit: int) -> Callable[[str], object]:
    return lambda text: student.answer([text], batch_size=1, max_new_tokens=limit)


def _tell(arm: str, seed: int, own: Sequence[Prediction], seconds: float) -> None:
    right = sum(item.correct for item in own)
    name = arm if seed < 0 else f"{arm}, seed {seed}"
    print(
        f"evaluate: {name}: {right} of {len(own)} right = {100 * right / len(own):.1f} % "
        f"({seconds:.1f} s)",
        flush=True,
    )
