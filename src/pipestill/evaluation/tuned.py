"""A tuned model and its base answer the same held-out rows, asked in the same way."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pipestill.config import EvalConfig, TuneEvalConfig, pick
from pipestill.errors import UserError
from pipestill.evaluation.code_execution import assemble, run_program
from pipestill.evaluation.code_metrics import same_template
from pipestill.evaluation.code_samples import sampled_pass_at_k
from pipestill.evaluation.latency import percentiles, time_rows
from pipestill.evaluation.likelihood import likelihood
from pipestill.evaluation.run import held_out_rows
from pipestill.evaluation.scoring import answers_match
from pipestill.evaluation.student_arms import answer_limit, read_curve
from pipestill.evaluation.text_metrics import score_arms
from pipestill.models.student import Generated, Student
from pipestill.records import Example, Prediction, write_jsonl
from pipestill.training.supervised import OBJECTIVE, model_input

METRICS = {"text": "exact", "chat": "exact", "code": "verbatim"}
PASS = "pass@1"  # noqa: S105 (a metric)


def evaluate_tuned(
    model_path: str,
    evaluation_path: str,
    predictions_path: str,
    *,
    base_reference: str,
    config: TuneEvalConfig,
) -> dict[str, Any]:
    """Runs both models on the held-out rows and writes one `Prediction` per row and arm.

    The base reads the prompts of the tuned model (style, instruction, limits), so the difference is
    tuning alone. Where rows bring tests and `config.code_execution` is on, an answer is right if
    its program passes them in the sandbox; otherwise it is right if it equals the row's.

    Args:
        model_path: folder that `supervised_tune` wrote.
        evaluation_path: JSONL of `Example`, each with an answer.
        predictions_path: JSONL of `Prediction`, written.
        base_reference: the model before tuning.
        config: rows and sizes.

    Returns:
        ``rows``, ``metric``, ``task``, ``arms`` (accuracy, exact, scores, nll, perplexity,
        token_accuracy, for code template_accuracy and pass_at_1, tokens per row, latency in ms,
        params, bytes), ``score_comparisons`` and ``score_signatures``
        (`pipestill.evaluation.text_metrics`), ``curves``, ``latency_rows``, ``config``,
        ``cpu_seconds``.

    Raises:
        UserError: ``NO_EVALUATION_ROWS``, ``MODEL_NOT_TUNED``, and what loading a model raises.
    """
    begun = time.process_time()
    rows = held_out_rows(evaluation_path, config.eval_rows)
    tuned = Student.load(model_path)
    info = tuned.info
    if "task" not in info:
        raise UserError(
            "MODEL_NOT_TUNED",
            f"{model_path}: its pipestill.json names no task",
            "give a folder that supervised_tune wrote",
        )
    students = {(OBJECTIVE, int(info.get("seed", 0))): tuned}
    students[("base", -1)] = Student.load(base_reference, asked_like=info)
    task = str(info["task"])
    metric = PASS if config.code_execution and any(row.tests for row in rows) else METRICS[task]
    inputs = [model_input(row, task) for row in rows]
    limit = answer_limit(rows, pick(EvalConfig, dataclasses.asdict(config)))
    predictions: list[Prediction] = []
    arms: dict[str, dict[str, Any]] = {}
    for (arm, seed), student in students.items():
        found = student.answer(inputs, batch_size=config.eval_batch_size, max_new_tokens=limit)
        own, facts = _scored(arm, seed, rows, found, task, metric, config)
        gold = [row.output_text or "" for row in rows]
        predictions += own
        arms[arm] = {**facts, **_probable(student, inputs, gold), **_size(student)}
        if metric == PASS and config.code_samples:
            arms[arm]["pass_at_k"] = _sampled(student, rows, inputs, limit, config)
        _tell(arm, own, arms[arm], metric)
    timed = inputs[: config.latency_rows]
    spent = time_rows(
        {arm: _one_by_one(student, limit) for (arm, _), student in students.items()}, timed
    )
    for arm, milliseconds in spent.items():
        arms[arm] |= percentiles(milliseconds)
    write_jsonl(predictions_path, _timed(predictions, spent, rows))
    text = score_arms(predictions, "base")
    for arm, scores in text.pop("scores").items():
        arms[arm]["scores"] = scores
    return {
        "rows": len(rows),
        "metric": metric,
        "task": task,
        "arms": arms,
        **text,
        "curves": {f"{OBJECTIVE}:{info.get('seed', 0)}": read_curve(model_path)},
        "latency_rows": len(timed),
        "config": {
            "base": base_reference,
            "task": task,
            "instruction": str(info.get("instruction", "")) or "none",
            "evaluation": dataclasses.asdict(config),
        },
        "cpu_seconds": round(time.process_time() - begun, 2),
    }


def _scored(
    arm: str,
    seed: int,
    rows: Sequence[Example],
    found: Sequence[Generated],
    task: str,
    metric: str,
    config: TuneEvalConfig,
) -> tuple[list[Prediction], dict[str, Any]]:
    """The predictions of one arm, and its scores."""
    same = [
        answers_match(item.text, row.output_text or "", METRICS[task])
        for row, item in zip(rows, found, strict=True)
    ]
    facts: dict[str, Any] = {"exact": _mean(same)}
    right, errors = same, [""] * len(rows)
    if task == "code":
        alike = [
            same_template(item.text, row.output_text or "")
            for row, item in zip(rows, found, strict=True)
        ]
        facts["template_accuracy"] = _mean(alike)
    if metric == PASS:
        right, errors = _executed(rows, found, config)
        facts["pass_at_1"] = _mean(right)
    predictions = [
        Prediction(
            id=row.id,
            arm=arm,
            seed=seed,
            input_text=row.input_text,
            gold=row.output_text or "",
            output_text=item.text,
            correct=fine,
            prompt_tokens=item.prompt_tokens,
            output_tokens=item.output_tokens,
            error=error or None,
        )
        for row, item, fine, error in zip(rows, found, right, errors, strict=True)
    ]
    facts |= {
        "accuracy": _mean(right),
        "truncated_inputs": sum(item.truncated_input for item in found),
        "prompt_tokens": sum(item.prompt_tokens for item in found) / len(found),
        "output_tokens": sum(item.output_tokens for item in found) / len(found),
    }
    return predictions, facts


def _executed(
    rows: Sequence[Example], found: Sequence[Generated], config: TuneEvalConfig
) -> tuple[list[bool], list[str]]:
    """Whether each answer passes its row's tests, and how it failed; no tests are no pass."""
    from tqdm import tqdm

    right, errors = [], []
    pairs = zip(rows, found, strict=True)
    for row, item in tqdm(pairs, total=len(rows), desc="running code", disable=None, leave=False):
        if not row.tests:
            right.append(False)
            errors.append("the row has no tests")
            continue
        outcome = run_program(
            assemble(row.input_text, item.text, row.tests),
            timeout_s=config.code_timeout_s,
            memory_mb=config.code_memory_mb,
        )
        right.append(outcome.passed)
        errors.append("" if outcome.passed else f"{outcome.status} {outcome.error}".strip())
    return right, errors


