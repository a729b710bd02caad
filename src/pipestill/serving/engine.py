"""One worker thread owns the model; requests that come close together share a generate call.

The thread loads the model, answers a probe, and from then on takes requests from a bounded queue.
Requests share a call only where they ask for the same thing (output limit, rationale or not).
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipestill.errors import UserError
from pipestill.models.chat import Conversation

log = logging.getLogger("pipestill.serving")
PROBE = "Is anybody there?"
Answer = dict[str, Any]


class Answerer(Protocol):
    """The part of `pipestill.models.student.Student` that serving uses."""

    @property
    def renderer(self) -> Any: ...

    def answer(
        self, inputs: Sequence[str], *, batch_size: int, max_new_tokens: int
    ) -> list[Any]: ...

    def explain(
        self, inputs: Sequence[str], *, batch_size: int, max_new_tokens: int
    ) -> list[Any]: ...


class QueueFullError(Exception):
    """More requests wait than the queue holds."""


class NotReadyError(Exception):
    """The model is not loaded, or it cannot answer."""


class InputTooLongError(Exception):
    """An instance has more tokens than the student reads; `index` says which."""

    def __init__(self, index: int, limit: int) -> None:
        self.index, self.limit = index, limit
        super().__init__(f"instance {index} is longer than {limit} tokens")


class InputRefusedError(Exception):
    """A conversation that this model cannot be given; `index` says which instance."""

    def __init__(self, index: int, reason: str) -> None:
        self.index = index
        super().__init__(reason)


@dataclass
class Job:
    """One request: its texts, what it asks for, and where the answers go."""

    texts: list[str]
    max_output_tokens: int
    explain: bool
    future: Future[list[Answer]] = field(default_factory=Future)

    @property
    def kind(self) -> tuple[int, bool]:
        return self.max_output_tokens, self.explain


class Engine:
    """The queue and the thread behind a server.

    Args:
        load: makes the student; called in the worker thread.
        max_batch: instances that share a call; a larger request gets a call of its own.
        max_wait_ms: how long a request waits for others.
        max_queue: requests that may wait.
        on_ready: called once, when the model has answered the probe.
        on_failure: called when loading fails, which no retry mends.
    """

    def __init__(
        self,
        load: Callable[[], Answerer],
        *,
        max_batch: int,
        max_wait_ms: int,
        max_queue: int,
        on_ready: Callable[[], None] = lambda: None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._load, self._on_ready, self._on_failure = load, on_ready, on_failure
        self._max_batch, self._max_wait = max_batch, max_wait_ms / 1000
        self._jobs: queue.Queue[Job | None] = queue.Queue(max_queue)
        self._held: Job | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="pipestill-model", daemon=True)
        self.problem: str | None = "the model is still loading"
        self.failure: Exception | None = None

    def start(self) -> None:
        """Starts loading; `problem` becomes None once the model has answered the probe."""
        self._thread.start()

    def stop(self, timeout: float = 30.0) -> None:
        """Lets the running call end, then ends the thread; waiting requests get `NotReadyError`."""
        self._stopping.set()
        self.problem = "the server is stopping"
        if self._thread.is_alive():
            self._thread.join(timeout)

    def submit(
        self, texts: Sequence[str], *, max_output_tokens: int, explain: bool = False
    ) -> Future[list[Answer]]:
        """Queues one request; its future holds one answer per text, in order.

        Raises:
            NotReadyError: no model yet, or one that cannot answer.
            QueueFullError: too many requests wait.
        """
        if self.problem is not None:
            raise NotReadyError(self.problem)
        job = Job(list(texts), max_output_tokens, explain)
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise QueueFullError(f"{self._jobs.maxsize} requests wait already") from None
        return job.future

    def _work(self) -> None:
        try:
            student = self._load()
            self._probe(student)
        except Exception as error:  # whatever a broken model raises must turn the health red
            self.failure, self.problem = error, f"the model cannot be loaded: {error}"
            log.error("%s", self.problem)
            self._on_failure()
            return
        self.problem = None
        self._on_ready()
        while not self._stopping.is_set():
            jobs = self._gather()
            if jobs:
                self._run(student, jobs)
        self._refuse_the_rest()

    def _probe(self, student: Answerer) -> None:
        student.answer([PROBE], batch_size=1, max_new_tokens=2)

    def _next(self, timeout: float) -> Job | None:
        if self._held is not None:
            job, self._held = self._held, None
            return job
        try:
            return self._jobs.get(timeout=max(timeout, 0))
        except queue.Empty:
            return None

    def _gather(self) -> list[Job]:
        """The next request, and those that come within the wait and fit into its call."""
        first = self._next(0.1)
        if first is None:
            return []
        jobs, total = [first], len(first.texts)
        deadline = time.monotonic() + self._max_wait
        while total < self._max_batch:
            job = self._next(deadline - time.monotonic())
            if job is None:
                break
            if job.kind != first.kind or total + len(job.texts) > self._max_batch:
                self._held = job
                break
            jobs.append(job)
            total += len(job.texts)
        return jobs

    def _run(self, student: Answerer, jobs: list[Job]) -> None:
        wanted = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        try:
            fitting = [job for job in wanted if not _refused(student, job)]
            answers = iter(_answers(student, fitting))
            for job in fitting:
                job.future.set_result([next(answers) for _ in job.texts])
        except Exception as error:  # one bad call must not end the thread
            log.exception("the model failed on %d requests", len(wanted))
            for job in wanted:
                if not job.future.done():
                    job.future.set_exception(NotReadyError(f"the model failed ({_kind(error)})"))
            self._recover(student)

    def _recover(self, student: Answerer) -> None:
        """After a failure the model must answer the probe again, or the health turns red."""
        try:
            self._probe(student)
        except Exception as error:
            self.problem = f"the model no longer answers ({_kind(error)})"
            log.error("%s", self.problem)

    def _refuse_the_rest(self) -> None:
        while (job := self._next(0)) is not None:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(NotReadyError("the server is stopping"))


def _kind(error: Exception) -> str:
    return type(error).__name__


def _refused(student: Answerer, job: Job) -> bool:
    """Refuses the whole request where an input would be cut: a cut question has a wrong answer.

    So it does where a conversation is asked of a model that does not read any, or not this one.
    """
    for index, text in enumerate(job.texts):
        refusal = _no_chat(student, index, text) if isinstance(text, Conversation) else None
        if refusal:
            job.future.set_exception(refusal)
            return True
    for task in ("predict", "explain") if job.explain else ("predict",):
        for index, prompt in enumerate(student.renderer.prompts(task, job.texts)):
            if prompt.truncated:
                limit = student.renderer.max_input_tokens
                job.future.set_exception(InputTooLongError(index, limit))
                return True
    return False


def _no_chat(student: Answerer, index: int, text: str) -> Exception | None:
    """Why a conversation is refused. It is rendered once here: shortening it could take hours."""
    renderer = student.renderer
    if renderer.style != "chat":
        found = f"this model is not tuned for chat (its style is {renderer.style})"
        return InputRefusedError(index, f"{found}, give it an input_text")
    try:
        too_long = renderer.whole_length(text) > renderer.max_input_tokens
    except UserError as error:
        return InputRefusedError(index, error.message)
    return InputTooLongError(index, renderer.max_input_tokens) if too_long else None


def _answers(student: Answerer, jobs: list[Job]) -> list[Answer]:
    """One generate call for all texts of `jobs`, and one more where rationales are asked for."""
    texts = [text for job in jobs for text in job.texts]
    if not texts:
        return []
    limits = {"batch_size": len(texts), "max_new_tokens": jobs[0].max_output_tokens}
    answers = [
        {
            "output_text": given.text,
            "prompt_tokens": given.prompt_tokens,
            "output_tokens": given.output_tokens,
        }
        for given in student.answer(texts, **limits)
    ]
    if jobs[0].explain:
        for answer, given in zip(answers, student.explain(texts, **limits), strict=True):
            answer["rationale"] = given.text
    return answers
