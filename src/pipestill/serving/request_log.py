"""An opt-in log of requests and answers, one JSON line each, as raw material for retraining.

Written is only what its sender allowed (``"consent": true`` in the instance): the input, the
answer, the time, the model's name. No header, no address, no key, no other field of the request.
A file is hidden while it grows; when it is full or its time is over it is closed and named by the
moment of closing, so whoever reads the folder finds whole files alone.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from pipestill.errors import UserError
from pipestill.retrain.logs import is_sampled

log = logging.getLogger("pipestill.serving")
CLOSED = "requests-{time}-{process}-{number}.jsonl"


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """Where and how much is logged."""

    folder: str
    share: float = 1.0  # of the inputs with consent, chosen by hash
    max_file_bytes: int = 16_000_000
    max_line_bytes: int = 100_000  # longer ones are left out whole
    max_minutes: float = 60.0  # a file is closed after so long


class RequestLog:
    """Appends to the log; `add` may be called from several threads.

    Args:
        settings: where and how much.
        model: name of the served model, written into each line.
        clock: seconds since 1970.

    Raises:
        UserError: ``SERVE_LOG`` where the folder cannot be made, or a setting makes no sense.
    """

    def __init__(
        self, settings: LogSettings, model: str, clock: Callable[[], float] = time.time
    ) -> None:
        if not 0 < settings.share <= 1:
            raise UserError(
                "SERVE_LOG", f"log share: found {settings.share}, allowed: more than 0, at most 1"
            )
        self._settings, self._model, self._clock = settings, model, clock
        self._folder = Path(settings.folder)
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._path = self._folder
        self._opened, self._size, self._number = 0.0, 0, 0
        self.skipped = 0  # lines that were too long
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                "SERVE_LOG",
                f"{settings.folder}: cannot be made ({error.strerror or error})",
                "choose another --log-requests",
            ) from error

    def add(self, instances: Sequence[Any], answers: Sequence[Mapping[str, Any]]) -> int:
        """Logs the instances that have consent and are in the sample; returns how many."""
        now, lines = self._clock(), []
        for instance, answer in zip(instances, answers, strict=True):
            text = instance.text()
            if instance.consent is True and is_sampled(text, self._settings.share):
                lines.append(self._line(now, text, answer))
        kept = [line for line in lines if len(line) <= self._settings.max_line_bytes]
        with self._lock:
            self.skipped += len(lines) - len(kept)
            try:
                for line in kept:
                    self._write(line, now)
            except OSError as error:  # a full disk must not cost anybody an answer
                log.warning("the request log cannot be written: %s", error)
                return 0
        return len(kept)

    def close(self) -> None:
        """Closes the file that grows, so that it can be read."""
        with self._lock:
            self._finish()

    def _line(self, now: float, text: str, answer: Mapping[str, Any]) -> bytes:
        row: dict[str, Any] = {
            "time": datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds"),
            "consent": True,
            "input_text": str(text),
            "output_text": answer["output_text"],
            "model": self._model,
        }
        if messages := getattr(text, "messages", None):
            row["messages"] = list(messages)
        return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"

    def _write(self, line: bytes, now: float) -> None:
        settings = self._settings
        old = now - self._opened > 60 * settings.max_minutes
        if self._file and (old or self._size + len(line) > settings.max_file_bytes):
            self._finish()
        if self._file is None:
            self._number += 1
            self._path = self._folder / f".requests-{os.getpid()}-{self._number}.open"
            self._file = self._path.open("ab")
            self._opened, self._size = now, 0
        self._file.write(line)
        self._file.flush()
        self._size += len(line)

    def _finish(self) -> None:
        if self._file is None:
            return
        self._file.close()
        self._file = None
        stamp = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y%m%dT%H%M%SZ")
        name = CLOSED.format(time=stamp, process=os.getpid(), number=self._number)
        self._path.rename(self._folder / name)
