"""The teacher labels the rows that lack a label, and is measured on rows that have one."""

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipestill.config import TeacherConfig
from pipestill.data.text import excerpt
from pipestill.errors import UserError
from pipestill.generation.ask import Answer, ask, usage
from pipestill.generation.prompts import load_prompt
from pipestill.generation.votes import Vote, accuracy_line, audit, check_success, votes_of
from pipestill.records import Example, Labelled, read_jsonl, write_jsonl


def label_shard(
    train_path: str,
    evaluation_path: str,
    labelled_path: str,
    *,
    shard: str,
    state_dir: str,
    config: TeacherConfig,
) -> dict[str, Any]:
    """Labels the rows of one shard and audits the teacher on gold rows.

    Rows with a gold label pass through. Rows that the teacher could not label are left out of
    `labelled_path` and written, with the reason, to ``<labelled_path>.failed.jsonl``.

    Args:
        train_path: JSONL of `Example`.
        evaluation_path: JSONL of `Example`, for the audit alone.
        labelled_path: JSONL of `Labelled`, written.
        shard: ``i/n``; a row belongs to the shard that its id hashes to.
        state_dir: folder of the journal; empty for none that lasts.
        config: the teacher. ``audit_rows`` counts over all shards together.

    Returns:
        ``rows``, ``rows_gold``, ``rows_missing``, ``rows_labelled``, ``rows_failed``,
        ``audit_rows``, ``audit_correct``, ``audit_unparsable``, ``teacher_accuracy`` (-1 without
        audited rows), the fields of `pipestill.generation.ask.usage`, and
        ``seconds``.

    Raises:
        UserError: ``SHARD``, and as `ask`.
        WorkError: ``TEACHER_MIN_SUCCESS``, ``BUDGET_REACHED``.
    """
    begun = time.perf_counter()
    index, count = parse_shard(shard)
    every_row = list(read_jsonl(train_path, Example))
    audited = audit_choice([*every_row, *read_jsonl(evaluation_path, Example)], config.audit_rows)
    rows = [row for row in every_row if in_shard(row.id, index, count)]
    audited = [row for row in audited if in_shard(row.id, index, count)]
    missing = [row for row in rows if row.output_text is None]
    answers = ask(
        [*missing, *audited],
        config=config,
        state_dir=state_dir,
        samples=config.samples,
        shots=config.shots,
    )
    metric = load_prompt(config.prompt).metric
    votes = votes_of(answers, config.samples, metric)
    audit_votes = dict(zip((row.id for row in audited), votes[len(missing) :], strict=True))
    known = audit_votes | dict(zip((row.id for row in missing), votes, strict=False))
    failed = _failures(missing, answers, known, config.samples)
    write_jsonl(failed_path(labelled_path), failed)
    check_success(len(missing) - len(failed), len(missing), config, failed)
    labelled = [item for row in rows if (item := _labelled(row, known.get(row.id)))]
    write_jsonl(labelled_path, labelled)
    summary = {
        "rows": len(rows),
        "rows_gold": len(rows) - len(missing),
        "rows_missing": len(missing),
        "rows_labelled": len(labelled),
        "rows_failed": len(failed),
        **audit(audited, audit_votes, metric),
        **usage(answers, config),
        "seconds": round(time.perf_counter() - begun, 2),
    }
    print(
        f"teacher labels: {len(missing) - len(failed)} of {len(missing)} missing labels given, "
        f"{len(rows) - len(missing)} rows had gold labels"
    )
    print(accuracy_line(summary))
    return summary


def parse_shard(shard: str) -> tuple[int, int]:
    """``"1/4"`` → (1, 4).

    Raises:
        UserError: ``SHARD``.
    """
    first, _, second = shard.partition("/")
    if not (first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise UserError(
            "SHARD", f"shard: found {excerpt(shard)}, allowed: i/n with 0 <= i < n, such as 0/4"
        )
    return int(first), int(second)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")


def in_shard(row_id: str, index: int, count: int) -> bool:
    """Whether a row belongs to shard `index` of `count`, by a hash of its id."""
    return _hash(row_id) % count == index


def audit_choice(rows: Iterable[Example], limit: int) -> list[Example]:
    """Up to `limit` rows with gold, the same ones whatever the order or the shards; -1 = all."""
    gold = [row for row in rows if row.output_text is not None]
    if limit < 0:
        return gold
    return sorted(gold, key=lambda row: (_hash(f"audit:{row.id}"), row.id))[:limit]


def failed_path(labelled_path: str) -> Path:
    """Where the rows stand that got no label."""
    return Path(f"{labelled_path}.failed.jsonl")


def _failures(
    missing: Sequence[Example], answers: Sequence[Answer], votes: Mapping[str, Vote], samples: int
) -> list[dict[str, Any]]:
    """The rows without a label, each with the reason of its first sample."""
    return [
        {"id": row.id, "source_row": row.source_row, "reason": first.error or "no label"}
        for row, first in zip(missing, answers[::samples], strict=False)
        if votes[row.id].label is None
    ]


def _labelled(row: Example, vote: Vote | None) -> Labelled | None:
    label = row.output_text if row.output_text is not None else (vote.label if vote else None)
    if label is None:
        return None
    return Labelled(
        id=row.id,
        input_text=row.input_text,
        output_text=label,
        label_source="gold" if row.output_text is not None else "teacher",
        teacher_label=vote.label if vote else None,
        agreement=vote.agreement if vote else 0.0,
        gold_rationale=row.rationale,
        source_row=row.source_row,
    )
