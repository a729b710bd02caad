"""The rows of a tick: what is new in its files, what the last training had, what both are asked.

One input stands on one side for ever: whether it is held out follows from its own hash, so rows
that once judged a model are never trained on later. The regression set is frozen by the first tick
that trains.
"""

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipestill.config import DataConfig
from pipestill.data.prepare import prepare
from pipestill.data.raw import BadRow
from pipestill.data.rows import Row, read_rows
from pipestill.data.split import deduplicate, input_key, is_held_out
from pipestill.errors import UserError
from pipestill.records import Example, read_jsonl, write_jsonl
from pipestill.retrain import store
from pipestill.retrain.ledger import Book
from pipestill.retrain.settings import SOURCES
from pipestill.retrain.window import MANIFEST, Manifest, check_unchanged, read_manifest

NEW, REGRESSION = "new/", "regression/"
TRAIN, REGRESSION_FILE = "train.jsonl", "regression.jsonl"


@dataclass(frozen=True)
class Gathered:
    """New rows, one for each input, and what was set aside on the way."""

    rows: list[Example]
    rejected: int
    duplicates: int
    conflicting: int

    @property
    def labelled(self) -> list[Example]:
        return [row for row in self.rows if row.output_text is not None]


def check_source(rows_from: str, log_share: float) -> None:
    """Refuses an unknown kind of files.

    Raises:
        UserError: ``RETRAIN_SETTING``.
    """
    if rows_from not in SOURCES:
        raise UserError(
            "RETRAIN_SETTING", f"rows_from: found {rows_from!r}, allowed: {' or '.join(SOURCES)}"
        )
    if rows_from == "logs" and not 0 < log_share <= 1:
        raise UserError(
            "RETRAIN_SETTING", f"log_share: found {log_share!r}, allowed: more than 0, at most 1"
        )


def gather(manifest: Manifest, config: DataConfig, log_share: float = 0.0) -> Gathered:
    """The rows of a manifest's files as they were frozen.

    Args:
        manifest: its files must not have changed.
        config: how rows are read.
        log_share: above 0, the files are request logs: this share of their inputs, chosen by
            hash, of those with consent (see `pipestill.retrain.logs`).

    Raises:
        UserError: ``WINDOW_CHANGED``, and what reading raises.
    """
    from pipestill.retrain.logs import read_log

    check_unchanged(manifest)
    rows: list[Row] = []
    rejected = 0
    for file in manifest.files:
        items = read_log(file.uri, log_share).rows if log_share else _read(file.uri, config)
        for item in items:
            if isinstance(item, BadRow):
                rejected += 1
            else:
                rows.append(item)
    kept, duplicates, conflicting = deduplicate(rows)
    examples = [_example(row) for row in kept]
    return Gathered(examples, rejected, duplicates, len(conflicting))


def _read(uri: str, config: DataConfig) -> Iterable[Row | BadRow]:
    try:
        yield from read_rows(uri, config)
    except UserError as error:
        if error.code != "DATA_EMPTY":  # an hour without a row is no mistake
            raise


def _example(row: Row) -> Example:
    """The row under a name made from its input, which is the same in every window."""
    name = hashlib.sha256(input_key(row.fields["input_text"])).hexdigest()[:16]
    return Example(**{**row.fields, "id": name}, source_row=row.source_row)


def unseen(rows: Iterable[Example], *others: Iterable[Example]) -> list[Example]:
    """The rows whose input stands in none of the others."""
    known = {input_key(row.input_text) for other in others for row in other}
    return [row for row in rows if input_key(row.input_text) not in known]


def last_training(book: Book, manifest: Manifest) -> list[Example]:
    """The training set of the training before the tick; empty before the first."""
    if not manifest.base:
        return []
    uri = book.tick(manifest.base, TRAIN)
    with store.local(uri) as path:
        if path is None:
            raise UserError("RETRAIN_DIR", f"{uri}: the training set is gone", "restore the file")
        return list(read_jsonl(path, Example))


