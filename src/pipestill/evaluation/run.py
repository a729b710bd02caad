"""Every arm answers the same held-out rows: students, untrained base, few-shot teacher."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipestill.config import EvalConfig, TeacherConfig
from pipestill.errors import UserError
from pipestill.evaluation.latency import percentiles
from pipestill.evaluation.student_arms import (
    answer_all,
    answer_limit,
    explain_some,
    first_seeds,
    read_curve,
    student_runs,
    time_models,
)
from pipestill.evaluation.teacher_arms import teacher_arms
from pipestill.generation.prompts import load_prompt
from pipestill.records import Example, Prediction, read_jsonl, write_jsonl

# What of the teacher's settings the report names. Addresses may hold a user's name: left out.
SHOWN_SETTINGS = ("model_reference", "backend", "prompt", "shots", "samples", "max_new_tokens")


def evaluate_arms(
    student_paths: Sequence[str],
    evaluation_path: str,
    predictions_path: str,
    *,
    base_reference: str,
    state_dir: str,
    config: EvalConfig,
    teacher: TeacherConfig,
) -> dict[str, Any]:
    """Runs all arms on the held-out rows and writes one `Prediction` per row, arm and seed.

    The arms are the objectives found in the students' folders, ``base``, and ``teacher_<n>_shot``
    for each of ``config.eval_shots`` (``teacher_recorded`` for recorded answers). Latency is
    measured at batch size 1 on the first seed of an arm, without journal and without a shared
    prefix. A teacher arm that fails is noted with its error and costs no other arm its results.

    Args:
        student_paths: folders that `student_train` wrote.
        evaluation_path: JSONL of `Example`, each with a gold label.
        predictions_path: JSONL of `Prediction`, written.
        base_reference: the untrained student.
        state_dir: folder of the journal of teacher calls.
        config: rows, shots and sizes.
        teacher: who answers few-shot.

    Returns:
        ``rows``, ``metric``, ``arms`` (accuracy, tokens per row, latency in ms, params, bytes,
        seeds; or ``error``), ``curves`` (run → [step, label loss, validation label loss]),
        ``latency_rows``, ``threads``, ``config``, ``cpu_seconds``.

    Raises:
        UserError: ``NO_EVALUATION_ROWS``, ``SHOTS_UNREADABLE``, ``STUDENT_UNREADABLE``,
            ``STUDENT_TWICE``; what loading a model or a prompt raises.
    """
    import torch

    begun = time.process_time()
    rows = held_out_rows(evaluation_path, config.eval_rows)
    shots = parse_shots(config.eval_shots)
    metric = load_prompt(teacher.prompt).metric
    students = student_runs(student_paths)
    models = {**students, base_reference: ("base", -1)}
    predictions, arms = answer_all(models, rows, config, metric)
    first = first_seeds(models)
    predictions = explain_some(predictions, first, config)
    timed = rows[: config.latency_rows]
    inputs = [row.input_text for row in timed]
    spent = time_models(first, arms, inputs, answer_limit(rows, config))
    asked, teachers, teacher_spent = teacher_arms(rows, timed, shots, metric, teacher, state_dir)
    arms |= teachers
    for arm, milliseconds in {**spent, **teacher_spent}.items():
        arms[arm] |= percentiles(milliseconds)
    runs = set(first.values()) | {(arm, -1) for arm in teachers}
    latency = latency_of({**spent, **teacher_spent}, runs, timed)
    predictions = [
        dataclasses.replace(item, latency_ms=latency.get((item.arm, item.seed, item.id)))
        for item in [*predictions, *asked]
    ]
    write_jsonl(predictions_path, predictions)
    return {
        "rows": len(rows),
        "metric": metric,
        "arms": {arm: {**facts, **mean_scores(predictions, arm)} for arm, facts in arms.items()},
        "curves": {f"{arm}:{seed}": read_curve(path) for path, (arm, seed) in students.items()},
        "latency_rows": len(timed),
        "threads": torch.get_num_threads(),
        "config": {
            "student_base": base_reference,
            "evaluation": dataclasses.asdict(config),
            "teacher": {name: getattr(teacher, name) for name in SHOWN_SETTINGS},
        },
        "cpu_seconds": round(time.process_time() - begun, 2),
    }


def latency_of(
    spent: Mapping[str, Sequence[float]], runs: Iterable[tuple[str, int]], rows: Sequence[Example]
) -> dict[tuple[str, int, str], float]:
    """(arm, seed, row id) → milliseconds, of the runs that were timed row by row."""
    return {
        (arm, seed, row.id): spent[arm][at]
        for arm, seed in runs
        if arm in spent
        for at, row in enumerate(rows)
    }


def held_out_rows(path: str, limit: int) -> list[Example]:
    """The rows with a gold label; of more than `limit` rows those with the smallest id hashes.

    Raises:
        UserError: ``NO_EVALUATION_ROWS``, ``ROW_UNREADABLE``.
    """
    rows = [row for row in read_jsonl(path, Example) if row.output_text is not None]
    if not rows:
        raise UserError(
            "NO_EVALUATION_ROWS",
            f"{path}: found no held-out row with a gold label",
            "raise eval_fraction, or give labelled rows as evaluation_data_uri",
        )
    if limit <= 0 or len(rows) <= limit:
        return rows
    hashes = {row.id: hashlib.sha256(row.id.encode("utf-8", "replace")).digest() for row in rows}
    chosen = set(sorted(hashes, key=lambda row: hashes[row])[:limit])
    return [row for row in rows if row.id in chosen]


def parse_shots(text: str) -> list[int]:
    """``"0,2,5"`` or ``"[0, 2, 5]"`` → [0, 2, 5]; empty → none.

    Raises:
        UserError: ``SHOTS_UNREADABLE``.
    """
    parts = [part.strip() for part in text.strip(" []").split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise UserError(
            "SHOTS_UNREADABLE",
            f"eval_shots: found {text!r}, allowed: whole numbers and commas, such as 0,2,5",
            "correct the value; leave it empty for no teacher arm",
        )
    return sorted({int(part) for part in parts})


def mean_scores(predictions: Sequence[Prediction], arm: str) -> Mapping[str, Any]:
    """Accuracy by seed and mean tokens per row of an arm; nothing for an arm without answers."""
    own = [item for item in predictions if item.arm == arm]
    if not own:
        return {}
    seeds = sorted({item.seed for item in own})
    right = {seed: [item.correct for item in own if item.seed == seed] for seed in seeds}
    by_seed = {str(seed): sum(found) / len(found) for seed, found in right.items()}
    return {
        "seeds": seeds,
        "accuracy_by_seed": by_seed,
        "accuracy": sum(by_seed.values()) / len(by_seed),
    }
