"""A tick's own half-open window of data, frozen to what the files held when it was first looked at.

The window of the tick at T is [tick before T, T), whenever the run really starts: a late run keeps
it. What lies in it is written once as a manifest (object generations, or digests of local files);
the run is keyed by that manifest, and a second run of the tick reads it again.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipestill.data.digest import content_digest
from pipestill.data.source import SourceFile, list_files
from pipestill.errors import UserError
from pipestill.retrain import store
from pipestill.retrain.cron import Cron

MANIFEST = "manifest.json"
ID = "%Y%m%dT%H%M%SZ"
STAMP = re.compile(
    r"(?<!\d)(\d{4})-?(\d\d)-?(\d\d)(?:[T_ -]?(\d\d)(?:[:-]?(\d\d)(?:[:-]?(\d\d))?)?)?Z?(?!\d)"
)


@dataclass(frozen=True, kw_only=True)
class Window:
    """[start, end), both instants of UTC."""

    start: datetime
    end: datetime

    def holds(self, moment: datetime) -> bool:
        return self.start <= moment < self.end

    @property
    def tick(self) -> str:
        """The tick's id: the instant at which its window ends."""
        return self.end.strftime(ID)

    def words(self) -> str:
        return f"[{rfc3339(self.start)}, {rfc3339(self.end)})"


@dataclass(frozen=True, kw_only=True)
class FrozenFile:
    """A file as it was: `identity` is a sha256 over its content, or over generation and checksum.

    `generation` is the object's, "" for a local file.
    """

    uri: str
    time: str
    identity: str
    generation: str = ""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a tick works on.

    `since` is where the rows begin that no training has seen; `base` is the tick of the training
    before, whose rows are trained on as well ("" = none).
    """

    tick: str
    start: str
    end: str
    since: str
    base: str
    source: str
    files: tuple[FrozenFile, ...] = field(default=())

    @property
    def digest(self) -> str:
        """sha256 over window and contents."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime:
    """An instant as RFC 3339 (Vertex AI), as 14 digits of UTC (Kubeflow), or a date.

    Raises:
        UserError: ``TICK_TIME``.
    """
    word = text.strip()
    try:
        if re.fullmatch(r"\d{14}", word):
            return datetime.strptime(word, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
        word = re.sub(r"(\.\d{6})\d+", r"\1", word)
        found = datetime.fromisoformat(word)
    except ValueError:
        raise UserError(
            "TICK_TIME",
            f"tick_time: found {text!r}, allowed: 2026-01-05T03:00:00Z, or empty for now",
        ) from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def window_of(moment: datetime, cron: Cron) -> Window:
    """The window that ends at the last tick at or before `moment`."""
    ticks = cron.before(moment)
    end = next(ticks)
    return Window(start=next(ticks), end=end)


def time_of(file: SourceFile) -> datetime:
    """When a file was closed: the time in its own name, else that of its last change.

    The time in a name is read as UTC. Folders are not looked at.
    """
    found = STAMP.search(os.path.basename(file.path))
    if found:
        year, month, day, hour, minute, second = (int(part or 0) for part in found.groups())
        try:
            return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
        except ValueError:
            pass  # digits that are no date
    if file.filesystem is None:
        return datetime.fromtimestamp(os.stat(file.path).st_mtime, UTC)
    info = file.filesystem.info(file.path)
    changed = info.get("updated") or info.get("mtime")
    if changed:
        return changed if isinstance(changed, datetime) else parse_time(str(changed))
    written = int(info.get("generation") or 0)  # microseconds since 1970
    if written < 10**15:
        raise UserError(
            "FILE_TIME",
            f"{file.name}: the store does not say when it was written, its name neither",
            "name files by the moment at which they were closed, such as rows-2026-01-05.jsonl",
        )
    return datetime.fromtimestamp(written / 1e6, UTC)


def freeze(
    uri: str, source: str, window: Window, since: datetime | None = None, base: str = ""
) -> Manifest:
    """The tick's manifest: read where the tick has one, else made of what lies there now.

    Args:
        uri: of the tick's manifest, which is never written twice.
        source: what `pipestill.data.source.list_files` takes.
        window: the tick's own.
        since: rows from here on belong to the tick as well: no training has seen them.
        base: tick of the training before.

    Raises:
        UserError: what listing raises; ``MANIFEST`` where the stored one cannot be read.
    """
    if store.read(uri) is not None:
        return read_manifest(uri)
    begin = min(since or window.start, window.start)
    wide = Window(start=begin, end=window.end)
    manifest = Manifest(
        tick=window.tick,
        start=rfc3339(window.start),
        end=rfc3339(window.end),
        since=rfc3339(begin),
        base=base,
        source=source,
        files=tuple(frozen_files(source, wide)),
    )
    store.create(uri, (json.dumps(asdict(manifest), indent=2) + "\n").encode())
    return read_manifest(uri)


def frozen_files(source: str, window: Window) -> Sequence[FrozenFile]:
    """The source's files whose time lies in the window, each with its content's identity.

    A source without any file yet has none: a tick may be empty.
    """
    try:
        files = list_files(source)
    except UserError as error:
        if error.code == "DATA_NOT_FOUND" and ("*" in source or os.path.isdir(source)):
            return []
        raise
    return [
        FrozenFile(
            uri=address(file),
            time=rfc3339(time),
            identity=content_digest(address(file)),
            generation=generation_of(file),
        )
        for file in files
        if window.holds(time := time_of(file))
    ]


def address(file: SourceFile) -> str:
    """The file's own reference."""
    if file.filesystem is None:
        return os.path.abspath(file.path)
    return file.name


def generation_of(file: SourceFile) -> str:
    """The object's generation, "" where the store has none."""
    if file.filesystem is None:
        return ""
    return str(file.filesystem.info(file.path).get("generation") or "")


def check_unchanged(manifest: Manifest) -> None:
    """Refuses a window whose files are no longer what they were.

    Raises:
        UserError: ``WINDOW_CHANGED`` naming the file.
    """
    for frozen in manifest.files:
        if content_digest(frozen.uri) != frozen.identity:
            raise UserError(
                "WINDOW_CHANGED",
                f"{frozen.uri}: no longer what it was when tick {manifest.tick} was frozen",
                "bring the old content back, or give the tick's rows another name",
            )


def read_manifest(uri: str) -> Manifest:
    """A stored manifest.

    Raises:
        UserError: ``MANIFEST``.
    """
    data = store.read(uri)
    try:
        value: Mapping[str, Any] = json.loads(data or b"")
        files = tuple(FrozenFile(**item) for item in value["files"])
        return Manifest(**{**value, "files": files})
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError("MANIFEST", f"{uri}: no manifest of a tick ({error})") from error
