"""A tuned model zero-shot, against prompts with worked examples. Component `evaluate_prompts`.

The tuned model, the same model untuned, the teacher, and the students answer the same held-out
rows. A prompted model reads the instruction and its worked examples before every row; a tuned one
reads the row alone. Arms are independent: one that fails is noted with its error.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pipestill.config import CostConfig, EvalConfig, TeacherConfig
from pipestill.errors import PipestillError
from pipestill.evaluation.footprint import peak_memory
from pipestill.evaluation.latency import percentiles
from pipestill.evaluation.one_request import time_arms
from pipestill.evaluation.prompted_arms import (
    BASE,
    RECORDED,
    TUNED,
    Arm,
    Facts,
    Work,
    name_and_seed,
    student_arms,
)
from pipestill.evaluation.request_cost import machine_cost, serving_machine, token_cost
from pipestill.evaluation.run import (
    SHOWN_SETTINGS,
    held_out_rows,
    latency_of,
    mean_scores,
    parse_shots,
)
from pipestill.evaluation.teacher_arms import one_line
from pipestill.generation.prompts import load_prompt
from pipestill.models.loading import best_device, resolve_reference
from pipestill.records import Example, Prediction, write_jsonl


def evaluate_prompts(
    tuned_path: str,
    student_paths: Sequence[str],
    evaluation_path: str,
    predictions_path: str,
    *,
    large_reference: str,
    base_reference: str,
    state_dir: str,
    config: EvalConfig,
    teacher: TeacherConfig,
    cost: CostConfig,
) -> dict[str, Any]:
    """Runs all arms on the same rows and writes one `Prediction` per row, arm and seed.

    The arms: ``tuned``; every student by the ``curve_arm`` of its `pipestill.json`, else by its
    objective; ``base``, the student before training; ``large_<k>_shot``, the large model before
    tuning, for each k of ``config.eval_shots``, left out where it is the teacher; and
    ``teacher_<k>_shot`` (``teacher_recorded`` for recorded answers). An arm that fails, because its
    prompt is too long for the model, its prompt file holds fewer examples, or its server is gone,
    has only ``shots`` and ``error``.

    Args:
        tuned_path: folder that `supervised_tune` wrote.
        student_paths: folders of students, several seeds of an arm allowed.
        evaluation_path: JSONL of `Example`, each with a gold label.
        predictions_path: JSONL of `Prediction`, written.
        large_reference: the model that was tuned.
        base_reference: the student before training.
        state_dir: folder of the journal of teacher calls.
        config: rows, shots and sizes.
        teacher: who answers few-shot, and the prompt file of all prompted arms.
        cost: where a request is answered, and what that costs.

    Returns:
        ``rows``, ``metric``, ``large_is_teacher``, ``shots``, ``arms`` (accuracy, prompt and output
        tokens per row, ``p50_ms`` and ``p95_ms`` at batch size 1 without prefix cache, ``params``,
        ``bytes`` of the weights on disk, ``peak_memory_bytes`` (see
        `pipestill.evaluation.footprint`), ``usd_per_1000`` and ``usd_how`` (machine or tokens),
        shots, unparsable answers; None = not measured), ``machine`` (see
        `pipestill.evaluation.request_cost`), ``latency_rows``, ``threads``, ``device``,
        ``config``, ``cpu_seconds``.

    Raises:
        UserError: ``NO_EVALUATION_ROWS``, ``SHOTS_UNREADABLE``, ``MACHINE_UNPRICED``,
            ``STUDENT_TWICE``; what reading the prompt file raises.
    """
    import torch

    begun, started = time.process_time(), time.perf_counter()
    machine = serving_machine(cost)
    rows = held_out_rows(evaluation_path, config.eval_rows)
    shots = parse_shots(config.eval_shots)
    metric = load_prompt(teacher.prompt).metric
    same = teacher.backend == "transformers" and _same_model(
        large_reference, teacher.model_reference
    )
    work = Work(rows, config, metric, state_dir, teacher)
    students = [*student_arms(student_paths, work), work.own(BASE, {base_reference: (BASE, -1)})]
    large = [] if same else [work.untuned(count, large_reference) for count in shots]
    tuned = work.own(TUNED, {tuned_path: (TUNED, name_and_seed(tuned_path, TUNED)[1])})
    arms = [tuned, *students, *large, *work.teachers(shots)]
    predictions, facts = _run(arms)
    timed = rows[: config.latency_rows]
    predictions = _measured(arms, facts, predictions, timed)
    _price(arms, facts, predictions, machine)
    write_jsonl(predictions_path, predictions)
    return {
        "rows": len(rows),
        "metric": metric,
        "large_is_teacher": same,
        "shots": shots,
        "arms": {arm: {**found, **mean_scores(predictions, arm)} for arm, found in facts.items()},
        "machine": machine,
        "latency_rows": len(timed),
        "threads": torch.get_num_threads(),
        "device": best_device(),
        "config": {
            "large": large_reference,
            "student_base": base_reference,
            "evaluation": dataclasses.asdict(config),
            "teacher": {name: getattr(teacher, name) for name in SHOWN_SETTINGS},
            "cost": dataclasses.asdict(cost),
        },
        "cpu_seconds": round(time.process_time() - begun, 2),
        "seconds": round(time.perf_counter() - started, 2),
    }


def _same_model(one: str, other: str) -> bool:
    """Whether two references lead to the same folder or hub name; a wrong one leads nowhere."""
    try:
        return one == other or os.path.realpath(resolve_reference(one)) == os.path.realpath(
            resolve_reference(other)
        )
    except PipestillError:
        return False


def _run(arms: Sequence[Arm]) -> tuple[list[Prediction], dict[str, Facts]]:
    """The answers of every arm that can answer, and per arm what is known of it."""
    predictions: list[Prediction] = []
    facts: dict[str, Facts] = {}
    for arm in arms:
        # Whatever goes wrong with one arm (memory, a server, a broken folder): the others' results
        # must reach the report.
        try:
            found, known = arm.run()
        except Exception as error:
            facts[arm.name] = {"shots": arm.shots, "error": one_line(error)}
            print(f"evaluate: {arm.name}: no result: {one_line(error)}", flush=True)
            continue
        predictions += found
        facts[arm.name] = {**known, "shots": arm.shots}
    return predictions, facts


def _measured(
    arms: Sequence[Arm],
    facts: Mapping[str, Facts],
    predictions: Sequence[Prediction],
    timed: Sequence[Example],
) -> list[Prediction]:
    """Adds memory and latency to `facts`; the predictions of timed rows with their latency."""
    _release()
    asked = [arm.asked for arm in arms if arm.asked and "error" not in facts[arm.name]]
    inputs = [row.input_text for row in timed]
    memory = peak_memory(asked, max(inputs, key=len)) if inputs else {}
    sizes = {arm.reference: facts[arm.arm]["bytes"] or 0 for arm in asked}
    spent = time_arms(asked, inputs, sizes)
    seeds = {arm.name: arm.seed for arm in arms}
    latency = latency_of(spent, [(arm, seeds[arm]) for arm in spent], timed)
    # A call that failed at once (too long a prompt) took no time that means anything.
    answered = {
        (item.arm, item.seed, item.id)
        for item in predictions
        if item.prompt_tokens or not item.error
    }
    latency = {key: value for key, value in latency.items() if key in answered}
    for arm in asked:
        own = [latency[key] for key in latency if key[0] == arm.arm]
        facts[arm.arm].update(percentiles(own), peak_memory_bytes=memory.get(arm.arm))
    return [
        dataclasses.replace(item, latency_ms=latency.get((item.arm, item.seed, item.id)))
        for item in predictions
    ]


def _release() -> None:
    """Gives back what answering has left, so that the next measurement finds the device free."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _price(
    arms: Sequence[Arm],
    facts: Mapping[str, Facts],
    predictions: Sequence[Prediction],
    machine: Mapping[str, Any],
) -> None:
    """Adds cost: by machine for what runs here, by tokens for a paid interface, else None."""
    for arm in arms:
        found = facts[arm.name]
        if "error" in found:
            continue
        found |= {"usd_per_1000": None, "usd_how": None}
        found.setdefault("peak_memory_bytes", None)
        if arm.asked and found["p50_ms"] is not None:
            found |= machine_cost(found["p50_ms"], machine)
        elif arm.paid:
            own = [item for item in predictions if item.arm == arm.name and item.prompt_tokens]
            asked = sum(item.prompt_tokens for item in own) / max(len(own), 1)
            said = sum(item.output_tokens for item in own) / max(len(own), 1)
            found |= token_cost(asked, said, arm.paid)
            # Of recorded answers the words are counted, and what preceded the row is not known.
            found["usd_estimated"] = arm.name == RECORDED
