"""What a teacher is: it has an identity and answers requests. The backends stand in one table."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from pipestill.config import TeacherConfig
from pipestill.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call: the prompt is `prefix` (the same for all rows) followed by `query`.

    `sample` numbers the samples of a row from 0; `seed` makes a sample reproducible, whatever else
    is in its batch.
    """

    row_id: str
    source_row: int
    prefix: str
    query: str
    sample: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A finished call. Token counts are the teacher's own; `estimated` where it gave none."""

    text: str
    prompt_tokens: int
    output_tokens: int
    cached_prompt_tokens: int = 0
    finish_reason: str = "stop"  # stop | length
    latency_ms: float = 0.0
    estimated: bool = False


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A call without an answer, and why. Failures are not journaled: the next run asks again."""

    reason: str


Batch = list[tuple[Request, Completion | Failure]]


def clean(text: str) -> str:
    """Text that can be written as UTF-8, whatever escapes it was read from."""
    return text.encode("utf-8", "replace").decode("utf-8")


class Teacher(Protocol):
    """What every backend does.

    `fingerprint` names the teacher and whatever else decides its answers; it enters the journal's
    keys.
    """

    @property
    def fingerprint(self) -> str: ...

    def subject(self, request: Request) -> str:
        """The part of a request that decides the answer: the prompt, or a recorded row's number."""
        ...

    def most_prompt_tokens(self, request: Request) -> int:
        """An upper bound of the prompt's tokens, for the budget."""
        ...

    def answer(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Batches of answers as they are finished, in any order.

        Requests are pulled only as fast as they can be begun, which lets a budget end them.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How answers are generated. `temperature` 0 is greedy."""

    stop: tuple[str, ...]
    max_new_tokens: int
    temperature: float


def _transformers(config: TeacherConfig, decoding: Decoding) -> Teacher:
    from pipestill.generation.transformers_backend import TransformersTeacher

    return TransformersTeacher(config, decoding)


def _replay(config: TeacherConfig, decoding: Decoding) -> Teacher:
    from pipestill.generation.replay import ReplayTeacher

    return ReplayTeacher(config, decoding)


def _openai(config: TeacherConfig, decoding: Decoding) -> Teacher:
    from pipestill.generation.openai_backend import OpenAITeacher

    return OpenAITeacher(config, decoding)


def _openai_completions(config: TeacherConfig, decoding: Decoding) -> Teacher:
    from pipestill.generation.openai_backend import OpenAITeacher

    return OpenAITeacher(config, decoding, chat=False)


BACKENDS: dict[str, Callable[[TeacherConfig, Decoding], Teacher]] = {
    "transformers": _transformers,
    "replay": _replay,
    "openai": _openai,
    "openai_completions": _openai_completions,  # for models without a chat template
}


def open_teacher(config: TeacherConfig, decoding: Decoding) -> Teacher:
    """The teacher that a configuration names; heavy work waits until the first answer.

    Raises:
        UserError: ``BACKEND_UNKNOWN``, and whatever the backend finds wrong.
    """
    if config.backend not in BACKENDS:
        raise UserError(
            "BACKEND_UNKNOWN",
            f"teacher_backend: found {config.backend!r}, allowed: {', '.join(BACKENDS)}",
            "correct the value",
        )
    return BACKENDS[config.backend](config, decoding)
