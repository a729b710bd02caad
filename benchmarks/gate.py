"""How often the gate errs and what it finds: many release decisions about models that are known.

    python -m benchmarks.gate [--runs 2000] [--seed 0]

Every decision goes through the functions that users run. "False" scenarios are models that must not
be promoted (equal ones, or worse by exactly the margin); the rate of promotion, or of vetoes by a
slice, is printed with its 95 % interval (Wilson 1927), and exit code 1 says that an interval lies
wholly above 5 %. "Power" scenarios are real gains, beside what the formula promises. "Not used" is
the reason for a choice, shown and not judged.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from pipestill.evaluation.gate import (
    FAIL,
    OPEN,
    PASS,
    PROMOTE,
    decide,
    enough_rows,
    not_inferior,
    superior,
)
from pipestill.evaluation.gate_power import mean_power, paired_power
from pipestill.evaluation.gate_slices import no_slice_worse, not_fewer_right
from pipestill.evaluation.gate_tasks import Task, promote_over_tasks, right_or_wrong
from pipestill.evaluation.statistics import Scores
from pipestill.records import Prediction
from pipestill.retrain.promote import CHALLENGER, CHAMPION, judge
from pipestill.retrain.rows import NEW, REGRESSION
from pipestill.retrain.settings import GateRule

LIMIT = 0.05
FALSE, POWER, NOT_USED = "false", "power", "not used"
Dice = np.random.Generator
Trial = Callable[[Dice], bool]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One line of the table: what is true, what is counted, and what the formula promises."""

    kind: str
    name: str
    trial: Trial
    slow: bool = False  # resamples rows: fewer runs
    formula: float | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """A scenario's outcome: how many of the runs, and the 95 % interval of the rate."""

    scenario: Scenario
    hits: int
    runs: int

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.hits, self.runs)

    @property
    def broken(self) -> bool:
        return self.scenario.kind == FALSE and self.interval[0] > LIMIT


