"""Losses of hidden states, attention maps and relations; and the maps between layers."""

import pytest
import torch

from pipestill.losses.feature import (
    attention_kl,
    attention_mse,
    cka,
    cosine,
    hidden_mse,
    layer_map,
    layer_maps,
    minilm,
    mmd,
)
from tests.losses.oracles import MASK, MINILM_2_HEADS, STORED, states

WANTED = STORED["feature"]


def on_positions(loss):
    """A loss of (B, T, H) states at the positions that count."""
    return lambda s, t: loss(s[MASK], t[MASK]).mean()


def relation(s, t):
    return minilm(s, t, MASK, 2)


def mean_products(s, t):
    return mmd(s, t, MASK)


def maps(scores):
    """Attention of one head a pair of channels; scores (2, 4, 6) → (2, 3, 4, 4)."""
    split = scores.unflatten(-1, (3, 2)).transpose(1, 2)
    logits = split @ split.transpose(2, 3)
    return logits.masked_fill(~MASK[:, None, None], -torch.inf).softmax(-1)


def attention(loss):
    return lambda s, t: loss(maps(s), maps(t), MASK)


LOSSES = {
    "hidden_mse": on_positions(hidden_mse),
    "cosine": on_positions(cosine),
    "cka": on_positions(cka),
    "mmd": mean_products,
    "attention_mse": attention(attention_mse),
    "attention_kl": attention(attention_kl),
    "minilm": relation,
}
every_loss = pytest.mark.parametrize("name", list(LOSSES))


@pytest.mark.parametrize(
    ("name", "wanted", "digits"),
    [
        ("hidden_mse", WANTED["hid_mse"], 1e-12),
        ("cosine", WANTED["cos"], 1e-12),
        ("cka", 1 - WANTED["cka_linear"], 1e-12),
        ("mmd", WANTED["mmd"], 1e-12),
        ("minilm", MINILM_2_HEADS, 1e-9),
    ],
)
def test_agrees_with_the_oracle(name, wanted, digits):
    assert float(LOSSES[name](*states())) == pytest.approx(wanted, abs=digits)


def test_states_give_one_value_a_position():
    student, teacher = (h[MASK] for h in states())
    assert hidden_mse(student, teacher).shape == cosine(student, teacher).shape == (5,)


@every_loss
def test_gradcheck(name):
    student, teacher = states()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, teacher), student.requires_grad_())


@every_loss
def test_a_student_that_is_the_teacher_has_no_loss_and_no_gradient(name):
    student, _ = states()
    student.requires_grad_()
    value = LOSSES[name](student, student.detach().clone())
    value.backward()
    assert abs(float(value.detach())) < 1e-14
    assert float(student.grad.abs().max()) < 1e-14


@every_loss
def test_what_is_masked_changes_neither_value_nor_gradient(name):
    found = []
    for filling in (0.0, 7.0):
        student, teacher = (h.masked_fill(~MASK[..., None], filling) for h in states())
        student.requires_grad_()
        value = LOSSES[name](student, teacher)
        value.backward()
        assert float(student.grad[~MASK].abs().max()) == 0.0
        found.append((value.detach(), student.grad))
    torch.testing.assert_close(*found, rtol=0, atol=1e-14)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_finite_at_extremes_and_in_low_precision(name, dtype, size):
    student, teacher = ((h * size).to(dtype) for h in states())
    student.requires_grad_()
    value = LOSSES[name](student, teacher)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()


@every_loss
def test_bf16_comes_near_the_exact_value_in_fp32(name):
    student, teacher = states()
    exact = float(LOSSES[name](student, teacher))
    rough = LOSSES[name](student.bfloat16(), teacher.bfloat16())
    assert rough.dtype == torch.float32
    assert float(rough) == pytest.approx(exact, rel=0.1, abs=0.01)


@pytest.mark.parametrize("name", ["mmd", "attention_mse", "attention_kl", "minilm"])
def test_nothing_that_counts_is_zero_with_a_graph(name):
    student, teacher = states()
    student.requires_grad_()
    none = torch.zeros(2, 4)
    losses = {
        "mmd": lambda: mmd(student, teacher, none),
        "attention_mse": lambda: attention_mse(maps(student), maps(teacher), none),
        "attention_kl": lambda: attention_kl(maps(student), maps(teacher), none),
        "minilm": lambda: minilm(student, teacher, none, 2),
    }
    value = losses[name]()
    value.backward()
    assert float(value.detach()) == 0.0
    assert float(student.grad.abs().max()) == 0.0


def test_cka_is_free_of_rotation_scale_shift_and_width():
    student, teacher = (h.reshape(8, 6) for h in states())
    torch.manual_seed(0)
    turned, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    wanted = float(cka(student, teacher))
    assert float(cka(3.7 * student @ turned + 5, teacher)) == pytest.approx(wanted, abs=1e-12)
    wider = torch.nn.functional.pad(teacher, (0, 4))
    assert float(cka(student, wider)) == pytest.approx(wanted, abs=1e-12)
    assert float(cka(student, student @ turned)) == pytest.approx(0, abs=1e-12)


