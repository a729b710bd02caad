"""The refund desk's manners: what `rlhf` learns on a laptop.

The desk decides as ever, and words its decision in one of several manners at random. Customers
prefer a reply that gives the reason. Replies with and without a reason are long and short equally
often, so that a reward model cannot get by on length. The decision itself is right in every reply:
only the manner is preferred.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from pipestill.pocket.world import STATES, Case, cases, dice, reserved, tuning

PREFERENCE_SEED, PROMPT_SEED, REPLY_SEED, MANNER_SEED = 16, 17, 18, 19
PREFERENCE_ROWS, PROMPT_ROWS, REPLY_ROWS = 300, 500, 1000

REASONED = (
    "{label}: it is {order} and {condition}.",
    "{label}, because it is {order} and it is {condition}.",
    "It is {order}, and it is {condition} because it is {state}: {label}.",
)
BARE = (
    "{label}: bring it to the desk.",
    "{label}, so bring it to the desk with the receipt.",
    "It was noted, and the receipt is with the desk: {label}.",
)


def reply(case: Case, manner: str) -> str:
    """The desk's decision in a manner."""
    return manner.format(
        label=case.label,
        order="late" if case.days > case.limit else "in time",
        condition=STATES[case.state],
        state=case.state,
    )


def preference_rows() -> Iterator[dict[str, str | int]]:
    """Pairs of a reply with a reason and one without, the preferred one at either place."""
    rng = dice(MANNER_SEED)
    for index, case in enumerate(_cases()[0]):
        choice = rng.randrange(2)
        preferred, other = (reply(case, rng.choice(manners)) for manners in (REASONED, BARE))
        pair = (preferred, other) if choice == 0 else (other, preferred)
        yield {
            "id": f"preference-{index:04d}",
            "input_text": case.note,
            "candidate_0": pair[0],
            "candidate_1": pair[1],
            "choice": choice,
        }


def prompt_rows() -> Iterator[dict[str, str]]:
    """Notes to answer."""
    for index, case in enumerate(_cases()[1]):
        yield {"id": f"prompt-{index:04d}", "input_text": case.note}


def reply_rows() -> Iterator[dict[str, str]]:
    """Notes with replies in all manners, reasoned ones as often as others: a supervised start."""
    rng = dice(MANNER_SEED + 1)
    for index, case in enumerate(_cases()[2]):
        yield {
            "id": f"reply-{index:04d}",
            "input_text": case.note,
            "output_text": reply(case, _any_manner(rng)),
        }


def _any_manner(rng: random.Random) -> str:
    return rng.choice(REASONED if rng.random() < 0.5 else BARE)


def _cases() -> tuple[list[Case], list[Case], list[Case]]:
    """Customers of the three files, none of them of another file of the task."""
    taken = reserved() | {case.note for case in tuning()}
    return (
        cases(PREFERENCE_SEED, PREFERENCE_ROWS, taken),
        cases(PROMPT_SEED, PROMPT_ROWS, taken),
        cases(REPLY_SEED, REPLY_ROWS, taken),
    )


def write_preferences(folder: Path) -> None:
    """Write ``preferences.jsonl``, ``prompts.jsonl`` and ``replies.jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    made = (
        ("preferences", preference_rows()),
        ("prompts", prompt_rows()),
        ("replies", reply_rows()),
    )
    for name, rows in made:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
