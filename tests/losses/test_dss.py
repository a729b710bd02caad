"""The DSS objective as a pure function: two separate means, exact over any partition of a step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipestill.losses.dss import LABEL, RATIONALE, dss_loss, token_weights


def step_of(labels: int, rationales: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    group = torch.tensor([LABEL] * labels + [RATIONALE] * rationales, dtype=torch.long)
    return torch.rand(len(group), dtype=torch.float64) * 5, group[torch.randperm(len(group))]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 60), st.floats(0, 1), st.integers(0, 10**6))
def test_is_the_two_means_formula(labels, rationales, alpha, seed):
    nll, group = step_of(labels, rationales, seed)
    loss, sums = dss_loss(nll, group, alpha, labels, rationales)
    label, rationale = nll[group == LABEL].mean(), nll[group == RATIONALE].mean()
    assert float(loss) == pytest.approx(float(alpha * label + (1 - alpha) * rationale), abs=1e-12)
    assert float(sums["label_nll"]) / labels == pytest.approx(float(label), abs=1e-12)
    assert float(sums["rationale_nll"]) / rationales == pytest.approx(float(rationale), abs=1e-12)


def test_one_mean_over_both_would_be_another_loss():
    nll, group = step_of(3, 40)
    loss, _ = dss_loss(nll, group, 0.5, 3, 40)
    assert abs(float(loss) - float(nll.mean())) > 1e-3


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(0, 30), st.integers(1, 7), st.integers(0, 10**6))
def test_parts_of_a_step_add_up_to_the_step(labels, rationales, size, seed):
    nll, group = step_of(labels, rationales, seed)
    whole, _ = dss_loss(nll, group, 0.3, labels, rationales)
    parts = sum(
        float(dss_loss(a, b, 0.3, labels, rationales)[0])
        for a, b in zip(nll.split(size), group.split(size), strict=True)
    )
    assert parts == pytest.approx(float(whole), abs=1e-12)


def test_without_rationales_the_label_term_alone_remains():
    nll, group = step_of(5, 0)
    loss, sums = dss_loss(nll, group, 0.25, 5, 0)
    assert float(loss) == pytest.approx(0.25 * float(nll.mean()), abs=1e-15)
    assert float(sums["rationale_nll"]) == 0.0


def test_without_any_token_the_loss_is_zero():
    loss, _ = dss_loss(torch.zeros(0), torch.zeros(0, dtype=torch.long), 0.5, 0, 0)
    assert float(loss) == 0.0


def test_alpha_one_is_the_mean_of_the_label_tokens():
    nll, group = step_of(7, 20)
    nll.requires_grad_()
    loss, _ = dss_loss(nll, group, 1.0, 7, 20)
    loss.backward()
    label = nll.detach()[group == LABEL].mean()
    assert float(loss.detach()) == pytest.approx(float(label), abs=1e-12)
    assert float(nll.grad[group == RATIONALE].abs().sum()) == 0.0


def test_weights_of_a_step_sum_to_one():
    _, group = step_of(4, 33)
    assert float(token_weights(group, 0.35, 4, 33).sum()) == pytest.approx(1.0, abs=1e-12)


def test_gradcheck():
    nll, group = step_of(3, 5)
    nll.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dss_loss(x, group, 0.4, 3, 5)[0], nll)


def test_bf16_and_large_losses_stay_finite():
    nll = torch.full((4,), 1e4, dtype=torch.bfloat16, requires_grad=True)
    loss, _ = dss_loss(nll, torch.tensor([0, 0, 1, 1]), 0.5, 2, 2)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(nll.grad).all()
