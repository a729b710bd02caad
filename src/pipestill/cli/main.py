"""The command `pipestill`: parse → one library call → print.

Exit codes: 0 done, 1 the work failed, 2 the user's input is wrong, 130 interrupted. A command's
module is imported only when the command is chosen, so that help answers at once.
"""

import argparse
import contextlib
import difflib
import errno
import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import NoReturn

from pipestill import __version__
from pipestill.errors import PipestillError

# the disk is full, over its quota, or may only be read
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# a path that may not be used, or that leads through a file
PLACE = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
# command → (module, one line of help)
COMMANDS = {
    "run": ("pipestill.cli.run", "run a pipeline on this machine"),
    "submit": ("pipestill.cli.submit", "run a pipeline on Vertex AI or a Kubeflow server"),
    "schedule": ("pipestill.cli.schedule", "run a pipeline on a calendar"),
    "compile": ("pipestill.cli.compile", "write pipelines as YAML for a hardware profile"),
    "plan": ("pipestill.cli.plan", "say what a run takes and costs, and whether it can start"),
    "data": ("pipestill.cli.data", "check or convert data files"),
    "report": ("pipestill.cli.report", "show or rebuild the report of a run"),
    "gate": ("pipestill.cli.gate", "decide whether a new model may take the old one's place"),
    "serve": ("pipestill.cli.serve", "serve a trained student over HTTP"),
    "models": ("pipestill.cli.models", "list models, and what fits where"),
    "doctor": ("pipestill.cli.doctor", "check that everything a run needs is here"),
}


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line, with the closest known option or command."""

    def error(self, message: str) -> NoReturn:
        """Prints usage, the error and a suggestion; exits with 2."""
        usage = " ".join(self.format_usage().split())
        self.exit(2, f"{usage}\nerror [USAGE] {message}{self._suggestion(message)}\n")

    def _suggestion(self, message: str) -> str:
        known = [name for name in (*self._option_string_actions, *COMMANDS) if len(name) > 2]
        for word in message.replace("'", " ").replace(":", " ").split():
            close = difflib.get_close_matches(word.split("=")[0], known, n=1, cutoff=0.7)
            if close and word not in known:
                return f" → did you mean {close[0]}?"
        return f" → see {self.prog} --help"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except PipestillError as error:
        print(_one_line(error), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `pipestill models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename and error.errno in PLACE:
            hint = "look at the path and its permissions, or name another"
            print(f"error [PLACE] {error.filename}: {error.strerror} → {hint}", file=sys.stderr)
            return 2
        if error.errno not in DISK:
            return _unexpected(error)
        where = f"{error.filename}: " if error.filename else ""
        hint = "free space there, or name another folder, and run the same command again"
        print(f"error [DISK] {where}{error.strerror} → {hint}", file=sys.stderr)
        return 1
    except Exception as error:
        return _unexpected(error)


def _unexpected(error: Exception) -> int:
    print(f"error [UNEXPECTED] {_summary(error)} → full log: {_write_log()}", file=sys.stderr)
    return 1


def _run(arguments: list[str]) -> int:
    parser = Parser(
        prog="pipestill",
        description="Tune and distil language models with Kubeflow and Vertex AI pipelines.",
        epilog="`pipestill COMMAND --help` explains a command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pipestill {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, allow_abbrev=False)
        if name == chosen:
            imported = importlib.import_module(module)
            imported.configure(command)
            command.set_defaults(main=imported.main)
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        chosen_parser = commands.choices[known.command]
        chosen_parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if getattr(known, "pipeline", None) and hasattr(known, "assignments"):
        from pipestill.cli.settings import pipeline_of

        known.pipeline = pipeline_of(known.pipeline, known.config, known.assignments)
    code: int = known.main(known)
    return code


def _one_line(error: PipestillError) -> str:
    return "error " + " ".join(str(error).splitlines())


def _summary(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}".rstrip(": ")


def _write_log() -> str:
    with (
        contextlib.suppress(OSError),
        tempfile.NamedTemporaryFile(
            "w", prefix="pipestill-", suffix=".log", delete=False, encoding="utf-8"
        ) as log,
    ):
        log.write(traceback.format_exc())
        return log.name
    return "none, there is no room for it"


if __name__ == "__main__":
    sys.exit(main())
