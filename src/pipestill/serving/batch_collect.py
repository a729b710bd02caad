"""The shards of a batch become one output; every row of the input has to be there once."""

import heapq
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipestill.errors import UserError, WorkError
from pipestill.records import write_jsonl

SUMS = ("rows", "rows_answered", "rows_rejected", "rows_resumed", "rows_at_limit",
        "prompt_tokens", "output_tokens")  # fmt: skip


def collect_predictions(
    shards: Sequence[str],
    rejects: Sequence[str],
    metrics: Sequence[str],
    output_path: str,
    rejects_path: str,
    *,
    output_uri: str = "",
) -> dict[str, Any]:
    """Joins the shards in the order of the input.

    Args:
        shards: outputs of `pipestill.serving.batch.predict_shard`, one a shard.
        rejects: their rejects.
        metrics: their returned counts, as JSON files.
        output_path: JSONL of all answers.
        rejects_path: JSONL of all rejects.
        output_uri: another place for the answers, a local file or ``gs://``; the rejects go beside
            it as ``<output_uri>.rejects.jsonl``. Empty = none.

    Returns:
        The sums, ``tokens_per_second`` over all shards together, ``reasons`` of the rejects and
        ``table``, the lines to show.

    Raises:
        WorkError: ``BATCH_INCOMPLETE`` where a row is missing or doubled, or shards come from
            different inputs or models.
    """
    counts = [json.loads(Path(path).read_text(encoding="utf-8")) for path in metrics]
    for name in ("rows_read", "model_fingerprint"):
        if len({item[name] for item in counts}) != 1:
            raise _incomplete(f"the shards disagree about {name}")
    summary: dict[str, Any] = {name: sum(item[name] for item in counts) for name in SUMS}
    total = int(counts[0]["rows_read"])
    write_jsonl(output_path, (line for _, line in _merged(shards)))
    reasons: Counter[str] = Counter()
    write_jsonl(rejects_path, _counted(_merged(rejects), reasons))
    _check_each_once(output_path, rejects_path, total)
    seconds = sum(item["seconds"] for item in counts)
    speed = sum(item["tokens_per_second"] * item["seconds"] for item in counts) / max(seconds, 1e-9)
    summary |= {
        "rows_read": total,
        "seconds_generating": round(seconds, 3),
        "tokens_per_second": round(speed, 1),
        "reasons": dict(reasons),
        "model_fingerprint": counts[0]["model_fingerprint"],
    }
    if output_uri:
        publish(output_path, output_uri)
        publish(rejects_path, f"{output_uri}.rejects.jsonl")
    return {**summary, "table": table(summary), "notes": [f"answers  {output_uri or output_path}"]}


def table(summary: Mapping[str, Any]) -> list[str]:
    """Lines to show."""
    lines = [
        f"rows read      {summary['rows_read']:>12,}",
        f"answered       {summary['rows_answered']:>12,}",
        f"rejected       {summary['rows_rejected']:>12,}",
        f"cut at limit   {summary['rows_at_limit']:>12,}",
        f"tokens read    {summary['prompt_tokens']:>12,}",
        f"tokens written {summary['output_tokens']:>12,}",
        f"tokens/s       {summary['tokens_per_second']:>12,.1f}",
    ]
    return lines + [f"  {reason}: {count}" for reason, count in summary["reasons"].items()]


def publish(path: str, uri: str) -> None:
    """Copies a file to a local path or ``gs://``; readers see all of it or what stood there before.

    Raises:
        UserError: ``BATCH_OUTPUT``; as `pipestill.cloud.objects.write_bytes`.
    """
    if uri.startswith("gs://"):
        from pipestill.cloud.objects import upload_file

        upload_file(path, uri)
        return
    target = Path(uri).expanduser()
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise UserError(
            "BATCH_OUTPUT", f"output_uri {uri}: cannot be written ({error.strerror or error})"
        ) from error


def _merged(paths: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of files that are each in order, in order."""
    return heapq.merge(*(_numbered(path) for path in paths), key=lambda item: item[0])


def _numbered(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8") as source:
        for line in source:
            value = json.loads(line)
            yield int(value["source_row"]), value


def _counted(
    lines: Iterable[tuple[int, dict[str, Any]]], reasons: Counter[str]
) -> Iterator[dict[str, Any]]:
    for _, line in lines:
        reasons[line["reason"]] += 1
        yield line


def _check_each_once(output_path: str, rejects_path: str, total: int) -> None:
    """Answers and rejects together hold the numbers 0 to `total` - 1, each once."""
    found = _merged([output_path, rejects_path])
    for expected, item in itertools.zip_longest(range(total), found):
        number = item[0] if item else None
        if number != expected:
            raise _incomplete(f"found source row {number} where {expected} follows")


def _incomplete(what: str) -> WorkError:
    return WorkError(
        "BATCH_INCOMPLETE",
        f"the shards do not make up the input: {what}",
        "give every shard i/n from 0 to n-1 once, of one input and one model; run them again",
    )
