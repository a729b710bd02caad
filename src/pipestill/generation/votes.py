"""Votes of a row's samples, and how often they are right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipestill.config import TeacherConfig
from pipestill.errors import WorkError
from pipestill.evaluation.scoring import answers_match
from pipestill.generation.ask import Answer
from pipestill.records import Example


@dataclass(frozen=True)
class Vote:
    """The majority answer of a row's samples and the share of parsed samples that gave it."""

    label: str | None
    agreement: float


def votes_of(answers: Sequence[Answer], samples: int, metric: str) -> list[Vote]:
    """The vote of every row; answers come row by row, so many samples each."""
    groups = [answers[start : start + samples] for start in range(0, len(answers), samples)]
    return [majority(group, metric) for group in groups]


def majority(answers: Sequence[Answer], metric: str) -> Vote:
    """Self-consistency (Wang et al. 2023): the answer that most parsed samples give.

    Answers are the same where the metric says so, and the earliest spelling stands for them; of
    answers with equally many votes the one that came first wins.
    """
    labels = [item.label for item in answers if item.label is not None]
    votes: dict[str, int] = {}
    for label in labels:
        same = next((known for known in votes if answers_match(label, known, metric)), label)
        votes[same] = votes.get(same, 0) + 1
    if not votes:
        return Vote(None, 0.0)
    winner = max(votes, key=lambda label: votes[label])
    return Vote(winner, votes[winner] / len(labels))


def audit(
    rows: Sequence[Example], votes: Mapping[str, Vote], metric: str
) -> dict[str, int | float]:
    """How often the teacher's majority answer equals the gold label; unparsable counts as wrong."""
    labels = [(votes[row.id].label, row.output_text or "") for row in rows]
    correct = sum(
        label is not None and answers_match(label, gold, metric) for label, gold in labels
    )
    return {
        "audit_rows": len(rows),
        "audit_correct": correct,
        "audit_unparsable": sum(label is None for label, _ in labels),
        "teacher_accuracy": correct / len(rows) if rows else -1.0,
    }


def accuracy_line(summary: dict[str, Any]) -> str:
    """The audit in one line, for the log."""
    if not summary["audit_rows"]:
        return "teacher label accuracy: not measured (no audited rows)"
    return (
        f"teacher label accuracy: {summary['audit_correct']} of {summary['audit_rows']} = "
        f"{100 * summary['audit_correct'] / summary['audit_rows']:.1f} % "
        f"({summary['audit_unparsable']} unparsable)"
    )


def check_success(
    parsed: int, asked: int, config: TeacherConfig, failed: Sequence[dict[str, Any]]
) -> None:
    """Fails the step where too few rows got a usable answer.

    Raises:
        WorkError: ``TEACHER_MIN_SUCCESS`` with counts and the first reason.
    """
    if asked == 0 or parsed >= config.min_success * asked:
        return
    raise WorkError(
        "TEACHER_MIN_SUCCESS",
        f"the teacher gave a usable answer for {parsed} of {asked} rows = {parsed / asked:.1%}, "
        f"needed: {config.min_success:.1%}; first failure: row {failed[0]['id']}: "
        f"{failed[0]['reason']}",
        "look at the prompt, its parser and the teacher, or lower teacher_min_success; finished "
        "calls stay in the journal",
    )
