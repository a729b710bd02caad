"""The drift tests: how often they see what is not there, and whether they see what is."""

import random

import numpy as np
import pytest

from pipestill.records import Example
from pipestill.retrain.drift import divergence, drift, permutation_test, psi, word_table


def rows(seed, count, labels=("a", "b", "c"), weights=(1, 1, 1), words=range(40), length=(4, 9)):
    dice = random.Random(seed)
    return [
        Example(
            id=f"{seed}-{at}",
            input_text=" ".join(f"w{dice.choice(words)}" for _ in range(dice.randint(*length))),
            output_text=dice.choices(labels, weights)[0] if labels else None,
        )
        for at in range(count)
    ]


def drifted(found):
    return {view["name"] for view in found["views"] if view["drifted"]}


def test_rows_of_one_distribution_rarely_drift():
    """At 10 % family-wise error, 30 comparisons of equal distributions: three are expected."""
    level = 0.1
    seen = sum(
        drift(rows(seed, 60), rows(1000 + seed, 40), level=level, effect=0.0)["drifted"]
        for seed in range(30)
    )
    assert seen <= 8  # P(9 or more of 30 | 10 %) is 0.2 %


@pytest.mark.parametrize(
    ("view", "change"),
    [
        ("label", {"weights": (6, 1, 1)}),
        ("label", {"labels": ("a", "b", "new")}),
        ("length", {"length": (9, 20)}),
        ("words", {"words": range(20, 60)}),
    ],
)
def test_a_shift_is_seen_where_it_is(view, change):
    found = drift(rows(0, 300), rows(1, 200, **change), level=0.01, effect=0.02)
    assert view in drifted(found)
    same = {"label", "words"} if view == "length" else {"length"}
    assert not drifted(found) & (same - {"words"} if view == "length" else same)
    assert found["drifted"]


def test_a_trifle_is_significant_and_still_no_drift():
    old, new = rows(0, 2000), rows(1, 2000, weights=(1.35, 1, 1))
    found = drift(old, new, level=0.01, effect=0.02)
    (label,) = [view for view in found["views"] if view["name"] == "label"]
    assert label["adjusted"] <= 0.01
    assert not label["drifted"]


def test_the_same_figures_every_time():
    old, new = rows(0, 100), rows(1, 100)
    assert drift(old, new, level=0.01, effect=0.0) == drift(old, new, level=0.01, effect=0.0)


def test_unlabelled_rows_have_two_views_and_nothing_has_none():
    new = rows(1, 30, labels=())
    found = drift(rows(0, 30), new, level=0.01, effect=0.0)
    assert [view["name"] for view in found["views"]] == ["length", "words"]
    assert drift([], new, level=0.01, effect=0.0)["drifted"] is False


def test_divergence_by_hand():
    table = np.array([[1.0, 1.0], [2.0, 0.0]])
    # p = (1/2, 1/2), q = (1, 0): H(3/4, 1/4) - (1 + 0) / 2 = 0.811278 - 0.5
    assert divergence(table[0], table[1]) == pytest.approx(0.311278, abs=1e-6)
    assert divergence(table[0], 7 * table[0]) == pytest.approx(0)
    assert divergence(np.array([1.0, 0.0]), np.array([0.0, 3.0])) == pytest.approx(1)


def test_psi_by_hand():
    found = psi(np.array([49.5, 49.5]), np.array([24.5, 74.5]))
    assert found == pytest.approx(-0.25 * np.log(0.5) + 0.25 * np.log(1.5), abs=1e-9)


def test_p_is_never_below_what_the_permutations_can_show():
    table = np.repeat(np.eye(2), 30, axis=0)
    found, p = permutation_test(table, 30, np.random.default_rng(0))
    assert (found, p) == (pytest.approx(1), pytest.approx(1 / 1000))


def test_words_are_counted_in_buckets():
    table = word_table([Example(id="a", input_text="To be or not TO be")])
    assert table.sum() == 6
    assert sorted(table[table > 0])[-2:] == [2, 2]