def regression_set(
    book: Book, uri: str, held_out: Sequence[Example], config: DataConfig
) -> list[Example]:
    """The frozen regression set, made by the first call: of `uri`, else of `held_out`.

    Of the held-out rows it gets half, by hash, so that the first tick has new ones as well.

    Raises:
        UserError: ``REGRESSION_EMPTY``, and what reading `uri` raises.
    """
    frozen = book.uri(REGRESSION_FILE)
    with store.local(frozen) as path:
        if path is not None:
            return list(read_jsonl(path, Example))
    rows = [row for row in held_out if is_held_out(row.input_text, 0.5, config.split_seed + 1)]
    if uri:
        plain = dataclasses.replace(config, max_rows=0)
        good = [item for item in _read(uri, plain) if isinstance(item, Row)]
        rows = [_example(row) for row in deduplicate(good)[0]]
    rows = [row for row in rows if row.output_text is not None]
    if not rows:
        raise UserError(
            "REGRESSION_EMPTY",
            f"{uri or 'the first window'}: no labelled row for the regression set",
            "give labelled rows as evaluation_data_uri",
        )
    lines = [json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n" for row in rows]
    store.create(frozen, "".join(lines).encode())
    return regression_set(book, uri, held_out, config)


def assemble(
    book: Book,
    manifest: Manifest,
    *,
    config: DataConfig,
    evaluation_data_uri: str,
    tokenizer_reference: str,
    train_path: str,
    evaluation_path: str,
    rejects_path: str,
    log_share: float = 0.0,
) -> dict[str, Any]:
    """Writes what a tick trains on and what champion and challenger both answer.

    Training rows are the new ones and the last training set; where both have an input, the new
    label holds. Evaluation rows are the held-out new ones (``new/…``) and the frozen regression set
    (``regression/…``); none of them is trained on. The training set is kept for the next tick.

    Args:
        book: the retraining's folder.
        manifest: the tick's.
        config: how rows are read and split.
        evaluation_data_uri: the regression set, taken over by the first tick that trains.
        tokenizer_reference: whose tokenizer measures lengths.
        train_path, evaluation_path: JSONL of `Example`.
        rejects_path: JSONL of what was set aside.
        log_share: as in `gather`.

    Returns:
        The counts of `pipestill.data.prepare.prepare`, with ``rows_new``, ``rows_old``,
        ``rows_new_eval`` and ``rows_regression``.

    Raises:
        UserError: as `gather`, `regression_set` and `prepare`.
    """
    old = last_training(book, manifest)
    new = gather(manifest, config, log_share)
    held_out = [
        row
        for row in new.labelled
        if is_held_out(row.input_text, config.eval_fraction, config.split_seed)
    ]
    frozen = regression_set(book, evaluation_data_uri, held_out, config)
    held_out = unseen(held_out, frozen, old)
    training = unseen(new.rows, held_out, frozen)
    training += unseen(old, new.rows, frozen)
    asked = [dataclasses.replace(row, id=NEW + row.id) for row in held_out]
    asked += [dataclasses.replace(row, id=REGRESSION + row.id) for row in frozen]
    plain = dataclasses.replace(
        config, data_format="jsonl", input_field="input_text", output_field="output_text"
    )
    with tempfile.TemporaryDirectory(prefix="pipestill-") as folder:
        for name, rows in (("rows", training), ("asked", asked)):
            write_jsonl(Path(folder) / f"{name}.jsonl", rows)
        summary = prepare(
            f"{folder}/rows.jsonl",
            f"{folder}/asked.jsonl",
            config=plain,
            tokenizer_reference=tokenizer_reference,
            train_path=train_path,
            evaluation_path=evaluation_path,
            rejects_path=rejects_path,
        )
    return {
        **summary,
        "rows_new": len(new.rows),
        "rows_old": len(old),
        "rows_new_eval": len(held_out),
        "rows_regression": len(frozen),
        "rows_conflicting": new.conflicting,
    }


def assemble_tick(tick_path: str, retrain_dir: str, **options: Any) -> dict[str, Any]:
    """`assemble` for a tick as `pipestill.retrain.decide.look` found it (its JSON)."""
    looked = json.loads(Path(tick_path).read_text(encoding="utf-8"))
    book = Book.at(retrain_dir)
    manifest = read_manifest(book.tick(looked["tick"], MANIFEST))
    return assemble(book, manifest, **options)


def keep_training_set(book: Book, tick: str, train_path: str) -> None:
    """Keeps the rows that a tick was trained on, for the drift test and the next training."""
    store.put(train_path, book.tick(tick, TRAIN))
