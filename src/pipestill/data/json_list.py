"""Splits a JSON list into the bytes of its elements without holding the list in memory.

Only brackets and quotes are looked at, so an element that is not valid JSON inside costs itself
and nothing else. A text that runs over a line end, or a list that never closes, leaves no safe
place to go on from: that is an error for the file.
"""

import re
from collections.abc import Iterator
from typing import IO

from pipestill.data import lines
from pipestill.errors import UserError

CHUNK_BYTES = 1 << 16
_OUTSIDE = re.compile(rb'["{}\[\],\n]')
_INSIDE = re.compile(rb'\\.|["\n]')  # in a string: an escape, the closing quote, a line end
_UNCLOSED = b"unclosed"


class _Element:
    """The bytes of the element being read, never more than `lines.MAX_LINE_BYTES` of them."""

    def __init__(self) -> None:
        self.data, self.line, self.too_long = bytearray(), 0, False

    def add(self, piece: bytes, line: int) -> None:
        if not self.data:
            piece = piece.lstrip()
            self.line = line
        if not self.too_long:
            self.data += piece
        if len(self.data) > lines.MAX_LINE_BYTES:
            del self.data[200:]
            self.too_long = True

    def take(self) -> lines.Line | None:
        data, too_long = bytes(self.data).rstrip(), self.too_long
        self.data, self.too_long = bytearray(), False
        return lines.Line(self.line, data, too_long) if data else None


def split_list(stream: IO[bytes], name: str) -> Iterator[lines.Line]:
    """Yields the elements as lines, numbered by where each begins.

    Raises:
        UserError: ``DATA_JSON_BROKEN``.
    """
    element, depth, line, closed = _Element(), 0, 1, False
    for gap, mark in _marks(stream):
        if mark == _UNCLOSED:
            raise _broken(name, line, "a text is not closed on its line")
        if depth == 0:
            if gap.strip() or mark not in (b"", b"\n", b"[") or (closed and mark == b"["):
                raise _broken(name, line, "there is text after the end of the list")
            depth = int(mark == b"[")
        elif depth == 1 and mark in (b",", b"]"):
            element.add(gap, line)
            if taken := element.take():
                yield taken
            elif mark == b",":
                yield lines.Line(line, b"")  # two commas in a row: a broken row, counted
            closed = mark == b"]"
            depth = 0 if closed else 1
        else:
            element.add(gap + mark, line)
            depth += (mark in (b"{", b"[")) - (mark in (b"}", b"]") and depth > 1)
        line += mark == b"\n"
    if not closed:
        raise _broken(name, line, "the list is not closed (is the file cut off?)")


def _marks(stream: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yields (bytes up to a mark, mark); marks are ``{ } [ ] ,`` and line ends outside strings."""
    pattern, held = _OUTSIDE, b""
    while chunk := stream.read(CHUNK_BYTES):
        buffer, start, at = held + chunk, 0, 0
        while match := pattern.search(buffer, at):
            mark, at = match.group(), match.end()
            if pattern is _INSIDE:
                if mark == b"\n":
                    yield b"", _UNCLOSED
                    return
                pattern = _OUTSIDE if mark == b'"' else _INSIDE
            elif mark == b'"':
                pattern = _INSIDE
            else:
                yield buffer[start : match.start()], mark
                start = at
        # A backslash at the chunk's end belongs to the byte that comes next.
        held = b"\\" if pattern is _INSIDE and buffer.endswith(b"\\", at) else b""
        yield buffer[start : len(buffer) - len(held)], b""


def _broken(name: str, line: int, what: str) -> UserError:
    return UserError(
        "DATA_JSON_BROKEN",
        f"{name}, line {line}: {what}, so the rest of this JSON list cannot be read",
        "repair that line, or store JSON lines, where a broken row costs only itself",
    )
