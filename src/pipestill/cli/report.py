"""`pipestill report`: the table and the verdict of a finished run, and where its page lies."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipestill.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.description = "Print the table and the verdict of a finished run."
    parser.add_argument("run", metavar="RUN", help="the folder of a run, or its summary.json")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def main(args: argparse.Namespace) -> int:
    """Prints the table, the verdict and the page's path.

    Raises:
        UserError: ``RUN_NOT_FOUND``, ``SUMMARY_UNREADABLE``, ``REPORT_NOT_FOUND``.
    """
    path = find_summary(Path(args.run))
    summary = read_summary(path)
    print("\n".join(findings(summary)))
    page = path.with_name("report.html")
    if page.is_file():
        print(f"\nreport: {page}")
    if args.open:
        _open(page)
    return 0


def findings(summary: Mapping[str, Any]) -> list[str]:
    """The lines that a terminal shows of a summary: its table, the verdict and the notes.

    The table is the summary's own (``table``, a list of lines) or else that of its arms.
    """
    from pipestill.evaluation.summary import format_table

    sentence = summary.get("verdict_sentence")
    return [
        *map(str, summary.get("table") or format_table(summary).splitlines()),
        "",
        *([str(sentence)] if sentence else []),
        *map(str, summary.get("notes", [])),
    ]


def find_summary(run: Path) -> Path:
    """The `summary.json` that a folder or a file's path names.

    Raises:
        UserError: ``RUN_NOT_FOUND``.
    """
    path = run / "summary.json" if run.is_dir() else run
    if not path.is_file():
        raise UserError(
            "RUN_NOT_FOUND",
            f"{run}: found no summary.json there",
            "give the folder that `pipestill run` printed, or wait until the run has ended",
        )
    return path


def read_summary(path: Path) -> dict[str, Any]:
    """A summary, checked for the parts that are printed.

    Raises:
        UserError: ``SUMMARY_UNREADABLE``.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(value, dict):
        raise _unreadable(path, "it is no JSON object")
    own = value.get("table")
    if not (own and isinstance(own, list)) and not {"arms", "verdict_sentence"} <= value.keys():
        raise _unreadable(path, "it has no table, and no arms with a verdict_sentence")
    return value


def _unreadable(path: Path, reason: str) -> UserError:
    return UserError(
        "SUMMARY_UNREADABLE",
        f"{path}: not the summary of a run ({reason})",
        "give a summary.json that the report step wrote",
    )


def _open(page: Path) -> None:
    import webbrowser

    if not page.is_file():
        raise UserError(
            "REPORT_NOT_FOUND", f"{page}: no such file", "it lies beside the run's summary.json"
        )
    webbrowser.open(page.resolve().as_uri())
