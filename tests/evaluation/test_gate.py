"""The gate's rules and decisions, and how often chance alone gets through."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipestill.evaluation.gate import (
    CANNOT_TELL,
    FAIL,
    KEEP,
    OPEN,
    PASS,
    PROMOTE,
    Rule,
    decide,
    enough_rows,
    mean_interval,
    no_alarms,
    not_below,
    not_inferior,
    paired_mean_interval,
    superior,
    within,
)


def rule(outcome, name="x"):
    return Rule(name=name, outcome=outcome, text="")


@pytest.mark.parametrize("rows", [30, 100])
def test_no_difference_is_promoted_in_at_most_one_of_twenty_runs(rows):
    """Scores of two equal models, skewed and correlated by prompt as rewards are."""
    dice = np.random.default_rng(1)
    runs, wrong = 600, 0
    for _ in range(runs):
        prompt = dice.exponential(size=rows)
        new, old = (prompt + dice.exponential(size=rows) for _ in range(2))
        _, (low, _) = paired_mean_interval(new, old, resamples=400)
        wrong += low > 0
    # 2.5 % is meant; three standard errors of the simulation above 5 % would be 7.7 %.
    assert wrong / runs <= 0.05


def test_a_real_difference_is_seen():
    dice = np.random.default_rng(2)
    old = dice.normal(size=200)
    assert superior("reward", old + dice.normal(0.3, 0.5, 200), old).outcome == PASS


def test_the_interval_covers_the_mean_as_often_as_it_says():
    dice = np.random.default_rng(3)
    hits = 0
    for _ in range(400):
        low, high = mean_interval(dice.normal(2.0, 3.0, 40), resamples=400)
        hits += low <= 2.0 <= high
    assert 0.91 <= hits / 400 <= 0.98


def test_interval_agrees_with_the_normal_theory():
    values = np.random.default_rng(4).normal(size=400)
    low, high = mean_interval(values)
    error = values.std(ddof=1) / np.sqrt(400)
    assert (low, high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.01
    )


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=12), st.randoms())
def test_the_order_of_rows_does_not_matter(values, dice):
    mixed = list(values)
    dice.shuffle(mixed)
    one, other = (mean_interval(np.array(v), resamples=50) for v in (values, mixed))
    assert one == pytest.approx(other, abs=1e-12)


def test_pairs_must_fit():
    with pytest.raises(ValueError, match="paired scores of 2 and 3"):
        paired_mean_interval(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="no rows"):
        mean_interval(np.zeros(0))


def test_the_same_answers_are_no_gain():
    same = np.arange(60.0)
    assert superior("reward", same, same).outcome == OPEN


def test_rules():
    old = np.tile([0.0, 1.0], 50)
    assert superior("reward", old - 1, old).outcome == FAIL
    assert superior("reward", old + 1, old, least=2.0).outcome == FAIL
    assert superior("reward", old + 3, old, least=2.0).outcome == PASS
    assert not_inferior("guard", old - 0.04, old, margin=0.05).outcome == PASS
    assert not_inferior("guard", old - 0.06, old, margin=0.05).outcome == FAIL
    noisy = old + np.tile([3.0, -3.0, -3.0, 3.0], 25)
    assert not_inferior("guard", noisy, old, margin=0.05).outcome == OPEN
    assert within("kl", old, 1.0).outcome == PASS
    assert within("kl", old, 0.2).outcome == FAIL
    assert within("kl", old, 0.5).outcome == OPEN
    assert enough_rows(49, 50).outcome == OPEN
    assert enough_rows(50, 50).outcome == PASS
    assert not_below("judge", 0.4, (0.3, 0.49), 0.5).outcome == FAIL
    assert not_below("judge", 0.4, (0.3, 0.51), 0.5).outcome == PASS
    assert no_alarms([]).outcome == PASS
    found = no_alarms([{"code": "KL_RUNAWAY"}, {"code": "KL_RUNAWAY"}])
    assert (found.outcome, found.text) == (FAIL, "KL_RUNAWAY")


@pytest.mark.parametrize(
    ("outcomes", "decision"),
    [
        ([PASS, PASS], PROMOTE),
        ([PASS, OPEN], CANNOT_TELL),
        ([OPEN, FAIL], KEEP),
        ([PASS, FAIL], KEEP),
        ([], CANNOT_TELL),
    ],
)
def test_decisions(outcomes, decision):
    found = decide([rule(outcome, f"rule_{i}") for i, outcome in enumerate(outcomes)])
    assert found["decision"] == found["by_rules"] == decision
    assert len(found["rules"]) == len(outcomes)


def test_an_override_promotes_and_is_recorded():
    found = decide([rule(FAIL, "kl")], "  a person has read 100 answers ")
    assert found["decision"] == PROMOTE
    assert found["by_rules"] == KEEP
    assert found["override"] == "a person has read 100 answers"
    assert "the rules said: Keep the old model: kl failed." in found["sentence"]
    assert found["rules"][0]["outcome"] == FAIL
    assert decide([rule(FAIL)], "  ")["decision"] == KEEP  # blanks are no reason
