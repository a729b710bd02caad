"""Lines of a byte stream, with a limit on how much of one is ever held in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

MAX_LINE_BYTES = 1 << 20


@dataclass(frozen=True)
class Line:
    """One line without its line end. `too_long` lines carry only their first bytes."""

    number: int
    data: bytes
    too_long: bool = False


def bounded_lines(stream: IO[bytes]) -> Iterator[Line]:
    """Yields the lines, blank ones too; of one over `MAX_LINE_BYTES` only the first bytes."""
    number = 0
    while data := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(data) > MAX_LINE_BYTES and not data.endswith(b"\n"):
            while (more := stream.readline(MAX_LINE_BYTES)) and not more.endswith(b"\n"):
                pass
            yield Line(number, data[:200], too_long=True)
        else:
            yield Line(number, data.rstrip(b"\r\n"))
