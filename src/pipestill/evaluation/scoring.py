"""Is an answer right? One table of metrics, used for the teacher and for every arm alike."""

from collections.abc import Callable

from pipestill.errors import UserError
from pipestill.evaluation.arithmetic import evaluate_expression

TOLERANCE = 1e-6


def _tidy(text: str) -> str:
    return " ".join(text.split()).rstrip(" .,;:!?")


def normalise(text: str) -> str:
    """Lower case, single spaces, no punctuation at the end."""
    return _tidy(text).lower()


def exact(answer: str, gold: str) -> bool:
    """Equal after `normalise`; an empty answer is never right."""
    wanted = normalise(answer)
    return wanted != "" and wanted == normalise(gold)


def verbatim(answer: str, gold: str) -> bool:
    """As `exact`, but upper and lower case differ: the comparison of the paper's released code."""
    wanted = _tidy(answer)
    return wanted != "" and wanted == _tidy(gold)


def equation(answer: str, gold: str) -> bool:
    """Both sides evaluate to the same number (±1e-6); text that is no arithmetic is never right."""
    try:
        return abs(evaluate_expression(answer) - evaluate_expression(gold)) <= TOLERANCE
    except ValueError:
        return False


METRICS: dict[str, Callable[[str, str], bool]] = {
    "exact": exact,
    "verbatim": verbatim,
    "equation": equation,
}


def answers_match(answer: str, gold: str, metric: str) -> bool:
    """Whether `answer` counts as right against `gold` under a metric of `METRICS`.

    Raises:
        UserError: ``METRIC_UNKNOWN``.
    """
    if metric not in METRICS:
        raise UserError(
            "METRIC_UNKNOWN",
            f"metric: found {metric!r}, allowed: {', '.join(METRICS)}",
            "correct the metric in the prompt file",
        )
    return METRICS[metric](answer, gold)
