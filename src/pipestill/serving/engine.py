"""One worker thread owns the model; requests are answered together, a token of each at a step.

The thread loads the model, answers a probe, and from then on takes requests from a bounded queue.
Every row has its own limit and is answered at the step that ends it, whatever the others still
write. A row whose request was cancelled ends at the next step. Where the model allows it
(`pipestill.serving.flow`), rows join those under way at any step; otherwise those that come close
together share a generate call, and the next call begins when it has ended.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from pipestill.serving.batching import Batches, Limits
from pipestill.serving.decode import Answerer, Watch, advance, decode, ends_of, rows_of
from pipestill.serving.jobs import (
    Answer,
    InputRefusedError,
    InputTooLongError,
    Job,
    NotReadyError,
    QueueFullError,
    RequestTooLargeError,
    Row,
    Waiting,
)

__all__ = [
    "PROBE", "Answer", "Answerer", "Engine", "InputRefusedError", "InputTooLongError",
    "NotReadyError", "QueueFullError", "RequestTooLargeError",
]  # fmt: skip

log = logging.getLogger("pipestill.serving")
PROBE = "Is anybody there?"
STOPPING = "the server is stopping"


def _flow_of(student: Answerer) -> Any:
    from pipestill.serving.flow import flow_of

    return flow_of(student)


class Engine:
    """The queue and the thread behind a server.

    Args:
        load: makes the student; called in the worker thread.
        max_batch: rows that are answered at once.
        max_wait_ms: how long a request waits for others, at most. It waits only where others can
            be expected: one caller who asks again and again never waits.
        max_queue: requests that may wait.
        max_batch_tokens: of those rows, padding and answers included.
        max_request_tokens: tokens, answers included, of one request.
        stall_s: so many seconds without a token, while rows are under way, turn `problem` on, until
            the next token.
        retry_s: seconds between probes of a model that failed.
        on_ready: called once, when the model has answered the probe.
        on_failure: called when loading fails, which no retry mends.
        generate: as `pipestill.serving.decode.decode`, for models that do not flow.
        flow: gives a `pipestill.serving.flow.Flow` for the student, or None.
    """

    def __init__(
        self,
        load: Callable[[], Answerer],
        *,
        max_batch: int,
        max_wait_ms: int,
        max_queue: int,
        max_batch_tokens: int = 65_536,
        max_request_tokens: int = 200_000,
        stall_s: float = 60.0,
        retry_s: float = 2.0,
        on_ready: Callable[[], None] = lambda: None,
        on_failure: Callable[[], None] = lambda: None,
        generate: Callable[[Any, Sequence[list[int]], int, Watch], None] = decode,
        flow: Callable[[Any], Any] = _flow_of,
    ) -> None:
        self._load, self._on_ready, self._on_failure = load, on_ready, on_failure
        self._generate, self._flow_of = generate, flow
        self._flow: Any = None
        self._stall, self._retry = stall_s, retry_s
        self._waiting = Waiting(max_queue)
        self._batches = Batches(
            self._waiting,
            Limits(
                max_batch=max_batch,
                max_wait=max_wait_ms / 1000,
                max_batch_tokens=max_batch_tokens,
                max_request_tokens=max_request_tokens,
            ),
        )
        self._running: list[Row] = []
        self._last_step: float | None = None  # None while no call runs
        self._draining = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="pipestill-model", daemon=True)
        self._trouble: str | None = "the model is still loading"
        self.failure: Exception | None = None
        self.on_step: Callable[[int, float], None] = lambda rows, seconds: None

    @property
    def problem(self) -> str | None:
        """Why no request is taken now, or None."""
        if self._draining:
            return STOPPING
        step = self._last_step
        if self._trouble is None and step is not None:
            silent = time.monotonic() - step
            if silent > self._stall:
                return f"the model hangs: no token for {silent:.0f} s"
        return self._trouble

    @property
    def draining(self) -> bool:
        """Whether the end has begun."""
        return self._draining

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting) + (self._batches.held is not None)

    def start(self) -> None:
        """Starts loading; `problem` becomes None once the model has answered the probe."""
        self._thread.start()

    def drain(self) -> None:
        """Takes no more requests; those that are here are still answered."""
        self._draining = True

    def stop(self, timeout: float = 30.0) -> None:
        """Lets the running call end, then ends the thread; waiting requests get `NotReadyError`.

        Where the call does not end in `timeout` seconds, its requests get `NotReadyError` too.
        """
        self.drain()
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout)
        self.abandon()

    def abandon(self) -> None:
        """Refuses everything that waits or runs."""
        _refuse([*self._in_line(), *(row.job for row in self._running)], STOPPING)

    def submit(
        self,
        texts: Sequence[str],
        *,
        max_output_tokens: int,
        explain: bool = False,
        on_text: Callable[[str], None] | None = None,
    ) -> Future[list[Answer]]:
        """Queues one request; its future holds one answer per text, in order.

        Cancel the future to have the request dropped, also when it is being answered.

        Args:
            texts: the inputs.
            max_output_tokens: of each answer; the student's own limit holds too.
            explain: also a rationale.
            on_text: gets the first text's answer piece by piece, in the worker's thread.

        Raises:
            NotReadyError: no model yet, or one that cannot answer.
            QueueFullError: too many requests wait.
        """
        if (problem := self.problem) is not None:
            raise NotReadyError(problem)
        job = Job(list(texts), max_output_tokens, explain, on_text)
        self._waiting.put(job)
        return job.future

    def _work(self) -> None:
        try:
            student = self._load()
            self._flow = self._flow_of(student)
            self._probe(student)
        except Exception as error:  # whatever a broken model raises must turn the health red
            self.failure, self._trouble = error, f"the model cannot be loaded: {error}"
            log.error("%s", self._trouble)
            self._on_failure()
            return
        self._trouble = None
        self._on_ready()
        while not self._stopping.is_set():
            if self._trouble is not None:
                self._mend(student)
            elif self._flow is not None:
                self._guarded(student, lambda: self._let_flow(student, self._flow))
            elif jobs := self._batches.gather(student):
                self._running = [row for job in jobs for row in job.rows]
                self._guarded(student, lambda: self._call_all(student))
        self.abandon()

    def _in_line(self) -> list[Job]:
        held = self._batches.held
        late = [row.job for row in [*self._batches.pending]]
        return [*self._waiting.take_all(), *([held] if held else []), *late]

    def _probe(self, student: Answerer) -> None:
        """Asks something, in the way that requests are asked."""
        job = Job([PROBE], 2, False)
        job.rows = rows_of(student, job)
        if self._flow is None:
            self._call(student, job.rows)
            return
        self._last_step = time.monotonic()
        try:
            self._flow.clear()
            self._flow.add([row.ids for row in job.rows])
        finally:
            self._flow.clear()
            self._last_step = None

    def _guarded(self, student: Answerer, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # one bad step must not end the thread
            log.exception("the model failed on %d prompts", len(self._running))
            reason = f"the model failed ({type(error).__name__})"
            _refuse([row.job for row in self._running], reason)
            self._recover(student)
        finally:
            self._running, self._last_step = [], None

    def _let_flow(self, student: Answerer, flow: Any) -> None:
        """Answers until nothing is left; whatever comes joins, as far as there is room."""
        ends = ends_of(student)
        flow.clear()
        while True:
            rows, more = self._running, not self._stopping.is_set()
            joining = self._batches.joining(student, rows, more=more)
            if not rows and not joining:
                return
            self._running = [*rows, *joining]
            if self._last_step is None:
                self._last_step = time.monotonic()
            tokens = flow.step() if rows else []
            if joining:
                tokens += flow.add([row.ids for row in joining])
            self._take_in(student, self._running, tokens, ends)
            going = [place for place, row in enumerate(self._running) if not row.done]
            if len(going) < len(self._running):
                flow.keep(going)
                self._running = [self._running[place] for place in going]

    def _call_all(self, student: Answerer) -> None:
        for rows in self._batches.calls(self._running):
            self._call(student, rows)

    def _call(self, student: Answerer, rows: list[Row]) -> None:
        rows = [row for row in rows if not row.job.future.done()]
        if not rows:
            return
        ends = ends_of(student)

        def watch(tokens: Sequence[int]) -> list[bool]:
            self._take_in(student, rows, tokens, ends)
            return [row.done for row in rows]

        self._last_step = time.monotonic()
        try:
            limit = max(row.limit for row in rows)
            self._generate(student, [row.ids for row in rows], limit, watch)
        finally:
            self._last_step = None

    def _take_in(
        self, student: Answerer, rows: Sequence[Row], tokens: Sequence[int], ends: frozenset[int]
    ) -> None:
        """One step: the newest token of each row, and the moment at which it came."""
        now, written = time.monotonic(), 0
        for row, token in zip(rows, tokens, strict=True):
            if not row.done:
                written += 1
                advance(student, row, token, ends)
        self.on_step(written, now - (self._last_step or now))
        self._last_step = now

    def _recover(self, student: Answerer) -> None:
        """After a failure the model must answer the probe again, or the health turns red."""
        try:
            self._probe(student)
        except Exception as error:
            self._trouble = f"the model no longer answers ({type(error).__name__})"
            log.error("%s", self._trouble)
            _refuse(self._in_line(), self._trouble)

    def _mend(self, student: Answerer) -> None:
        """Asks a failed model again after a while; the health turns green when it answers."""
        self._stopping.wait(self._retry)
        try:
            self._probe(student)
        except Exception as error:
            log.debug("still no answer: %s", error)
            return
        self._trouble = None
        log.warning("the model answers again")


def _refuse(jobs: Sequence[Job], reason: str) -> None:
    for job in jobs:
        job.refuse(NotReadyError(reason))
