"""Bradley–Terry with margin and centring, and the normalisation of rewards."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipestill.losses.reward import bradley_terry, normalisation
from tests.losses.rl_oracles import stored, table

CHOSEN, REJECTED = table([1.2, -0.3, 0.8]), table([0.2, 0.1, -1.0])


@pytest.mark.parametrize(
    ("name", "options"),
    [("bt", {}), ("bt_center_0.01", {"centering": 0.01}), ("bt_margin_.5", {"margin": 0.5})],
)
def test_oracles(shared_data, name, options):
    found = bradley_terry(CHOSEN, REJECTED, **options).mean()
    assert float(found) == pytest.approx(stored(shared_data, "rm")[name], abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.floats(-20, 20), st.floats(-20, 20), st.floats(0, 3), st.floats(0, 1))
def test_is_the_formula(chosen, rejected, margin, centering):
    gap = chosen - rejected - margin
    by_hand = math.log1p(math.exp(-gap)) + centering * (chosen + rejected) ** 2
    found = bradley_terry(table([chosen]), table([rejected]), margin=margin, centering=centering)
    assert float(found) == pytest.approx(by_hand, rel=1e-12, abs=1e-12)


def test_equal_rewards_cost_log_two():
    assert float(bradley_terry(table([3.0]), table([3.0]))) == pytest.approx(math.log(2))


def test_the_two_orders_of_a_pair_are_probabilities():
    won = torch.exp(-bradley_terry(CHOSEN, REJECTED))
    lost = torch.exp(-bradley_terry(REJECTED, CHOSEN))
    assert torch.allclose(won + lost, torch.ones(3, dtype=torch.float64))


def test_a_margin_of_every_pair_is_its_own():
    margins = table([0.0, 0.5, 2.0])
    found = bradley_terry(CHOSEN, REJECTED, margin=margins)
    apart = [bradley_terry(CHOSEN, REJECTED, margin=float(m))[i] for i, m in enumerate(margins)]
    assert torch.equal(found, torch.stack(apart))


def test_only_the_centring_sees_a_common_shift():
    assert torch.allclose(
        bradley_terry(CHOSEN + 7, REJECTED + 7), bradley_terry(CHOSEN, REJECTED), atol=1e-12
    )
    moved = bradley_terry(CHOSEN + 7, REJECTED + 7, centering=0.01)
    assert bool((moved > bradley_terry(CHOSEN, REJECTED, centering=0.01)).all())


def test_far_apart_rewards_stay_finite():
    chosen = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = bradley_terry(chosen, torch.tensor([-1e4, 1e4]))
    loss.sum().backward()
    assert loss.tolist() == [0.0, 2e4]
    assert chosen.grad.tolist() == [0.0, -1.0]


def test_gradcheck():
    inputs = (CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_())
    assert torch.autograd.gradcheck(
        lambda c, r: bradley_terry(c, r, margin=0.3, centering=0.02), inputs
    )


def test_normalised_rewards_have_mean_zero_and_spread_one():
    rewards = table([1.0, 4.0, -2.0, 0.5, 9.0])
    mean, std = normalisation(rewards)
    scaled = (rewards - mean) / std
    assert float(scaled.mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(scaled.square().mean()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("rewards", [[2.5], [0.1, 0.1, 0.1]])
def test_rewards_without_spread_are_only_shifted(rewards):
    mean, std = normalisation(table(rewards))
    assert (mean, std) == (pytest.approx(rewards[0]), 1.0)


@pytest.mark.parametrize("rewards", [[], [1.0, math.nan], [math.inf]])
def test_rewards_that_give_no_scale_are_refused(rewards):
    with pytest.raises(ValueError, match="finite"):
        normalisation(table(rewards))
