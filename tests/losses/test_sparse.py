"""Stored top-k log-probabilities: what is kept, and the tail bucket's two bounds."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipestill.losses.response import DIVERGENCES
from pipestill.losses.sparse import chunked_tail_and_nll, tail_divergence, tail_kl, top_k
from tests.losses.oracles import STORED, logits

WANTED = STORED["logit"]
every_divergence = pytest.mark.parametrize("name", list(DIVERGENCES))
ARGS = {"beta": 0.3, "skew": 0.1}


def problem(count=5, size=9, seed=0, scale=2.0):
    torch.manual_seed(seed)
    student, teacher = torch.randn(2, count, size, dtype=torch.float64) * scale
    return student.requires_grad_(), teacher, torch.randint(size, (count,))


def stored(teacher, k, tau=1.0):
    return top_k(teacher, torch.zeros(len(teacher), dtype=torch.long), k, tau)[:2]


def test_agrees_with_the_oracles():
    student, teacher, labels = logits()
    ids, log_p, _ = top_k(teacher, labels, 3, 1.0)
    log_q = torch.log_softmax(student, -1).gather(-1, ids.long())
    truncated = (log_p.exp() * (log_p - log_q)).sum(-1)
    assert float(truncated.mean()) == pytest.approx(WANTED["topk3_trunc"], abs=1e-12)
    assert float(truncated.min()) == pytest.approx(WANTED["topk3_min_token_trunc"], abs=1e-12)
    p, q = torch.softmax(log_p, -1), torch.log_softmax(log_q, -1)
    renormalised = (p * (p.log() - q)).sum(-1).mean()
    assert float(renormalised) == pytest.approx(WANTED["topk3_renorm"], abs=1e-12)
    found = tail_kl(student, ids, log_p)
    assert float(found.mean()) == pytest.approx(WANTED["topk3_tail"], abs=1e-12)
    assert float(found.min()) >= 0


def test_is_the_formula_with_the_tail_written_out():
    student, teacher, _ = problem()
    ids, log_p = stored(teacher, 4, tau=2.0)
    log_q = torch.log_softmax(student / 2.0, -1).gather(-1, ids.long())
    p_tail, q_tail = 1 - log_p.exp().sum(-1), 1 - log_q.exp().sum(-1)
    wanted = (log_p.exp() * (log_p - log_q)).sum(-1) + p_tail * (p_tail.log() - q_tail.log())
    torch.testing.assert_close(tail_kl(student, ids, log_p, tau=2.0), wanted, rtol=0, atol=1e-12)


def test_top_k_keeps_true_log_probabilities_in_falling_order():
    _, teacher, labels = problem()
    ids, log_p, label = top_k(teacher, labels, 4, 2.0)
    full = torch.log_softmax(teacher / 2.0, -1)
    assert ids.dtype == torch.int32
    torch.testing.assert_close(log_p, full.gather(-1, ids.long()), rtol=0, atol=1e-13)
    torch.testing.assert_close(log_p, full.sort(-1, descending=True).values[:, :4])
    torch.testing.assert_close(label, full[torch.arange(5), labels], rtol=0, atol=1e-13)


def test_top_k_of_bf16_logits_comes_in_fp32():
    _, teacher, labels = problem()
    _, log_p, label = top_k(teacher.bfloat16(), labels, 4, 1.0)
    assert log_p.dtype == label.dtype == torch.float32


@pytest.mark.parametrize(
    ("k", "tau", "text"), [(0, 1.0, "k is 0"), (10, 1.0, "k is 10"), (3, 0, "tau")]
)
def test_top_k_refuses_what_it_cannot_keep(k, tau, text):
    _, teacher, labels = problem()
    with pytest.raises(ValueError, match=text):
        top_k(teacher, labels, k, tau)


@every_divergence
@settings(max_examples=12, deadline=None)
@given(st.integers(2, 12), st.floats(0.5, 4), st.floats(0.1, 12), st.integers(0, 10**6))
def test_lies_between_zero_and_the_full_divergence_and_grows_with_k(name, size, tau, scale, seed):
    # Only the reverse KL takes the logarithm of a tail 1 − Σ p that may be all rounding.
    student, teacher, _ = problem(4, size, seed, scale / 8 if name == "reverse_kl" else scale)
    student = student.detach()
    full = DIVERGENCES[name](student, teacher, tau=tau, **ARGS)
    before = torch.zeros(4, dtype=torch.float64)
    for k in range(1, size + 1):
        found = tail_divergence(student, *stored(teacher, k, tau), name, tau=tau, **ARGS)
        assert (found >= before - 1e-9).all()
        assert (found <= full + 1e-9).all()
        before = found
    torch.testing.assert_close(before, full, rtol=1e-9, atol=1e-9)


@every_divergence
def test_gradcheck_and_the_gradient_at_the_whole_vocabulary(name):
    student, teacher, _ = problem(3, 6)
    part, whole = stored(teacher, 3), stored(teacher, 6)
    assert torch.autograd.gradcheck(lambda x: tail_divergence(x, *part, name, **ARGS), student)
    found = tail_divergence(student, *whole, name, **ARGS).sum()
    wanted = DIVERGENCES[name](student, teacher, tau=1.0, **ARGS).sum()
    gradients = [torch.autograd.grad(value, student)[0] for value in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@every_divergence
@pytest.mark.parametrize("k", [1, 4, 9])
def test_a_student_that_is_the_teacher_has_no_loss_and_no_gradient(name, k):
    student, _, _ = problem()
    values = tail_divergence(student, *stored(student.detach(), k), name, **ARGS)
    values.sum().backward()
    assert float(values.detach().abs().max()) < 1e-12
    # |p − q| has a kink at 0, where rounding decides on the sign.
    assert name == "tvd" or float(student.grad.abs().max()) < 1e-12


def test_adding_a_constant_to_the_student_s_logits_changes_nothing():
    student, teacher, _ = problem()
    kept = stored(teacher, 4)
    torch.testing.assert_close(tail_kl(student + 30, *kept), tail_kl(student, *kept))


@every_divergence
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_finite_at_extremes_and_in_low_precision(name, dtype, k):
    student, teacher = torch.zeros(3, 6, dtype=dtype), torch.zeros(3, 6, dtype=dtype)
    student[0, 0], student[1, 5], teacher[0, 1], teacher[2, 3] = 1e4, -1e4, 1e4, -1e4
    student.requires_grad_()
    ids, log_p = stored(teacher, k)
    values = tail_divergence(student, ids, log_p.to(dtype), name, **ARGS)
    values.sum().backward()
    assert values.dtype == torch.float32
    assert torch.isfinite(values).all()
    assert torch.isfinite(student.grad).all()


@every_divergence
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_log_probabilities_whose_rounded_mass_exceeds_one_are_no_loss_below_zero(name, dtype):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 200, 12) * 3
    ids, log_p = stored(teacher, 11)
    rounded = log_p.to(dtype)
    mass = rounded.float().exp().sum(-1)
    assert (mass > 1).any()
    student.requires_grad_()
    values = tail_divergence(student, ids, rounded, name, **ARGS)
    values.sum().backward()
    assert float(values.detach().min()) > -1e-6
    assert torch.isfinite(student.grad).all()
    if name != "reverse_kl":  # it takes the logarithm of a tail that was rounded away
        exact = tail_divergence(student.detach(), ids, log_p, name, **ARGS)
        torch.testing.assert_close(values.detach(), exact, rtol=0.05, atol=0.05)


def test_a_tail_far_below_rounding_keeps_its_value_and_gradient():
    """1 − Σ q is 0 in fp32 here, whose logarithm would be of any size."""
    student = torch.tensor([[30.0, 0.0, 0.0, 0.0]], requires_grad=True)
    ids, log_p = stored(torch.tensor([[math.log(2), 0.0, 0.0, 0.0]]), 1)
    value = tail_kl(student, ids, log_p)
    value.sum().backward()
    log_tail = math.log(3) - 30
    wanted = 0.4 * math.log(0.4) + 0.6 * (math.log(0.6) - log_tail)
    assert float(value.detach()) == pytest.approx(wanted, rel=1e-6)
    assert float(student.grad[0, 0]) == pytest.approx(0.6, rel=1e-6)


@every_divergence
def test_ids_that_the_student_excludes_are_left_out(name):
    student, teacher, _ = problem(3, 8)
    ids, log_p = stored(teacher, 8)
    masked = student.clone()
    masked[:, 5] = -math.inf
    found = tail_divergence(masked, ids, log_p, name, **ARGS)
    wanted = DIVERGENCES[name](masked, teacher, tau=1.0, **ARGS)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    assert torch.isfinite(torch.autograd.grad(found.sum(), student)[0]).all()


def test_a_divergence_may_be_given_as_a_function():
    student, teacher, _ = problem()
    kept = stored(teacher, 4)
    found = tail_divergence(student, *kept, DIVERGENCES["tvd"])
    assert torch.equal(found, tail_divergence(student, *kept, "tvd"))


def test_a_temperature_of_zero_is_refused():
    student, teacher, _ = problem()
    with pytest.raises(ValueError, match="tau is 0"):
        tail_kl(student, *stored(teacher, 4), tau=0)


@pytest.mark.parametrize("rows", [1, 7, 10**9])
def test_the_head_in_chunks_changes_neither_values_nor_gradients(rows):
    torch.manual_seed(0)
    states = torch.randn(20, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    labels, factors = torch.arange(20) % 11, torch.rand(20, dtype=torch.float64)
    ids, log_p, _ = top_k(torch.randn(20, 11, dtype=torch.float64), labels, 4, 2.0)
    divergence = partial(tail_divergence, divergence="jsd", tau=2.0)
    found, nll = chunked_tail_and_nll(
        lambda part: part @ weight.T, states, ids, log_p, labels, divergence, rows
    )
    full = states @ weight.T
    wanted = divergence(full, ids, log_p)
    wanted_nll = torch.nn.functional.cross_entropy(full, labels, reduction="none")
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(nll, wanted_nll, rtol=0, atol=1e-12)
    gradients = [
        torch.autograd.grad((value * factors).sum() + other.sum(), [states, weight])
        for value, other in ((found, nll), (wanted, wanted_nll))
    ]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
