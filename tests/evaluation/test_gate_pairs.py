"""McNemar's test against scipy and published figures, and how often it errs."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipestill.evaluation.gate import FAIL, OPEN, PASS, mean_interval, mean_replicates
from pipestill.evaluation.gate_pairs import (
    EXACT,
    MID_P,
    TESTS,
    mcnemar_better,
    mcnemar_p,
    more_right_mcnemar,
    one_sided,
)
from pipestill.evaluation.gate_slices import paired_interval
from pipestill.evaluation.statistics import mcnemar


def scores(won, lost, both=0, neither=0):
    new = [1] * won + [0] * lost + [1] * both + [0] * neither
    old = [0] * won + [1] * lost + [1] * both + [0] * neither
    return np.array(new, dtype=float), np.array(old, dtype=float)


@pytest.mark.parametrize(
    ("won", "lost", "exact", "mid_p"),
    # The examples of Fagerland, Lydersen and Laake 2013: airway hyper-responsiveness before and
    # after transplantation, and complete response before and after consolidation.
    [(1, 7, 0.0703, 0.0391), (6, 16, 0.0525, 0.0347)],
)
def test_published_examples(won, lost, exact, mid_p):
    assert mcnemar_p(won, lost, EXACT) == pytest.approx(exact, abs=5e-5)
    assert mcnemar_p(won, lost, MID_P) == pytest.approx(mid_p, abs=5e-5)


@given(st.integers(0, 60), st.integers(0, 60))
def test_exact_is_the_sign_test_and_mid_p_takes_half_a_point_away(won, lost):
    total = won + lost
    exact = stats.binomtest(won, total, 0.5, alternative="greater").pvalue if total else 1.0
    assert mcnemar_better(won, lost, EXACT) == pytest.approx(exact, rel=1e-9)
    half = stats.binom.pmf(won, total, 0.5) / 2
    assert mcnemar_better(won, lost) == pytest.approx(exact - half, rel=1e-6, abs=1e-15)
    assert mcnemar_p(won, lost, EXACT) == pytest.approx(mcnemar(won, lost))


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_two_sides_of_mid_p_add_up_to_one(won, lost):
    assert mcnemar_better(won, lost) + mcnemar_better(lost, won) == pytest.approx(1.0)
    assert mcnemar_p(won, lost) == mcnemar_p(lost, won) <= mcnemar_p(won, lost, EXACT)


def test_thousands_of_rows_do_not_underflow():
    assert 0 < mcnemar_better(6000, 3000) < 1e-200
    assert mcnemar_better(3000, 6000) == 1.0


@pytest.mark.parametrize("discordant", [4, 6, 11, 30, 100])
def test_equal_models_pass_in_little_more_than_the_level(discordant):
    """The error given the discordant rows, summed exactly over all outcomes."""
    chances = stats.binom.pmf(np.arange(discordant + 1), discordant, 0.5)
    for method, most in ((EXACT, 0.025), (MID_P, 0.035)):
        passes = [
            mcnemar_better(won, discordant - won, method) <= 0.025 for won in range(discordant + 1)
        ]
        assert chances[passes].sum() <= most


def test_the_rule():
    new, old = scores(30, 10, both=100)
    found = more_right_mcnemar("better", new, old)
    assert (found.outcome, found.numbers["method"]) == (PASS, "mid_p")
    assert found.numbers["p"] == mcnemar_p(30, 10)
    assert "30 won and 10 lost" in found.text
    assert more_right_mcnemar("better", old, new).outcome == FAIL
    assert more_right_mcnemar("better", *scores(12, 10, both=9)).outcome == OPEN
    assert more_right_mcnemar("better", np.zeros(0), np.zeros(0)).outcome == OPEN
    # 7 against 1: the mid-p test sees what the exact one does not.
    seen = [more_right_mcnemar("x", *scores(7, 1, 9), method=m).outcome for m in (MID_P, EXACT)]
    assert seen == [PASS, OPEN]
    with pytest.raises(ValueError, match="mid_p, exact"):
        more_right_mcnemar("x", new, old, method="midp")


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 60))
def test_the_interval_and_its_p_value_say_the_same(won, lost, same):
    low, _ = paired_interval(won + lost + same, won, lost)
    p, _ = one_sided(*scores(won, lost, both=same), "interval")
    if abs(p - 0.025) > 1e-4:
        assert (p < 0.025) == (low > 0)


def test_all_tests_agree_where_there_is_much_to_see():
    new, old = scores(160, 120, both=400, neither=100)
    wanted = stats.norm.sf(40 / math.sqrt(280))
    for test in TESTS:
        better, worse = one_sided(new, old, test)
        assert better == pytest.approx(wanted, abs=0.004)
        assert worse > 0.98
        assert one_sided(old, new, test) == pytest.approx((worse, better), abs=0.004)
    with pytest.raises(ValueError, match="allowed: interval"):
        one_sided(new, old, "t")
    assert {one_sided(np.zeros(0), np.zeros(0), test)[0] for test in TESTS} == {0.5, 1.0}


def test_replicates_are_those_of_the_interval():
    gap = np.random.default_rng(0).normal(size=50)
    low, high = mean_interval(gap)
    assert (mean_replicates(gap) <= low).mean() == pytest.approx(0.025, abs=0.001)
    assert (mean_replicates(gap) >= high).mean() == pytest.approx(0.025, abs=0.001)
    with pytest.raises(ValueError, match="no rows"):
        mean_replicates(np.zeros(0))
