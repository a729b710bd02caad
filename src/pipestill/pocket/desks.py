"""Other desks: worlds with the refund desk's shape and none of its rules.

A base that had never met "look a limit up, compare, combine" could not be taught it by a few
hundred rows. So the models pretrain on desks that deal with other things, look at other marks and
decide by other tables; what the refund desk sells, and for how long, fine-tuning has to teach.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from pipestill.pocket.words import (
    CITIES,
    DESK_CLASSES,
    DESK_MARKS,
    DESK_NOUNS,
    DESK_OUTCOMES,
    DESK_VERBS,
    NAMES,
)
from pipestill.pocket.world import dice, near, price

DESKS = 10
DESK_SEED = 5
MARKS_PER_DESK = 18

# Which outcome follows from (late, second class), as positions in a desk's outcomes.
TABLES = ((0, 1, 2, 3), (0, 1, 1, 2), (0, 1, 1, 0), (0, 0, 1, 2), (0, 1, 2, 2), (0, 1, 2, 1))

WORDINGS = (
    "The limit is {limit} days for a {noun}. {days} is {order} than {limit}, so it is {verdict}. "
    "It is {name} because it is {mark}.",
    "It is {name} because it is {mark}. The limit is {limit} days for a {noun}. "
    "{days} is {order} than {limit}, so it is {verdict}.",
    "There are {limit} days for a {noun}, and {days} is {order} than {limit}: {verdict}. "
    "It counts as {name} since it is {mark}.",
    "It takes {limit} days with a {noun}. {days} days are {order}, so it is {verdict}. "
    "That is {name}, as it is {mark}.",
)


@dataclass(frozen=True)
class Desk:
    """One rule set: limits by noun, a class by mark, and an outcome by what follows."""

    verb: str
    limits: dict[str, int]
    marks: dict[str, bool]
    names: tuple[str, str]
    outcomes: tuple[str, ...]
    table: tuple[int, ...]
    wording: str


@dataclass(frozen=True)
class Item:
    """One note with what can be asked about it."""

    note: str
    rationale: str
    label: str
    facts: dict[str, str]


@cache
def desks() -> tuple[Desk, ...]:
    """The fixed set of other desks, drawn once from their own seed."""
    rng = dice(DESK_SEED)
    nouns, verbs = list(DESK_NOUNS), list(DESK_VERBS)
    rng.shuffle(nouns)
    size = len(nouns) // DESKS
    return tuple(_desk(rng, nouns[size * i : size * (i + 1)], verbs[i], i) for i in range(DESKS))


@cache
def second_class() -> frozenset[str]:
    """The half of the marks that every other desk ranks lower."""
    return frozenset(dice(DESK_SEED + 1).sample(DESK_MARKS, len(DESK_MARKS) // 2))


def _desk(rng: random.Random, nouns: list[str], verb: str, index: int) -> Desk:
    marks = rng.sample(DESK_MARKS, MARKS_PER_DESK)
    return Desk(
        verb=verb,
        limits={noun: rng.randint(5, 90) for noun in nouns},
        marks={mark: mark in second_class() for mark in marks},
        names=DESK_CLASSES[index % len(DESK_CLASSES)],
        outcomes=tuple(rng.sample(DESK_OUTCOMES, 4)),
        table=TABLES[index % len(TABLES)],
        wording=WORDINGS[index % len(WORDINGS)],
    )


def distractor(rng: random.Random) -> str:
    """A sentence with a number that decides nothing."""
    number = rng.randint(2, 99)
    weight = (f"It weighs {number} kilos.", f"It was number {number} in line.")
    return price(rng) if rng.random() < 0.6 else rng.choice(weight)


def age(rng: random.Random, days: int) -> str:
    """Say how many days have passed, in one of the ways all desks share."""
    return rng.choice(
        (
            f"It was bought {days} days ago.",
            f"The receipt is {days} days old.",
            f"It came {days} days ago.",
            f"The note is {days} days old.",
        )
    )


def write_note(rng: random.Random, verb: str, noun: str, days: int, mark: str) -> Item:
    """Hide three facts among others; the caller fills in the verdict."""
    name, city = rng.choice(NAMES), rng.choice(CITIES)
    facts = [distractor(rng), age(rng, days), f"It {rng.choice(('is', 'looks'))} {mark}."]
    rng.shuffle(facts)
    note = " ".join([f"{name} from {city} {verb} a {noun}.", *facts])
    known = {"name": name, "city": city, "thing": noun, "days": str(days), "look": mark}
    return Item(note, "", "", known)


def item(rng: random.Random, desk: Desk) -> Item:
    """One worked case of a desk."""
    noun, mark = rng.choice(list(desk.limits)), rng.choice(list(desk.marks))
    limit, second = desk.limits[noun], desk.marks[mark]
    days = near(rng, limit)
    blank = write_note(rng, desk.verb, noun, days, mark)
    late = days > limit
    rationale = desk.wording.format(
        limit=limit,
        noun=noun,
        days=days,
        mark=mark,
        order="more" if late else "less",
        verdict="late" if late else "in time",
        name=desk.names[int(second)],
    )
    label = desk.outcomes[desk.table[2 * int(late) + int(second)]]
    return Item(blank.note, rationale, label, blank.facts)
