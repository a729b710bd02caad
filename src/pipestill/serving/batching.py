"""Which requests are answered together."""

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipestill.serving.decode import Answerer, rows_of
from pipestill.serving.jobs import (
    InputRefusedError,
    InputTooLongError,
    Job,
    NotReadyError,
    RequestTooLargeError,
    Row,
    Waiting,
)

log = logging.getLogger("pipestill.serving")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What calls may hold; see `pipestill.serving.engine.Engine`."""

    max_batch: int
    max_wait: float  # seconds
    max_batch_tokens: int
    max_request_tokens: int


class Batches:
    """Takes waiting requests in turn and puts together those that fit into one call."""

    def __init__(self, waiting: Waiting, limits: Limits) -> None:
        self._waiting, self._limits = waiting, limits
        self.held: Job | None = None  # taken already, and to be first in the next call
        self.pending: deque[Row] = deque()  # taken already, and to join when there is room

    def joining(self, student: Answerer, rows: Sequence[Row], *, more: bool) -> list[Row]:
        """The rows that can join `rows`, which are under way; waits only where there are none.

        Args:
            student: the model that renders the prompts.
            rows: under way.
            more: whether new requests are taken, besides what is left of those that were.
        """
        if more and not self.pending:
            jobs = self._at_once(student, self._limits.max_batch - len(rows)) if rows else None
            for job in self.gather(student) if jobs is None else jobs:
                self.pending.extend(job.rows)
            if self.held is not None and not rows:
                self.pending.extend(self.held.rows)
                self.held = None
        found: list[Row] = []
        while self.pending and self._has_room([*rows, *found], self.pending[0]):
            row = self.pending.popleft()
            if not row.job.future.done():
                found.append(row)
        return found

    def _at_once(self, student: Answerer, room: int) -> list[Job]:
        jobs: list[Job] = []
        while sum(len(job.rows) for job in jobs) < room:
            job = self._next(student, 0.0)
            if job is None:
                break
            jobs.append(job)
        return jobs

    def _has_room(self, rows: Sequence[Row], row: Row) -> bool:
        if not rows:
            return True
        size, limits = len(rows) + 1, self._limits
        return size <= limits.max_batch and _padded_tokens([*rows, row]) <= limits.max_batch_tokens

    def gather(self, student: Answerer) -> list[Job]:
        """The next request, and those that come within the wait and fit into its call."""
        first = self._next(student, 0.1)
        if first is None:
            return []
        jobs = [first]
        expected, deadline = self._waiting.most(), time.monotonic() + self._limits.max_wait
        while sum(len(job.rows) for job in jobs) < self._limits.max_batch:
            wait = deadline - time.monotonic() if len(jobs) < expected else 0.0
            job = self._next(student, wait)
            if job is None:
                break
            if not self._fits(jobs, job):
                self.held = job
                break
            jobs.append(job)
        return jobs

    def _next(self, student: Answerer, timeout: float) -> Job | None:
        """The next request that is still wanted and can be asked, with its rows."""
        if self.held is not None:
            held, self.held = self.held, None
            return held
        deadline = time.monotonic() + timeout
        while (job := self._waiting.get(deadline - time.monotonic())) is not None:
            if job.future.done():
                continue
            try:
                job.rows = rows_of(student, job)
                self._check_size(job)
                return job
            except Exception as error:  # a text that cannot be read is its sender's alone
                self._refuse_one(job, error)
        return None

    def _check_size(self, job: Job) -> None:
        tokens = sum(row.tokens for row in job.rows)
        if tokens > self._limits.max_request_tokens:
            raise RequestTooLargeError(tokens, self._limits.max_request_tokens)

    def _refuse_one(self, job: Job, error: Exception) -> None:
        known = (InputTooLongError, InputRefusedError, RequestTooLargeError)
        if not isinstance(error, known):
            log.error("a request cannot be read", exc_info=error)
            error = NotReadyError(f"the model failed ({type(error).__name__})")
        job.refuse(error)

    def _fits(self, jobs: list[Job], job: Job) -> bool:
        rows = [row for other in [*jobs, job] for row in other.rows]
        return (
            len(rows) <= self._limits.max_batch
            and _padded_tokens(rows) <= self._limits.max_batch_tokens
        )

    def calls(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """The rows in calls that keep to the limit of tokens; one call, where the limit is kept."""
        rows = list(rows)
        if _padded_tokens(rows) > self._limits.max_batch_tokens:
            rows.sort(key=lambda row: -len(row.ids))
        while rows:
            size = len(rows)
            while size > 1 and _padded_tokens(rows[:size]) > self._limits.max_batch_tokens:
                size -= 1
            yield rows[:size]
            rows = rows[size:]


def _padded_tokens(rows: Sequence[Row]) -> int:
    """What a call of these rows takes up, padding and answers included."""
    width, limit = max(len(row.ids) for row in rows), max(row.limit for row in rows)
    return len(rows) * (width + limit)
