"""Losses between examples: oracles, invariances, and the examples of several processes."""

import math
import multiprocessing

import pytest
import torch

from pipestill.losses.relation import (
    gather_examples,
    pkt,
    ranking,
    rkd,
    rkd_angle,
    rkd_distance,
    similarity_preserving,
)
from tests.losses.oracles import PKT, STORED, embeddings

WANTED = STORED["relation"]
LOSSES = {
    loss.__name__: loss for loss in (rkd_distance, rkd_angle, rkd, similarity_preserving, pkt)
}
every_loss = pytest.mark.parametrize("name", list(LOSSES))


@pytest.mark.parametrize(
    ("loss", "wanted", "digits"),
    [
        (rkd_distance, WANTED["rkd_d"], 1e-10),
        (rkd_angle, WANTED["rkd_a"], 1e-10),
        (rkd, WANTED["rkd_25_50"], 1e-8),
        (similarity_preserving, WANTED["sp"], 1e-12),
        (pkt, PKT, 1e-9),
    ],
)
def test_agrees_with_the_oracle(loss, wanted, digits):
    assert float(loss(*embeddings())) == pytest.approx(wanted, abs=digits)


def test_rkd_weighs_its_two_terms():
    s, t = embeddings()
    found = rkd(s, t, distance_weight=2.0, angle_weight=3.0)
    torch.testing.assert_close(found, 2 * rkd_distance(s, t) + 3 * rkd_angle(s, t))


@every_loss
def test_gradcheck(name):
    student, teacher = embeddings()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, teacher), student.requires_grad_())


@every_loss
def test_a_student_that_is_the_teacher_has_no_loss_and_no_gradient(name):
    student, _ = embeddings()
    student.requires_grad_()
    value = LOSSES[name](student, student.detach().clone())
    value.backward()
    assert abs(float(value.detach())) < 1e-15
    # PKT's epsilon, as the authors have it, leaves a gradient of its size.
    assert float(student.grad.abs().max()) < (1e-6 if name == "pkt" else 1e-15)


@every_loss
def test_a_rotation_changes_nothing_and_the_order_of_examples_neither(name):
    student, teacher = embeddings()
    torch.manual_seed(0)
    turned, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    order = torch.randperm(5)
    found = LOSSES[name]((student @ turned)[order], teacher[order])
    torch.testing.assert_close(found, LOSSES[name](student, teacher), rtol=0, atol=1e-12)


@every_loss
def test_the_scale_of_either_side_changes_nothing(name):
    student, teacher = embeddings()
    found = LOSSES[name](8 * student, teacher / 4)
    # PKT adds its epsilon to the lengths, so it is free of the scale up to that.
    torch.testing.assert_close(found, LOSSES[name](student, teacher), rtol=0, atol=1e-5)


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle, rkd])
def test_a_shift_changes_no_distance_and_no_angle(loss):
    student, teacher = embeddings()
    torch.testing.assert_close(loss(student + 3, teacher - 5), loss(student, teacher))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_finite_at_extremes_and_in_low_precision(name, dtype, size):
    student, teacher = ((e * size).to(dtype) for e in embeddings())
    student.requires_grad_()
    value = LOSSES[name](student, teacher)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()


@every_loss
@pytest.mark.parametrize("count", [1, 2, 5])
def test_equal_examples_and_zeros_give_finite_gradients(name, count):
    """Distances of 0 and directions of length 0, on the student's side only."""
    teacher = embeddings()[1][:count]
    for start in (torch.ones(count, 4), torch.zeros(count, 4)):
        student = start.requires_grad_()
        value = LOSSES[name](student, teacher)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(student.grad).all()
        assert float(student.grad.abs().max()) < 1e3


def test_one_pair_of_equal_examples_gives_no_huge_gradient():
    student, teacher = embeddings()
    student[1] = student[0]
    student.requires_grad_()
    rkd(student, teacher).backward()
    assert float(student.grad.abs().max()) < 1e3


def scores():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 3, dtype=torch.float64)
    return student.requires_grad_(), teacher


def test_ranking_is_the_kl_of_soft_maxed_scores():
    student, teacher = scores()
    q, p = torch.softmax(student / 2, -1), torch.softmax(teacher / 2, -1)
    wanted = (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(ranking(student, teacher, tau=2.0), wanted, rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(lambda x: ranking(x, teacher, tau=2.0), student)


def test_ranking_of_equal_scores_is_zero_whatever_is_added():
    student, _ = scores()
    value = ranking(student, student.detach() + 3)
    value.backward()
    assert abs(float(value.detach())) < 1e-15
    assert float(student.grad.abs().max()) < 1e-15


def test_ranking_leaves_missing_answers_out():
    student, teacher = scores()
    masked = teacher.clone()
    masked[:, 2] = -math.inf
    torch.testing.assert_close(ranking(student, masked), ranking(student[:, :2], teacher[:, :2]))
    assert float(ranking(student[:0], teacher[:0]).detach()) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ranking_is_finite_at_extremes(dtype):
    student = torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype, requires_grad=True)
    value = ranking(student, torch.tensor([[-1e4, 1e4, 0.0]], dtype=dtype))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()


def test_alone_the_examples_are_the_process_s_own():
    student, _ = embeddings()
    assert gather_examples(student) is student


def _one_of_two(rank, folder):
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    student, teacher = embeddings()
    part = slice(0, 3) if rank == 0 else slice(3, 5)
    own = student[part].clone().requires_grad_()
    everyone = gather_examples(own)
    value = rkd(everyone, gather_examples(teacher[part]))
    value.backward()
    rough = gather_examples(own.detach().bfloat16())
    found = {"all": everyone.detach(), "value": value.detach(), "grad": own.grad, "bf16": rough}
    dist.destroy_process_group()
    torch.save(found, f"{folder}/{rank}.pt")


def test_two_processes_have_the_loss_and_between_them_the_gradient_of_one(tmp_path):
    """Three examples in one, two in the other."""
    spawn = multiprocessing.get_context("spawn")
    pair = [spawn.Process(target=_one_of_two, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(60)
    assert [process.exitcode for process in pair] == [0, 0]
    student, teacher = embeddings()
    student.requires_grad_()
    wanted = rkd(student, teacher)
    wanted.backward()
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for one in found:
        assert torch.equal(one["all"], student.detach())
        assert torch.equal(one["bf16"], student.detach().bfloat16())
        torch.testing.assert_close(one["value"], wanted.detach(), rtol=0, atol=1e-12)
    gradient = torch.cat([one["grad"] for one in found])
    torch.testing.assert_close(gradient, student.grad, rtol=0, atol=1e-10)