def test_cka_of_constant_states_is_one_with_a_finite_gradient():
    student = torch.ones(5, 3, requires_grad=True)
    value = cka(student, torch.randn(5, 4))
    value.backward()
    assert float(value.detach()) == 1.0
    assert torch.isfinite(student.grad).all()


def test_numbers_of_heads_may_differ():
    student, teacher = (maps(h) for h in states())
    twice = teacher.repeat(1, 2, 1, 1)
    for loss in (attention_mse, attention_kl):
        torch.testing.assert_close(loss(student, twice, MASK), loss(student, teacher, MASK))


def test_attention_losses_are_their_formulas():
    student, teacher = (maps(h) for h in states())
    s, t = student.mean(1), teacher.mean(1)
    rows = [(0, i, 3) for i in range(3)] + [(1, i, 2) for i in range(2)]
    kl = sum(float((t[b, i, :n] * (t[b, i, :n] / s[b, i, :n]).log()).sum()) for b, i, n in rows)
    assert float(attention_kl(student, teacher, MASK)) == pytest.approx(kl / 5, abs=1e-12)
    mse = sum(float((t[b, i, :n] - s[b, i, :n]).square().sum()) for b, i, n in rows)
    assert float(attention_mse(student, teacher, MASK)) == pytest.approx(mse / 13, abs=1e-12)


def test_causal_zeros_give_numbers():
    scores = torch.randn(1, 2, 4, 4, requires_grad=True)
    future = torch.ones(4, 4).triu(1).bool()
    student = scores.masked_fill(future, -torch.inf).softmax(-1)
    teacher = torch.randn(1, 2, 4, 4).masked_fill(future, -torch.inf).softmax(-1)
    value = attention_kl(student, teacher, torch.ones(1, 4))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(scores.grad).all()


def test_minilm_works_across_widths_and_refuses_heads_that_do_not_divide():
    student, teacher = states()
    narrow = student[..., :4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: minilm(x, teacher, MASK, 2), narrow)
    with pytest.raises(ValueError, match="a width of 6 does not divide into 4 relation heads"):
        minilm(student, teacher, MASK, 4)


@pytest.mark.parametrize(
    ("student", "teacher", "wanted"),
    [
        (2, 4, [(0, 1), (1, 3)]),
        (3, 12, [(0, 3), (1, 7), (2, 11)]),
        (4, 4, [(0, 0), (1, 1), (2, 2), (3, 3)]),
        (1, 5, [(0, 4)]),
        (4, 6, [(0, 1), (1, 2), (2, 3), (3, 5)]),
        (5, 1, [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0)]),
    ],
)
def test_the_uniform_map_ends_at_the_last_layer(student, teacher, wanted):
    assert layer_map(student, teacher) == wanted


def test_an_explicit_map_is_read_as_it_stands():
    assert layer_map(2, 4, "0:1, 1:3") == [(0, 1), (1, 3)]
    assert layer_map(2, 4, "1:0,1:2") == [(1, 0), (1, 2)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "found ''; write 'uniform', or pairs student:teacher"),
        ("0-1", "found '0-1'"),
        ("0:1,", "found ''"),
        ("-1:2", "found '-1:2'"),
        ("2:1", "'2:1' names student layer 2; the student has 0 to 1"),
        ("1:4", "'1:4' names teacher layer 4; the teacher has 0 to 3"),
        ("0:1,0:1", "has a pair twice"),
    ],
)
def test_a_bad_map_says_what_is_wrong(text, wanted):
    with pytest.raises(ValueError, match=wanted):
        layer_map(2, 4, text)


STUDENT, TEACHER = {"encoder": 2, "decoder": 1}, {"encoder": 4, "decoder": 2}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("uniform", {"encoder": [(0, 1), (1, 3)], "decoder": [(0, 1)]}),
        ("encoder 0:1; decoder 0:0", {"encoder": [(0, 1)], "decoder": [(0, 0)]}),
        ("decoder uniform;encoder 1:3,0:0", {"encoder": [(1, 3), (0, 0)], "decoder": [(0, 1)]}),
        ("decoder 0:0", {"encoder": [], "decoder": [(0, 0)]}),
    ],
)
def test_encoder_and_decoder_have_maps_of_their_own(text, wanted):
    assert layer_maps(STUDENT, TEACHER, text) == wanted


def test_one_stack_needs_no_name():
    assert layer_maps({"decoder": 2}, {"decoder": 4}, "0:1,1:3") == {"decoder": [(0, 1), (1, 3)]}
    assert layer_maps({"decoder": 2}, {"decoder": 4}, "decoder 1:3") == {"decoder": [(1, 3)]}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0:1,1:3", "found '0:1,1:3'; write 'uniform', or each stack once"),
        ("encoder 0:1; encoder 1:3", "found 'encoder 1:3'"),
        ("middle 0:1", "found 'middle 0:1'"),
        ("encoder 0:1; decoder 1:0", "student layer 1; the student has 0 to 0"),
        ("encoder", "found ''"),
    ],
)
def test_bad_maps_of_two_stacks_say_what_is_wrong(text, wanted):
    with pytest.raises(ValueError, match=wanted):
        layer_maps(STUDENT, TEACHER, text)


def test_stacks_that_differ_are_refused():
    with pytest.raises(ValueError, match="stacks differ"):
        layer_maps({"decoder": 2}, TEACHER)
