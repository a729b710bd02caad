"""The teacher `replay`: answers that were recorded earlier, found by the row's number.

Files are JSON lists of strings or JSON Lines with one string a line; several files are joined in
the order of the numbers in their names, so that ``part_10`` comes after ``part_9``.
"""

import hashlib
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipestill.config import TeacherConfig
from pipestill.data.source import list_files, natural_key, open_file, readable
from pipestill.errors import UserError
from pipestill.generation.teacher import (
    Batch,
    Completion,
    Decoding,
    Failure,
    Request,
    clean,
)

BATCH = 1000


class ReplayTeacher:
    """Recorded answers. Token counts are numbers of words, marked as estimated."""

    def __init__(self, config: TeacherConfig, decoding: Decoding) -> None:
        if config.samples != 1:
            raise UserError(
                "REPLAY_SAMPLES",
                f"teacher_samples: found {config.samples}, allowed: 1 (one recorded answer a row)",
                "set teacher_samples to 1 for the replay backend",
            )
        self._texts = recorded_texts(config.replay_uri)
        digest = hashlib.sha256()
        for text in self._texts:
            digest.update(text.encode("utf-8") + b"\0")
        self.fingerprint = f"replay:{digest.hexdigest()}"

    def subject(self, request: Request) -> str:
        return f"row {request.source_row}"

    def most_prompt_tokens(self, request: Request) -> int:
        return _words(request.query)

    def answer(self, requests: Iterable[Request]) -> Iterator[Batch]:
        pending = iter(requests)
        while batch := list(itertools.islice(pending, BATCH)):
            yield [(request, self._one(request)) for request in batch]

    def _one(self, request: Request) -> Completion | Failure:
        if not 0 <= request.source_row < len(self._texts):
            return Failure(
                reason=f"no recorded answer for source row {request.source_row}; "
                f"there are {len(self._texts)}"
            )
        text = self._texts[request.source_row]
        return Completion(
            text=text,
            prompt_tokens=_words(request.query),
            output_tokens=_words(text),
            estimated=True,
        )


def recorded_texts(uri: str) -> list[str]:
    """The recorded answers of a path, a glob or a ``gs://`` address, files in numeric order.

    Raises:
        UserError: as `recorded_files` and `read_recorded`; of ``gs://`` as
            `pipestill.data.source.list_files`.
    """
    if not uri.startswith("gs://"):
        return [text for path in recorded_files(uri) for text in read_recorded(path)]
    found = []
    for file in list_files(uri):
        with readable(file.name), open_file(file) as source:
            found += _entries(file.name, source.read())
    return found


def recorded_files(uri: str) -> list[Path]:
    """The files that a path or a glob names, in numeric order.

    Raises:
        UserError: ``REPLAY_NOT_FOUND``.
    """
    path = Path(uri).expanduser()
    if uri and any(sign in uri for sign in "*?["):
        root = Path(path.anchor or ".")
        found = [item for item in root.glob(str(path.relative_to(path.anchor))) if item.is_file()]
    else:
        found = [path] if uri and path.is_file() else []
    if not found:
        raise UserError(
            "REPLAY_NOT_FOUND",
            f"teacher_replay_uri: found {uri!r}, which names no file",
            "give a file of recorded answers, or a glob such as 'answers/train_*.json'",
        )
    return sorted(found, key=lambda item: natural_key(str(item)))


def read_recorded(path: Path) -> list[str]:
    """The recorded answers of one file.

    Raises:
        UserError: ``REPLAY_UNREADABLE`` with file and line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError("REPLAY_UNREADABLE", f"{path}: {error}", "correct the file") from error
    return _entries(path, data)


def _entries(path: Path | str, data: bytes) -> list[str]:
    try:
        text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8").read()  # any line end is "\n"
    except UnicodeDecodeError as error:
        raise UserError("REPLAY_UNREADABLE", f"{path}: {error}", "correct the file") from error
    if text.lstrip().startswith("["):
        values = _loads(path, 1, text)
        return [_checked(path, number, value) for number, value in enumerate(values, 1)]
    # Only "\n" ends a line here: `splitlines` would also split at separators inside of strings.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [_checked(path, number, _loads(path, number, line)) for number, line in lines]


def _loads(path: Path | str, line: int, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            "REPLAY_UNREADABLE",
            f"{path}, line {line}: not JSON ({error})",
            "a recording is a JSON list of strings, or one JSON string a line",
        ) from error


def _checked(path: Path | str, number: int, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(
            "REPLAY_UNREADABLE",
            f"{path}, entry {number}: found {type(value).__name__}, allowed: a string",
            "a recording is a JSON list of strings, or one JSON string a line",
        )
    return clean(value)


def _words(text: str) -> int:
    return len(text.split())
