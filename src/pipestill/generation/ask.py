"""Asks the teacher about rows: the one way in for labelling, rationales and few-shot evaluation.

Journal first, then the budget, then the backend, then the parser.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipestill.config import TeacherConfig
from pipestill.errors import UserError, WorkError
from pipestill.generation.budget import Budget, price
from pipestill.generation.journal import Journal, call_key
from pipestill.generation.parse import parse
from pipestill.generation.progress import Progress
from pipestill.generation.prompts import Prompt, load_prompt
from pipestill.generation.share import spread
from pipestill.generation.teacher import (
    Completion,
    Decoding,
    Failure,
    Request,
    Teacher,
    open_teacher,
)
from pipestill.records import Example


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One sample of one row.

    `raw` is None where the call failed, `label` is None where there is no usable answer; `error`
    says why. `from_journal` is true where no call was made for it. `latency_ms` is the call's share
    of its batch's time.
    """

    id: str
    sample: int
    raw: str | None = None
    label: str | None = None
    rationale: str | None = None
    error: str | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_prompt_tokens: int = 0
    latency_ms: float = 0.0
    from_journal: bool = False


def ask(
    rows: Sequence[Example], *, config: TeacherConfig, state_dir: str, samples: int, shots: int
) -> list[Answer]:
    """Asks about every row, `samples` times; answers come in the order of rows, then of samples.

    One sample is decoded greedily, several at ``config.temperature``. Equal questions are asked
    once. Finished calls are in the journal before this function goes on, so it can be killed and
    repeated at any time; of two processes that ask the same, the second waits for the first. A
    local model answers on all GPUs of the machine at once.

    Raises:
        UserError: for a wrong prompt, backend, model, address or key.
        WorkError: ``BUDGET_REACHED``; the answers so far stay in the journal.
    """
    if not rows:
        return []
    prompt = load_prompt(config.prompt)
    decoding = _decoding(config, prompt, samples)
    teacher = open_teacher(dataclasses.replace(config, samples=samples), decoding)
    requests = _requests(rows, prompt, samples, shots)
    keys = [_key(teacher, config, decoding, request) for request in requests]
    with Journal(state_dir) as journal, journal.alone(keys):
        found = journal.find(keys)
        results: dict[str, Completion | Failure] = dict(found)
        todo: dict[str, Request] = {}
        # Neighbours of similar length waste no padding.
        for key, request in sorted(zip(keys, requests, strict=True), key=lambda x: len(x[1].query)):
            if key not in found:
                todo.setdefault(key, request)
        if spread(config, decoding, todo, journal.place):
            results |= journal.find(todo)
        left = {key: request for key, request in todo.items() if key not in results}
        _call(teacher, config, left, journal, results)
    texts = [row.input_text for row in rows for _ in range(samples)]
    return [
        _answer(request, results[key], prompt, text, called=todo.get(key) is request)
        for key, request, text in zip(keys, requests, texts, strict=True)
    ]


def few_shot_answers(
    rows: Sequence[Example], config: TeacherConfig, state_dir: str, shots: int
) -> list[Answer]:
    """The teacher's greedy answers after `shots` worked examples, one a row, in the rows' order.

    With the ``replay`` backend the recorded answers come back whatever `shots` says.

    Raises:
        UserError, WorkError: as `ask`.
    """
    return ask(rows, config=config, state_dir=state_dir, samples=1, shots=shots)


def usage(answers: Sequence[Answer], config: TeacherConfig) -> dict[str, int | float]:
    """Calls, tokens and US dollars of the calls made, and what the journal saved.

    Failed calls count in neither.
    """
    made = [item for item in answers if item.raw is not None and not item.from_journal]
    saved = [item for item in answers if item.from_journal]
    tokens = {
        name: sum(getattr(item, name) for item in made)
        for name in ("prompt_tokens", "cached_prompt_tokens", "output_tokens")
    }
    cost = price(config, tokens["prompt_tokens"], tokens["output_tokens"])
    return {
        "calls_made": len(made),
        "calls_from_journal": len(saved),
        **tokens,
        "cost_usd": round(cost, 6),
        "journal_tokens": sum(item.prompt_tokens + item.output_tokens for item in saved),
    }


