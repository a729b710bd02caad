"""Token cross-entropy: against the oracle, in chunks, at extremes, and its gradient."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipestill.losses import common
from pipestill.losses.common import IGNORED, head_nll, masked_mean_nll, rows_per_chunk, token_nll
from tests.losses.memory import peak_bytes

LABELS = [[IGNORED, 1, 4, 6], [2, IGNORED, 0, IGNORED]]


def oracle_logits() -> torch.Tensor:
    return torch.tensor(2.0 * np.sin(0.7 * np.arange(56.0).reshape(2, 4, 7) + 0.3))


def test_agrees_with_the_oracle(shared_data):
    oracles = json.loads((shared_data.parent / "oracles" / "oracles.json").read_text())
    found = masked_mean_nll(oracle_logits(), torch.tensor(LABELS))
    assert float(found) == pytest.approx(oracles["logit"]["ce"], abs=1e-12)


def test_agrees_with_the_oracle_s_known_value():
    found = masked_mean_nll(oracle_logits(), torch.tensor(LABELS))
    assert float(found) == pytest.approx(2.7532689528841616, abs=1e-12)


@pytest.mark.parametrize("chunk", [1, 7, 7 * 3, 10**9])
def test_chunks_change_neither_values_nor_gradients(monkeypatch, chunk):
    logits = torch.randn(10, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(10) % 7
    weights = torch.rand(10, dtype=torch.float64)
    whole = torch.autograd.grad((token_nll(logits, labels) * weights).sum(), logits)[0]
    monkeypatch.setattr(common, "CHUNK_ELEMENTS", chunk)
    nll = token_nll(logits, labels)
    parts = torch.autograd.grad((nll * weights).sum(), logits)[0]
    assert nll.shape == (10,)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-15)


def test_gradcheck():
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: token_nll(x, torch.tensor([0, 4, 2, 2])), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_finite_at_extremes(dtype, size):
    logits = torch.zeros(3, 6, dtype=dtype)
    logits[0, 0], logits[1, 5] = size, size
    logits.requires_grad_()
    nll = token_nll(logits, torch.tensor([0, 1, 2]))
    nll.sum().backward()
    assert nll.dtype == torch.float32
    assert torch.isfinite(nll).all()
    assert torch.isfinite(logits.grad).all()


def test_nothing_to_learn_is_zero_with_a_graph():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss = masked_mean_nll(logits, torch.full((2, 3), IGNORED))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert float(logits.grad.abs().sum()) == 0.0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(2, 9), st.floats(-50, 50), st.integers(0, 10**6))
def test_adding_a_constant_to_the_logits_changes_nothing(count, size, shift, seed):
    torch.manual_seed(seed)
    logits, labels = torch.randn(count, size).double(), torch.randint(size, (count,))
    shifted = token_nll(logits + shift, labels)
    torch.testing.assert_close(shifted, token_nll(logits, labels), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 7, 10**9])
def test_the_head_in_chunks_changes_neither_values_nor_gradients(rows):
    torch.manual_seed(0)
    states = torch.randn(20, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    labels, factors = torch.arange(20) % 11, torch.rand(20, dtype=torch.float64)
    found = head_nll(lambda part: part @ weight.T, states, labels, rows)
    wanted = torch.nn.functional.cross_entropy(states @ weight.T, labels, reduction="none")
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    gradients, expected = (
        torch.autograd.grad((nll * factors).sum(), [states, weight]) for nll in (found, wanted)
    )
    torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-12)


def test_no_states_give_no_values():
    weight = torch.randn(5, 3, requires_grad=True)
    found = head_nll(lambda part: part @ weight.T, torch.zeros(0, 3), torch.zeros(0).long(), 4)
    found.sum().backward()
    assert found.shape == (0,)
    assert float(weight.grad.abs().sum()) == 0.0


def test_peak_memory_at_a_vocabulary_of_32k_is_at_most_half_of_naive():
    """Bytes that torch allocated at once, forward and backward; the states are those of 2,048
    tokens."""
    torch.manual_seed(0)
    states = torch.randn(2048, 64, requires_grad=True)
    weight = torch.randn(32_768, 64, requires_grad=True)
    labels = torch.randint(32_768, (2048,))

    def head(part):
        return part @ weight.T

    def step(nll):
        nll.mean().backward()
        states.grad = weight.grad = None

    naive = peak_bytes(
        lambda: step(torch.nn.functional.cross_entropy(head(states), labels, reduction="none"))
    )
    chunked = peak_bytes(lambda: step(head_nll(head, states, labels, rows_per_chunk(32_768))))
    logits = 2048 * 32_768 * 4
    assert naive >= 2 * logits
    assert chunked <= naive / 2
    assert chunked < logits  # the whole logits never exist, not even once
