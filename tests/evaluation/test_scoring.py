"""The metrics and the safe arithmetic evaluator behind one of them."""

import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipestill.errors import UserError
from pipestill.evaluation.arithmetic import evaluate_expression
from pipestill.evaluation.scoring import answers_match


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("( 84.0 / 2.0 )", 42),
        ("84 / 2", 42),
        ("-3 - -4", 1),
        ("((5 * 8) + 7)", 47),
        ("2 + 3 * 4 - 6 / 3", 12),
        ("1\n+ 2", 3),
        (".5 * 4.", 2),
    ],
)
def test_arithmetic(text: str, value: float) -> None:
    assert evaluate_expression(text) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "", "()", "(1", "1)", "1)(2", "1 2", "2(3)", "1 / 0", "0 / (1 - 1)", "2 ** 9", "7 // 2",
        "5 % 2", "x + 1", "1e9", "0x10", "1_000", "1,000", "True", "__import__('os')", "1 if 1",
        "9" * 201, "(" * 90 + "x" + ")" * 90, "-" * 60 + "1", "1;2", "1=1", "+".join("1" * 60),
    ],
)  # fmt: skip
def test_what_is_no_arithmetic_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        evaluate_expression(text)


@given(st.text(alphabet="0123456789.+-*/() \n", max_size=220))
def test_any_text_gives_a_number_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(evaluate_expression(text), float)


@given(st.integers(0, 10**6))
def test_random_expressions_have_the_value_that_python_computes_step_by_step(seed: int) -> None:
    draw = random.Random(seed)

    def expression(depth: int) -> tuple[str, float]:
        if depth == 0 or draw.random() < 0.3:
            number = draw.randint(1, 99)
            return str(number), float(number)
        (left, a), (right, b) = expression(depth - 1), expression(depth - 1)
        sign, value = draw.choice([("+", a + b), ("-", a - b), ("*", a * b)])
        return f"({left} {sign} {right})", value

    text, value = expression(4)
    if len(text) <= 200:
        assert evaluate_expression(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("answer", "gold", "metric", "right"),
    [
        (" Wooded  Area. ", "wooded area", "exact", True),
        ("wood", "wooded area", "exact", False),
        ("", "", "exact", False),
        (".", "!", "exact", False),
        ("Istanbul", "istanbul", "verbatim", False),
        ("istanbul .", "istanbul", "verbatim", True),
        ("(84 / 2)", "( 84.0 / 2.0 )", "equation", True),
        ("42", "( 84.0 / 2.0 )", "equation", True),
        ("2 * x", "( 84.0 / 2.0 )", "equation", False),
        ("1 / 3", "0.3333333", "equation", True),
        ("1 / 3", "0.3333", "equation", False),
        ("yes", "yes", "equation", False),
    ],
)
def test_answers_match(answer: str, gold: str, metric: str, right: bool) -> None:
    assert answers_match(answer, gold, metric) is right


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(UserError, match=r"METRIC_UNKNOWN.*'rouge'.*exact, verbatim, equation"):
        answers_match("a", "a", "rouge")
