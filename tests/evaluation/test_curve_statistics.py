"""Crossings, medians, break-even and Pareto fronts, each against a brute-force reading of it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipestill.evaluation import statistics
from pipestill.evaluation.curve_statistics import (
    break_even,
    first_crossing,
    normal_p,
    open_interval,
    pareto_front,
    resampled_medians,
)

ROWS = np.array([50.0, 100.0, 200.0, 400.0])
SHARES = st.integers(0, 200).map(lambda count: count / 200)  # what scores of 200 rows can be


STEPS = np.sort(np.append(np.linspace(math.log(50), math.log(400), 20_001), np.log(ROWS)))


def walked(accuracy, target):
    """The first of many small steps in log rows at which the curve is at the target or above."""
    above = np.interp(STEPS, np.log(ROWS), accuracy) >= target
    return math.exp(STEPS[above.argmax()]) if above.any() else math.inf


@settings(deadline=None)
@given(st.lists(SHARES, min_size=4, max_size=4), SHARES)
def test_a_crossing_is_where_a_walk_along_the_curve_first_meets_the_target(accuracy, target):
    found = float(first_crossing(ROWS, np.array([accuracy]), np.array([target]))[0])
    wanted = walked(accuracy, target)
    assert math.isinf(found) == math.isinf(wanted)
    assert math.isinf(found) or found == pytest.approx(wanted, rel=3e-4)


def test_many_curves_at_once_are_the_curves_one_by_one():
    random = np.random.default_rng(3)
    curves, targets = random.random((50, 4)), random.random(50)
    together = first_crossing(ROWS, curves, targets)
    alone = [
        first_crossing(ROWS, c[None], t[None])[0] for c, t in zip(curves, targets, strict=True)
    ]
    assert together.tolist() == alone


def test_a_curve_above_the_line_from_the_start_crosses_at_the_smallest():
    assert first_crossing(ROWS, np.array([[0.9, 0.1, 0.2, 0.3]]), np.array([0.5])).tolist() == [
        50.0
    ]


def test_an_interval_of_replicates_may_end_in_infinity():
    samples = np.array([100.0] * 90 + [math.inf] * 10)
    assert open_interval(samples) == (100.0, math.inf)
    assert open_interval(np.full(20, math.inf)) == (math.inf, math.inf)


def test_medians_are_resampled_together():
    random = np.random.default_rng(0)
    one = random.gamma(4, 2, 41)
    drawn = resampled_medians({"one": one, "twice": 2 * one}, resamples=3000, seed=5)
    assert np.allclose(drawn["twice"], 2 * drawn["one"])
    rows = np.random.default_rng(5).integers(0, 41, size=(3000, 41))
    brute = [np.median([one[at] for at in line]) for line in rows]
    assert np.allclose(drawn["one"], brute)
    low, high = statistics.percentile_interval(drawn["one"])
    assert low < np.median(one) < high
    with pytest.raises(ValueError, match="no rows"):
        resampled_medians({"one": np.array([])})


@given(st.floats(0, 1e6), st.floats(1e-9, 1e3), st.floats(1e-9, 1e3))
def test_break_even_is_the_first_request_at_which_the_sums_are_equal(fixed, before, after):
    count = break_even(fixed, before, after)
    if after >= before:
        assert math.isinf(count)
    else:
        assert fixed + count * after == pytest.approx(count * before, rel=1e-6, abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_the_front_holds_those_that_no_other_beats(points):
    costs, qualities = zip(*points, strict=True)
    front = pareto_front(costs, qualities)
    beaten = {
        at
        for at, (cost, quality) in enumerate(points)
        if any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points)
    }
    assert {points[at] for at in front} == {points[at] for at in range(len(points))} - {
        points[at] for at in beaten
    }
    assert [costs[at] for at in front] == sorted(costs[at] for at in front)
    assert len({points[at] for at in front}) == len(front)


def test_normal_p_agrees_with_its_interval():
    assert normal_p(1.0, (0.0, 2.0)) == pytest.approx(0.05, abs=1e-6)
    assert normal_p(-1.0, (-1.5, -0.5)) < 0.001
    assert normal_p(0.0, (-1.0, 1.0)) == 1.0
    assert (normal_p(1.0, (1.0, 1.0)), normal_p(0.0, (0.0, 0.0))) == (0.0, 1.0)


def test_one_family_of_comparisons_is_adjusted_together():
    random = np.random.default_rng(1)
    scores = {
        arm: {0: (random.random(300) < share).astype(float)}
        for arm, share in (("a", 0.8), ("b", 0.72), ("c", 0.5))
    }
    samples = statistics.bootstrap(scores, resamples=2000)
    found = statistics.compare_all(scores, samples, [("a", "b"), ("a", "c")])
    p = {name: item["p"] for name, item in found.items()}
    assert {name: item["p_holm"] for name, item in found.items()} == statistics.holm(p)
    for name, item in found.items():
        first, second = name.split("_vs_")
        assert item["difference"] == pytest.approx(
            scores[first][0].mean() - scores[second][0].mean()
        )
        assert p[name] == statistics.bootstrap_p(samples[first], samples[second])
    assert statistics.surely(found["a_vs_c"]) == "better"
    assert statistics.surely({"p_holm": 0.01, "difference": -0.2}) == "worse"
    assert statistics.surely({"p_holm": 0.05, "difference": 0.2}) == "cannot_tell"
