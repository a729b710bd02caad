"""Folders that outlive a run, on this machine or in a bucket: what all who write there share."""

import hashlib
from pathlib import Path
from typing import Any

LOCAL = ("file", "local")


def open_place(folder: str | Path) -> tuple[Any, str]:
    """The file system of a path or address, and the folder's name in it."""
    from pipestill.cloud.filesystem import open_url

    files, root = open_url(folder)
    return files, root.rstrip("/")


def is_local(files: Any) -> bool:
    """Whether a file system is this machine's own."""
    protocol = files.protocol
    return any(name in LOCAL for name in ([protocol] if isinstance(protocol, str) else protocol))


def first_line(error: Exception) -> str:
    """The first line of what a file system said, short enough for one line."""
    text = next(iter(str(error).strip().splitlines()), "")
    return (text or type(error).__name__)[:300]


def file_digest(path: Path) -> str:
    """sha256 of a file's contents."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
