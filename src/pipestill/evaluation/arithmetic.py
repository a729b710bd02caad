"""A safe evaluator of arithmetic written by a model: numbers, + - * /, minus signs and brackets.

The text is parsed with `ast` and walked by hand; nothing of it is ever executed.
"""

import ast
import math
import operator
import re
from collections.abc import Callable

MAX_CHARACTERS = 200
MAX_DEPTH = 30

_ALLOWED = re.compile(r"[0-9.+\-*/() \t\n]+")
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def evaluate_expression(text: str) -> float:
    """The value of an arithmetic expression such as ``( 84.0 / 2.0 )``.

    Args:
        text: at most `MAX_CHARACTERS` characters, nested at most `MAX_DEPTH` deep.

    Raises:
        ValueError: for anything else, for a division by zero and for a result that is not finite.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"expression longer than {MAX_CHARACTERS} characters")
    if not _ALLOWED.fullmatch(text):
        raise ValueError("expression may hold only numbers, + - * / and brackets")
    try:
        # A surrounding bracket lets an expression run over several lines.
        value = _value(ast.parse(f"({text.strip()})", mode="eval").body, MAX_DEPTH)
    except (SyntaxError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ValueError(f"not an arithmetic expression: {type(error).__name__}") from error
    if not math.isfinite(value):
        raise ValueError("the value is not finite")
    return value


def _value(node: ast.expr, depth: int) -> float:
    if depth == 0:
        raise ValueError(f"expression nested deeper than {MAX_DEPTH}")
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner, depth - 1)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _OPERATORS:
            return _OPERATORS[type(sign)](_value(left, depth - 1), _value(right, depth - 1))
    raise ValueError("expression may hold only numbers, + - * / and brackets")
