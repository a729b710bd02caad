"""Requests on their way through the engine, and the bounded place where they wait."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from pipestill.serving.pieces import Pieces

Answer = dict[str, Any]


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


class RequestTooLargeError(Exception):
    """The instances of a request have, with their answers, more tokens than one request may."""

    def __init__(self, found: int, limit: int) -> None:
        self.found, self.limit = found, limit
        super().__init__(f"{found:,} tokens with the answers, at most {limit:,} are allowed")


@dataclass(eq=False)
class Row:
    """One prompt of a request and what has been generated for it.

    `ids` is the prompt, `new` what was generated (end mark included); both are token ids. `limit`
    is the most that `new` may have. `stop` is a text that ends the row, or empty.
    """

    job: "Job"
    task: str
    ids: list[int]
    limit: int
    stop: str = ""
    pieces: Pieces | None = None
    new: list[int] = field(default_factory=list)
    done: bool = False

    @property
    def tokens(self) -> int:
        """The most tokens that the row can come to."""
        return len(self.ids) + self.limit


@dataclass(eq=False)
class Job:
    """One request: its texts, what it asks for, and where the answers go.

    The future is the only way out: whoever loses interest cancels it, waiting or running.
    """

    texts: list[str]
    max_output_tokens: int
    explain: bool
    on_text: Callable[[str], None] | None = None
    future: Future[list[Answer]] = field(default_factory=Future)
    rows: list[Row] = field(default_factory=list)

    def answer(self, answers: list[Answer]) -> None:
        """Gives the answers to whoever still waits for them."""
        with contextlib.suppress(InvalidStateError):  # cancelled a moment ago
            self.future.set_result(answers)

    def refuse(self, error: Exception) -> None:
        """Gives a reason instead of answers."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)


class Waiting:
    """A queue of jobs with a limit; a job that is cancelled leaves it at once.

    It also counts the jobs that are anywhere in the engine, waiting or running. The most of them
    since the last look tells how many are worth waiting for: callers that ask again as soon as
    they are answered are that many.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._inside = self._most = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job) -> None:
        """Appends a job.

        Raises:
            QueueFullError: as many wait as may.
        """
        with self._changed:
            if len(self._jobs) >= self._limit:
                raise QueueFullError(f"{self._limit} requests wait already")
            self._jobs.append(job)
            self._inside += 1
            self._most = max(self._most, self._inside)
            self._changed.notify()
        job.future.add_done_callback(lambda _: self._leave(job))

    def get(self, timeout: float) -> Job | None:
        """The oldest job, or None where none comes within `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs, max(timeout, 0.0))
            return self._jobs.popleft() if self._jobs else None

    def take_all(self) -> Sequence[Job]:
        """Every job that waits."""
        with self._changed:
            jobs = list(self._jobs)
            self._jobs.clear()
        return jobs

    def most(self) -> int:
        """The most jobs that were in the engine at once since the last call."""
        with self._changed:
            most, self._most = self._most, self._inside
            return most

    def _leave(self, job: Job) -> None:
        with self._changed:
            self._inside -= 1
            if job in self._jobs:
                self._jobs.remove(job)
