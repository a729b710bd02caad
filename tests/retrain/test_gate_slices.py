"""Paired shares: the score interval against brute force, its coverage, and the slices' error."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipestill.evaluation.gate import FAIL, OPEN, PASS
from pipestill.evaluation.gate_slices import (
    Z95,
    counts,
    more_right,
    no_slice_worse,
    not_fewer_right,
    paired_interval,
    worse_p,
)


def scores(won, lost, both=0, neither=0):
    new = [1] * won + [0] * lost + [1] * both + [0] * neither
    old = [0] * won + [1] * lost + [1] * both + [0] * neither
    return np.array(new, dtype=float), np.array(old, dtype=float)


def brute_score(rows, won, lost, gap):
    """The score statistic with the constrained likelihood maximised over a fine grid."""
    grid = np.linspace(max(0, -gap), min(1, (1 - gap) / 2), 200_001)[1:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        rest = 1 - 2 * grid - gap
        tail = (rows - won - lost) * np.log(rest) if rows > won + lost else 0.0
        likelihood = won * np.log(grid + gap) + lost * np.log(grid) + tail
    share = grid[np.nanargmax(likelihood)]
    return (won - lost - rows * gap) / np.sqrt(rows * (2 * share + gap * (1 - gap)))


@pytest.mark.parametrize(("rows", "won", "lost"), [(50, 12, 2), (44, 1, 5), (30, 3, 3), (90, 9, 0)])
def test_the_ends_of_the_interval_are_where_the_score_is_two_sided_five_percent(rows, won, lost):
    low, high = paired_interval(rows, won, lost)
    assert brute_score(rows, won, lost, low) == pytest.approx(Z95, abs=0.01)
    assert brute_score(rows, won, lost, high) == pytest.approx(-Z95, abs=0.01)


def test_equal_answers_prove_nothing_on_few_rows():
    """Without discordant rows the interval is ±z²/(n + z²), where resampling would give 0."""
    low, high = paired_interval(44, 0, 0)
    assert (low, high) == (
        pytest.approx(-(Z95**2) / (44 + Z95**2), abs=1e-6),
        pytest.approx(Z95**2 / (44 + Z95**2), abs=1e-6),
    )
    same = np.ones(100)
    assert not_fewer_right("x", same, same, margin=0.02).outcome == OPEN
    assert not_fewer_right("x", np.ones(400), np.ones(400), margin=0.02).outcome == PASS
    assert more_right("x", same, same).outcome == OPEN


@settings(max_examples=60)
@given(st.integers(1, 400), st.data())
def test_interval_holds_the_estimate_and_mirrors(rows, data):
    won = data.draw(st.integers(0, rows))
    lost = data.draw(st.integers(0, rows - won))
    low, high = paired_interval(rows, won, lost)
    assert -1 <= low <= (won - lost) / rows <= high <= 1
    back = paired_interval(rows, lost, won)
    assert back == (pytest.approx(-high, abs=1e-6), pytest.approx(-low, abs=1e-6))


def test_the_interval_covers_as_often_as_it_says():
    dice = np.random.default_rng(0)
    drawn = dice.multinomial(60, [0.10, 0.04, 0.86], size=500)
    inside = 0
    for won, lost, _ in drawn:
        low, high = paired_interval(60, int(won), int(lost))
        inside += low <= 0.06 <= high
    assert 0.92 <= inside / 500 <= 0.99


def test_rules():
    new, old = scores(won=30, lost=5, both=100)
    assert more_right("x", new, old).outcome == PASS
    assert more_right("x", new, old, least=0.5).outcome == FAIL
    assert more_right("x", old, new).outcome == FAIL
    assert not_fewer_right("x", old, new, margin=0.05).outcome == FAIL
    assert not_fewer_right("x", new, old, margin=0.05).outcome == PASS
    assert more_right("x", np.zeros(0), np.zeros(0)).outcome == OPEN
    found = more_right("x", new, old).numbers
    assert (found["rows"], found["won"], found["lost"]) == (135, 30, 5)


def test_only_right_or_wrong_is_taken():
    with pytest.raises(ValueError, match="0 or 1"):
        counts(np.array([0.5]), np.array([1.0]))
    with pytest.raises(ValueError, match="paired scores of 1 and 2"):
        counts(np.ones(1), np.ones(2))


@given(st.integers(0, 40), st.integers(0, 40))
def test_worse_is_the_exact_sign_test(won, lost):
    if won + lost:
        wanted = stats.binomtest(lost, won + lost, 0.5, alternative="greater").pvalue
        assert worse_p(won, lost) == pytest.approx(wanted)
    else:
        assert worse_p(0, 0) == 1


def test_a_worse_slice_is_a_veto():
    good, bad = scores(won=40, lost=0, both=60), scores(won=0, lost=10, both=20)
    new, old = (np.concatenate(pair) for pair in zip(good, bad, strict=True))
    slices = {"good": range(100), "bad": range(100, 130), "few": range(100, 110)}
    found = no_slice_worse(slices, new, old)
    assert found.outcome == FAIL
    assert "bad: 0 won and 10 lost of 30 rows" in found.text
    assert found.numbers["too_small"] == 1
    assert no_slice_worse({"good": range(100)}, new, old).outcome == PASS
    assert no_slice_worse({}, new, old).outcome == PASS


def test_many_slices_do_not_make_a_false_alarm():
    """Equal models on 20 slices: with Holm at most 5 % of runs may fail, and no more do."""
    dice = np.random.default_rng(1)
    slices = {f"s{at}": range(at * 30, at * 30 + 30) for at in range(20)}
    failed = 0
    for _ in range(150):
        new, old = (dice.integers(0, 2, 600).astype(float) for _ in range(2))
        failed += no_slice_worse(slices, new, old).outcome == FAIL
    assert failed / 150 <= 0.05
