"""Any models, side by side on one held-out set. Component `evaluate_models`."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipestill.config import EvalConfig, TeacherConfig
from pipestill.errors import UserError
from pipestill.evaluation.arms import is_teacher, teacher_arm
from pipestill.evaluation.latency import percentiles
from pipestill.evaluation.run import (
    SHOWN_SETTINGS,
    held_out_rows,
    latency_of,
    mean_scores,
    parse_shots,
)
from pipestill.evaluation.scoring import METRICS
from pipestill.evaluation.student_arms import answer_all, answer_limit, time_models
from pipestill.evaluation.teacher_arms import teacher_arms
from pipestill.evaluation.text_metrics import score_arms
from pipestill.models.loading import load_tokenizer, resolve_reference
from pipestill.models.student import INFO_FILE
from pipestill.records import Example, read_jsonl, write_jsonl

PAIR = "_vs_"  # joins the names of two arms in the summary
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RUN_FOLDER = "model"  # where a run leaves its model: runs/<name>/model


def evaluate_models(
    models: Sequence[str],
    rows_paths: Sequence[str],
    predictions_path: str,
    *,
    baseline: str,
    metric: str,
    state_dir: str,
    config: EvalConfig,
    teacher: TeacherConfig,
) -> dict[str, Any]:
    """Every model, and the few-shot teacher where asked for, answers the same rows.

    A model that no run of ours trained reads the row as it is (style ``plain``); a trained one is
    asked as it was trained. All names and references are checked before the first answer.

    Args:
        models: references, see `model_arms`.
        rows_paths: JSONL files of `Example`, evaluated together; rows without a label are counted.
        predictions_path: JSONL of `Prediction`, written.
        baseline: the arm that the others are compared with; "" = the first model.
        metric: of `pipestill.evaluation.scoring.METRICS`.
        state_dir: folder of the journal of teacher calls.
        config: rows, shots and sizes.
        teacher: who answers few-shot; not used without ``config.eval_shots``.

    Returns:
        ``rows``, ``rows_without_gold``, ``metric``, ``baseline``, ``arms`` (accuracy, scores,
        tokens per row, latency in ms, params, bytes; or ``error``), ``score_comparisons`` and
        ``score_signatures`` (`pipestill.evaluation.text_metrics`), ``latency_rows``, ``config``,
        ``cpu_seconds``.

    Raises:
        UserError: ``METRIC_UNKNOWN``, ``SHOTS_UNREADABLE``, ``NO_EVALUATION_ROWS``,
            ``BASELINE_UNKNOWN``; what `model_arms` and loading a model raise.
    """
    begun = time.process_time()
    if metric not in METRICS:
        raise UserError(
            "METRIC_UNKNOWN", f"metric: found {metric!r}, allowed: {', '.join(METRICS)}"
        )
    named = model_arms(models)
    shots = parse_shots(config.eval_shots)
    chosen = baseline_arm(baseline, [*named.values(), *_teacher_names(shots, teacher)])
    for reference in named:  # a wrong name is found before any model has worked for hours
        load_tokenizer(reference)
    rows, without_gold = _joined(rows_paths, config.eval_rows)
    runs = {reference: (arm, -1) for reference, arm in named.items()}
    asked = {reference: {"style": "plain"} for reference in named if not _is_ours(reference)}
    predictions, arms = answer_all(runs, rows, config, metric, asked)
    timed = rows[: config.latency_rows]
    inputs = [row.input_text for row in timed]
    spent = time_models(runs, arms, inputs, answer_limit(rows, config), asked)
    told, teachers, their_time = teacher_arms(rows, timed, shots, metric, teacher, state_dir)
    arms |= teachers
    spent |= their_time
    for arm, milliseconds in spent.items():
        arms[arm] |= percentiles(milliseconds)
    latency = latency_of(spent, [(arm, -1) for arm in arms], timed)
    predictions = [
        dataclasses.replace(item, latency_ms=latency.get((item.arm, item.seed, item.id)))
        for item in [*predictions, *told]
    ]
    write_jsonl(predictions_path, predictions)
    text = score_arms(predictions, chosen)
    for arm, scores in text.pop("scores").items():
        arms[arm]["scores"] = scores
    return {
        "rows": len(rows),
        "rows_without_gold": without_gold,
        "metric": metric,
        "baseline": chosen,
        "arms": {arm: {**facts, **mean_scores(predictions, arm)} for arm, facts in arms.items()},
        **text,
        "latency_rows": len(timed),
        "config": {
            "models": {arm: reference for reference, arm in named.items()},
            "evaluation": dataclasses.asdict(config),
            **_shown(teacher, shots),
        },
        "cpu_seconds": round(time.process_time() - begun, 2),
    }


def model_arms(models: Sequence[str]) -> dict[str, str]:
    """Reference → arm, in the order given.

    ``name=reference`` names an arm. Otherwise it has the reference's last part, without a revision;
    of a run's folder (``runs/demo/model``) the part before.

    Args:
        models: folders, pocket models, hub names or ``gs://`` folders.

    Raises:
        UserError: ``MODELS_UNREADABLE``, ``ARM_NAME``, ``ARM_TWICE``.
    """
    if not models or not all(isinstance(item, str) and item.strip() for item in models):
        raise UserError(
            "MODELS_UNREADABLE",
            f"models: found {list(models)!r}, allowed: a list of at least one reference",
            'such as ["pocket-base", "mine=runs/mine/model"]',
        )
    named: dict[str, str] = {}
    for item in models:
        arm, reference = split_name(item)
        if not _NAME.fullmatch(arm) or PAIR in arm or is_teacher(arm):
            raise UserError(
                "ARM_NAME",
                f"models: {item!r}: arm {arm!r}, allowed: letters, digits and . _ - without "
                f"{PAIR!r}, and no name of a teacher arm",
                f"give it another name: better={reference}",
            )
        if arm in named.values() or reference in named:
            what = f"a second arm {arm!r}" if arm in named.values() else "the same model again"
            raise UserError(
                "ARM_TWICE",
                f"models: {item!r}: {what}",
                "give every model once, and each its own name: name=reference",
            )
        named[reference] = arm
    return named


def split_name(item: str) -> tuple[str, str]:
    """``name=reference`` → (name, reference); a plain reference has a name from itself."""
    name, equals, reference = item.strip().partition("=")
    if equals and reference and _NAME.fullmatch(name):
        return name, reference
    whole = item.strip()
    parts = [part for part in whole.partition("@")[0].split("/") if part not in ("", ".")]
    if len(parts) > 1 and parts[-1] == _RUN_FOLDER:
        parts.pop()
    return (parts[-1] if parts else whole), whole


def baseline_arm(baseline: str, arms: Sequence[str]) -> str:
    """The arm that others are compared with: `baseline`, or the first.

    Raises:
        UserError: ``BASELINE_UNKNOWN``.
    """
    if baseline and baseline not in arms:
        raise UserError(
            "BASELINE_UNKNOWN",
            f"baseline: found {baseline!r}, allowed: {', '.join(arms)}",
            "name an arm; empty = the first of models",
        )
    return baseline or arms[0]


def _teacher_names(shots: Iterable[int], teacher: TeacherConfig) -> list[str]:
    found = [teacher_arm(count) for count in shots]
    return ["teacher_recorded"] if found and teacher.backend == "replay" else found


def _is_ours(reference: str) -> bool:
    return (Path(resolve_reference(reference)) / INFO_FILE).is_file()


def _joined(paths: Sequence[str], limit: int) -> tuple[list[Example], int]:
    """The labelled rows of all files in the order of the source, and how many have no label."""
    rows = sorted(
        (row for path in paths for row in read_jsonl(path, Example)),
        key=lambda row: row.source_row,
    )
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "rows.jsonl")
        write_jsonl(whole, rows)
        return held_out_rows(str(whole), limit), sum(row.output_text is None for row in rows)


def _shown(teacher: TeacherConfig, shots: Sequence[int]) -> Mapping[str, Any]:
    """The teacher's settings, where there is one."""
    return {"teacher": {name: getattr(teacher, name) for name in SHOWN_SETTINGS}} if shots else {}
