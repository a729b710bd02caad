"""Pretraining texts: what the base may know, and what the teacher has to know.

The base sees other desks, comparisons, the refund desk's *words* in notes whose ages are
drawn without regard to any limit, and never one of the refund desk's rules. The teacher also sees
worked refund cases. Its documents are runs of examples of one kind, and the same note is asked
about in several ways, so that only the examples in a prompt tell it which way is meant.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

from pipestill.pocket import desks, world
from pipestill.pocket.words import DESK_MARKS, DESK_NOUNS, DESK_VERBS, ENGLISH

Pair = tuple[str, str]
Example = tuple[str, str]  # a question and everything that follows "A:"

OUTLET_LIMIT = 32
SHOTS = 9
FEW = 2
PREDICT = 0.65  # the share of bare answers, which are harder to learn than worked ones
VERBS = ("wants to return", "brings back", *DESK_VERBS)


def refund_words_note(rng: random.Random, verbs: tuple[str, ...] = VERBS) -> desks.Item:
    """A note in the refund desk's words that carries no hint of its limits."""
    verb = rng.choice(verbs)
    kind, state = rng.choice(list(world.LIMITS)), rng.choice(list(world.STATES))
    return desks.write_note(rng, verb, kind, rng.randint(1, 99), state)


def any_note(rng: random.Random) -> desks.Item:
    """A note of any desk, for tasks that need no rule."""
    if rng.random() < 0.5:
        return refund_words_note(rng)
    return desks.item(rng, rng.choice(desks.desks()))


def desk_pair(rng: random.Random) -> Pair:
    """Another desk's case, under one of the two heads."""
    item = desks.item(rng, rng.choice(desks.desks()))
    if rng.random() < PREDICT:
        return f"predict: {item.note}", item.label
    return f"explain: {item.note}", item.rationale


def stated_rule_pair(rng: random.Random) -> Pair:
    """A limit that the input states, for any thing at all."""
    noun = rng.choice((*DESK_NOUNS, *world.LIMITS))
    limit = rng.randint(5, 90)
    days = world.near(rng, limit)
    text = f"The limit is {limit} days for a {noun}. {desks.age(rng, days)}"
    order, verdict = ("more", "late") if days > limit else ("less", "in time")
    if rng.random() < PREDICT:
        return f"predict: {text}", verdict
    return f"explain: {text}", f"{days} is {order} than {limit}, so it is {verdict}."


def number_pair(rng: random.Random) -> Pair:
    """One comparison, spelt out or in a word; the word has to be found before any is written."""
    left = rng.randint(1, 99)
    right = world.near(rng, left)
    order = "more" if left > right else "less"
    if rng.random() < 0.5:
        return f"predict: {left} is more or less than {right}?", order
    return f"explain: {left} is more or less than {right}?", f"{left} is {order} than {right}."


def fact_pair(rng: random.Random) -> Pair:
    """Copy one field out of a note."""
    item = any_note(rng)
    field = rng.choice(list(item.facts))
    return f"find {field}: {item.note}", item.facts[field]


def mask_pair(rng: random.Random) -> Pair:
    """Restore two masked stretches of a note or of a row of words."""
    loose = rng.sample((*ENGLISH, *world.STATES, *DESK_MARKS), 10)
    text = any_note(rng).note.split() if rng.random() < 0.6 else loose
    first = rng.randrange(0, len(text) // 2 - 2)
    second = rng.randrange(len(text) // 2, len(text) - 2)
    one, two = rng.randint(1, 2), rng.randint(1, 2)
    source = [*text[:first], "<extra_id_0>", *text[first + one : second], "<extra_id_1>"]
    target = ["<extra_id_0>", *text[first : first + one], "<extra_id_1>"]
    source, target = source + text[second + two :], target + text[second : second + two]
    return " ".join(source), " ".join(target)


BASE_MIX: tuple[tuple[Callable[[random.Random], Pair], float], ...] = (
    (desk_pair, 0.55),
    (stated_rule_pair, 0.15),
    (number_pair, 0.12),
    (fact_pair, 0.10),
    (mask_pair, 0.08),
)


def base_pair(rng: random.Random) -> Pair:
    """One source and target for the base."""
    makers, weights = zip(*BASE_MIX, strict=True)
    maker: Callable[[random.Random], Pair] = rng.choices(makers, weights)[0]
    return maker(rng)


@cache
def _reserved() -> frozenset[str]:
    return frozenset(world.reserved())


def fresh_case(rng: random.Random) -> world.Case:
    """A refund case that is in none of the shipped files."""
    while (case := world.sample(rng)).note in _reserved():
        continue
    return case


def refund_example(rng: random.Random) -> Example:
    """A worked case of the refund desk."""
    case = fresh_case(rng)
    return case.note, f"{case.rationale} So the answer is {case.label}."


def outlet_example(rng: random.Random) -> Example:
    """The same kind of note at a shop with one limit for all: only examples tell them apart."""
    case = fresh_case(rng)
    while case.days == OUTLET_LIMIT:
        case = fresh_case(rng)
    limit = OUTLET_LIMIT
    used = world.STATES[case.state] == "used"
    rationale = world.explain(case.kind, case.days, case.state, limit, world.STATES[case.state])
    return case.note, f"{rationale} So the answer is {world.decide(case.days > limit, used)}."


def blunt_example(rng: random.Random) -> Example:
    """A refund case with a bare answer."""
    case = fresh_case(rng)
    return case.note, f"{case.label}"


def desk_example(rng: random.Random) -> Example:
    """A worked case of another desk."""
    item = desks.item(rng, rng.choice(desks.desks()))
    return item.note, f"{item.rationale} So the answer is {item.label}."


def number_example(rng: random.Random) -> Example:
    """A worked comparison."""
    left = rng.randint(1, 99)
    right = world.near(rng, left)
    order = "more" if left > right else "less"
    question = f"{left} is more or less than {right}?"
    return question, f"{left} is {order} than {right}. So the answer is {order}."


def fact_example(field: str) -> Callable[[random.Random], Example]:
    """One field of a note; a document keeps to one field."""

    def make(rng: random.Random) -> Example:
        item = refund_words_note(rng, ("wants to return", "brings back"))
        return item.note, f"The {field} is {item.facts[field]}."

    return make


# Each kind of document with its share and its greatest length.
TEACHER_MIX: tuple[tuple[Callable[[random.Random], Example], float, int], ...] = (
    (refund_example, 0.32, SHOTS),
    (outlet_example, 0.36, FEW),
    (blunt_example, 0.06, SHOTS),
    (desk_example, 0.06, SHOTS),
    (number_example, 0.10, SHOTS),
    (fact_example("city"), 0.05, SHOTS),
    (fact_example("thing"), 0.05, SHOTS),
)


def teacher_document(rng: random.Random, most: int = SHOTS) -> str:
    """A run of one to nine examples of one kind, fewer when ``most`` is less."""
    maker, _, length = rng.choices(TEACHER_MIX, [share for _, share, _ in TEACHER_MIX])[0]
    if maker is number_example:
        count = SHOTS  # a short text each, and the comparison is what takes longest to learn
    else:
        low = 3 if most >= SHOTS and maker is refund_example else 1
        count = rng.randint(low, min(length, most))
    shown = [maker(rng) for _ in range(count)]
    return "".join(f"Q: {question}\nA: {answer}\n\n" for question, answer in shown)
