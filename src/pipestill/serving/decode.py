"""What the engine asks of a student: prompts of a request, one generate call, texts of tokens."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pipestill.errors import UserError
from pipestill.models.chat import Conversation
from pipestill.serving.jobs import Answer, InputRefusedError, InputTooLongError, Job, Row
from pipestill.serving.pieces import Pieces

TOGETHER = "label_then_rationale"  # students of this objective write both in one text


class Answerer(Protocol):
    """The part of `pipestill.models.student.Student` that serving uses."""

    @property
    def loaded(self) -> Any: ...

    @property
    def renderer(self) -> Any: ...

    @property
    def info(self) -> Any: ...


# Called after every step with the newest token of each row; says which rows are done.
Watch = Callable[[Sequence[int]], Sequence[bool]]


def decode(student: Answerer, prompts: Sequence[list[int]], limit: int, watch: Watch) -> None:
    """One greedy generate call; it ends when `watch` has called every row done.

    Args:
        student: a `Student`.
        prompts: token ids, one list a row.
        limit: the most new tokens of a row.
        watch: see `Watch`; a row that is done gets fillers until the call ends.
    """
    import torch
    from transformers import StoppingCriteriaList

    from pipestill.models.student import padded

    def stopped(ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.tensor(watch(ids[:, -1].tolist()), device=ids.device)

    model, loaded = student.loaded.model, student.loaded
    pad = student.renderer.tokenizer.pad_token_id
    ids, mask = padded(prompts, pad, left=not loaded.is_encoder_decoder)
    with torch.inference_mode():
        model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=limit,
            stopping_criteria=StoppingCriteriaList([stopped]),
        )


def ends_of(student: Answerer) -> frozenset[int]:
    """The ids that end an answer."""
    return frozenset(student.loaded.model.generation_config.eos_token_id)


def rows_of(student: Answerer, job: Job) -> list[Row]:
    """The prompts of a request: one a text, and one more where a rationale is asked for.

    Raises:
        InputTooLongError: an input would be cut; a cut question has a wrong answer.
        InputRefusedError: a conversation is asked of a model that reads none, or not this one.
    """
    for index, text in enumerate(job.texts):
        if isinstance(text, Conversation):
            _check_chat(student, index, text)
    renderer, together = student.renderer, student.info["objective"] == TOGETHER
    limit = min(job.max_output_tokens, renderer.max_output_tokens)
    rows: list[Row] = []
    for task in ("predict", "explain") if job.explain else ("predict",):
        stop = _separator() if together and task == "predict" else ""
        asked = "predict" if together else task
        for index, prompt in enumerate(renderer.prompts(asked, job.texts)):
            if prompt.truncated:
                raise InputTooLongError(index, renderer.max_input_tokens)
            rows.append(Row(job, task, prompt.ids, limit, stop))
    if job.on_text is not None:
        rows[0].pieces = Pieces(renderer.tokenizer, rows[0].stop)
    return rows


def text_of(student: Answerer, row: Row) -> str:
    """The text of what a row has so far: an answer or a rationale, by its task."""
    renderer = student.renderer
    text: str = renderer.tokenizer.decode(row.new, skip_special_tokens=True).strip()
    if student.info["objective"] != TOGETHER:
        return text
    part = renderer.answer_part if row.task == "predict" else renderer.rationale_part
    return str(part(text))


def _has_stopped(student: Answerer, row: Row) -> bool:
    """Whether a row holds its stop string; a new token can only complete one at the end."""
    if not row.stop:
        return False
    tail = row.new[-len(row.stop.encode()) - 4 :]  # a token has one byte of text at least
    return row.stop in student.renderer.tokenizer.decode(tail, skip_special_tokens=True)


def advance(student: Answerer, row: Row, token: int, ends: frozenset[int]) -> None:
    """Takes in a row's next token, tells its text, and answers its request with the last one."""
    if row.job.future.done():
        row.done = True
        return
    row.new.append(token)
    row.done = token in ends or len(row.new) >= row.limit or _has_stopped(student, row)
    if row.pieces is not None and row.job.on_text is not None:
        new = row.pieces.rest(text_of(student, row)) if row.done else row.pieces.add(row.new)
        if new:
            row.job.on_text(new)
    if row.done and all(other.done for other in row.job.rows):
        row.job.answer(_answers(student, row.job))


def _answers(student: Answerer, job: Job) -> list[Answer]:
    answers: list[Answer] = [
        {
            "output_text": text_of(student, row),
            "prompt_tokens": len(row.ids),
            "output_tokens": len(row.new),
        }
        for row in job.rows
        if row.task == "predict"
    ]
    reasons = [row for row in job.rows if row.task == "explain"]
    for answer, row in zip(answers, reasons, strict=False):
        answer["rationale"] = text_of(student, row)
    return answers


def _separator() -> str:
    from pipestill.models.render import SEPARATOR

    return SEPARATOR


def _check_chat(student: Answerer, index: int, text: str) -> None:
    """A conversation is rendered once here: shortening it could take hours."""
    renderer = student.renderer
    if renderer.style != "chat":
        found = f"this model is not tuned for chat (its style is {renderer.style})"
        raise InputRefusedError(index, f"{found}, give it an input_text")
    try:
        too_long = renderer.whole_length(text) > renderer.max_input_tokens
    except UserError as error:
        raise InputRefusedError(index, error.message) from error
    if too_long:
        raise InputTooLongError(index, renderer.max_input_tokens)
