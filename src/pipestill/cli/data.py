"""`pipestill data check`, `pipestill data convert` and `pipestill data audit`."""

import argparse
import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipestill.config import DataConfig
    from pipestill.data.raw import BadRow
    from pipestill.data.rows import Row

GOOD, BAD_ROWS = 0, 2
TASKS = ("text", "chat", "code")
GREEN, PLAIN = "\x1b[32m", "\x1b[0m"
# Repeated here because help must not import the library; a test compares the two.
FORMATS = (
    "auto, jsonl, json, csv, parquet, dss_cqa, dss_esnli, dss_svamp, chat_messages, sgd_dialogue, "
    "preference, banking77, nl2bash, gsm8k, humaneval"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the three commands to the parser of `pipestill data`."""
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="count the rows and name every bad one")
    _reading(check)
    check.add_argument("--tokenizer", default="", metavar="REF", help="a model: report its tokens")
    check.add_argument("--rejects", default="", metavar="FILE", help="write all bad rows here")
    check.add_argument("--max-show", type=int, default=10, metavar="N", help="bad rows to print")
    convert = commands.add_parser("convert", help="write any format as JSON lines of ours")
    _reading(convert)
    convert.add_argument("out", metavar="OUT", help="JSON lines; bad rows go beside it")
    audit = commands.add_parser(
        "audit", help="show which tokens of the rows a model would be trained on, and check them"
    )
    _reading(audit)
    audit.add_argument("--model", required=True, metavar="REF", help="whose tokenizer and template")
    audit.add_argument("--task", default="text", choices=TASKS, help="how rows are written")
    audit.add_argument("--instruction", default="", metavar="TEXT", help="before every input")
    audit.add_argument("--max-context-length", default="1024", metavar="TOKENS", help="input limit")
    audit.add_argument("--max-output-tokens", type=int, default=256, metavar="TOKENS")
    audit.add_argument("--max-rows", type=int, default=10_000, metavar="N", help="0 = all")


def _reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "uri", metavar="URI", help="file, folder, glob, gs://…, hf://…, pocket:train"
    )
    parser.add_argument("--format", default="auto", metavar="NAME", help=FORMATS)
    parser.add_argument("--input-field", default="input_text", metavar="NAME")
    parser.add_argument("--output-field", default="output_text", metavar="NAME")


def main(args: argparse.Namespace) -> int:
    """Runs the command; 0 = every row is good, 2 = some are bad.

    Raises:
        UserError: where the input cannot be read at all or the output cannot be written.
    """
    from pipestill.config import DataConfig

    config = DataConfig(
        data_format=args.format, input_field=args.input_field, output_field=args.output_field
    )
    if args.data_command == "check":
        return _check(args, config)
    if args.data_command == "audit":
        return _audit(args, config)
    return _convert(args, config)


def _audit(args: argparse.Namespace, config: "DataConfig") -> int:
    """Prints the sample also where the audit fails: it shows the row that was found wrong."""
    from pipestill.config import TuneConfig
    from pipestill.training.audit import Audit
    from pipestill.training.supervised import audit_data

    tuning = TuneConfig(
        large_model_reference=args.model,
        task=args.task,
        instruction=args.instruction,
        max_context_length=args.max_context_length,
        max_output_tokens=args.max_output_tokens,
    )
    found = Audit()
    try:
        audit_data(args.uri, dataclasses.replace(config, max_rows=args.max_rows), tuning, found)
    finally:
        if found.samples:
            marks = (GREEN, PLAIN) if sys.stdout.isatty() else ()
            print(found.text(*marks))
    facts = found.facts
    print(
        f"{facts['rows']} rows audited, {facts['loss_tokens']} tokens carry loss; "
        f"{facts['unlabelled_rows']} without an answer and {facts['bad_rows']} bad ones left out"
    )
    return BAD_ROWS if facts["bad_rows"] else GOOD


def _check(args: argparse.Namespace, config: "DataConfig") -> int:
    from pipestill.data import lengths
    from pipestill.data.raw import describe
    from pipestill.records import write_jsonl

    tokenizer = lengths.load(args.tokenizer)
    rows, rejects = _collect(args.uri, config)
    if args.rejects:
        with _writing(args.rejects):
            write_jsonl(args.rejects, rejects)
    table = _pair_counts(rows, rejects) if args.format == "preference" else _counts(rows, rejects)
    if tokenizer is not None:
        for side in ("input", "output"):
            texts = _texts(rows, side)
            found = lengths.percentiles(side, lengths.count_tokens(tokenizer, texts)).values()
            table[f"{side} tokens p50 / p95 / max"] = " / ".join(map(str, found))
    width = max(map(len, table))
    for name, value in table.items():
        print(f"{name:<{width}}  {value}")
    shown = max(args.max_show, 0)
    for reject in rejects[:shown]:
        print(describe(reject))
    if len(rejects) > shown:
        more = len(rejects) - shown
        print(f"… and {more} more (--max-show {len(rejects)}, or --rejects FILE for all)")
    return BAD_ROWS if rejects else GOOD


def _texts(rows: "list[Row]", side: str) -> list[str]:
    """Inputs or outputs; the outputs of a pair are its two candidates."""
    names = {"input": ["input_text"], "output": ["output_text", "candidate_0", "candidate_1"]}
    return [row.fields[name] for row in rows for name in names[side] if row.fields.get(name)]


def _counts(rows: "list[Row]", rejects: "list[BadRow]") -> dict[str, object]:
    from pipestill.data import split

    _, duplicates, conflicting = split.deduplicate(rows)
    reasons = Counter(reject.reason for reject in rejects).most_common()
    return {
        "rows": len(rows) + len(rejects),
        "good": len(rows),
        "  without a label": sum(row.fields["output_text"] is None for row in rows),
        "  duplicates": duplicates,
        "  labels that contradict": len(conflicting),
        "bad": len(rejects),
        **{f"  {name}": count for name, count in reasons},
    }


def _pair_counts(rows: "list[Row]", rejects: "list[BadRow]") -> dict[str, object]:
    """As `_counts`; pairs that teach nothing are not bad."""
    from pipestill.data import pairs

    _, duplicates, contradicting = pairs.distinct(rows)
    reasons = Counter(reject.reason for reject in rejects)
    aside = {f"  {name}": reasons.pop(name) for name in pairs.SET_ASIDE if name in reasons}
    first = sum(row.fields["choice"] == 0 for row in rows) / max(len(rows), 1)
    return {
        "rows": len(rows) + len(rejects),
        "good": len(rows),
        "  duplicates": duplicates,
        "  choices that contradict": len(contradicting),
        "  the first answer preferred": f"{first:.1%}",
        "no preference": sum(aside.values()),
        **aside,
        "bad": reasons.total(),
        **{f"  {name}": count for name, count in reasons.most_common()},
    }


def _convert(args: argparse.Namespace, config: "DataConfig") -> int:
    from pipestill.data.raw import BadRow
    from pipestill.data.rows import read_rows
    from pipestill.errors import UserError
    from pipestill.records import write_jsonl

    out = Path(args.out)
    if os.path.exists(out) and os.path.exists(args.uri) and out.samefile(args.uri):
        raise UserError("OUT_IS_INPUT", f"{out}: is the input itself", "name another output file")
    rejects: list[BadRow] = []

    def good() -> Iterator[dict[str, object]]:
        for item in _progress(read_rows(args.uri, config)):
            if isinstance(item, BadRow):
                rejects.append(item)
            else:
                yield {key: value for key, value in item.fields.items() if value is not None}

    beside = out.with_name(f"{out.name.removesuffix('.jsonl')}.rejects.jsonl")
    with _writing(args.out):
        count = write_jsonl(out, good())
        write_jsonl(beside, rejects)
    print(f"{count} rows written to {out}, {len(rejects)} bad rows to {beside}")
    return BAD_ROWS if rejects else GOOD


def _collect(uri: str, config: "DataConfig") -> "tuple[list[Row], list[BadRow]]":
    from pipestill.data.raw import BadRow
    from pipestill.data.rows import Row, read_rows

    rows: list[Row] = []
    rejects: list[BadRow] = []
    for item in _progress(read_rows(uri, config)):
        if isinstance(item, BadRow):
            rejects.append(item)
        else:
            rows.append(item)
    return rows, rejects


def _progress(items: "Iterator[Row | BadRow]") -> "Iterator[Row | BadRow]":
    from tqdm import tqdm

    return iter(tqdm(items, desc="reading", unit=" rows", disable=None, leave=False))


@contextmanager
def _writing(path: str) -> Iterator[None]:
    from pipestill.errors import UserError

    try:
        yield
    except OSError as error:
        raise UserError(
            "OUT_UNWRITABLE", f"{path}: cannot be written ({error.strerror})", "choose another file"
        ) from error
