"""Work in processes of its own, which can be killed, limited and measured."""

import contextlib
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipestill.errors import PipestillError

CRASHED = 70
DISK = (errno.EFBIG, errno.ENOSPC, errno.EROFS, errno.EDQUOT)


@dataclass(frozen=True)
class Outcome:
    """How a child ended: its result, or the one line of its error; `traceback` where it had one."""

    code: int
    value: Any = None
    error: str = ""
    traceback: str = ""

    @property
    def clear(self) -> bool:
        """Done, or stopped by an error of ours that is one line."""
        return not self.traceback and self.code in (0, 1, 2) and "\n" not in self.error

    @property
    def told(self) -> str:
        """What to show of it."""
        last = self.traceback.strip().splitlines()[-1] if self.traceback else ""
        return self.error or last or f"exit code {self.code}"


class Child:
    """A forked process that runs a function; its output goes to `log`."""

    def __init__(
        self, work: Callable[[], Any], log: Path, *, limits: Mapping[int, int] | None = None
    ) -> None:
        self.log, self._result = log, log.with_suffix(".result.json")
        self._outcome: Outcome | None = None
        self._result.unlink(missing_ok=True)
        self.pid = os.fork()
        if not self.pid:
            _live(work, log, self._result, limits or {})

    def kill(self) -> None:
        """SIGKILL to it and to what it started."""
        for target in (-self.pid, self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(target, signal.SIGKILL)

    def running(self) -> bool:
        """Whether it still runs; a dead one waits for `end`."""
        if self._outcome is not None:
            return False
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return found is None

    def end(self, seconds: float = 300.0) -> Outcome:
        """Waits for its end; kills it after so many seconds (that counts as a hang)."""
        if self._outcome is None:
            self._outcome = self._ended(seconds)
        return self._outcome

    def _ended(self, seconds: float) -> Outcome:
        deadline = time.monotonic() + seconds
        while self.running():
            if time.monotonic() > deadline:
                self.kill()
                os.waitpid(self.pid, 0)
                return Outcome(-9, traceback=f"hung for {seconds:.0f} s, then killed")
            time.sleep(0.005)
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if not self._result.is_file():
            told = "" if code == -signal.SIGKILL else f"ended with {code} and without a result"
            return Outcome(code, traceback=told)
        found = json.loads(self._result.read_text(encoding="utf-8"))
        return Outcome(code, **found)


def call(work: Callable[[], Any], log: Path, seconds: float = 300.0, **options: Any) -> Outcome:
    """Runs a function in a child to its end."""
    return Child(work, log, **options).end(seconds)


def _live(work: Callable[[], Any], log: Path, result: Path, limits: Mapping[int, int]) -> None:
    """The whole life of the forked process."""
    code, found = CRASHED, {}
    try:
        os.setpgid(0, 0)
        # Where files may not grow, neither may the log, which is not what is tried.
        out = open(os.devnull if limits else log, "a", buffering=1)  # noqa: SIM115
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        sys.stdout = sys.stderr = out
        for name, value in limits.items():
            resource.setrlimit(name, (value, resource.getrlimit(name)[1]))
        found, code = {"value": work()}, 0
    except PipestillError as error:
        found, code = {"error": str(error)}, error.exit_code
    except OSError as error:
        # The runner of steps shows it as one line: STEP_FAILED, the step, these words, the log.
        told = {"error": f"OSError: {error}"} if error.errno in DISK else {}
        found, code = told or {"traceback": traceback.format_exc()}, 1
    except BaseException:
        found = {"traceback": traceback.format_exc()}
    try:
        for name in limits:
            hard = resource.getrlimit(name)[1]
            resource.setrlimit(name, (hard, hard))
        temporary = result.with_suffix(".part")
        temporary.write_text(json.dumps(found, default=str), encoding="utf-8")
        os.replace(temporary, result)
    finally:
        os._exit(code)


@dataclass(frozen=True)
class Finished:
    """A command that has ended: exit code, output, seconds, and peak memory in bytes."""

    code: int
    output: str
    seconds: float
    peak_bytes: int

    @property
    def clear(self) -> bool:
        """Done, or one line `error [CODE] …` and nothing like a traceback."""
        if "Traceback" in self.output or "UNEXPECTED" in self.output:
            return False
        errors = [line for line in self.output.splitlines() if line.startswith("error [")]
        return self.code == 0 or (self.code in (1, 2) and len(errors) == 1)

    @property
    def told(self) -> str:
        """Its last line."""
        return (self.output.strip().splitlines() or [f"exit code {self.code}"])[-1]


def command(
    arguments: list[str], *, seconds: float = 120.0, environment: Mapping[str, str] | None = None
) -> Finished:
    """Runs Python with these arguments; output of both streams together."""
    began = time.monotonic()
    process = subprocess.Popen(  # noqa: S603 (our own command)
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    peak = [0]
    stopper = _watch(process, seconds, peak)
    assert process.stdout is not None
    output = process.stdout.read()
    code = process.wait()
    stopper.join()
    return Finished(code, output, time.monotonic() - began, peak[0])


def _watch(process: "subprocess.Popen[str]", seconds: float, peak: list[int]) -> Any:
    """Notes the highest memory of the process, and kills it when its time is over."""
    import threading

    def look() -> None:
        deadline = time.monotonic() + seconds
        while process.poll() is None:
            try:
                for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        peak[0] = max(peak[0], int(line.split()[1]) * 1024)
            except (OSError, ValueError):
                pass
            if time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.02)

    watcher = threading.Thread(target=look)
    watcher.start()
    return watcher
