"""A judge labels pairs of answers (RLAIF), each in both orders. Component `judge_label`.

A model that judges two answers favours a place as well as an answer (Zheng et al. 2023, arXiv
2306.05685, section 3.3). So every pair is shown twice, with the answers changed over, as there in
section 3.4: only where both verdicts name the same answer is it a preference. The rows written are
ordinary preference rows; `pipestill.data.preferences` reads them like those of people.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipestill.config import TeacherConfig
from pipestill.data.convert_pairs import CANDIDATES, candidates
from pipestill.data.raw import describe
from pipestill.data.rows import Row, check, read_with, unused
from pipestill.errors import PipestillError, UserError
from pipestill.generation.ask import Answer, ask, usage
from pipestill.generation.prompts import Prompt, load_prompt
from pipestill.records import Example, Preference, write_jsonl

VERDICTS = ("A", "B")


@dataclass(frozen=True)
class Judged:
    """One pair and what became of it.

    `status` is ``agreed``, ``order_conflict`` (the verdict followed the place), ``unparsable`` (a
    verdict is neither A nor B), ``failed`` (a call got no answer) or ``identical`` (never asked).
    """

    row: Row
    status: str
    choice: int = -1
    answers: tuple[Answer, ...] = ()


def label_pairs(
    candidates_path: str | Path,
    preferences_path: str | Path,
    *,
    state_dir: str,
    config: TeacherConfig,
) -> dict[str, Any]:
    """Asks the judge about every pair, twice, and writes the preferences that both answers share.

    The other pairs are written, with both answers and the reason, to
    ``<preferences_path>.set_aside.jsonl``. Finished calls are journaled: a killed run that is
    repeated pays for none of them again. All examples of the prompt file are shown. The backend
    ``replay`` finds the verdicts of row n at places 2n (candidate 0 first) and 2n + 1.

    Args:
        candidates_path: JSONL of ``id``, ``input_text`` or ``messages``, ``candidate_0``,
            ``candidate_1``.
        preferences_path: JSONL of `Preference` with the source ``judge``.
        state_dir: folder of the journal; empty for none that lasts.
        config: the judge; ``config.prompt`` is a prompt file with the labels A and B.

    Returns:
        ``pairs`` = ``agreed`` + ``order_conflicts`` + ``unparsable`` + ``failed`` + ``identical``;
        ``first_place_share``, the share of A among the verdicts (-1 without any), which is one half
        for a judge that does not favour a place; ``choice_0_share`` among the agreed (-1 without
        any); and the fields of `pipestill.generation.ask.usage`.

    Raises:
        UserError: ``JUDGE_PROMPT``, ``JUDGE_ROW`` naming the row, and as
            `pipestill.generation.ask.ask`.
        WorkError: ``BUDGET_REACHED``, ``TEACHER_UNREACHABLE``.
    """
    prompt = _judge_prompt(config.prompt)
    rows = _read(candidates_path)
    asked = [row for row in rows if not _identical(row)]
    with _judge_names():
        answers = ask(
            [item for row in asked for item in _both_orders(row)],
            config=config,
            state_dir=state_dir,
            samples=1,
            shots=len(prompt.examples),
        )
    pairs = iter(zip(answers[::2], answers[1::2], strict=True))
    judged = [
        Judged(row, "identical") if _identical(row) else _judged(row, next(pairs)) for row in rows
    ]
    used: set[str] = set()
    write_jsonl(
        preferences_path, [_preference(item, used) for item in judged if item.status == "agreed"]
    )
    left = [_set_aside(item) for item in judged if item.status != "agreed"]
    write_jsonl(set_aside_path(preferences_path), left)
    summary = {**_counts(judged), **usage(answers, config)}
    _tell(summary, prompt)
    return summary


def set_aside_path(preferences_path: str | Path) -> Path:
    """Where the pairs stand that are no preference."""
    return Path(f"{preferences_path}.set_aside.jsonl")


def verdict(raw: str | None, label: str | None) -> str | None:
    """A, B, or None for anything else: the answer is that letter alone, or parses to it.

    Args:
        raw: what the judge wrote.
        label: what the prompt's parser read out of it.
    """
    alone = (raw or "").strip()
    found = alone if alone in VERDICTS else label
    return found if found in VERDICTS else None


def lay_out(prompt: str, first: str, second: str) -> str:
    """What the judge reads about one pair in one order; prompt files describe this layout."""
    return f"[Conversation]\n{prompt}\n\n[Answer A]\n{first}\n\n[Answer B]\n{second}"


def _judge_prompt(name: str) -> Prompt:
    with _judge_names():
        prompt = load_prompt(name)
    if prompt.labels != VERDICTS:
        raise UserError(
            "JUDGE_PROMPT",
            f"judge_prompt {name}: found the labels {list(prompt.labels)}, allowed: [A, B]",
            "take judge_helpful.v1 or a copy of it with other criteria",
        )
    return prompt


def _read(path: str | Path) -> list[Row]:
    rows: list[Row] = []
    for item in read_with(str(path), _fields):
        if not isinstance(item, Row):
            raise UserError("JUDGE_ROW", describe(item), "correct the row, or take it out")
        rows.append(item)
    return rows


def _fields(value: dict[str, Any]) -> list[dict[str, Any]]:
    pair = candidates(value) | ({"id": value["id"]} if "id" in value else {})
    return [pair | check(pair, "input_text", "output_text")]


def _identical(row: Row) -> bool:
    first, second = (row.fields[name] for name in CANDIDATES)
    return bool(first == second)


def _both_orders(row: Row) -> list[Example]:
    first, second = (row.fields[name] for name in CANDIDATES)
    return [
        Example(
            id=f"{row.fields['id'] or row.source_row}:{order}",
            input_text=lay_out(row.fields["input_text"], *shown),
            source_row=2 * row.source_row + order,
        )
        for order, shown in enumerate(((first, second), (second, first)))
    ]


def _judged(row: Row, answers: tuple[Answer, Answer]) -> Judged:
    """`answers` are those with candidate 0 first, then with candidate 1 first."""
    verdicts = [verdict(item.raw, item.label) for item in answers]
    if any(item.raw is None for item in answers):
        return Judged(row, "failed", answers=answers)
    if None in verdicts:
        return Judged(row, "unparsable", answers=answers)
    if verdicts[0] == verdicts[1]:
        return Judged(row, "order_conflict", answers=answers)
    return Judged(row, "agreed", verdicts.index("A"), answers)


def _preference(item: Judged, used: set[str]) -> Preference:
    fields = item.row.fields
    parts = [fields["input_text"], *(fields[name] for name in CANDIDATES)]
    own = fields["id"] or hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return Preference(
        id=unused(own, used),
        input_text=fields["input_text"],
        candidate_0=fields["candidate_0"],
        candidate_1=fields["candidate_1"],
        choice=item.choice,
        source="judge",
        source_row=item.row.source_row,
        messages=fields.get("messages"),
    )


def _set_aside(item: Judged) -> dict[str, Any]:
    return {
        "id": item.row.fields["id"],
        "source_row": item.row.source_row,
        "reason": item.status,
        "answers": [answer.raw for answer in item.answers],
        "errors": [answer.error for answer in item.answers],
    }


def _counts(judged: Sequence[Judged]) -> dict[str, int | float]:
    status = Counter(item.status for item in judged)
    answers = [answer for item in judged for answer in item.answers]
    verdicts = Counter(verdict(answer.raw, answer.label) for answer in answers)
    given = verdicts["A"] + verdicts["B"]
    agreed = status["agreed"]
    zeros = sum(item.choice == 0 for item in judged)
    return {
        "pairs": len(judged),
        "agreed": agreed,
        "order_conflicts": status["order_conflict"],
        "unparsable": status["unparsable"],
        "failed": status["failed"],
        "identical": status["identical"],
        "verdicts_unparsable": verdicts[None] - sum(answer.raw is None for answer in answers),
        "first_place_share": verdicts["A"] / given if given else -1.0,
        "choice_0_share": zeros / agreed if agreed else -1.0,
    }


def _tell(s: dict[str, Any], prompt: Prompt) -> None:
    print(
        f"judge {prompt.name}.v{prompt.version}: {s['agreed']} of {s['pairs']} pairs agreed in "
        f"both orders; {s['order_conflicts']} followed the place, {s['unparsable']} unparsable, "
        f"{s['failed']} failed, {s['identical']} with identical answers"
    )
    share = s["first_place_share"]
    if share >= 0:
        print(f"judge: {share:.1%} of the verdicts name the first place (50 % = no favour)")
    if not s["agreed"]:
        print("judge: no preference was found; look at the set-aside file and the judge's prompt")


@contextmanager
def _judge_names() -> Iterator[None]:
    """Errors name the parameters of this component, which begin with ``judge_``."""
    try:
        yield
    except PipestillError as error:
        texts = (text.replace("teacher_", "judge_") for text in (error.message, error.hint))
        raise type(error)(error.code, *texts) from error
