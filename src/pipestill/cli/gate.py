"""`pipestill gate`: whether a new model may take the old one's place, from both models' answers."""

from __future__ import annotations

import argparse
import getpass
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipestill.errors import UserError

ONE = "answers"  # the task's name where --new and --old give the only one
TESTS = ("interval", "mcnemar", "mcnemar_exact", "bootstrap")
REQUIRE = ("better", "not_worse")
COLUMNS = ("task", "rows", "new", "old", "difference (95 % interval)", "won", "lost", "p", "p Holm",
           "its own rules")  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.description = (
        "Decide whether a new model may take the old one's place. Exit code: 0 promote, 1 keep or "
        "cannot tell, 2 wrong input. PREDICTIONS is FILE, FILE#ARM or FILE#ARM#SEED; FILE may be "
        "the folder of a run."
    )
    parser.add_argument("--new", metavar="PREDICTIONS", help="answers of the new model")
    parser.add_argument("--old", metavar="PREDICTIONS", help="answers of the old model")
    parser.add_argument(
        "--task", metavar="NAME=NEW,OLD", action="append", default=[], dest="tasks",
        help="one of several tasks, in place of --new and --old; p-values are adjusted after Holm",
    )  # fmt: skip
    parser.add_argument(
        "--primary", metavar="NAME", action="append", default=[],
        help="task on which better counts, named beforehand; default: any",
    )  # fmt: skip
    parser.add_argument("--require", choices=REQUIRE, default="better", help="default: better")
    parser.add_argument(
        "--test", choices=TESTS, default="interval", help="how better is shown; default: interval"
    )
    parser.add_argument(
        "--margin", type=float, default=0.02,
        help="share of right answers by which it may be worse; default: 0.02",
    )  # fmt: skip
    parser.add_argument(
        "--min-rows", type=int, default=100, help="rows wanted on every task; default: 100"
    )
    parser.add_argument(
        "--slices", default="", metavar="FIELDS",
        help="veto where a slice is surely worse: label, length, or fields of the rows, by commas",
    )  # fmt: skip
    parser.add_argument(
        "--slice-rows", type=int, default=20, help="a slice counts from so many rows; default: 20"
    )
    parser.add_argument(
        "--gain", type=float, default=0.03, help="gain whose power is stated; default: 0.03"
    )
    parser.add_argument(
        "--override", metavar="REASON", help="promote all the same; needs --ledger, is recorded"
    )
    parser.add_argument(
        "--ledger", metavar="FILE", help="append the decision: a local file or gs://BUCKET/NAME"
    )
    parser.add_argument("--json", action="store_true", help="print the decision as JSON alone")


def main(args: argparse.Namespace) -> int:
    """Prints the table and the decision, and records it.

    Raises:
        UserError: ``GATE_TASKS``, ``GATE_OVERRIDE``, ``LEDGER_…``, and what
            `pipestill.evaluation.gate_files.release` raises.
    """
    from pipestill.evaluation.gate_files import ReleaseRule, release

    tasks, reason = tasks_of(args), override_of(args)
    rule = ReleaseRule(
        require=args.require,
        test=args.test,
        margin=args.margin,
        min_rows=args.min_rows,
        slices=tuple(part.strip() for part in args.slices.split(",") if part.strip()),
        slice_rows=args.slice_rows,
        primary=tuple(dict.fromkeys(args.primary)),
        gain=args.gain,
    )
    found = release(tasks, rule, reason)
    if args.ledger:  # before anything is said: what is not recorded is not promoted
        found["ledger_entry"] = record(args.ledger, found)
    print(json.dumps(found, ensure_ascii=False, indent=2) if args.json else text_of(found))
    return 0 if found["decision"] == "promote" else 1


def tasks_of(args: argparse.Namespace) -> dict[str, tuple[str, str]]:
    """Task → (new, old), from --new and --old or from --task.

    Raises:
        UserError: ``GATE_TASKS``.
    """
    if bool(args.new) != bool(args.old) or bool(args.new) == bool(args.tasks):
        raise UserError(
            "GATE_TASKS",
            "found neither --new with --old, nor --task alone",
            "pipestill gate --new new.jsonl --old old.jsonl, or --task NAME=NEW,OLD for each task",
        )
    if args.new:
        return {ONE: (args.new, args.old)}
    found: dict[str, tuple[str, str]] = {}
    for given in args.tasks:
        name, _, pair = given.partition("=")
        new, _, old = pair.partition(",")
        if not (name.strip() and new and old) or "," in old or name in found:
            what = "named before" if name in found else "allowed: NAME=NEW,OLD"
            raise UserError(
                "GATE_TASKS",
                f"--task: found {given!r}, {what}",
                "such as --task intents=new.jsonl,old.jsonl",
            )
        found[name.strip()] = (new, old)
    return found


def override_of(args: argparse.Namespace) -> str:
    """The person's reason, in one line; empty without one.

    Raises:
        UserError: ``GATE_OVERRIDE``.
    """
    if args.override is None:
        return ""
    reason = " ".join(str(args.override).split())
    if not reason or not args.ledger:
        raise UserError(
            "GATE_OVERRIDE",
            "--override: found " + ("no ledger to record it in" if reason else "no reason"),
            'give both: --override "who decided, and why" --ledger gate.jsonl',
        )
    return reason


def record(uri: str, found: Mapping[str, Any]) -> int:
    """Appends the decision to the ledger: who, when, why, and what the rules said.

    Returns:
        The entry's number.
    """
    from pipestill import __version__
    from pipestill.cloud import ledger

    kept = ("decision", "by_rules", "override", "sentence", "test", "margin", "require", "primary",
            "tasks", "rules", "files")  # fmt: skip
    facts = {"event": "gate", "who": _who(), "version": __version__}
    entry, _ = ledger.append(uri, facts | {key: found[key] for key in kept})
    return int(entry["number"])


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user has no name
        return "unknown"


def text_of(found: Mapping[str, Any]) -> str:
    """The table of tasks, the rules and the decision."""
    rows = [COLUMNS, *(_line(name, told) for name, told in found["tasks"].items())]
    widths = [max(len(row[at]) for row in rows) for at in range(len(COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines += ["", *(_rule(rule) for rule in found["rules"]), "", found["sentence"]]
    if "ledger_entry" in found:
        lines.append(f"Recorded in the ledger as entry {found['ledger_entry']}.")
    return "\n".join(lines)


def _rule(rule: Mapping[str, Any]) -> str:
    return f"{rule['outcome']:4}  {rule['name'].replace('_', ' ')}: {rule['text']}"


def _line(name: str, told: Mapping[str, Any]) -> Sequence[str]:
    low, high = (f"{100 * bound:+.1f}" for bound in told["ci95"])
    return (
        name,
        f"{told['rows']:,}",
        f"{100 * told['new']:.1f} %",
        f"{100 * told['old']:.1f} %",
        f"{100 * told['difference']:+.1f} ({low} to {high})",
        str(told["won"]),
        str(told["lost"]),
        _p(told["p_better"]),
        _p(told["p_holm"]),
        told["decision"].replace("promote", "pass").replace("keep", "fail").replace("_", " "),
    )


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
