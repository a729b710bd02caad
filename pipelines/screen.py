"""What a person sees of a run: lines that stay, and on a terminal one status line that moves."""

import re
import shutil
import sys
import threading
import time
from collections.abc import Callable

# "step 120/300 …" and "label: 64 of 800 calls …": how far a step has come
PROGRESS = re.compile(r"^(?:step (\d+)/(\d+)|[^:]+: (\d+) of (\d+) calls)\b")
PLAIN_SECONDS = 15.0


class Screen:
    """Prints to today's standard output, also while another stream stands in its place.

    Args:
        say: takes each line instead, without a status line.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._stream = sys.stdout
        self._say = say or self._print
        self._terminal = say is None and self._stream.isatty()
        self._began = time.monotonic()
        self._status: dict[str, str] = {}
        self._shown: dict[str, float] = {}
        self._lock = threading.RLock()  # a line may come from a signal handler

    def line(self, text: str) -> None:
        """One line that stays, with the seconds since the start in front."""
        with self._lock:
            self._clear()
            self._say(f"{time.monotonic() - self._began:7.1f} s  {text}")
            self._draw()

    def step_line(self, label: str, text: str) -> None:
        """A line that a step printed; how far it has come is shown rarely, or as the status."""
        found = PROGRESS.match(text)
        if found and not self._due(label, found):
            return
        if found and self._terminal:
            with self._lock:
                self._status[label] = f"{label}: {found[0]}"
                self._clear()
                self._draw()
            return
        self.line(f"  {label}: {text.removeprefix(f'{label.split()[0]}: ')}")

    def ended(self, label: str) -> None:
        """Takes the step off the status line."""
        with self._lock:
            self._status.pop(label, None)

    def close(self) -> None:
        """Removes the status line."""
        with self._lock:
            self._clear()
            self._status.clear()

    def _due(self, label: str, found: re.Match[str]) -> bool:
        done, total = (int(part) for part in found.groups() if part)
        wait = 0.2 if self._terminal else PLAIN_SECONDS
        now = time.monotonic()
        if done < total and now - self._shown.get(label, 0.0) < wait:
            return False
        self._shown[label] = now
        return True

    def _clear(self) -> None:
        if self._terminal:
            self._stream.write("\r\x1b[K")

    def _draw(self) -> None:
        if self._terminal and self._status:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("   |   ".join(self._status.values())[:width])
            self._stream.flush()

    def _print(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()
