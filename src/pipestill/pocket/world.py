"""The pocket task: a refund desk whose rules a note never states.

The answer depends on two facts that the note hides among others (how old the purchase is, what
state the thing is in), each read through a table the reader has to know: the return limit of that
kind of thing, and whether that state counts as new or used. The answer names neither, so one
labelled row says little about the tables, while its rationale names both entries.
A rationale gives each looked-up value *before* the word it is looked up by: a student has to take
it from what it read, and cannot get it from the words it has just written.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipestill.pocket.words import CITIES, NAMES, PAYMENTS

LABELS = ("refund", "exchange", "refuse")

LIMITS: dict[str, int] = {
    "toy": 45, "lamp": 20, "jacket": 30, "camera": 14, "kettle": 62, "mirror": 9, "carpet": 75,
    "helmet": 38, "blanket": 54, "printer": 17, "necklace": 11, "bicycle": 68, "pillow": 26,
    "sweater": 33, "laptop": 12, "watch": 42, "backpack": 57, "radio": 23, "table": 80, "chair": 71,
    "curtain": 48, "drill": 29, "toaster": 64, "scarf": 36, "phone": 15, "tripod": 51, "heater": 78,
    "puzzle": 59, "wallet": 31, "speaker": 19, "mattress": 85, "racket": 40, "hammer": 66,
    "monitor": 24, "suitcase": 73, "ring": 8, "shoe": 35, "bottle": 50, "clock": 46, "ladder": 61,
}  # fmt: skip

STATES: dict[str, str] = {
    "sealed": "new", "wrapped": "new", "boxed": "new", "unworn": "new", "mint": "new",
    "tagged": "new", "spotless": "new", "folded": "new", "shiny": "new", "crisp": "new",
    "opened": "used", "scratched": "used", "worn": "used", "stained": "used", "dented": "used",
    "torn": "used", "dusty": "used", "faded": "used", "cracked": "used", "chipped": "used",
}  # fmt: skip

SPREAD = 24  # days a purchase lies before or after its limit, at most
TRAIN_SEED, EVAL_SEED, SHOT_SEED, TUNE_SEED, TEACHER_SEED = 11, 12, 13, 14, 15
TRAIN_ROWS, EVAL_ROWS, TEACHER_ROWS, SHOTS = 400, 500, 3000, 8
MORE_SHOTS = 12  # the first SHOTS of them are the same


@dataclass(frozen=True)
class Case:
    """One customer at the desk: the facts that matter, and the note they are hidden in."""

    kind: str
    days: int
    state: str
    note: str

    @property
    def limit(self) -> int:
        """The unstated return limit of this kind of thing."""
        return LIMITS[self.kind]

    @property
    def label(self) -> str:
        """What the desk decides."""
        return decide(self.days > self.limit, STATES[self.state] == "used")

    @property
    def rationale(self) -> str:
        """The two look-ups and the comparison behind the decision, in words."""
        return explain(self.kind, self.days, self.state, self.limit, STATES[self.state])


def decide(late: bool, used: bool) -> str:
    """One thing wrong leads to an exchange, two to a refusal: no single fact settles it."""
    return LABELS[int(late) + int(used)]


def explain(kind: str, days: int, state: str, limit: int, condition: str) -> str:
    """Word the rationale; other tables than the desk's own may be passed in."""
    order, verdict = ("more", "late") if days > limit else ("less", "in time")
    return (
        f"The limit is {limit} days for a {kind}. {days} is {order} than {limit}, "
        f"so it is {verdict}. It is {condition} because it is {state}."
    )


def dice(seed: int) -> random.Random:
    """A seeded generator: the texts must come out the same for everybody."""
    return random.Random(seed)  # noqa: S311


def near(rng: random.Random, limit: int) -> int:
    """Pick an age near a limit but never on it, late half of the time."""
    step = rng.randint(1, SPREAD)
    days = limit + step if rng.random() < 0.5 else limit - step
    return days if 1 <= days <= 99 else near(rng, limit)


def price(rng: random.Random) -> str:
    """A sentence about money: a second number that decides nothing."""
    amount, how = rng.randint(2, 99), rng.choice(PAYMENTS)
    return rng.choice((f"It cost {amount} euros.", f"{amount} euros were paid by {how}."))


def sample(rng: random.Random) -> Case:
    """Draw one customer and write the note, facts in any order."""
    kind, state = rng.choice(list(LIMITS)), rng.choice(list(STATES))
    days = near(rng, LIMITS[kind])
    verb = rng.choice(("wants to return", "brings back"))
    facts = [
        price(rng),
        rng.choice((f"It was bought {days} days ago.", f"The receipt is {days} days old.")),
        rng.choice((f"It is {state}.", f"It looks {state}.")),
    ]
    rng.shuffle(facts)
    opening = f"{rng.choice(NAMES)} from {rng.choice(CITIES)} {verb} a {kind}."
    return Case(kind, days, state, " ".join([opening, *facts]))


def cases(seed: int, count: int, taken: set[str]) -> list[Case]:
    """Draw ``count`` customers whose notes are not in ``taken``, and add them to it."""
    rng = dice(seed)
    found: list[Case] = []
    while len(found) < count:
        case = sample(rng)
        if case.note not in taken:
            taken.add(case.note)
            found.append(case)
    return found


def splits() -> tuple[list[Case], list[Case], list[Case]]:
    """The worked examples of the prompt, the training cases and the held-out cases, disjoint."""
    taken: set[str] = set()
    shots = cases(SHOT_SEED, SHOTS, taken)
    return shots, cases(TRAIN_SEED, TRAIN_ROWS, taken), cases(EVAL_SEED, EVAL_ROWS, taken)


def more_shots() -> list[Case]:
    """The worked examples of the prompt's second version; their notes are in no file of rows."""
    return cases(SHOT_SEED, MORE_SHOTS, set())


def tuning() -> list[Case]:
    """Cases to choose a learning rate on, so that the held-out ones are looked at once."""
    return cases(TUNE_SEED, EVAL_ROWS, reserved())


def reserved() -> set[str]:
    """Every note that no pretraining text may contain."""
    return {case.note for split in (*splits(), more_shots()) for case in split}


def train_rows() -> Iterator[dict[str, str]]:
    """Training rows; every second one comes without a label, for the teacher to give."""
    for index, case in enumerate(splits()[1]):
        row = {"id": f"train-{index:04d}", "input_text": case.note}
        yield row if index % 2 else {**row, "output_text": case.label}


def eval_rows() -> Iterator[dict[str, str]]:
    """Held-out rows with their label and their true rationale."""
    for index, case in enumerate(splits()[2]):
        yield {
            "id": f"eval-{index:04d}",
            "input_text": case.note,
            "output_text": case.label,
            "rationale": case.rationale,
        }


def teacher_rows() -> Iterator[dict[str, str]]:
    """Labelled rows to make a teacher of a pocket model with; none is a student's or held out."""
    for index, case in enumerate(cases(TEACHER_SEED, TEACHER_ROWS, reserved())):
        yield {"id": f"teacher-{index:04d}", "input_text": case.note, "output_text": case.label}


def write_data(folder: Path) -> None:
    """Write ``train.jsonl``, ``eval.jsonl`` and ``teacher.jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    made = (("train", train_rows()), ("eval", eval_rows()), ("teacher", teacher_rows()))
    for name, rows in made:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
