"""Gzip files read as what they hold, with a limit on how much a small file may unpack to."""

import gzip
import io
import zlib
from typing import IO, Any, cast

from pipestill.errors import UserError

MAGIC = b"\x1f\x8b"
ENDING = ".gz"
# Rows of text shrink 3 to 20 times, and repeated ones up to 100; gzip itself reaches 1,032.
LARGEST_RATIO = 200
FREE_BYTES = 16 << 20  # unpacked; below it no ratio does harm


def inner_name(name: str) -> str:
    """The name without ``.gz``, whose ending says what the file holds."""
    return name[: -len(ENDING)] if name.lower().endswith(ENDING) else name


def unpacked(stream: IO[bytes], name: str) -> IO[bytes]:
    """`stream` itself, or what it holds where its first bytes are gzip's.

    Args:
        stream: open for reading, seekable, at its start.
        name: for messages.

    Raises:
        UserError: ``DATA_FORMAT`` where a ``.gz`` file is cut off before it begins; in reading:
            broken data, or data that unpack to more than `LARGEST_RATIO` times their size.
    """
    head = stream.read(len(MAGIC))
    packed = head == MAGIC
    if len(head) < len(MAGIC) and name.lower().endswith(ENDING):
        raise _refused(name, "no gzip data (is the file cut off?)", "pack it again")
    stream.seek(0)
    # The buffer gives readline() its limit, so that a line without end is never held.
    return cast(IO[bytes], io.BufferedReader(_Guarded(stream, name))) if packed else stream


class _Guarded(io.RawIOBase):
    """The unpacked bytes. Going back means unpacking anew, which `detect` does once."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self._packed, self._name = stream, name
        self._inner = gzip.GzipFile(fileobj=stream, mode="rb")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._inner.seek(offset, whence)

    def tell(self) -> int:
        return self._inner.tell()

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._inner.read(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            reason = str(error).splitlines()[0]
            raise _refused(self._name, f"broken gzip data ({reason})", "pack it again") from error
        buffer[: len(data)] = data
        size = self._inner.tell()
        if size > max(FREE_BYTES, LARGEST_RATIO * self._packed.tell()):
            raise _refused(
                self._name,
                f"gzip data that unpack to more than {LARGEST_RATIO} times their size",
                "if they are what you want, unpack the file and name the result",
            )
        return len(data)


def _refused(name: str, found: str, hint: str) -> UserError:
    return UserError("DATA_FORMAT", f"{name}: found {found}", hint)
