"""Request logs of `pipestill serve` → prompts for the teacher, and new training rows.

Only what its sender allowed: an instance with ``consent: true``. Of these a share, chosen by a hash
of the input, so that the same input is in every sample or in none. Each input once, and none that
stands in the last training set or in the regression set.

What identifies a person inside a text is NOT recognised here. `redact` is the place for your own
filter: it gets each text and returns it, changed, or None to leave the row out. Without one, texts
are taken as they came.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipestill.config import TeacherConfig
from pipestill.data.gzipped import unpacked
from pipestill.data.lines import bounded_lines
from pipestill.data.raw import sound
from pipestill.data.rows import Row
from pipestill.data.source import list_files, open_file, readable
from pipestill.data.split import input_key
from pipestill.records import Example, read_jsonl, write_jsonl

Redact = Callable[[str], str | None]


@dataclass
class Taken:
    """Rows that may be used, and why the others were not."""

    rows: list[Row] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def read_log(uri: str, share: float, redact: Redact | None = None) -> Taken:
    """Rows of request logs: inputs only, without an answer; the teacher gives it.

    Args:
        uri: what `pipestill.data.source.list_files` takes.
        share: of the inputs with consent, 0 to 1.
        redact: a filter of texts.

    Returns:
        Rows, and counts ``lines``, ``unreadable``, ``no_consent``, ``not_sampled``, ``redacted``.
    """
    taken = Taken()
    number = 0
    for file in list_files(uri):
        with readable(file.name), open_file(file) as opened:
            for line in bounded_lines(unpacked(opened, file.name)):
                if not line.data.strip():
                    continue
                taken.counts["lines"] += 1
                why, fields = allowed(b"" if line.too_long else line.data, share, redact)
                if why:
                    taken.counts[why] += 1
                    continue
                taken.rows.append(Row(file.name, line.number, number, fields))
                number += 1
    return taken


def allowed(line: bytes, share: float, redact: Redact | None = None) -> tuple[str, dict[str, Any]]:
    """Why a line of the log is not used, or the fields of its row."""
    try:
        value = json.loads(line)
        text, consent = value["input_text"], value["consent"]
        messages = [
            {name: sound("messages", str(item[name])) for name in ("role", "content")}
            for item in value.get("messages") or ()
        ]
        if isinstance(text, str):
            sound("input_text", text)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return "unreadable", {}
    if consent is not True:
        return "no_consent", {}
    if not isinstance(text, str) or not text.strip():
        return "unreadable", {}
    if not is_sampled(text, share):
        return "not_sampled", {}
    texts = [text, *(item["content"] for item in messages)]
    kept = [redact(item) for item in texts] if redact else texts
    if any(item is None or not item.strip() for item in kept):
        return "redacted", {}
    told = [{**item, "content": content} for item, content in zip(messages, kept[1:], strict=True)]
    fields = {"id": None, "input_text": kept[0], "output_text": None, "rationale": None}
    return "", {**fields, "messages": told or None}


def is_sampled(text: str, share: float) -> bool:
    """Whether an input is in a sample of `share`, by hash alone."""
    digest = hashlib.sha256(b"log:" + input_key(text)).digest()
    return int.from_bytes(digest[:8], "big") < share * 2.0**64


def prompts(rows: Iterable[Row], *known: Iterable[Example]) -> list[Example]:
    """One unlabelled row for each input that none of `known` has."""
    seen = {input_key(row.input_text) for other in known for row in other}
    found = []
    for row in rows:
        key = input_key(row.fields["input_text"])
        if key not in seen:
            seen.add(key)
            name = hashlib.sha256(key).hexdigest()[:16]
            found.append(Example(**{**row.fields, "id": name}, source_row=row.source_row))
    return found


def prompts_from_logs(
    uri: str,
    prompts_path: str,
    *,
    share: float = 1.0,
    known_paths: Sequence[str] = (),
    redact: Redact | None = None,
) -> dict[str, int]:
    """Writes the prompts of request logs (JSONL of `Example` without answers).

    The file is a `dataset_uri` for the pipelines whose teacher labels rows, such as
    `distill_step_by_step`.

    Args:
        uri: the logs.
        prompts_path: written.
        share: of the inputs with consent.
        known_paths: JSONL of `Example`: the last training set, the regression set.
        redact: a filter of texts.

    Returns:
        The counts of `read_log`, with ``duplicates`` and ``prompts``.
    """
    taken = read_log(uri, share, redact)
    known = [list(read_jsonl(path, Example)) for path in known_paths]
    found = prompts(taken.rows, *known)
    write_jsonl(prompts_path, found)
    counts: Mapping[str, int] = taken.counts
    return {**counts, "duplicates": len(taken.rows) - len(found), "prompts": len(found)}


def rows_from_prompts(
    prompts_path: str, rows_path: str, *, state_dir: str, config: TeacherConfig
) -> dict[str, Any]:
    """Lets the teacher answer prompts: they become training rows (JSONL of `Labelled`).

    Args:
        prompts_path: JSONL of `Example` without answers.
        rows_path: written.
        state_dir: folder of the journal of paid calls.
        config: the teacher.

    Returns:
        What `pipestill.generation.label.label_shard` returns.
    """
    from pipestill.generation.label import label_shard

    unaudited = dataclasses.replace(config, audit_rows=0)
    return label_shard(
        prompts_path, prompts_path, rows_path, shard="0/1", state_dir=state_dir, config=unaudited
    )
