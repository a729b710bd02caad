"""Distilled students, the untrained base and the teacher answer the same held-out rows."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipestill.config import EvalConfig
from pipestill.errors import UserError
from pipestill.evaluation.latency import percentiles
from pipestill.evaluation.run import held_out_rows, latency_of, mean_scores
from pipestill.evaluation.scoring import METRICS
from pipestill.evaluation.student_arms import (
    answer_all,
    answer_limit,
    first_seeds,
    read_curve,
    student_runs,
    time_models,
)
from pipestill.models.loading import resolve_reference
from pipestill.models.student import INFO_FILE
from pipestill.records import write_jsonl


def evaluate_distilled(
    student_paths: Sequence[str],
    teacher_reference: str,
    evaluation_path: str,
    predictions_path: str,
    *,
    base_reference: str,
    metric: str,
    config: EvalConfig,
) -> dict[str, Any]:
    """Runs every student, the base and the teacher, and writes one `Prediction` per row and run.

    All are asked without examples. A teacher or base that no run of ours trained reads the prompts
    that the students read. Latency is measured at batch size 1 on the first seed of an arm.

    Args:
        student_paths: folders that `distill_train` wrote.
        teacher_reference: the teacher, see `pipestill.models.loading.resolve_reference`.
        evaluation_path: JSONL of `Example`, each with a gold label.
        predictions_path: JSONL of `Prediction`, written.
        base_reference: the untrained student.
        metric: of `pipestill.evaluation.scoring.METRICS`.
        config: rows and sizes.

    Returns:
        ``rows``, ``metric``, ``arms`` (accuracy, tokens per row, latency in ms, params, bytes,
        seeds), ``curves``, ``latency_rows``, ``config``, ``cpu_seconds``.

    Raises:
        UserError: ``METRIC_UNKNOWN``, ``NO_EVALUATION_ROWS``, ``STUDENT_UNREADABLE``,
            ``STUDENT_TWICE``; what loading a model raises.
    """
    begun = time.process_time()
    if metric not in METRICS:
        raise UserError(
            "METRIC_UNKNOWN", f"metric: found {metric!r}, allowed: {', '.join(METRICS)}"
        )
    rows = held_out_rows(evaluation_path, config.eval_rows)
    students = student_runs(student_paths)
    runs = {**students, teacher_reference: ("teacher", -1), base_reference: ("base", -1)}
    asked = _asked_like(list(students), (teacher_reference, base_reference))
    predictions, arms = answer_all(runs, rows, config, metric, asked)
    first = first_seeds(runs)
    timed = rows[: config.latency_rows]
    inputs = [row.input_text for row in timed]
    spent = time_models(first, arms, inputs, answer_limit(rows, config), asked)
    for arm, milliseconds in spent.items():
        arms[arm] |= percentiles(milliseconds)
    latency = latency_of(spent, first.values(), timed)
    predictions = [
        dataclasses.replace(item, latency_ms=latency.get((item.arm, item.seed, item.id)))
        for item in predictions
    ]
    write_jsonl(predictions_path, predictions)
    return {
        "rows": len(rows),
        "metric": metric,
        "arms": {arm: {**facts, **mean_scores(predictions, arm)} for arm, facts in arms.items()},
        "curves": {f"{arm}:{seed}": read_curve(path) for path, (arm, seed) in students.items()},
        "latency_rows": len(timed),
        "config": {
            "student_base": base_reference,
            "teacher": {"model_reference": teacher_reference},
            "evaluation": dataclasses.asdict(config),
        },
        "cpu_seconds": round(time.process_time() - begun, 2),
    }


def _asked_like(students: Sequence[str], references: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """The first student's description for every reference that has none of its own."""
    info = json.loads((Path(students[0]) / INFO_FILE).read_text(encoding="utf-8"))
    return {
        reference: info
        for reference in references
        if not (Path(resolve_reference(reference)) / INFO_FILE).is_file()
    }
