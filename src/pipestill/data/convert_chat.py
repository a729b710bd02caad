"""Chat rows, in the two ways that people write them, and prompts.

A chat row is ``{"messages": [{"author" or "role", "content"}, …], "context": …}``; it gives one
training row for each assistant turn, and one without a label where the user speaks last.
"""

from collections.abc import Mapping
from typing import Any

from pipestill.data.raw import RowProblem, missing, sound

Row = dict[str, Any]

ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
}


def chat_messages(row: Mapping[str, Any]) -> list[Row]:
    """One row per assistant turn: the conversation before it, then the reply as the label."""
    return _replies(*turns_of(row))


def sgd_dialogue(row: Mapping[str, Any]) -> list[Row]:
    """Schema-guided dialogue (Rastogi et al. 2020): turns with speaker USER or SYSTEM, utterance.

    The system is the assistant. Its frames and service calls are left out.
    """
    if "turns" not in row:
        raise missing("turns", row)
    if not isinstance(row["turns"], list):
        raise RowProblem("turns", "wrong_type", row["turns"])
    names = {"USER": "user", "SYSTEM": "assistant"}
    messages = [
        {"role": names.get(str(turn.get("speaker"))), "content": turn.get("utterance")}
        if isinstance(turn, dict)
        else turn
        for turn in row["turns"]
    ]
    return chat_messages({"messages": messages})


def _replies(context: str, turns: list[tuple[str, str]]) -> list[Row]:
    rows: list[Row] = []
    for place, (role, content) in enumerate(turns):
        last_word = place == len(turns) - 1 and role == "user"
        if role == "assistant":
            rows.append(_before(context, turns[:place]) | {"output_text": content})
        elif last_word:
            rows.append(_before(context, turns) | {"output_text": None})
    return rows


def _before(context: str, turns: list[tuple[str, str]]) -> Row:
    """What the assistant answers to, as plain text and as messages."""
    system = [("system", context)] if context else []
    messages = [{"role": role, "content": content} for role, content in [*system, *turns]]
    return {"input_text": render(context, turns), "messages": messages}


def render(context: str, turns: list[tuple[str, str]]) -> str:
    """Plain text: the context, then ``user:`` and ``assistant:`` lines, open for the next reply."""
    spoken = "\n".join([*(f"{role}: {content}" for role, content in turns), "assistant:"])
    return f"{context}\n\n{spoken}" if context else spoken


def prompt(row: Mapping[str, Any]) -> Row:
    """What is to be answered: input_text, or a conversation in which the user speaks last."""
    if row.get("messages") is None:
        return {"input_text": filled(row, "input_text")}
    context, turns = turns_of(row)
    if turns[-1][0] != "user":
        raise RowProblem("messages", "bad_role", turns[-1][0], detail="the user speaks last")
    return _before(context, turns)


def turns_of(row: Mapping[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """The context (a system message first counts as one) and the turns, checked."""
    if "messages" not in row:
        raise missing("messages", row)
    messages = row["messages"]
    if not isinstance(messages, list):
        raise RowProblem("messages", "wrong_type", messages)
    context = row.get("context") or ""
    if not isinstance(context, str):
        raise RowProblem("context", "wrong_type", context)
    turns = [_turn(place, message) for place, message in enumerate(messages)]
    if turns and turns[0][0] == "system":
        context = "\n".join(filter(None, [context, turns.pop(0)[1]]))
    for place, (role, _) in enumerate(turns):
        if role != ("user", "assistant")[place % 2]:
            raise RowProblem("messages", "bad_role", role, detail=f"turn {place + 1}")
    if not turns:
        raise RowProblem("messages", "no_turn", messages)
    return context, turns


def _turn(place: int, message: object) -> tuple[str, str]:
    field = f"messages[{place}]"
    if not isinstance(message, dict):
        raise RowProblem(field, "not_an_object", message)
    name = message.get("role", message.get("author"))
    role = ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise RowProblem(f"{field}.role", "bad_role", name)
    content = filled(message, "content", f"{field}.")
    return role, content


def filled(row: Mapping[str, Any], field: str, prefix: str = "") -> str:
    """The text in `field`, which must be there, not blank, and writable."""
    if field not in row:
        raise missing(prefix + field, row)
    value = row[field]
    if not isinstance(value, str):
        raise RowProblem(prefix + field, "wrong_type", value)
    if not value.strip():
        raise RowProblem(prefix + field, "empty_turn" if prefix else "empty_input", value)
    return sound(prefix + field, value)