def _decoding(config: TeacherConfig, prompt: Prompt, samples: int) -> Decoding:
    if samples < 1 or (samples > 1 and config.temperature <= 0):
        raise UserError(
            "TEACHER_SAMPLES",
            f"teacher_samples: found {samples} at temperature {config.temperature}, allowed: "
            "1 or more, and more than 1 only at a temperature above 0",
            "samples at temperature 0 would all be the same",
        )
    return Decoding(
        stop=prompt.stop,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature if samples > 1 else 0.0,
    )


def _requests(rows: Sequence[Example], prompt: Prompt, samples: int, shots: int) -> list[Request]:
    prefix = prompt.prefix(shots)
    return [
        Request(
            row_id=row.id,
            source_row=row.source_row,
            prefix=prefix,
            query=(query := prompt.ask(row.input_text)),
            sample=sample,
            seed=_seed(prefix + query, sample),
        )
        for row in rows
        for sample in range(samples)
    ]


def _seed(text: str, sample: int) -> int:
    """Depends on the question alone, so a sample does not change with its neighbours."""
    digest = hashlib.sha256(f"{sample}:".encode() + text.encode("utf-8", "surrogatepass"))
    return int.from_bytes(digest.digest()[:7], "big")


def _key(teacher: Teacher, config: TeacherConfig, decoding: Decoding, request: Request) -> str:
    parameters = {**dataclasses.asdict(decoding), "backend": config.backend}
    return call_key(teacher.fingerprint, teacher.subject(request), parameters, request.sample)


def _call(
    teacher: Teacher,
    config: TeacherConfig,
    todo: dict[str, Request],
    journal: Journal,
    results: dict[str, Completion | Failure],
) -> None:
    """Calls the backend for `todo` and puts what comes back into journal and `results`."""
    budget = Budget(config)
    for earlier in results.values():
        if isinstance(earlier, Completion):
            budget.spend(earlier)
    key_of = {id(request): key for key, request in todo.items()}
    bounds: dict[int, int] = {}

    def admitted() -> Iterator[Request]:
        for request in todo.values():
            bound = teacher.most_prompt_tokens(request) if budget.limited else 0
            if not budget.admit(bound):
                return
            bounds[id(request)] = bound
            yield request

    with Progress(len(todo), "teacher") as progress:
        for batch in teacher.answer(admitted()):
            journal.append(
                (key_of[id(request)], request.row_id, result)
                for request, result in batch
                if isinstance(result, Completion)
            )
            for request, result in batch:
                results[key_of[id(request)]] = result
                budget.settle(bounds.pop(id(request)), result)
            usd = price(config, budget.prompt_tokens, budget.output_tokens)
            progress.step(len(batch), budget.prompt_tokens + budget.output_tokens, usd)
    if budget.exhausted:
        raise WorkError(
            "BUDGET_REACHED",
            f"the teacher's budget is reached: {budget} spent for this step, "
            f"{len(todo) - sum(key in results for key in todo)} of {len(key_of)} calls not made",
            "raise teacher_budget_tokens or teacher_budget_usd and run again: the answers so far "
            "are in the journal and the run continues after them",
        )


def _answer(
    request: Request, result: Completion | Failure, prompt: Prompt, text: str, *, called: bool
) -> Answer:
    if isinstance(result, Failure):
        return Answer(id=request.row_id, sample=request.sample, error=result.reason)
    parsed = parse(result.text, prompt, text, truncated=result.finish_reason == "length")
    return Answer(
        id=request.row_id,
        sample=request.sample,
        raw=result.text,
        label=parsed.label,
        rationale=parsed.rationale,
        error=parsed.reason or None,
        prompt_tokens=result.prompt_tokens,
        output_tokens=result.output_tokens,
        cached_prompt_tokens=result.cached_prompt_tokens,
        latency_ms=result.latency_ms,
        from_journal=not called,
    )
