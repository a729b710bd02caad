"""Raw rows → training and held-out rows, and a file of those set aside. Component `data_prep`."""

import dataclasses
import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipestill.config import DataConfig, parse_length
from pipestill.data import guards, lengths, split
from pipestill.data.raw import BadRow, RowProblem, bad_row
from pipestill.data.rows import Row, read_rows
from pipestill.records import Example, write_jsonl

Summary = dict[str, int | float | str]


@dataclass
class _Log:
    """What the steps set aside, dropped and measured."""

    rejects: list[BadRow] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    input_tokens: list[int] = field(default_factory=list)
    output_tokens: list[int] = field(default_factory=list)

    def set_aside(self, row: Row, problem: RowProblem) -> None:
        self.rejects.append(bad_row(row.file, row.line, problem, row.source_row))


def prepare(
    dataset_uri: str,
    evaluation_data_uri: str,
    *,
    config: DataConfig,
    tokenizer_reference: str,
    train_path: str,
    evaluation_path: str,
    rejects_path: str,
) -> Summary:
    """Reads, validates, deduplicates, checks for leaks, splits, measures and writes.

    The split depends on each row's own normalised input and the seed alone. Rows without a label
    are trained on (the teacher labels them), never held out.

    Args:
        dataset_uri: see `pipestill.data.source.list_files`; ``pocket:train`` as well.
        evaluation_data_uri: held-out rows, or "" to split them off.
        tokenizer_reference: a model whose tokenizer measures lengths; "" counts words.
        train_path, evaluation_path: JSONL of `Example`.
        rejects_path: JSONL of `BadRow`, written before any error about the rows is raised.

    Returns:
        Flat counts, digests and token-length percentiles.

    Raises:
        UserError: what reading raises; ``DATA_NO_VALID_ROWS``, ``DATA_TOO_MANY_REJECTS``,
            ``DATA_LEAK``, ``DATA_NO_TRAIN_ROWS``, ``DATA_NO_EVAL_ROWS``, ``DATA_SETTING``.
    """
    guards.check_settings(config, splits=not evaluation_data_uri)
    tokenizer = lengths.load(tokenizer_reference)
    log = _Log()
    rows = _fitting(_read(dataset_uri, config, log), tokenizer, config, log)
    held_out: list[Row] = []
    if evaluation_data_uri:
        unlimited = dataclasses.replace(config, max_rows=0)
        given = _with_gold(_read(evaluation_data_uri, unlimited, log), log)
        held_out = _fitting(given, tokenizer, config, log)
    write_jsonl(rejects_path, log.rejects)
    guards.check_rejects(log.rejects, log.counts["rows_read"], config, rejects_path)
    if not evaluation_data_uri:
        rows, held_out = split.split(rows, config.eval_fraction, config.split_seed)
    rows = _without_leaks(rows, held_out, config, log)
    guards.check_sides(len(rows), len(held_out), evaluation_data_uri)
    _write(rows, held_out, train_path, evaluation_path)
    summary = _summary(rows, held_out, log) | {
        "train_digest": hashlib.sha256(Path(train_path).read_bytes()).hexdigest(),
        "eval_digest": hashlib.sha256(Path(evaluation_path).read_bytes()).hexdigest(),
        "tokenizer_fingerprint": lengths.fingerprint(tokenizer),
    }
    _tell(summary, "words" if tokenizer is None else "tokens", rejects_path)
    return summary


def _read(uri: str, config: DataConfig, log: _Log) -> list[Row]:
    """The good rows of a reference, each input once where `config.dedupe` asks for it."""
    rows: list[Row] = []
    for item in tqdm(read_rows(uri, config), desc="reading", unit=" rows", disable=None):
        log.counts["rows_read"] += 1
        if isinstance(item, BadRow):
            log.rejects.append(item)
        else:
            rows.append(item)
    if not config.dedupe:
        return rows
    kept, dropped, conflicting = split.deduplicate(rows)
    log.counts["duplicates_dropped"] += dropped
    for row in conflicting:
        label = row.fields["output_text"] or ""
        log.set_aside(row, RowProblem("output_text", "conflicting_label", label))
    return kept


