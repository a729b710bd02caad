"""One new model on several tasks: promoted where it is worse on none and better on one at least.

Two errors, each at 2.5 % at most, which is what the lower end of a 95 % interval stands for:

- *Worse on some task, and promoted all the same.* Every task has to pass its own test of
  non-inferiority at the full level. Their intersection needs no adjustment, because the wrong one
  of the tests alone lets through that seldom (intersection-union: Berger 1982, Technometrics
  24(4)).
- *Better on no task, and promoted all the same.* The one-sided p-values of the tasks that may
  promote are adjusted by Holm's method (1979, Scandinavian Journal of Statistics 6(2)), whatever
  the tasks have to do with each other. A primary task named beforehand stands alone and keeps the
  full level.

The combination is that of trials with several endpoints (Röhmel, Gerlinger, Benda and Läuter 2006,
Biometrical Journal 48(6)). Rows enough and slices are further conditions: they can only lower both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pipestill.evaluation.gate import FAIL, OPEN, PASS, Rule, decide, enough_rows
from pipestill.evaluation.gate_pairs import one_sided
from pipestill.evaluation.gate_power import GAIN, paired_statement
from pipestill.evaluation.gate_slices import counts, no_slice_worse, not_fewer_right
from pipestill.evaluation.statistics import Scores, holm

ONE_SIDED = 0.025
BETTER, NOT_WORSE = "better", "not_worse"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one task says about the new model.

    `rules` are the task's own, all of which have to pass; `p_better` and `p_worse` are one-sided
    p-values that it is no better, and no worse. `numbers` are shown; ``power`` among them is what
    the superiority test could have found.
    """

    rules: Sequence[Rule]
    p_better: float
    p_worse: float
    numbers: Mapping[str, Any] = field(default_factory=dict)


def right_or_wrong(
    new: Scores,
    old: Scores,
    *,
    margin: float,
    min_rows: int,
    test: str = "interval",
    slices: Mapping[str, Sequence[int]] | None = None,
    slice_level: float = 0.05,
    slice_rows: int = 20,
    gain: float = GAIN,
    tasks: int = 1,
) -> Task:
    """A task of right and wrong answers: enough rows, not inferior, no slice worse.

    Not inferior is always tested by the score interval, whatever `test` is: McNemar's test knows no
    margin, and resampling takes two models that agree on all of a few rows for proof.

    Args:
        new, old: [rows] 0/1 scores of the same rows.
        margin: share of right answers by which the new model may be worse, above 0.
        min_rows: held-out rows wanted.
        test: of superiority; see `pipestill.evaluation.gate_pairs.TESTS`.
        slices: name → row numbers; None = none are looked at.
        slice_level: family-wise error of this task's slices.
        slice_rows: smaller slices are not tested.
        gain: share of right answers whose power is stated.
        tasks: how many tasks share the level of superiority, for the power that is stated.

    Raises:
        ValueError: scores that are not 0/1 or differ in length; another test.
    """
    rows, won, lost = counts(new, old)
    rules = [enough_rows(rows, min_rows), not_fewer_right("within_margin", new, old, margin=margin)]
    if slices is not None:
        rules.append(no_slice_worse(slices, new, old, level=slice_level, least_rows=slice_rows))
    power = paired_statement(rows, won, lost, gain=gain, level=2 * ONE_SIDED / max(1, tasks))
    numbers = {
        **{key: value for key, value in rules[1].numbers.items() if key != "power"},
        "new": float(np.mean(new)) if rows else None,
        "old": float(np.mean(old)) if rows else None,
        "power": power,
    }
    better, worse = one_sided(new, old, test)
    return Task(rules=rules, p_better=better, p_worse=worse, numbers=numbers)


def promote_over_tasks(
    tasks: Mapping[str, Task],
    *,
    require: str = BETTER,
    primary: Sequence[str] = (),
    level: float = ONE_SIDED,
    override: str = "",
) -> dict[str, Any]:
    """The decision about one new model on all its tasks.

    Args:
        tasks: name → what it says, one at least.
        require: better (on one task at least) | not_worse (on none, and that is enough).
        primary: the tasks on which being better counts, named before anyone has seen the answers;
            empty = any. Holm's method adjusts over these alone.
        level: one-sided.
        override: a person's reason to promote whatever the rules say.

    Returns:
        What `pipestill.evaluation.gate.decide` returns, and ``tasks`` (name → ``p_better``,
        ``p_holm`` or None where the task may not promote, ``better``, ``decision`` of its own
        rules, and its numbers), ``require``, ``primary``, ``level``.

    Raises:
        ValueError: no task, a primary task that is none, another `require`.
    """
    if not tasks or not set(primary) <= set(tasks) or require not in (BETTER, NOT_WORSE):
        raise ValueError(f"tasks {list(tasks)}, primary {list(primary)}, require {require!r}")
    may_promote = list(primary) or list(tasks)
    adjusted = holm({name: tasks[name].p_better for name in may_promote})
    rules = [] if require == NOT_WORSE else [_better_somewhere(tasks, adjusted, level)]
    several = len(tasks) > 1
    for name, task in tasks.items():
        rules += [
            replace(rule, name=f"{name}: {rule.name}") if several else rule for rule in task.rules
        ]
    told = {
        name: {
            "p_better": task.p_better,
            "p_holm": adjusted.get(name),
            "better": name in adjusted and adjusted[name] <= level,
            "decision": decide(task.rules)["decision"],
            **task.numbers,
        }
        for name, task in tasks.items()
    }
    settings = {"require": require, "primary": list(primary), "level": level}
    return {**decide(rules, override), "tasks": told, **settings}


def _better_somewhere(
    tasks: Mapping[str, Task], adjusted: Mapping[str, float], level: float
) -> Rule:
    """Passes where one p-value is small enough; fails where every such task is surely worse."""
    better = [name for name, p in adjusted.items() if p <= level]
    # All at the full level: that all are worse is an intersection-union test, too.
    worse = all(tasks[name].p_worse <= level for name in adjusted)
    shown = ", ".join(f"{name} {p:.2g}" for name, p in adjusted.items())
    one = len(adjusted) == 1
    wanted = f"{'' if one else 'one '}up to {level:g} wanted"
    numbers: dict[str, Any] = {"p_holm": dict(adjusted), "level": level, "better": better}
    likely = min(adjusted, key=lambda name: adjusted[name])
    if power := tasks[likely].numbers.get("power"):
        where = "" if len(tasks) == 1 else f"{likely}: "
        numbers["power"] = {**power, "sentence": where + power["sentence"]}
    return Rule(
        name="better" if one else "better_on_one_task",
        outcome=PASS if better else FAIL if worse else OPEN,
        text=f"one-sided p {'' if one else 'after Holm '}{shown}; {wanted}",
        numbers=numbers,
    )
