"""The recommended rate and its course."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipestill.training.learning_rate import HIGHEST, LOWEST, chosen, recommended, scale


@pytest.mark.parametrize(
    ("parameters", "batch", "rate"),
    [(1_000_000, 32, 1e-3), (250_000_000, 64, 1e-4), (770_000_000, 64, 4.8e-5)],
)
def test_calibration(parameters, batch, rate):
    assert recommended(parameters, batch) == pytest.approx(rate, rel=0.02)


def test_scaling_between_the_caps():
    base = recommended(250_000_000, 64)
    assert recommended(1_000_000_000, 64) == pytest.approx(base * 4**-0.646)
    assert recommended(250_000_000, 128) == pytest.approx(base * 2**0.578)


@given(st.integers(0, 10**13), st.integers(0, 10**5))
def test_stays_between_the_caps(parameters, batch):
    assert LOWEST <= recommended(parameters, batch) <= HIGHEST


def test_zero_means_recommended_and_the_multiplier_always_counts():
    assert chosen(0.0, 2.0, 10**6, 32) == pytest.approx(2e-3)
    assert chosen(3e-5, 0.5, 10**6, 32) == pytest.approx(1.5e-5)


def test_up_and_down_in_straight_lines():
    course = [scale(step, 100, 0.1) for step in range(1, 101)]
    assert course[:10] == pytest.approx([i / 11 for i in range(1, 11)])
    assert max(course) == course[10] == 1.0
    assert course[11:] == pytest.approx([(100 - i) / 90 for i in range(11, 100)])
    assert course[-1] > 0


@given(st.integers(1, 500), st.floats(0, 0.99))
def test_every_step_moves(steps, warmup):
    assert all(0 < scale(step, steps, warmup) <= 1 for step in range(1, steps + 1))
