"""What is measured of a reward model: against length, calibration, length bias, slices."""

import math

import numpy as np
import pytest

from pipestill.rlhf.reward_evaluation import (
    calibration,
    evaluate,
    fit_length_model,
    length_bias,
    slices,
)


def test_measures_of_a_model_that_knows_length_alone():
    dice = np.random.default_rng(0)
    lengths = dice.integers(5, 50, size=(400, 2)).astype(float)
    found = evaluate(lengths / 10, lengths, np.zeros(400), lengths)
    assert found["accuracy"] == found["longer_accuracy"]
    assert found["difference_to_longer_ci95"] == [0, 0]
    assert found["against_longer"] == "cannot_tell"
    assert found["length_correlation"] == pytest.approx(1)
    assert found["accuracy_where_longer_is_preferred"] == 1
    assert found["accuracy_where_shorter_is_preferred"] == 0
    assert found["slices"] == []


def test_measures_of_a_model_that_is_right():
    dice = np.random.default_rng(0)
    lengths = dice.integers(5, 50, size=(300, 2)).astype(float)
    rewards_of = np.stack([np.full(300, 2.0), np.full(300, -1.0)], axis=1)
    found = evaluate(rewards_of, lengths, np.arange(300) / 100, lengths)
    assert found["accuracy"] == 1
    assert found["against_longer"] == "better"
    assert found["ece"] == pytest.approx(1 - 1 / (1 + math.exp(-3)))
    assert sum(part["pairs"] for part in found["slices"]) == 300
    assert found["slices"][0]["margin_to"] < found["slices"][1]["margin_from"]


def test_ties_count_half_and_a_constant_model_has_no_length_bias():
    lengths = np.array([[3.0, 5.0], [8.0, 2.0]])
    found = evaluate(np.zeros((2, 2)), lengths, np.zeros(2), lengths)
    assert found["accuracy"] == 0.5
    assert length_bias(np.zeros((2, 2)), lengths)["length_correlation"] == 0


def test_a_model_that_says_what_it_knows_is_calibrated():
    dice = np.random.default_rng(1)
    gap = np.abs(dice.normal(size=40_000)) * 1.5
    right = dice.random(40_000) < 1 / (1 + np.exp(-gap))
    found = calibration(np.where(right, gap, -gap))
    assert found["ece"] < 0.01
    assert sum(part["pairs"] for part in found["reliability"]) == 40_000
    assert calibration(np.where(right, 3 * gap, -3 * gap))["ece"] > 0.1


def test_the_length_model_finds_the_direction():
    dice = np.random.default_rng(2)
    lengths = dice.integers(5, 200, size=(500, 2)).astype(float)
    longer_first = np.sort(lengths)[:, ::-1]
    noisy = np.where(dice.random(500)[:, None] < 0.8, longer_first, longer_first[:, ::-1])
    weights = fit_length_model(noisy)
    shorter = fit_length_model(noisy[:, ::-1])
    np.testing.assert_allclose(shorter, -weights, atol=1e-8)
    assert (np.array([[1.0, 1.0]]) @ weights)[0] > 0
    assert np.isfinite(fit_length_model(longer_first)).all()


def test_slices_need_margins():
    assert slices(np.ones(4), np.full(4, 0.3)) == []
    assert len(slices(np.ones(4), np.array([1.0, 2, 3, 4]))) == 4