def _sampled(
    student: Student,
    rows: Sequence[Example],
    inputs: Sequence[str],
    limit: int,
    config: TuneEvalConfig,
) -> dict[str, float]:
    return sampled_pass_at_k(
        student,
        rows,
        inputs,
        samples=config.code_samples,
        temperature=config.code_temperature,
        max_new_tokens=limit,
        timeout_s=config.code_timeout_s,
        memory_mb=config.code_memory_mb,
    )


def _probable(student: Student, inputs: Sequence[str], gold: Sequence[str]) -> dict[str, Any]:
    scored = likelihood(student, inputs, gold)
    return {
        "nll": scored.nll,
        "perplexity": scored.perplexity,
        "token_accuracy": scored.token_accuracy,
        "target_tokens": scored.tokens,
    }


def _size(student: Student) -> dict[str, Any]:
    return {"params": student.parameters, "bytes": student.bytes}


def _one_by_one(student: Student, limit: int) -> Any:
    return lambda text: student.answer([text], batch_size=1, max_new_tokens=limit)


def _timed(
    predictions: Sequence[Prediction], spent: Mapping[str, Sequence[float]], rows: Sequence[Example]
) -> list[Prediction]:
    places = {row.id: at for at, row in enumerate(rows)}
    return [
        dataclasses.replace(item, latency_ms=spent[item.arm][places[item.id]])
        if places[item.id] < len(spent[item.arm])
        else item
        for item in predictions
    ]


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def _tell(arm: str, own: Sequence[Prediction], facts: Mapping[str, Any], metric: str) -> None:
    right = sum(item.correct for item in own)
    print(
        f"evaluate: {arm}: {right} of {len(own)} right ({metric}), "
        f"{100 * facts['token_accuracy']:.1f} % of the answers' tokens, perplexity "
        f"{facts['perplexity']:.4g}",
        flush=True,
    )
