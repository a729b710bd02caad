"""Lines that are added one batch at a time under ``gs://``, where no object can be added to.

Every batch is an object of its own that must not exist yet, so it is there whole or not at all, and
`append` returns once it is. From time to time, and at the end, a writer joins its own parts into
one object and then removes them; killed in between it leaves lines twice, never none.
"""

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from pipestill.cloud import objects
from pipestill.errors import PipestillError

MOST_PARTS = 200  # then they are joined
MOST_BYTES = 1 << 20
READERS = 8  # parts are read side by side


class Parts:
    """The lines under one folder, by any number of writers at once."""

    def __init__(self, folder: str) -> None:
        self._folder = folder.rstrip("/")
        self._name = f"segment-{time.time_ns()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._written = 0
        self._open: list[tuple[str, str]] = []  # parts not joined yet: address, text

    def lines(self) -> Iterator[str]:
        """All lines, by writer in the order of their starting; a line can come twice."""
        seen: set[str] = set()
        while True:
            try:
                for uri, text in self._unseen(seen):
                    seen.add(uri)
                    yield from text.split("\n")
                return
            except FileNotFoundError:
                continue  # joined by its writer since it was listed: list again

    def append(self, text: str) -> None:
        """Stores whole lines; they are safe when it returns.

        Raises:
            UserError, WorkError: as `pipestill.cloud.objects.write_bytes`.
        """
        uri = f"{self._folder}/{self._name}-{self._written:06d}.part.jsonl"
        objects.write_bytes(uri, text.encode(), if_generation=0)
        self._written += 1
        self._open.append((uri, text))
        if len(self._open) >= MOST_PARTS or sum(len(text) for _, text in self._open) >= MOST_BYTES:
            self.join()

    def join(self) -> None:
        """Joins this writer's parts; where that fails they stay, and nothing is lost."""
        if len(self._open) < 2:
            return
        whole = f"{self._folder}/{self._name}-{self._written - 1:06d}.jsonl"
        with contextlib.suppress(PipestillError):
            text = "".join(text for _, text in self._open)
            objects.write_bytes(whole, text.encode(), if_generation=0)
            for uri, _ in self._open:
                objects.delete(uri)
        self._open = []

    def _unseen(self, seen: set[str]) -> Iterator[tuple[str, str]]:
        files, _ = objects.list_folder(self._folder)
        names = sorted(item.uri for item in files if item.uri.endswith(".jsonl"))
        todo = [name for name in names if name not in seen]
        with ThreadPoolExecutor(READERS) as pool:
            yield from zip(todo, pool.map(_text, todo), strict=True)


def _text(uri: str) -> str:
    return objects.read_bytes(uri).decode(errors="replace")
