"""Sampled programs, run against their rows' tests."""

import pytest

from pipestill.evaluation.code_samples import sampled, sampled_pass_at_k
from pipestill.models.student import Student
from pipestill.records import Example
from tests.evaluation import tiny
from tests.training.tiny import make_folder


@pytest.fixture(scope="module")
def passes(tmp_path_factory):
    """A model whose answer is nearly always ``pass``."""
    return Student.load(tiny.base(tmp_path_factory.mktemp("passes"), "pass"))


@pytest.mark.parametrize("kind", ["t5_tied", "llama"])
def test_samples_differ_and_come_again(kind, tmp_path):
    student = Student.load(make_folder(kind, tmp_path / "m"))
    first = sampled(student, "name it", 6, 1.0, 8, seed=1)
    assert len(first) == 6
    assert len(set(first)) > 1
    assert sampled(student, "name it", 6, 1.0, 8, seed=1) == first
    assert sampled(student, "name it", 6, 1.0, 8, seed=2) != first


def test_cold_samples_are_the_greedy_answer(passes):
    (greedy,) = passes.answer(["x"], batch_size=1, max_new_tokens=12)
    assert sampled(passes, "x", 4, 0.01, 12, seed=0) == [greedy.text] * 4 == ["pass"] * 4


def test_pass_at_k_is_the_mean_over_rows_with_tests(passes):
    def row(name, tests):
        return Example(id=name, input_text="def f():\n", tests=tests)

    rows = [
        row("right", "assert f() is None\n"),
        row("wrong", "assert f() == 1\n"),
        row("untested", None),
    ]
    inputs = [item.input_text for item in rows]
    found = sampled_pass_at_k(passes, rows, inputs, samples=5, temperature=0.01, max_new_tokens=12)
    assert found == {"1": 0.5, "5": 0.5}
    assert sampled_pass_at_k(passes, rows[2:], inputs[2:], samples=5) == {}


def test_more_tries_pass_more_rows(passes):
    """At a temperature of 1 some samples go wrong, which pass@5 forgives and pass@1 does not."""
    rows = [Example(id="r", input_text="def f():\n", tests="assert f() is None\n")]
    found = sampled_pass_at_k(
        passes, rows, [rows[0].input_text], samples=10, temperature=1.0, max_new_tokens=12
    )
    assert 0 < found["1"] < found["5"] <= found["10"] == 1
