"""The journal of finished teacher calls: append-only, content-addressed, safe to kill at any time.

A call's key is a digest of teacher, prompt, parameters and sample number, so the same question is
never paid for twice, by whichever step or pipeline asks. Every process writes segment files of its
own and nothing is ever rewritten, which also suits mounted object stores; readers merge all
segments and skip a torn last line. Under ``gs://`` a segment is a row of objects, one per batch.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from pipestill.errors import UserError
from pipestill.generation.teacher import Completion
from pipestill.locks import alone

if TYPE_CHECKING:
    from pipestill.cloud.parts import Parts

# A mounted object store uploads the whole file at every flush, so segments stay small there.
ROTATE_BYTES = 1 << 20
_NAMES = {field.name for field in dataclasses.fields(Completion)}


def call_key(fingerprint: str, subject: str, parameters: Mapping[str, Any], sample: int) -> str:
    """sha256 over everything that decides an answer."""
    parts = [fingerprint, subject, dict(sorted(parameters.items())), sample]
    return hashlib.sha256(json.dumps(parts).encode("utf-8")).hexdigest()


class Journal:
    """The folder ``<state_dir>/journal``; with an empty `state_dir`, a folder that is thrown away.

    Use it as a context manager. `state_dir` is a local folder or ``gs://bucket/folder``.

    Raises:
        UserError: ``STATE_DIR`` where the folder cannot be made or written; under ``gs://`` as
            `pipestill.cloud.objects.write_bytes`.
    """

    def __init__(self, state_dir: str) -> None:
        self._parts = _parts(state_dir)
        self._given = state_dir
        self._temporary = None if state_dir else tempfile.TemporaryDirectory(prefix="pipestill-")
        root = Path(self._temporary.name if self._temporary else state_dir).expanduser()
        self.folder = root / "journal"
        self._segment: TextIO | None = None
        if self._parts is not None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(state_dir, error) from error

    @property
    def place(self) -> str:
        """The `state_dir` that opens this journal again, also where none was given."""
        return self._given or str(self.folder.parent)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._parts is not None:
            self._parts.join()
        if self._segment is not None:
            self._segment.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    @contextlib.contextmanager
    def alone(self, keys: Collection[str]) -> Iterator[None]:
        """Makes a second process that asks the same questions wait, so that it finds the answers.

        Other questions do not wait. Under ``gs://`` there are no locks and nobody waits.
        """
        if self._parts is not None:
            yield
            return
        name = hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()[:32]
        with alone(self.folder / f".lock-{name}", "asks the same questions"):
            yield

    def find(self, keys: Collection[str]) -> dict[str, Completion]:
        """The finished calls among `keys`; the first record of a key wins."""
        wanted, found = set(keys), dict[str, Completion]()
        for line in self._parts.lines() if self._parts is not None else self._lines():
            record = _record(line)
            if record is not None and record[0] in wanted:
                found.setdefault(*record)
        return found

    def _lines(self) -> Iterator[str]:
        for path in sorted(self.folder.glob("segment-*.jsonl")):
            with path.open(encoding="utf-8", errors="replace") as source:
                yield from source

    def append(self, records: Iterable[tuple[str, str, Completion]]) -> None:
        """Writes finished calls (key, row id, completion); they are safe when it returns."""
        lines = [
            json.dumps({"key": key, "row": row, **dataclasses.asdict(completion)}) + "\n"
            for key, row, completion in records
        ]
        if not lines:
            return
        if self._parts is not None:
            self._parts.append("".join(lines))
            return
        try:
            segment = self._open_segment()
            segment.write("".join(lines))
            segment.flush()
            os.fsync(segment.fileno())
        except OSError as error:
            raise _unusable(str(self.folder), error) from error

    def _open_segment(self) -> TextIO:
        if self._segment is not None and self._segment.tell() < ROTATE_BYTES:
            return self._segment
        if self._segment is not None:
            self._segment.close()
        self.folder.mkdir(parents=True, exist_ok=True)  # a doubled step may have removed it
        name = f"segment-{time.time_ns()}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        self._segment = (self.folder / name).open("x", encoding="utf-8")
        return self._segment


def _parts(state_dir: str) -> "Parts | None":
    if not state_dir.startswith("gs://"):
        return None
    from pipestill.cloud.parts import Parts

    return Parts(f"{state_dir.rstrip('/')}/journal")


def _record(line: str) -> tuple[str, Completion] | None:
    try:
        value = json.loads(line)
        return value["key"], Completion(**{name: value[name] for name in _NAMES & value.keys()})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None  # a line that was torn by a killed process


def _unusable(state_dir: str, error: OSError) -> UserError:
    return UserError(
        "STATE_DIR",
        f"state_dir {state_dir}: {error.strerror or error}",
        "give a folder that can be written and that outlives the run",
    )
