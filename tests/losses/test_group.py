"""Advantages of groups of answers (RLOO, GRPO), their spread over tokens and the k3 term."""

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipestill.losses.group import grpo_advantages, k3, over_tokens, rloo_advantages
from pipestill.losses.ppo import masked_mean, policy_loss
from tests.losses.rl_oracles import mask_of, random_rollout, stored, table

REWARDS = table([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
groups = st.lists(st.floats(-5, 5), min_size=2, max_size=9)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("grpo_adv(eps1e-4,ddof1)", grpo_advantages(REWARDS)),
        ("rloo_adv", rloo_advantages(REWARDS)),
    ],
)
def test_oracles(shared_data, name, found):
    assert torch.allclose(found, table(stored(shared_data, name)), atol=1e-6, rtol=0)


@settings(max_examples=50, deadline=None)
@given(groups)
def test_rloo_leaves_one_out(rewards):
    found = rloo_advantages(table([rewards]))[0].tolist()
    for i, reward in enumerate(rewards):
        others = rewards[:i] + rewards[i + 1 :]
        assert found[i] == pytest.approx(reward - statistics.fmean(others), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(groups)
def test_grpo_is_the_formula_with_the_unbiased_deviation(rewards):
    found = grpo_advantages(table([rewards]))[0].tolist()
    mean, spread = statistics.fmean(rewards), statistics.stdev(rewards)
    expected = [(reward - mean) / (spread + 1e-4) for reward in rewards]
    assert found == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("method", [rloo_advantages, grpo_advantages])
def test_groups_do_not_see_each_other_and_shifts_do_not_matter(method):
    rewards = table([[0.3, -1.0, 2.0], [5.0, 5.5, 1.0]])
    found = method(rewards)
    assert torch.equal(found[1], method(rewards[1:])[0])
    assert torch.allclose(found, method(rewards + 40), atol=1e-10)
    assert found.sum(dim=1).tolist() == pytest.approx([0, 0], abs=1e-12)


@pytest.mark.parametrize("method", [rloo_advantages, grpo_advantages])
@pytest.mark.parametrize("size", [0, 1])
def test_a_group_of_one_has_no_baseline(method, size):
    with pytest.raises(ValueError, match="2 or more"):
        method(torch.ones(3, size))


def test_equal_rewards_teach_nothing():
    rewards = torch.full((2, 3), 0.1)
    assert float(rloo_advantages(rewards).abs().max()) < 1e-7
    assert float(grpo_advantages(rewards).abs().max()) < 1e-3


def test_every_token_carries_the_advantage_of_its_answer():
    mask = mask_of([1, 3, 2, 3], 3)
    found = over_tokens(table([[1.0, -1.0], [0.5, -0.5]]), mask)
    assert found.tolist() == [[1, 0, 0], [-1, -1, -1], [0.5, 0.5, 0], [-0.5, -0.5, -0.5]]


def test_at_ratio_one_the_policy_loss_of_a_group_is_reinforce():
    made = random_rollout([4, 2, 3, 1], 4)
    spread = over_tokens(rloo_advantages(table([[1.0, 0.0], [3.0, -2.0]])), made["mask"])
    new = made["new"].clone().requires_grad_()
    loss = masked_mean(policy_loss(new, made["new"], spread, made["mask"], 0.2), made["mask"])
    loss.backward()
    assert torch.allclose(new.grad, -spread / made["mask"].sum())


@settings(max_examples=50, deadline=None)
@given(st.floats(-10, 0), st.floats(-10, 0))
def test_k3_is_never_negative_and_zero_only_at_equality(new, ref):
    found = float(k3(table(new), table(ref)))
    assert found >= 0.0
    assert float(k3(table(new), table(new))) == 0.0
    if abs(new - ref) > 1e-3:
        assert found > 0.0


def test_the_mean_of_k3_over_the_policys_samples_is_the_kl():
    p, q = torch.softmax(table([0.3, -1.0, 2.0]), 0), torch.softmax(table([1.0, 0.0, 0.5]), 0)
    expected = (p * (p / q).log()).sum()
    assert float((p * k3(p.log(), q.log())).sum()) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_of_k3_is_that_of_the_kl_only_under_the_ratio(weighted):
    logits, q = table([0.3, -1.0, 2.0]).requires_grad_(), torch.softmax(table([1.0, 0.0, 0.5]), 0)

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, logits, retain_graph=True)[0]

    new = torch.log_softmax(logits, 0)
    p, old = new.detach().exp(), new.detach()
    term = k3(new, q.log()) * (torch.exp(new - old) if weighted else 1.0)
    reverse = gradient((new.exp() * (new - q.log())).sum())
    forward = gradient((q * (q.log() - new)).sum())
    assert not torch.allclose(reverse, forward, atol=1e-2)
    assert torch.allclose(gradient((p * term).sum()), reverse if weighted else forward)


def test_k3_gradcheck():
    new = table([-1.0, -0.2, -3.0]).requires_grad_()
    ref = table([-0.5, -0.3, -2.0]).requires_grad_()
    assert torch.autograd.gradcheck(k3, (new, ref))
