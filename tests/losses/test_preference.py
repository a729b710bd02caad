"""DPO, conservative DPO and IPO as pure functions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipestill.losses.preference import dpo, implicit_rewards, ipo
from tests.losses.rl_oracles import stored, table

POLICY = table([-10.0, -12.0]), table([-11.0, -9.0])
REFERENCE = table([-10.5, -11.0]), table([-10.0, -9.8])
PAIRS = (*POLICY, *REFERENCE)
numbers = st.floats(-60, 0)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("beta0.1", lambda: dpo(*PAIRS, beta=0.1)),
        ("ls0.1", lambda: dpo(*PAIRS, beta=0.1, label_smoothing=0.1)),
        ("ipo0.1", lambda: ipo(*PAIRS, beta=0.1)),
    ],
)
def test_oracles(shared_data, name, loss):
    assert float(loss().mean()) == pytest.approx(stored(shared_data, "dpo")[name], abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(numbers, numbers, numbers, numbers, st.floats(0.01, 1), st.floats(0, 0.49))
def test_is_the_formula(a, b, c, d, beta, smoothing):
    logit = beta * ((a - c) - (b - d))
    right, wrong = (math.log1p(math.exp(-side)) for side in (logit, -logit))
    one = [table([x]) for x in (a, b, c, d)]
    found = dpo(*one, beta=beta, label_smoothing=smoothing)
    expected = (1 - smoothing) * right + smoothing * wrong
    assert float(found) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert float(ipo(*one, beta=beta)) == pytest.approx((logit / beta - 0.5 / beta) ** 2, abs=1e-6)


def test_at_the_reference_dpo_costs_log_two_and_ipo_its_target():
    same = (*REFERENCE, *REFERENCE)
    for smoothing in (0.0, 0.2):
        found = dpo(*same, beta=0.3, label_smoothing=smoothing)
        assert found.tolist() == pytest.approx([math.log(2)] * 2)
    assert ipo(*same, beta=0.25).tolist() == pytest.approx([4.0, 4.0])


def test_ipo_is_zero_at_its_target_gap():
    shifted = REFERENCE[0] + 0.5 / 0.1
    assert ipo(shifted, REFERENCE[1], *REFERENCE, beta=0.1).tolist() == pytest.approx([0, 0])


def test_ipo_over_lengths_takes_means_a_token():
    lengths = table([4.0, 5.0]), table([2.0, 3.0])
    found = ipo(*PAIRS, beta=0.1, lengths=lengths)
    by_hand = [(0.5 / 4 - -1.0 / 2 - 5) ** 2, (-1.0 / 5 - 0.8 / 3 - 5) ** 2]
    assert found.tolist() == pytest.approx(by_hand)


def test_smoothing_makes_certainty_costly():
    sure = table([500.0]), table([-500.0]), table([0.0]), table([0.0])
    assert float(dpo(*sure, beta=1.0)) == 0.0
    assert float(dpo(*sure, beta=1.0, label_smoothing=0.1)) == pytest.approx(100.0)


def test_smoothed_loss_is_least_at_one_minus_epsilon():
    gap = torch.tensor([math.log(0.9 / 0.1)], dtype=torch.float64, requires_grad=True)
    dpo(gap, *(table([0.0]),) * 3, beta=1.0, label_smoothing=0.1).backward()
    assert float(gap.grad) == pytest.approx(0.0, abs=1e-12)


def test_implicit_rewards_are_scaled_log_ratios_without_a_graph():
    policy = [part.clone().requires_grad_() for part in POLICY]
    chosen, rejected = implicit_rewards(*policy, *REFERENCE, beta=0.1)
    assert chosen.tolist() == pytest.approx([0.05, -0.1])
    assert rejected.tolist() == pytest.approx([-0.1, 0.08])
    assert not chosen.requires_grad
    assert not rejected.requires_grad


@pytest.mark.parametrize(
    "loss",
    [
        lambda *pair: dpo(*pair, *REFERENCE, beta=0.1),
        lambda *pair: dpo(*pair, *REFERENCE, beta=0.4, label_smoothing=0.2),
        lambda *pair: ipo(*pair, *REFERENCE, beta=0.1),
        lambda *pair: ipo(*pair, *REFERENCE, beta=0.1, lengths=POLICY),
    ],
)
def test_gradcheck(loss):
    policy = tuple(part.clone().requires_grad_() for part in POLICY)
    assert torch.autograd.gradcheck(loss, policy)


@pytest.mark.parametrize("smoothing", [-0.1, 0.5, 1.0])
def test_smoothing_outside_of_its_range_is_refused(smoothing):
    with pytest.raises(ValueError, match="label_smoothing"):
        dpo(*PAIRS, beta=0.1, label_smoothing=smoothing)


def test_ipo_without_beta_is_refused():
    with pytest.raises(ValueError, match="beta"):
        ipo(*PAIRS, beta=0.0)
