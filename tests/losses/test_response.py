"""Divergences of logits: oracles, limits, invariances, masks, and heads that run in chunks."""

import json
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipestill.losses.common import rows_per_chunk
from pipestill.losses.response import (
    DIVERGENCES,
    chunked_divergence,
    chunked_divergence_and_nll,
    forward_kl,
    jsd,
    reverse_kl,
    shared,
    skew_kl,
    skew_reverse_kl,
    tvd,
)
from tests.losses.memory import peak_bytes
from tests.losses.oracles import GJSD_09, SKEW_01, STORED, logits

WANTED = STORED["logit"]
every_divergence = pytest.mark.parametrize("name", list(DIVERGENCES))


def divergence(name, tau=1.0, beta=0.3, skew=0.1):
    return partial(DIVERGENCES[name], tau=tau, beta=beta, skew=skew)


def pair(count=6, size=9, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    student, teacher = torch.randn(2, count, size, dtype=torch.float64) * 2
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


def test_the_stored_oracles_are_those_of_the_file(shared_data):
    file = json.loads((shared_data.parent / "oracles" / "oracles.json").read_text())
    assert {section: file[section] for section in STORED} == STORED


@pytest.mark.parametrize(
    ("found", "wanted", "digits"),
    [
        (forward_kl, WANTED["fkl"], 1e-12),
        (reverse_kl, WANTED["rkl"], 1e-12),
        (partial(jsd, beta=0.1), WANTED["gjsd_0.1"], 1e-12),
        (partial(jsd, beta=0.5), WANTED["gjsd_0.5"], 1e-12),
        (partial(jsd, beta=0.9), GJSD_09, 1e-9),
        (tvd, WANTED["tvd"], 1e-12),
        (partial(skew_kl, skew=0.1), SKEW_01, 1e-9),
        (partial(skew_reverse_kl, skew=0.1), WANTED["srkl_0.1"], 1e-12),
        (lambda s, t: 4 * forward_kl(s, t, tau=2.0), WANTED["fkl_T2_T2"], 1e-12),
        (lambda s, t: 16 * forward_kl(s, t, tau=4.0), WANTED["fkl_T4_T2"], 1e-12),
    ],
)
def test_agrees_with_the_oracle(found, wanted, digits):
    student, teacher, _ = logits()
    assert float(found(student, teacher).mean()) == pytest.approx(wanted, abs=digits)


def test_forward_kl_is_the_cross_entropy_less_the_teacher_s_entropy():
    student, teacher, _ = logits()
    p = torch.softmax(teacher, -1)
    entropy = -(p * torch.log_softmax(teacher, -1)).sum(-1)
    found = (forward_kl(student, teacher) + entropy).mean()
    assert float(found) == pytest.approx(WANTED["fce"], abs=1e-12)


def test_the_table_hands_every_parameter_on():
    s, t = pair()
    args = {"tau": 2.0, "beta": 0.3, "skew": 0.2}
    wanted = {
        "forward_kl": forward_kl(s, t, tau=2.0),
        "reverse_kl": reverse_kl(s, t, tau=2.0),
        "jsd": jsd(s, t, tau=2.0, beta=0.3),
        "skew_kl": skew_kl(s, t, tau=2.0, skew=0.2),
        "skew_reverse_kl": skew_reverse_kl(s, t, tau=2.0, skew=0.2),
        "tvd": tvd(s, t, tau=2.0),
    }
    assert set(wanted) == set(DIVERGENCES)
    for name, function in DIVERGENCES.items():
        assert torch.equal(function(s, t, **args), wanted[name])


def test_the_ends_of_jsd_are_the_two_kls_and_its_scaled_limits():
    s, t = pair()
    assert torch.equal(jsd(s, t, beta=0.0), forward_kl(s, t))
    assert torch.equal(jsd(s, t, beta=1.0), reverse_kl(s, t))
    near = 1e-7
    torch.testing.assert_close(jsd(s, t, beta=near) / near, forward_kl(s, t), rtol=1e-4, atol=0)
    torch.testing.assert_close(jsd(s, t, beta=1 - near) / near, reverse_kl(s, t), rtol=1e-4, atol=0)


def test_the_ends_of_the_skew_are_the_kl_and_zero():
    s, t = pair()
    assert torch.equal(skew_kl(s, t, skew=0.0), forward_kl(s, t))
    assert torch.equal(skew_reverse_kl(s, t, skew=0.0), reverse_kl(s, t))
    assert float(skew_kl(s, t, skew=1.0).abs().max()) == 0.0


@every_divergence
def test_gradcheck(name):
    student, teacher = pair(3, 5)
    function = divergence(name, tau=1.5)
    assert torch.autograd.gradcheck(lambda x: function(x, teacher), student)


@every_divergence
def test_gradcheck_with_excluded_ids(name):
    student, teacher = pair(3, 6)
    closed = torch.tensor([False, False, True, False, False, False])
    teacher = teacher.masked_fill(torch.tensor([True] + [False] * 5), -math.inf)
    function = divergence(name)
    assert torch.autograd.gradcheck(
        lambda x: function(x.masked_fill(closed, -math.inf), teacher), student
    )


@every_divergence
@settings(max_examples=10, deadline=None)
@given(st.floats(-50, 50), st.floats(-50, 50), st.floats(0.5, 8), st.integers(0, 10**6))
def test_adding_a_constant_to_the_logits_changes_nothing(name, first, second, tau, seed):
    student, teacher = pair(3, 7, seed)
    function = divergence(name, tau=tau)
    shifted = function(student + first, teacher + second)
    torch.testing.assert_close(shifted, function(student, teacher), rtol=0, atol=1e-11)
    assert float(shifted.detach().min()) > -1e-12


@every_divergence
def test_a_student_that_is_the_teacher_has_no_loss_and_no_gradient(name):
    student, _ = pair()
    values = divergence(name, tau=2.0)(student, student.detach().clone())
    values.sum().backward()
    assert float(values.detach().abs().max()) < 1e-15
    assert float(student.grad.abs().max()) < 1e-15


@every_divergence
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_extremes_and_in_low_precision(name, dtype):
    student, teacher = torch.zeros(3, 6, dtype=dtype), torch.zeros(3, 6, dtype=dtype)
    student[0, 0], student[1, 5], teacher[0, 1], teacher[2, 3] = 1e4, -1e4, 1e4, -1e4
    student.requires_grad_()
    values = divergence(name)(student, teacher)
    values.sum().backward()
    assert values.dtype == torch.float32
    assert torch.isfinite(values).all()
    assert torch.isfinite(student.grad).all()


@every_divergence
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_excluded_ids_are_as_ids_that_do_not_exist(name, side):
    student, teacher = pair(4, 9)
    function = divergence(name, tau=1.5)
    ids = torch.tensor([0, 2, 3, 7])
    rest = torch.ones(9).bool().index_fill(0, torch.tensor([1, 4, 5, 6, 8]), False)
    open_student = student if side == "teacher" else student.masked_fill(~rest, -math.inf)
    open_teacher = teacher if side == "student" else teacher.masked_fill(~rest, -math.inf)
    masked = function(open_student, open_teacher)
    smaller = function(student[:, ids], teacher[:, ids])
    torch.testing.assert_close(masked, smaller, rtol=0, atol=1e-13)
    gradients = [torch.autograd.grad(v.sum(), student)[0] for v in (masked, smaller)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-13)


@every_divergence
def test_sides_that_share_no_id_give_numbers(name):
    student = torch.tensor([[0.0, -math.inf, 1.0, -math.inf]], requires_grad=True)
    values = divergence(name)(student, torch.tensor([[-math.inf, 0.0, -math.inf, 1.0]]))
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert not torch.isnan(student.grad).any()


@every_divergence
def test_padded_vocabularies_are_cut_to_the_shared_ids(name):
    student, teacher = pair(4, 9)
    function = divergence(name)
    padded = torch.nn.functional.pad(teacher, (0, 3), value=40.0)
    found = function(*shared(student, padded, 8))
    torch.testing.assert_close(found, function(student[:, :8], teacher[:, :8]), rtol=0, atol=0)


def test_a_vocabulary_smaller_than_the_shared_one_is_refused():
    student, teacher = pair(2, 5)
    with pytest.raises(ValueError, match="the teacher has 4 ids, fewer than the 5 shared"):
        shared(student, teacher[:, :4], 5)


@pytest.mark.parametrize(
    ("name", "args", "text"),
    [
        ("forward_kl", {"tau": 0.0}, "tau is 0.0"),
        ("tvd", {"tau": -1.0}, "tau is -1.0"),
        ("jsd", {"beta": 1.5}, "beta is 1.5"),
        ("skew_kl", {"skew": -0.1}, "skew is -0.1"),
    ],
)
def test_parameters_out_of_range_are_refused(name, args, text):
    with pytest.raises(ValueError, match=text):
        divergence(name, **args)(*pair())


def chunk_problem():
    torch.manual_seed(1)
    states, teacher_states = torch.randn(20, 6), torch.randn(20, 5)
    weight, teacher_weight = torch.randn(11, 6), torch.randn(13, 5)
    tensors = [t.double().requires_grad_() for t in (states, weight)]
    fixed = [t.double().requires_grad_() for t in (teacher_states, teacher_weight)]
    return (*tensors, *fixed, torch.arange(20) % 11, torch.rand(20, dtype=torch.float64))


@every_divergence
@pytest.mark.parametrize("rows", [1, 7, 10**9])
def test_the_heads_in_chunks_change_neither_values_nor_gradients(name, rows):
    states, weight, teacher_states, teacher_weight, labels, factors = chunk_problem()

    def compare(student, teacher):
        return divergence(name, tau=2.0)(*shared(student, teacher, 11))

    heads = (
        (lambda part: part @ weight.T),
        states,
        (lambda part: part @ teacher_weight.T),
        teacher_states,
    )
    alone = chunked_divergence(*heads, compare, rows)
    both, nll = chunked_divergence_and_nll(*heads, labels, compare, rows)
    logits = states @ weight.T
    wanted = compare(logits, (teacher_states @ teacher_weight.T).detach())
    wanted_nll = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(alone, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(both, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(nll, wanted_nll, rtol=0, atol=1e-12)
    for found, expected in (
        (alone * factors, wanted * factors),
        (both * factors + 0.3 * nll, wanted * factors + 0.3 * wanted_nll),
    ):
        gradients = [
            torch.autograd.grad(value.sum(), [states, weight], retain_graph=True)
            for value in (found, expected)
        ]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
    (both.sum() + nll.sum()).backward()
    assert teacher_states.grad is None
    assert teacher_weight.grad is None


def test_the_student_s_head_runs_once_for_divergence_and_cross_entropy():
    states, weight, teacher_states, teacher_weight, labels, _ = chunk_problem()
    seen = []

    def head(part):
        seen.append(len(part))
        return part @ weight.T

    with torch.no_grad():
        chunked_divergence_and_nll(
            head,
            states,
            lambda part: part @ teacher_weight[:11].T,
            teacher_states,
            labels,
            forward_kl,
            8,
        )
    assert seen == [4, 8, 8]


def test_no_positions_give_no_values():
    weight = torch.randn(5, 3, requires_grad=True)

    def head(part):
        return part @ weight.T

    empty = torch.zeros(0, 3)
    values, nll = chunked_divergence_and_nll(
        head, empty, head, empty, torch.zeros(0).long(), forward_kl, 4
    )
    (values.sum() + nll.sum()).backward()
    assert values.shape == nll.shape == (0,)
    assert float(weight.grad.abs().sum()) == 0.0


def test_peak_memory_at_a_vocabulary_of_150k_is_at_most_a_third_of_naive():
    """Forward and backward of 32 tokens; the naive way soft-maxes all logits at once."""
    torch.manual_seed(0)
    size, count = 151_936, 32
    states = torch.randn(count, 4, requires_grad=True)
    weight = torch.randn(size, 4, requires_grad=True)
    teacher_states, teacher_weight = torch.randn(count, 4), torch.randn(size, 4)

    def step(values):
        values.mean().backward()
        states.grad = weight.grad = None

    def naive():
        log_q = torch.log_softmax(states @ weight.T, dim=-1)
        log_p = torch.log_softmax(teacher_states @ teacher_weight.T, dim=-1)
        terms = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True)
        step(terms.sum(-1))

    def chunked():
        heads = (lambda part: part @ weight.T, states)
        teacher = (lambda part: part @ teacher_weight.T, teacher_states)
        step(chunked_divergence(*heads, *teacher, forward_kl, rows=2))

    assert rows_per_chunk(size) >= 2  # the real chunk; more tokens make the same shares
    assert peak_bytes(chunked) <= peak_bytes(naive) / 3