def wilson(hits: int, runs: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The 95 % score interval of a rate."""
    rate, spread = hits / runs, z * z / runs
    half = z * math.sqrt(rate * (1 - rate) / runs + spread / (4 * runs))
    low, high = ((rate + spread / 2 + side * half) / (1 + spread) for side in (-1, 1))
    return max(0.0, low), min(1.0, high)


def pair(dice: Dice, rows: int, discordance: float, gain: float) -> tuple[Scores, Scores]:
    """0/1 scores of a new and an old model; a row is won with (discordance + gain) / 2."""
    drawn = dice.random(rows)
    won = drawn < (discordance + gain) / 2
    lost = (drawn >= (discordance + gain) / 2) & (drawn < discordance)
    both = drawn > (1 + discordance) / 2
    return (won | both).astype(np.float64), (lost | both).astype(np.float64)


def one(rows: int, discordance: float, gain: float, *, margin: float = 0.05, test: str = "interval",
        require: str = "better", slices: int = 0) -> Trial:  # fmt: skip
    """Whether one model on one task is promoted."""

    def trial(dice: Dice) -> bool:
        new, old = pair(dice, rows, discordance, gain)
        task = right_or_wrong(
            new, old, margin=margin, min_rows=50, test=test, slices=parts(rows, slices)
        )
        return bool(promote_over_tasks({"x": task}, require=require)["decision"] == PROMOTE)

    return trial


def parts(rows: int, count: int) -> dict[str, range] | None:
    """`count` slices of equal length."""
    if not count:
        return None
    each = rows // count
    return {f"slice {at}": range(at * each, (at + 1) * each) for at in range(count)}


def several(gains: list[float], *, rows: int = 300, discordance: float = 0.1, margin: float = 0.05,
            primary: tuple[str, ...] = (), alike: bool = False) -> Trial:  # fmt: skip
    """Whether a model with so large a gain on each task is promoted; `alike`: on the same rows."""

    def trial(dice: Dice) -> bool:
        shared = int(dice.integers(2**32))
        tasks: dict[str, Task] = {}
        for at, gain in enumerate(gains):
            stream = np.random.default_rng(shared) if alike else dice
            new, old = pair(stream, rows, discordance, gain)
            tasks[f"t{at}"] = right_or_wrong(
                new, old, margin=margin, min_rows=50, tasks=len(primary) or len(gains)
            )
        return bool(promote_over_tasks(tasks, primary=primary)["decision"] == PROMOTE)

    return trial


def vetoed(rows: int, discordance: float, slices: int) -> Trial:
    """Whether a slice of an equal model is called worse."""

    def trial(dice: Dice) -> bool:
        new, old = pair(dice, rows, discordance, 0.0)
        return no_slice_worse(parts(rows, slices) or {}, new, old).outcome == FAIL

    return trial


def rewards(rows: int, gain: float) -> Trial:
    """Whether a gain in reward is promoted: skewed, and alike for one prompt, as rewards are."""

    def trial(dice: Dice) -> bool:
        prompt = dice.exponential(size=rows)
        new, old = (prompt + dice.exponential(size=rows) for _ in range(2))
        rules = [enough_rows(rows, 50), superior("reward", new + gain, old)]
        return bool(decide(rules)["decision"] == PROMOTE)

    return trial


def retrained(new_gain: float, regression_gain: float) -> Trial:
    """Whether `retrain` promotes a challenger with these gains on new rows and the frozen set."""
    sizes, arms = {NEW: 300, REGRESSION: 1000}, (CHALLENGER, CHAMPION)

    def trial(dice: Dice) -> bool:
        told = []
        for part, gain in ((NEW, new_gain), (REGRESSION, regression_gain)):
            for arm, scores in zip(arms, pair(dice, sizes[part], 0.1, gain), strict=True):
                told += [answer(f"{part}{at}", arm, right) for at, right in enumerate(scores)]
        return bool(judge(told, GateRule())["decision"] == PROMOTE)

    return trial


def answer(name: str, arm: str, right: float) -> Prediction:
    """A row as `evaluate_tuned` writes it, of one of four labels and some length."""
    at = int(name.rpartition("/")[2])
    return Prediction(
        id=name, arm=arm, seed=-1, input_text="word " * (at % 7), gold=str(at % 4),
        output_text="", correct=bool(right), prompt_tokens=1, output_tokens=1,
    )  # fmt: skip


def resampled_margin(rows: int, lost: float, margin: float) -> Trial:
    """Whether resampling calls a model not inferior that is worse by the margin, on few rows."""

    def trial(dice: Dice) -> bool:
        new, old = pair(dice, rows, lost, -lost)
        return not_inferior("x", new, old, margin=margin).outcome == PASS

    return trial


def settled(rows: int, discordance: float, margin: float) -> Trial:
    """Whether an equal model is shown to be not worse."""

    def trial(dice: Dice) -> bool:
        new, old = pair(dice, rows, discordance, 0.0)
        return not_fewer_right("x", new, old, margin=margin).outcome not in (FAIL, OPEN)

    return trial


def scenarios() -> Iterator[Scenario]:
    """All lines of the table."""
    for test in ("interval", "mcnemar", "mcnemar_exact", "bootstrap"):
        for rows, discordance in ((100, 0.05), (400, 0.05), (400, 0.2)):
            yield Scenario(
                kind=FALSE,
                name=f"equal, {rows} rows, {discordance:.0%} discordant, {test}",
                trial=one(rows, discordance, 0.0, margin=0.2, test=test),
                slow=test == "bootstrap",
            )
    for rows, discordance in ((100, 0.05), (200, 0.1), (400, 0.2)):
        yield Scenario(
            kind=FALSE,
            name=f"worse by the margin of 5 points, {rows} rows, {discordance:.0%} discordant",
            trial=one(rows, discordance, -0.05, require="not_worse"),
        )
    for slices in (5, 20):
        yield Scenario(
            kind=FALSE,
            name=f"a veto for an equal model, {slices} slices of 30 rows, 20% discordant",
            trial=vetoed(30 * slices, 0.2, slices),
        )
    yield Scenario(
        kind=FALSE,
        name="equal, 600 rows, 20 slices, 10% discordant",
        trial=one(600, 0.1, 0.0, slices=20),
    )
    for count in (2, 5, 10):
        yield Scenario(
            kind=FALSE,
            name=f"{count} tasks, equal on all, margin 20 points",
            trial=several([0.0] * count, margin=0.2),
        )
    yield Scenario(
        kind=FALSE,
        name="5 tasks of the same rows, equal on all, margin 20 points",
        trial=several([0.0] * 5, margin=0.2, alike=True),
    )
    yield Scenario(
        kind=FALSE,
        name="5 tasks, 5 points better on four, worse by the margin on one",
        trial=several([0.05] * 4 + [-0.05], rows=800),
    )
    yield Scenario(
        kind=FALSE,
        name="5 tasks, primary equal, 5 points better on the others",
        trial=several([0.0] + [0.05] * 4, rows=800, primary=("t0",)),
    )
    for rows in (50, 200):
        yield Scenario(
            kind=FALSE, name=f"equal rewards, {rows} prompts", trial=rewards(rows, 0.0), slow=True
        )
    for new_gain, regression_gain in ((0.0, 0.0), (0.08, -0.02)):
        yield Scenario(
            kind=FALSE,
            name=f"retrain: {new_gain * 100:+g} points on 300 new rows, "
            f"{regression_gain * 100:+g} on 1,000 frozen ones",
            trial=retrained(new_gain, regression_gain),
            slow=True,
        )
    yield Scenario(
        kind=NOT_USED,
        name="worse by the margin of 5 points, all of 5% discordant lost, 50 rows, resampled",
        trial=resampled_margin(50, 0.05, 0.05),
        slow=True,
    )
    yield from powers()


def powers() -> Iterator[Scenario]:
    """The lines about real gains."""
    for rows in (74, 400, 1200):
        for test in ("interval", "mcnemar", "mcnemar_exact"):
            yield Scenario(
                kind=POWER,
                name=f"gain 3 points, {rows} rows, 13% discordant, {test}",
                trial=one(rows, 0.13, 0.03, margin=0.5, test=test),
                formula=paired_power(rows, 0.13, 0.03),
            )
    for rows in (200, 1000):
        yield Scenario(
            kind=POWER,
            name=f"equal, shown not worse by 2 points, {rows} rows, 5% discordant",
            trial=settled(rows, 0.05, 0.02),
            formula=paired_power(rows, 0.05, 0.0, margin=0.02),
        )
    yield Scenario(
        kind=POWER,
        name="3 points better on one task, 800 rows, 10% discordant",
        trial=one(800, 0.1, 0.03),
        formula=paired_power(800, 0.1, 0.03),
    )
    for count in (2, 5):
        yield Scenario(
            kind=POWER,
            name=f"{count} tasks, 3 points better on one, equal on the others, 800 rows each",
            trial=several([0.03] + [0.0] * (count - 1), rows=800),
        )
    yield Scenario(
        kind=POWER,
        name="reward higher by 0.4 of its 1.41, 100 prompts",
        trial=rewards(100, 0.4),
        slow=True,
        formula=mean_power(100, math.sqrt(2), 0.4),
    )


def measure(runs: int, seed: int, slow_runs: int) -> Iterator[Found]:
    """Every scenario's outcome; a scenario's dice depend on the seed and its own place alone.

    `slow_runs` 0 leaves out what resamples rows.
    """
    for at, scenario in enumerate(scenarios()):
        dice = np.random.default_rng([seed, at])
        count = slow_runs if scenario.slow else runs
        if not count:
            continue
        hits = sum(scenario.trial(dice) for _ in range(count))
        yield Found(scenario=scenario, hits=hits, runs=count)


def line(found: Found) -> str:
    """One row of the Markdown table."""
    low, high = found.interval
    formula = found.scenario.formula
    promised = "" if formula is None else f"{formula:.1%}"
    rate = f"{found.hits / found.runs:.1%} ({low:.1%} to {high:.1%})"
    mark = " **above 5 %**" if found.broken else ""
    return (
        f"| {found.scenario.kind} | {found.scenario.name} | {rate}{mark} | {promised} "
        f"| {found.runs:,} |"
    )


def main() -> int:
    """Prints the table; 1 where a false rate surely lies above 5 %."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--slow-runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    broken = 0
    print(
        "| kind | models | rate (95 % interval) | formula | runs |\n| --- | --- | --- | --- | --- |"
    )
    for found in measure(args.runs, args.seed, args.slow_runs):
        print(line(found), flush=True)
        broken += found.broken
    print(f"\n{broken} false rates surely above 5 %; {time.process_time():.0f} s of processor time")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