def _with_gold(rows: list[Row], log: _Log) -> list[Row]:
    for row in rows:
        if row.fields["output_text"] is None:
            log.set_aside(row, RowProblem("output_text", "missing_gold"))
    return [row for row in rows if row.fields["output_text"] is not None]


def _fitting(rows: list[Row], tokenizer: Any, config: DataConfig, log: _Log) -> list[Row]:
    """Sets aside what the student cannot read or write whole; a cut row would teach wrongly."""
    inputs = lengths.count_tokens(tokenizer, [row.fields["input_text"] for row in rows])
    outputs = lengths.count_tokens(tokenizer, [row.fields["output_text"] or "" for row in rows])
    log.input_tokens += inputs
    kept: list[Row] = []
    for row, read, written in zip(rows, inputs, outputs, strict=True):
        if row.fields["output_text"] is None:
            written = 0
        else:
            log.output_tokens.append(written)
        if problem := _too_long(row, read, written, config):
            log.set_aside(row, problem)
        else:
            kept.append(row)
    return kept


def _too_long(row: Row, read: int, written: int, config: DataConfig) -> RowProblem | None:
    context = parse_length(config.max_context_length)
    for name, reason, count, limit in (
        ("input_text", "too_long", read, context),
        ("output_text", "output_too_long", written, config.max_output_tokens),
    ):
        if count > limit:
            detail = f"{count}, allowed {limit}"
            return RowProblem(name, reason, row.fields[name], detail=detail)
    return None


def _without_leaks(
    rows: list[Row], held_out: list[Row], config: DataConfig, log: _Log
) -> list[Row]:
    leaks = split.leaked(rows, held_out)
    if leaks and config.leak_policy == "fail":
        raise guards.leak_error(leaks)
    log.counts["leaks_dropped"] += len(leaks)
    gone = {id(row) for row in leaks}
    return [row for row in rows if id(row) not in gone]


def _write(rows: list[Row], held_out: list[Row], train_path: str, evaluation_path: str) -> None:
    used: set[str] = set()
    write_jsonl(train_path, [_example(row, used) for row in rows])
    write_jsonl(evaluation_path, [_example(row, used) for row in held_out])


def _example(row: Row, used: set[str]) -> Example:
    """The row under its own id or one made from its input; a repeated id gets a number."""
    digest = hashlib.sha256(row.fields["input_text"].encode()).hexdigest()
    base = name = row.fields["id"] or digest[:16]
    number = 1
    while name in used:
        number += 1
        name = f"{base}-{number}"
    used.add(name)
    return Example(**{**row.fields, "id": name}, source_row=row.source_row)


def _summary(rows: list[Row], held_out: list[Row], log: _Log) -> Summary:
    reasons = Counter(item.reason for item in log.rejects)
    return {
        "rows_read": log.counts["rows_read"],
        "rows_train": len(rows),
        "rows_eval": len(held_out),
        "rows_unlabelled": sum(row.fields["output_text"] is None for row in rows),
        "rows_rejected": len(log.rejects),
        **{f"rejected_{reason}": count for reason, count in sorted(reasons.items())},
        "rows_over_context": reasons["too_long"],
        "duplicates_dropped": log.counts["duplicates_dropped"],
        "duplicates_conflicting": reasons["conflicting_label"],
        "leaks_dropped": log.counts["leaks_dropped"],
        **lengths.percentiles("input_tokens", log.input_tokens),
        **lengths.percentiles("output_tokens", log.output_tokens),
    }


def _tell(summary: Summary, unit: str, rejects_path: str) -> None:
    s = summary
    print(f"data: read {s['rows_read']} rows, set {s['rows_rejected']} aside ({rejects_path})")
    print(f"data: dropped {s['duplicates_dropped']} duplicates and {s['leaks_dropped']} leaks")
    print(
        f"data: {s['rows_train']} rows to train on ({s['rows_unlabelled']} without a label), "
        f"{s['rows_eval']} held out"
    )
    for side in ("input", "output"):
        p50, p95, top = (s[f"{side}_tokens_{part}"] for part in ("p50", "p95", "max"))
        print(f"data: {side} {unit}: half have up to {p50}, 95 % up to {p95}, the longest {top}")
