"""Why a step failed: its own one-line error where it raised one, else the exception's last line."""

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from pipestill.errors import PipestillError, UserError, WorkError

ERROR_LINE = re.compile(r"^(?:pipestill\.errors\.)?(UserError|WorkError): \[([A-Z0-9_]+)\] (.*)$")


@dataclass(frozen=True)
class Failure:
    """The first step that failed: how, after how long, and where its log is."""

    label: str
    returncode: int
    log: Path


def explain(failure: Failure) -> PipestillError:
    """The cause of a failed step as an error: the step's own one-liner where it raised one."""
    where = f"full log: {failure.log}"
    cause = last_error(failure.log)
    found = ERROR_LINE.match(cause)
    if found:
        kind = UserError if found[1] == "UserError" else WorkError
        message, _, hint = found[3].partition(" → ")
        return kind(found[2], f"{failure.label}: {message}", f"{hint}; {where}" if hint else where)
    if failure.returncode < 0 or failure.returncode > 128:
        number = -failure.returncode if failure.returncode < 0 else failure.returncode - 128
        memory = ", most likely because memory ran out" if number == signal.SIGKILL else ""
        cause = f"ended by signal {number}{memory}"
    return WorkError("STEP_FAILED", f"{failure.label}: {cause}", where)


def last_error(log: Path) -> str:
    """The first line of the last exception in a log, or its last line where there is none."""
    lines = [line.rstrip() for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    for at in range(len(lines) - 1, -1, -1):
        if lines[at].startswith("Traceback (most recent call last)"):
            return next((line for line in lines[at + 1 :] if not line[0].isspace()), lines[-1])
    errors = [line for line in lines if ERROR_LINE.match(line)]
    return (errors or lines or ["no output"])[-1]
