"""The bad teacher's server as a process that can be killed and started again, and its books."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipestill.config import TeacherConfig
from pipestill.records import Example, write_jsonl

PROMPT = """
name: soak
version: 1
source: written for the reliability suite
query: "Q: {input}\\nA:"
answer: " {rationale} So the answer is {label}.\\n\\n"
stop: ["\\n\\nQ:"]
parser: so_the_answer_is
examples:
  - {input: "a", rationale: "It is about a.", label: "a"}
"""


class BadTeacher:
    """A server process on a port of its own. `log` has a line for every request it ever got."""

    def __init__(self, folder: Path, seed: str, trouble: float = 0.0, kinds: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.log = folder, folder / "requests.jsonl"
        self._options = [str(self.log), seed, str(trouble), kinds]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self.prompt = folder / "soak.yaml"
        self.prompt.write_text(PROMPT, encoding="utf-8")

    def start(self) -> None:
        """Starts the process and waits until it listens."""
        command = [sys.executable, "-m", "benchmarks.soak.bad_server", str(self.port)]
        self._process = subprocess.Popen(  # noqa: S603 (our own command)
            [*command, *self._options], start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port), 0.2),
            ):
                return
            time.sleep(0.02)
        raise RuntimeError("the server did not start")

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def __enter__(self) -> "BadTeacher":
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.kill()

    def config(self, **changes: Any) -> TeacherConfig:
        """Settings of a client that is in a hurry."""
        values: dict[str, Any] = {
            "backend": "openai", "base_url": f"http://127.0.0.1:{self.port}/v1",
            "model_reference": "bad", "prompt": str(self.prompt), "shots": 1, "samples": 1,
            "concurrency": 8, "max_retries": 6, "timeout_s": 1.5, "audit_rows": 0,
            "min_success": 1.0, "api_key_env": "PIPESTILL_SOAK_NO_KEY",
        }  # fmt: skip
        return TeacherConfig(**values | changes)

    def requests(self) -> list[dict[str, Any]]:
        """All requests so far."""
        if not self.log.exists():
            return []
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]

    def paid(self) -> Counter[str]:
        """Answers given, by row; those that were lost on the way are not among them."""
        from benchmarks.soak.bad_server import LOST

        return Counter(
            item["row"] for item in self.requests() if item["paid"] and item["action"] not in LOST
        )


def rows(count: int, name: str = "a") -> list[Example]:
    """Rows without labels that the server can tell apart."""
    return [Example(id=f"{name}{n}", input_text=f"row:{name}{n}: is it so?") for n in range(count)]


def write_rows(path: Path, count: int, name: str = "a") -> Path:
    """A file of such rows."""
    write_jsonl(path, rows(count, name))
    return path


def journaled(state: Path) -> set[str]:
    """The rows whose answers the journal holds, torn lines left out."""
    found = set()
    for segment in sorted((state / "journal").glob("segment-*.jsonl")):
        for line in segment.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError):
                found.add(json.loads(line)["row"])
    return found


@contextlib.contextmanager
def short_waits() -> Iterator[None]:
    """Waits between attempts that suit a test, in this process and in what it forks."""
    from pipestill.generation import openai_backend

    before = openai_backend.FIRST_WAIT_S, openai_backend.LONGEST_WAIT_S
    openai_backend.FIRST_WAIT_S, openai_backend.LONGEST_WAIT_S = 0.02, 0.3
    try:
        yield
    finally:
        openai_backend.FIRST_WAIT_S, openai_backend.LONGEST_WAIT_S = before
