"""An append-only ledger: one JSON line an event, each with the sha256 of the line before it.

A line taken out or changed therefore shows. The file is local, or an object of Cloud Storage, which
is written whole: only where the generation that was read still stands there, so that of two writers
the later one reads again and follows the earlier one.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipestill.cloud import objects
from pipestill.cloud.retries import SCHEME, Conflict
from pipestill.errors import UserError

FIRST = "0" * 64  # what the first line follows
TRIES = 20
Entry = dict[str, Any]
Same = Callable[[list[Entry]], Entry | None]


def read(uri: str) -> list[Entry]:
    """All entries in order; none where there is no ledger yet.

    Raises:
        UserError: ``LEDGER_BROKEN`` naming the line that is unreadable or does not follow;
            ``LEDGER_PLACE``; as `pipestill.cloud.objects.write_bytes`.
    """
    return parse(_bytes(uri)[0], uri)


def append(
    uri: str,
    facts: Mapping[str, Any],
    *,
    same: Same = lambda entries: None,
    now: datetime | None = None,
) -> tuple[Entry, bool]:
    """Adds an entry: its number, `facts`, the time, and the digest of the line before it.

    Args:
        uri: local path or ``gs://bucket/name``.
        facts: plain JSON values.
        same: finds, among the entries that stand there, the one that says the same already.
        now: the time to record; default: the present.

    Returns:
        The new entry and True, or the one that `same` found and False.

    Raises:
        UserError: as `read`; `Conflict` where other writers are always faster.
    """
    recorded = (now or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for attempt in range(TRIES):
        with _locked(uri):
            data, generation = _bytes(uri)
            entries = parse(data, uri)
            if known := same(entries):
                return known, False
            last = data.splitlines()[-1] if entries else None
            previous = hashlib.sha256(last).hexdigest() if last is not None else FIRST
            entry = {"number": len(entries) + 1, **facts, "recorded": recorded}
            entry["previous"] = previous
            line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
            try:
                _write(uri, data, line, generation)
                return entry, True
            except Conflict:
                if attempt + 1 == TRIES:
                    raise
    raise AssertionError  # the loop returns or raises


def parse(data: bytes, name: str) -> list[Entry]:
    """The entries of a ledger's bytes.

    Raises:
        UserError: ``LEDGER_BROKEN``.
    """
    found, before = [], FIRST
    for number, line in enumerate(data.splitlines(), 1):
        try:
            entry = json.loads(line)
            sound = entry["previous"] == before and entry["number"] == number
        except (ValueError, TypeError, KeyError, RecursionError):
            sound = False
        if not sound:
            raise UserError(
                "LEDGER_BROKEN",
                f"{name}, line {number}: does not follow from the line before it",
                "the ledger is only ever appended to: restore it from a copy",
            )
        found.append(entry)
        before = hashlib.sha256(line).hexdigest()
    return found


def _bytes(uri: str) -> tuple[bytes, int]:
    """Contents and generation (0 = nothing there; of local files always 0)."""
    if not uri.startswith(SCHEME):
        with _local(uri):
            path = Path(uri).expanduser()
            return (path.read_bytes() if path.exists() else b""), 0
    for _ in range(TRIES):
        before = objects.stat(uri)
        if before is None:
            return b"", 0
        data = objects.read_bytes(uri)
        after = objects.stat(uri)
        if after and after.generation == before.generation:
            return data, before.generation
    raise Conflict("STORAGE_CONFLICT", f"{uri}: changes faster than it can be read", "try again")


def _write(uri: str, data: bytes, line: bytes, generation: int) -> None:
    if uri.startswith(SCHEME):
        objects.write_bytes(uri, data + line, generation)
        return
    with _local(uri), Path(uri).expanduser().open("ab", buffering=0) as out:
        try:
            if out.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(out.fileno())
        except OSError:
            out.truncate(len(data))  # on a full disk no half line stays, which would break it
            raise


@contextlib.contextmanager
def _locked(uri: str) -> Iterator[None]:
    """One writer at a time in a local folder; objects have their generations instead."""
    if uri.startswith(SCHEME):
        yield
        return
    path = Path(uri).expanduser()
    with _local(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock").open("w")
    with lock:
        with contextlib.suppress(OSError):  # a mounted bucket has no locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _local(uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            "LEDGER_PLACE",
            f"ledger {uri}: {error.strerror or error}",
            "name a file that can be written, or gs://BUCKET/NAME.jsonl",
        ) from error
