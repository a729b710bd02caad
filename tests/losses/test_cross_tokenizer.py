"""Universal logit distillation: blind to ids, aware of how sure each side is."""

import math
from functools import partial

import pytest
import torch

from pipestill.losses.cross_tokenizer import chunked_uld, uld
from pipestill.losses.response import chunked_divergence
from tests.losses.oracles import STORED, logits


def pair(student_size=7, teacher_size=10, count=5):
    torch.manual_seed(0)
    student = torch.randn(count, student_size, dtype=torch.float64) * 2
    return student.requires_grad_(), torch.randn(count, teacher_size, dtype=torch.float64) * 2


def test_agrees_with_the_oracle():
    student, teacher, _ = logits()
    wanted = STORED["logit"]["uld_T1"]
    assert float(uld(student, teacher).mean()) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("sizes", [(7, 10), (10, 7)])
def test_the_shorter_side_is_padded_with_zeros(sizes):
    student, teacher = pair(*sizes)
    q, p = (torch.softmax(x / 2, -1).sort(-1, descending=True).values for x in (student, teacher))
    q, p = (torch.nn.functional.pad(x, (0, 10 - x.shape[-1])) for x in (q, p))
    torch.testing.assert_close(uld(student, teacher, tau=2.0), (q - p).abs().sum(-1))


def test_the_order_of_the_ids_means_nothing():
    student, teacher = pair()
    found = uld(student[:, torch.randperm(7)], teacher[:, torch.randperm(10)])
    torch.testing.assert_close(found, uld(student, teacher), rtol=0, atol=1e-14)


def test_adding_a_constant_to_the_logits_changes_nothing():
    student, teacher = pair()
    shifted = uld(student + 20, teacher - 30)
    torch.testing.assert_close(shifted, uld(student, teacher), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sizes", [(4, 6), (6, 4)])
def test_gradcheck(sizes):
    student, teacher = pair(*sizes, count=3)
    assert torch.autograd.gradcheck(lambda x: uld(x, teacher, tau=1.5), student)


def test_a_student_that_is_the_teacher_has_no_loss_and_no_gradient():
    student, _ = pair()
    values = uld(student, student.detach().clone())
    values.sum().backward()
    assert float(values.detach().abs().max()) == 0.0
    assert float(student.grad.abs().max()) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_at_extremes_and_with_excluded_ids(dtype):
    student = torch.tensor([[1e4, -1e4, 0.0, -math.inf]], dtype=dtype, requires_grad=True)
    values = uld(student, torch.tensor([[0.0, -math.inf, -1e4]], dtype=dtype))
    values.sum().backward()
    assert values.dtype == torch.float32
    assert torch.isfinite(values).all()
    assert torch.isfinite(student.grad).all()


def test_excluded_ids_are_as_ids_that_do_not_exist():
    student, teacher = pair()
    masked = teacher.masked_fill(torch.arange(10) > 6, -math.inf)
    torch.testing.assert_close(uld(student, masked), uld(student, teacher[:, :7]))


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="tau is 0"):
        uld(*pair(), tau=0)


@pytest.mark.parametrize("rows", [1, 7, 10**9])
def test_chunks_change_neither_values_nor_gradients(rows):
    student, teacher = pair(count=20)
    states = torch.randn(20, 3, dtype=torch.float64)
    weight = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    factors = torch.rand(20, dtype=torch.float64)
    found, wanted = chunked_uld(student, teacher, rows, tau=2.0), uld(student, teacher, tau=2.0)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)
    gradients = [torch.autograd.grad((v * factors).sum(), student)[0] for v in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-14)
    headed = chunked_divergence(
        lambda part: part @ weight.T,
        states,
        lambda part: part,
        teacher,
        partial(uld, tau=2.0),
        rows,
    )
    direct = uld(states @ weight.T, teacher, tau=2.0)
    gradients = [torch.autograd.grad((v * factors).sum(), weight)[0] for v in (headed, direct)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
