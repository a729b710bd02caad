"""The arms that are the teacher, prompted with more or fewer worked examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipestill.config import TeacherConfig
from pipestill.errors import WorkError
from pipestill.evaluation.arms import teacher_arm
from pipestill.evaluation.latency import percentiles, time_rows
from pipestill.evaluation.scoring import answers_match
from pipestill.generation.ask import Answer, few_shot_answers, usage
from pipestill.generation.prompts import load_prompt
from pipestill.generation.teacher import Decoding, Request, Teacher, open_teacher
from pipestill.models.counting import count_parameters, local_folder
from pipestill.models.loading import load
from pipestill.records import Example, Prediction

Arms = dict[str, dict[str, Any]]


def teacher_arms(
    rows: Sequence[Example],
    timed: Sequence[Example],
    shots: Sequence[int],
    metric: str,
    config: TeacherConfig,
    state_dir: str,
) -> tuple[list[Prediction], Arms, dict[str, list[float]]]:
    """Asks the teacher with each number of shots; an arm that fails has only an ``error``.

    Args:
        rows: held-out rows.
        timed: the rows of the latency measurement (transformers backend).
        shots: numbers of worked examples; recorded answers make one arm whatever they are.
        metric: of `pipestill.evaluation.scoring.METRICS`.
        config: the teacher.
        state_dir: folder of the journal.

    Returns:
        The predictions, the facts per arm, and milliseconds per timed row of each arm that runs in
        this process.
    """
    named = {teacher_arm(count): count for count in shots}
    if config.backend == "replay":
        named = {"teacher_recorded": 0} if shots else {}
    predictions: list[Prediction] = []
    arms: Arms = {}
    for arm, count in named.items():
        # Whatever goes wrong with a teacher (a server, a budget, memory): the students' results,
        # which may have cost hours, must reach the report.
        try:
            own, facts = few_shot_arm(rows, arm, count, metric, config, state_dir)
        except Exception as error:
            arms[arm] = {"error": one_line(error)}
            print(f"evaluate: {arm}: no result: {one_line(error)}", flush=True)
            continue
        predictions += own
        arms[arm] = facts
    answered = {arm: count for arm, count in named.items() if "error" not in arms[arm]}
    if config.backend != "transformers" or not answered:
        return predictions, arms, {}
    try:
        spent, size = _timed(answered, timed, config)
    except Exception as error:
        print(f"evaluate: teacher not timed: {one_line(error)}", flush=True)
        return predictions, arms, {}
    return predictions, {arm: arms[arm] | (size if arm in spent else {}) for arm in arms}, spent


def few_shot_arm(
    rows: Sequence[Example],
    arm: str,
    shots: int,
    metric: str,
    config: TeacherConfig,
    state_dir: str,
) -> tuple[list[Prediction], dict[str, Any]]:
    """One prompted model's answers after `shots` worked examples.

    Args:
        rows: held-out rows.
        arm: the name that the predictions carry.
        shots: worked examples in the prompt.
        metric: of `pipestill.evaluation.scoring.METRICS`.
        config: the model and its prompt.
        state_dir: folder of the journal.

    Returns:
        The predictions, and tokens per row, latency of a server, usage and unparsable answers.

    Raises:
        UserError, WorkError: as `pipestill.generation.ask.few_shot_answers` and `check_answers`.
    """
    answers = few_shot_answers(rows, config, state_dir, shots)
    check_answers(answers, config)
    own = [_prediction(*pair, arm, metric) for pair in zip(rows, answers, strict=True)]
    right = sum(item.correct for item in own)
    print(
        f"evaluate: {arm}: {right} of {len(own)} right = {100 * right / len(own):.1f} %",
        flush=True,
    )
    return own, _facts(answers, config)


def check_answers(answers: Sequence[Answer], config: TeacherConfig) -> None:
    """Refuses an arm most of whose calls failed: its accuracy would be the server's, not its own.

    Raises:
        WorkError: ``TEACHER_ARM_FAILED``.
    """
    failed = [item for item in answers if item.raw is None]
    if len(failed) > (1 - config.min_success) * len(answers):
        raise WorkError(
            "TEACHER_ARM_FAILED",
            f"{len(failed)} of {len(answers)} calls failed, for example: {failed[0].error}",
        )


def one_line(error: Exception) -> str:
    """An error's message in one line of at most 300 characters."""
    return " ".join(f"{error or type(error).__name__}".split())[:300]


def _prediction(row: Example, answer: Answer, arm: str, metric: str) -> Prediction:
    gold, found = row.output_text or "", answer.label or ""
    return Prediction(
        id=row.id,
        arm=arm,
        seed=-1,
        input_text=row.input_text,
        gold=gold,
        output_text=found,
        correct=answer.label is not None and answers_match(found, gold, metric),
        prompt_tokens=answer.prompt_tokens,
        output_tokens=answer.output_tokens,
        rationale=answer.rationale,
        gold_rationale=row.rationale,
        error=answer.error,
    )


def _facts(answers: Sequence[Answer], config: TeacherConfig) -> dict[str, Any]:
    """Tokens per answered row and, for a server, latency; recorded answers carry neither."""
    answered = [item for item in answers if item.raw is not None]
    facts: dict[str, Any] = {"params": None, "bytes": None, "usage": usage(answers, config)}
    facts["unparsable"] = sum(item.label is None for item in answered)
    if config.backend == "replay" or not answered:
        return {**facts, "prompt_tokens": None, "output_tokens": None, **percentiles([])}
    return {
        **facts,
        "prompt_tokens": sum(item.prompt_tokens for item in answered) / len(answered),
        "output_tokens": sum(item.output_tokens for item in answered) / len(answered),
        **percentiles([item.latency_ms for item in answered if item.latency_ms > 0]),
    }


def _timed(
    answered: Mapping[str, int], rows: Sequence[Example], config: TeacherConfig
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Milliseconds per row at batch size 1, and the size, of a teacher in this process."""
    prompt = load_prompt(config.prompt)
    decoding = Decoding(stop=prompt.stop, max_new_tokens=config.max_new_tokens, temperature=0.0)
    teacher = open_teacher(dataclasses.replace(config, batch_size=1, samples=1), decoding)
    callers = {arm: full_prompt(teacher, prompt.prefix(n)) for arm, n in answered.items()}
    spent = time_rows(callers, [prompt.ask(row.input_text) for row in rows])
    return spent, size_of(config.model_reference)


def full_prompt(teacher: Teacher, prefix: str) -> Callable[[str], object]:
    """Answers one question the way a server without a cache does: the whole prompt, every time."""

    def answer(query: str) -> object:
        request = Request(
            row_id="", source_row=-1, prefix="", query=prefix + query, sample=0, seed=0
        )
        return list(teacher.answer([request]))

    return answer


def size_of(reference: str) -> dict[str, int | None]:
    """Parameters and bytes: of a folder from its files' headers, of a hub model by loading it."""
    folder = local_folder(reference)
    if folder is None:
        loaded = load(reference)
        return {"params": loaded.parameters, "bytes": loaded.bytes}
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return {"params": count_parameters(folder), "bytes": weights}
