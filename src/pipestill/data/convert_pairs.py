"""Preference rows, in the layouts that people write them in → two answers to one prompt.

===================================  ==========================================================
fields                               whose
===================================  ==========================================================
candidate_0, candidate_1, choice     ours and Google's; the prompt is input_text or messages
chosen, rejected                     HH-RLHF (Bai et al. 2022, arXiv 2204.05862): whole dialogues
prompt, chosen, rejected             the prompt and two answers
text, score                          two whole dialogues and what each is worth
===================================  ==========================================================
"""

import math
import os
import re
from collections.abc import Mapping
from typing import Any

from pipestill.data.convert_chat import filled, prompt
from pipestill.data.raw import RowProblem, missing

Row = dict[str, Any]

CANDIDATES = ("candidate_0", "candidate_1")
_OURS = (*CANDIDATES, "choice")
# What tables make of the integers 0 and 1, and how people write that neither is better.
_CHOICES = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "": None, "tie": None}
_TURN = re.compile(r"\n\n(Human|Assistant):")
_REPLY = "\n\nAssistant:"


def is_pair(row: Mapping[str, Any]) -> bool:
    """Whether an object has a field of a preference row, so that a broken one is not a prompt."""
    marks = {*_OURS, "chosen", "rejected"} & row.keys()
    return bool(marks) or {"text", "score"} <= row.keys() or bool(_nested(row))


def preference(row: Mapping[str, Any]) -> list[Row]:
    """The pair of a row: input_text (and messages), candidate_0, candidate_1, choice.

    ``margin``, ``id`` and the source ``judge`` are kept where the row has them. A score only
    orders: its scale is not known, so no margin is made of it.

    Raises:
        RowProblem: among others ``tie`` and ``identical_candidates``, which are no mistakes.
    """
    if "chosen" in row or "rejected" in row:
        pair = _ranked(row)
    elif {"text", "score"} <= row.keys():
        pair = _scored(row)
    else:
        pair = candidates(row) | {"choice": _choice(row)}
    if pair["candidate_0"] == pair["candidate_1"]:
        raise RowProblem("candidate_1", "identical_candidates", pair["candidate_1"])
    if row.get("margin") not in (None, ""):
        pair["margin"] = _margin(row["margin"])
    if row.get("source") == "judge":
        pair["source"] = "judge"
    return [pair | ({"id": row["id"]} if "id" in row else {})]


def candidates(row: Mapping[str, Any]) -> Row:
    """The prompt and the two candidates of a row, without what is preferred."""
    if name := _nested(row):
        raise RowProblem(
            f"messages[-1].{name}",
            "nested_candidates",
            row["messages"][-1][name],
            detail=f"move {', '.join(_OURS)} out of the message",
        )
    asked = prompt(row)
    return asked | {name: filled(row, name).strip() for name in CANDIDATES}


def _choice(row: Mapping[str, Any]) -> int:
    choice = row.get("choice")
    if isinstance(choice, str):
        choice = _CHOICES.get(choice.strip().lower(), choice)
    if choice is None:
        found = row.get("choice") if "choice" in row else missing("choice", row).found
        raise RowProblem("choice", "tie", found)
    if isinstance(choice, bool) or choice not in (0, 1):
        raise RowProblem("choice", "bad_choice", choice)
    return int(choice)


def _margin(value: object) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise RowProblem("margin", "bad_margin", value)
    return number


def _ranked(row: Mapping[str, Any]) -> Row:
    answers = [filled(row, name) for name in ("chosen", "rejected")]
    if "prompt" in row:
        first, second = (answer.strip() for answer in answers)
        pair = {"input_text": filled(row, "prompt"), "candidate_0": first, "candidate_1": second}
    else:
        pair = _from_dialogues("rejected", *answers)
    return pair | {"choice": 0}


def _scored(row: Mapping[str, Any]) -> Row:
    for name, kind in (("text", str), ("score", int | float)):
        values = row[name]
        good = isinstance(values, list) and all(
            isinstance(value, kind) and not isinstance(value, bool) for value in values
        )
        if not good or len(values) != 2:
            raise RowProblem(name, "wrong_type", values, detail="allowed: a list of two")
    first, second = row["score"]
    if not (math.isfinite(first) and math.isfinite(second)):
        raise RowProblem("score", "bad_number", row["score"])
    pair = _from_dialogues("text", *row["text"])
    if first == second:
        raise RowProblem("score", "tie", row["score"])
    return pair | {"choice": int(second > first)}


def _from_dialogues(field: str, first: str, second: str) -> Row:
    """The turns that two dialogues share, and the reply that each ends in."""
    common = os.path.commonprefix([first, second])  # noqa: RUF071 - by character is right here
    place = common.rfind(_REPLY)
    if place < 0:
        raise RowProblem(field, "bad_dialogue", second, detail="no common prompt")
    replies = [text[place + len(_REPLY) :] for text in (first, second)]
    if any(_TURN.search(reply) for reply in replies):
        raise RowProblem(field, "bad_dialogue", second, detail="they part before the last reply")
    before, *pieces = _TURN.split("\n\n" + first[:place].lstrip())
    if before.strip():
        raise RowProblem(field, "bad_dialogue", before, detail="text before the first turn")
    messages = [
        {"role": role, "content": content.strip()}
        for role, content in zip(pieces[::2], pieces[1::2], strict=True)
    ]
    answers = {name: reply.strip() for name, reply in zip(CANDIDATES, replies, strict=True)}
    return candidates({"messages": messages, **answers})


def _nested(row: Mapping[str, Any]) -> str:
    """The field of a pair that stands inside the last message, or ""."""
    messages = row.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    return next((name for name in _OURS if isinstance(last, dict) and name in last), "")
