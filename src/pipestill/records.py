"""The typed rows that travel between stages, and how they are written and read.

Rows travel as JSON Lines in UTF-8, one object a line. Writing is atomic (a temporary file beside
the target, then a rename), so that a killed step never leaves half a file under the real name.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipestill.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row of prepared data.

    `output_text` is None where the label is missing and the teacher has to give it. `rationale` is
    a gold rationale where the data has one (shown in the report, never trained on). `source_row` is
    the 0-based index of the row in its source file, which the `replay` teacher needs.
    `messages` are those of a chat before the answer, each with ``role`` and ``content``;
    `input_text` is then their plain form. `tests` is a program text that ends without an error
    where the answer, as the continuation of `input_text`, is right code.
    """

    id: str
    input_text: str
    output_text: str | None = None
    rationale: str | None = None
    source_row: int = -1
    messages: list[dict[str, str]] | None = None
    tests: str | None = None


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A training row after the teacher: a label from gold or teacher, perhaps a kept rationale.

    `label_source` is ``gold`` or ``teacher``. `teacher_label` is the teacher's own majority answer
    also where a gold label exists. `agreement` is the share of parsed samples that gave
    `teacher_label`. `rationale` is the kept teacher rationale or None; `rationale_status` says why
    (``kept`` or the name of the filter that dropped it).
    """

    id: str
    input_text: str
    output_text: str
    label_source: str
    teacher_label: str | None = None
    agreement: float = 0.0
    rationale: str | None = None
    rationale_status: str = "not_asked"
    gold_rationale: str | None = None
    source_row: int = -1


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One answer of one arm on one held-out row.

    `arm` is e.g. ``dss``, ``label_only``, ``shuffled``, ``teacher_5_shot``, ``base``; `seed` is -1
    for arms without training. `latency_ms` is the time of the row's own call at batch size 1 where
    measured, else None. `rationale` is the arm's explanation where it gave one. `error` says why
    there is no answer (counted as wrong).
    """

    id: str
    arm: str
    seed: int
    input_text: str
    gold: str
    output_text: str
    correct: bool
    prompt_tokens: int
    output_tokens: int
    latency_ms: float | None = None
    rationale: str | None = None
    gold_rationale: str | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Preference:
    """Two answers to one prompt, and which of them is preferred (`choice`, 0 or 1).

    `margin` says by how much, where the data do; `source` is ``human`` or ``judge``. `messages`
    are those of a chat before the answer; `input_text` is then their plain form.
    """

    id: str
    input_text: str
    candidate_0: str
    candidate_1: str
    choice: int
    margin: float = 0.0
    source: str = "human"
    source_row: int = -1
    messages: list[dict[str, str]] | None = None


@dataclass(frozen=True, kw_only=True)
class Reject:
    """A row that was set aside: where it stood, which field, why, an excerpt of what was found."""

    file: str
    line: int
    field: str
    reason: str
    found: str = ""


Row = TypeVar("Row", Example, Labelled, Prediction, Preference, Reject)


def write_jsonl(path: str | Path, rows: Iterable[Any]) -> int:
    """Writes dataclass rows (or mappings) to `path` atomically; returns how many."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            for row in rows:
                value = row if isinstance(row, Mapping) else dataclasses.asdict(row)
                out.write(json.dumps(value, ensure_ascii=False) + "\n")
                count += 1
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return count


def read_jsonl(path: str | Path, kind: type[Row]) -> Iterator[Row]:
    """Reads the rows of a file that `write_jsonl` wrote, as `kind`.

    Raises:
        UserError: ``ROW_UNREADABLE`` naming file and line, where a line is not such a row.
    """
    names = {f.name for f in dataclasses.fields(kind)}
    with open(path, encoding="utf-8") as source:
        for number, line in enumerate(source, 1):
            try:
                value = json.loads(line)
                yield kind(**{name: value[name] for name in names & value.keys()})
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                raise UserError(
                    "ROW_UNREADABLE",
                    f"{path}, line {number}: not a {kind.__name__} row ({error})",
                    "this file is written by an earlier step: run that step again",
                ) from error


def write_json(path: str | Path, value: Any) -> None:
    """Writes one JSON document atomically, keys in the order given."""
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a whole file atomically."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, target)
