"""Intervals cover, tests agree with scipy, and nothing depends on the order of rows."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from pipestill.evaluation import statistics
from pipestill.evaluation.statistics import bootstrap, compare, mcnemar, percentile_interval


def _arm(random, level, rows, seeds, luck=0.0, difficulty=0.0):
    out = {}
    for seed in range(seeds):
        logit = level + difficulty + random.normal(0, luck)
        out[seed] = (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(float)
    return out


def _compare(first, second, **options):
    samples = bootstrap({"a": first, "b": second}, **options)
    return compare(first, second, samples["a"], samples["b"])


@pytest.mark.parametrize("luck", [0.0, 0.1])
def test_a_95_percent_interval_of_a_difference_covers_the_truth(luck):
    random = np.random.default_rng(11)
    spread = np.hypot(1.0, luck) * random.normal(0, 1, 400_000)
    truth = np.mean(1 / (1 + np.exp(-(0.8 + spread)))) - np.mean(1 / (1 + np.exp(-(0.4 + spread))))
    covered, sims = 0, 400
    for sim in range(sims):
        difficulty = random.normal(0, 1, 120)
        arms = [_arm(random, level, 120, 3, luck, difficulty) for level in (0.8, 0.4)]
        low, high = _compare(*arms, resamples=400, seed=sim).ci95
        covered += low <= truth <= high
    assert covered / sims >= 0.92


def test_one_seed_interval_of_an_accuracy_is_that_of_the_binomial():
    scores = {"a": {0: np.repeat([1.0, 0.0], [140, 60])}}
    low, high = percentile_interval(bootstrap(scores)["a"])
    half_width = 1.96 * np.sqrt(0.7 * 0.3 / 200)
    assert (low, high) == pytest.approx((0.7 - half_width, 0.7 + half_width), abs=0.007)


def test_pairing_makes_the_interval_narrower_than_independent_samples():
    random = np.random.default_rng(1)
    difficulty = random.normal(0, 4, 300)
    first, second = (_arm(random, level, 300, 1, 0, difficulty) for level in (0.6, 0.3))
    paired = _compare(first, second).ci95
    shuffled = {0: random.permutation(second[0])}
    unpaired = _compare(first, shuffled).ci95
    assert paired[1] - paired[0] < 0.8 * (unpaired[1] - unpaired[0])


def test_luck_between_seeds_widens_the_interval():
    row = np.repeat([1.0, 0.0], [70, 30])
    steady = {0: row, 1: row, 2: row}
    lucky = {
        seed: np.repeat([1.0, 0.0], [share, 100 - share]) for seed, share in enumerate((50, 70, 90))
    }
    samples = bootstrap({"steady": steady, "lucky": lucky})
    widths = [np.diff(percentile_interval(samples[arm]))[0] for arm in ("steady", "lucky")]
    assert widths[1] > 1.5 * widths[0]


def test_identical_arms_differ_by_exactly_nothing():
    random = np.random.default_rng(2)
    arm = _arm(random, 0.5, 200, 3)
    found = _compare(arm, {seed: row.copy() for seed, row in arm.items()})
    assert (found.difference, found.ci95) == (0.0, (0.0, 0.0))
    assert (found.rows_won, found.rows_lost, found.p_mcnemar) == (0, 0, 1.0)
    assert statistics.verdict(found.ci95) == "cannot_tell"


def test_an_arm_that_is_always_right_against_one_that_never_is():
    found = _compare({0: np.ones(50)}, {0: np.zeros(50)})
    assert (found.difference, found.ci95, found.rows_won) == (1.0, (1.0, 1.0), 50)
    assert found.p_mcnemar == 2 * 0.5**50


@given(st.permutations(range(40)), st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_the_order_of_rows_does_not_matter(order, seed):
    random = np.random.default_rng(seed)
    first, second = _arm(random, 1.0, 40, 2), _arm(random, 0.2, 40, 2)
    moved = [{n: row[list(order)] for n, row in arm.items()} for arm in (first, second)]
    assert _compare(first, second, resamples=200) == _compare(*moved, resamples=200)


@given(st.integers(0, 80), st.integers(0, 80))
def test_mcnemar_is_the_exact_binomial_test(won, lost):
    expected = binomtest(won, won + lost, 0.5).pvalue if won + lost else 1.0
    assert mcnemar(won, lost) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_thousands_of_rows_neither_underflows_nor_fails():
    assert mcnemar(5100, 4900) == pytest.approx(binomtest(5100, 10_000, 0.5).pvalue, rel=1e-9)
    assert 0 < mcnemar(900, 100) < 1e-100


def test_with_several_seeds_a_row_is_won_by_its_mean():
    first = {0: np.array([1.0, 1.0, 0.0, 1.0]), 1: np.array([0.0, 1.0, 0.0, 0.0])}
    second = {0: np.array([0.0, 1.0, 1.0, 0.0]), 1: np.array([0.0, 1.0, 1.0, 1.0])}
    found = _compare(first, second, resamples=50)
    assert (found.rows_won, found.rows_lost) == (1, 1)
    assert found.difference == pytest.approx(0.5 - 0.625)


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        ((0.01, 0.2), "better"),
        ((-0.2, -0.01), "worse"),
        ((-0.1, 0.1), "cannot_tell"),
        ((0.0, 0.1), "cannot_tell"),
        ((-0.1, 0.0), "cannot_tell"),
    ],
)
def test_verdict_needs_the_whole_interval_on_one_side(interval, word):
    assert statistics.verdict(interval) == word


def test_resampling_is_reproducible_and_blocks_do_not_change_its_shape(monkeypatch):
    random = np.random.default_rng(4)
    scores = {"a": _arm(random, 0.5, 90, 3)}
    assert np.array_equal(bootstrap(scores)["a"], bootstrap(scores)["a"])
    whole = percentile_interval(bootstrap(scores)["a"])
    monkeypatch.setattr(statistics, "_BLOCK_ELEMENTS", 90 * 17)
    assert percentile_interval(bootstrap(scores)["a"]) == pytest.approx(whole, abs=0.01)


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="no rows"):
        bootstrap({"a": {0: np.zeros(0)}})


def test_ten_thousand_resamples_of_600_rows_and_9_runs_take_under_a_second():
    random = np.random.default_rng(5)
    scores = {arm: _arm(random, 0.5, 600, 3) for arm in "abc"}
    begun = time.process_time()
    bootstrap(scores)
    assert time.process_time() - begun < 1.0
