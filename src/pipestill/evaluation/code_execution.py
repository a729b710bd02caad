"""Does generated code do what its tests ask? Only ever in a process that can do nothing else.

The process (`pipestill.evaluation.code_sandbox`) has an empty environment, an empty folder that is
thrown away, no network, no right to write or start anything, bounded time and memory, and is killed
with its whole group when its time is up. A program passes where the last line of its tests was
reached; leaving early is no pass. Nothing of what it prints is kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SANDBOX = Path(__file__).with_name("code_sandbox.py")
LONGEST_REPORT = 4096  # bytes
LONGEST_PROGRAM = 200_000  # characters
_FENCE = re.compile(r"```[\w+-]*\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Outcome:
    """How a program ended: ``passed``, ``failed``, ``timeout`` or ``crashed``.

    `error` is the exception's name where it failed, the signal where it crashed. `filtered` says
    whether the system-call filter was in force.
    """

    status: str
    error: str = ""
    seconds: float = 0.0
    filtered: bool = False

    @property
    def passed(self) -> bool:
        return self.status == "passed"


def run_program(program: str, *, timeout_s: float = 5.0, memory_mb: int = 512) -> Outcome:
    """Runs a Python program in the sandbox.

    Args:
        program: its text; right where it ends without an error.
        timeout_s: wall-clock seconds, after which it is killed; CPU seconds are bounded too.
        memory_mb: address space in MiB (Python itself takes about 30).
    """
    if len(program) > LONGEST_PROGRAM:
        return Outcome("failed", "ProgramTooLong")
    token = secrets.token_hex(16)
    limits = {"timeout_s": timeout_s, "memory_mb": memory_mb}
    job = json.dumps({"program": program, "token": token, "limits": limits}).encode()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pipestill-code-") as folder:
        reader, writer = os.pipe()
        try:
            process = _start(folder, writer)
            os.close(writer)
            report = _talk(process, job, reader, began + timeout_s)
        finally:
            os.close(reader)
    seconds = time.monotonic() - began
    if report is None:
        return Outcome("timeout", seconds=seconds)
    if report.get("token") != token:
        return Outcome("crashed", _how(process.returncode), seconds)
    filtered = bool(report.get("filtered"))
    if report["error"]:
        return Outcome("failed", str(report["error"])[:80], seconds, filtered)
    return Outcome("passed", "", seconds, filtered)


def assemble(prompt: str, answer: str, tests: str) -> str:
    """The program of a code row: the prompt, the answer as its continuation, then the tests.

    An answer in a Markdown fence is taken out of it. One that defines everything anew (it has a
    ``def`` or ``class`` at the left margin) stands after the prompt's imports; otherwise it is the
    body of the prompt's last function, whose first line gets its indent back.
    """
    fenced = _FENCE.search(answer)
    code = fenced[1] if fenced else answer
    if re.search(r"^(async def|def|class)\s", code, re.MULTILINE) and _defines(prompt, code):
        imports = [line for line in prompt.splitlines() if line.startswith(("import ", "from "))]
        return "\n".join([*imports, code, tests])
    body = code if code[:1].isspace() else "    " + code
    return f"{prompt.rstrip()}\n{body}\n{tests}"


def _defines(prompt: str, code: str) -> bool:
    names = re.findall(r"^def\s+(\w+)", prompt, re.MULTILINE)
    return not names or bool(re.search(rf"^def\s+{re.escape(names[-1])}\b", code, re.MULTILINE))


def _start(folder: str, writer: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 (our own script; the program arrives on its input)
        [sys.executable, "-I", "-S", "-B", str(SANDBOX), str(writer)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={},
        cwd=folder,
        pass_fds=(writer,),
        start_new_session=True,
    )


def _talk(
    process: subprocess.Popen[bytes], job: bytes, reader: int, deadline: float
) -> dict[str, object] | None:
    """The report; {} where the process ended without one, None where its time was up."""
    data = b""
    try:
        with contextlib.suppress(BrokenPipeError):
            assert process.stdin is not None
            process.stdin.write(job)
            process.stdin.close()
        while len(data) < LONGEST_REPORT:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([reader], [], [], left)[0]:
                return None
            block = os.read(reader, LONGEST_REPORT)
            if not block:
                break
            data += block
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, deadline - time.monotonic()))
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    try:
        report = json.loads(data)
    except ValueError:
        return {}
    return report if isinstance(report, dict) else {}


def _how(returncode: int) -> str:
    if returncode >= 0:
        return f"left with code {returncode}"
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"
