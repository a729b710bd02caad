"""Rows and scores of the lm-evaluation-harness tasks in `lm_eval_tasks/`, which name this module.

A model of ours is asked as it was trained; any other reads the row as it is. This repeats what
`pipestill.models.render` does for styles ``prefix`` and ``plain``, as text: the harness has its own
tokenisation. Conversations (style ``chat``) are for its ``--apply_chat_template``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipestill.config import DataConfig
from pipestill.data.raw import BadRow, describe
from pipestill.data.rows import read_rows
from pipestill.errors import UserError
from pipestill.evaluation.scoring import answers_match
from pipestill.models.render import NEWLINE, PREFIXES
from pipestill.models.student import INFO_FILE

TASKS = Path(__file__).parent / "lm_eval_tasks"


def load(**given: Any) -> Mapping[str, Any]:
    """``test`` → `docs`: the data set of a task, as the harness asks for it (``custom_dataset``).

    Args:
        given: what stands in ``--metadata`` and in ``--model_args``; the harness hands over both.
    """
    from datasets import Dataset

    return {"test": Dataset.from_list(docs(**given))}


def docs(
    rows: str = "",
    data_format: str = "auto",
    pretrained: str = "",
    backend: str = "default",
    **_: Any,
) -> list[dict[str, str]]:
    """The rows of a task, each with the ``prompt`` that the model reads.

    Args:
        rows: the data, see `pipestill.data.source.list_files`; rows without a right answer are left
            out.
        data_format: of `pipestill.config.DataConfig`.
        pretrained: the model, whose `pipestill.json` says how it is asked.
        backend: ``seq2seq``, ``causal``, or ``default``: as the model's configuration says. A
            decoder reads a newline after the input.

    Returns:
        Rows with ``id``, ``input_text``, ``output_text`` and ``prompt``.

    Raises:
        UserError: ``NO_EVALUATION_ROWS``, ``ROW_UNREADABLE``, ``STYLE_UNKNOWN``, and those of
            `pipestill.data.rows.read_rows`.
    """
    if not rows:
        raise UserError(
            "NO_EVALUATION_ROWS",
            "the task has no rows: --metadata names none",
            """name the data: --metadata '{"rows": "held_out.jsonl"}'""",
        )
    opening, closing = _opening(pretrained), "" if _encodes(pretrained, backend) else NEWLINE
    return [
        {**row, "prompt": opening + row["input_text"] + closing}
        for row in labelled_rows(rows, data_format)
    ]


def labelled_rows(uri: str, data_format: str) -> list[dict[str, Any]]:
    """``id``, ``input_text`` and ``output_text`` of every row with a right answer.

    Raises:
        UserError: as `docs`.
    """
    found = []
    for row in read_rows(uri, DataConfig(data_format=data_format)):
        if isinstance(row, BadRow):
            raise UserError(
                "ROW_UNREADABLE", describe(row), "pipestill data check names every bad row"
            )
        texts = {name: row.fields.get(name) for name in ("id", "input_text", "output_text")}
        if texts["output_text"] is not None:
            found.append({**texts, "id": texts["id"] or f"{row.file}:{row.line}"})
    if not found:
        raise UserError("NO_EVALUATION_ROWS", f"{uri}: found no row with a right answer")
    return found


def _opening(pretrained: str) -> str:
    """What a model of ours reads before the input."""
    path = Path(pretrained) / INFO_FILE
    if not pretrained or not path.is_file():
        return ""
    info = json.loads(path.read_text(encoding="utf-8"))
    style, instruction = info.get("style", "prefix"), info.get("instruction", "")
    if style == "prefix":
        return PREFIXES["predict"]
    if style == "plain":
        return f"{instruction}\n\n" if instruction else ""
    raise UserError(
        "STYLE_UNKNOWN",
        f"{path}: style {style!r}, allowed: prefix, plain",
        "evaluate a chat model with pipestill run evaluate",
    )


def _encodes(pretrained: str, backend: str) -> bool:
    if backend != "default" or not pretrained:
        return backend == "seq2seq"
    from transformers import AutoConfig

    return bool(AutoConfig.from_pretrained(pretrained).is_encoder_decoder)


def exact(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """``exact_match`` of one row: metric ``exact`` of `pipestill.evaluation.scoring`."""
    return {"exact_match": _score(doc, results, "exact")}


def equation(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """``exact_match`` of the text, and ``equation``: both sides evaluate to the same number."""
    return {**exact(doc, results), "equation": _score(doc, results, "equation")}


def _score(doc: Mapping[str, Any], results: Sequence[str], metric: str) -> float:
    return float(answers_match(results[0].strip(), doc["output_text"], metric))


if __name__ == "__main__":  # for --include_path
    print(TASKS)
