"""The teacher's reasoning for every row, filtered by a table of plain checks."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipestill.config import RationaleConfig, TeacherConfig
from pipestill.evaluation.scoring import answers_match, normalise
from pipestill.generation.ask import Answer, ask, usage
from pipestill.generation.parse import PARSERS
from pipestill.generation.prompts import Prompt, load_prompt
from pipestill.generation.votes import check_success, majority
from pipestill.records import Example, Labelled, read_jsonl, write_jsonl

KEPT = "kept"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One sample's rationale, with what the filters need to judge it."""

    row: Labelled
    answer: Answer
    prompt: Prompt
    config: RationaleConfig

    @property
    def text(self) -> str:
        return self.answer.rationale or ""


def unanswered(item: Candidate) -> bool:
    """The call itself failed."""
    return item.answer.raw is None


def unparsed(item: Candidate) -> bool:
    """No label, or no reasoning before it."""
    return item.answer.label is None or not item.text


def disagrees(item: Candidate) -> bool:
    """The reasoning leads to another answer than the row's label."""
    if not item.config.require_agreement:
        return False
    return not answers_match(item.answer.label or "", item.row.output_text, item.prompt.metric)


def too_short(item: Candidate) -> bool:
    return len(item.text.split()) < item.config.min_words


def too_long(item: Candidate) -> bool:
    return len(item.text.split()) > item.config.max_words


def leak(item: Candidate) -> bool:
    """Holds an answer's marker or a next example, or only repeats the label or the question."""
    if not item.config.drop_leaks:
        return False
    marker = PARSERS[item.prompt.parser].marker.search(item.text)
    begun = any(stop.strip() in item.text for stop in item.prompt.stop if stop.strip())
    said = normalise(item.text)
    only_label = said.removeprefix("the answer is ") == normalise(item.row.output_text)
    return marker is not None or begun or only_label or said in normalise(item.row.input_text)


# In this order: a rationale is counted under the first filter that drops it.
FILTERS: dict[str, Callable[[Candidate], bool]] = {
    "unanswered": unanswered,
    "unparsed": unparsed,
    "disagrees": disagrees,
    "too_short": too_short,
    "too_long": too_long,
    "leak": leak,
}


def extract_rationales(
    labelled_path: str,
    rationales_path: str,
    *,
    state_dir: str,
    teacher: TeacherConfig,
    config: RationaleConfig,
) -> dict[str, Any]:
    """Asks for a reasoned answer to every row and keeps the rationales that pass the filters.

    Of several samples the first one that passes is kept; where none does, the row's status names
    the filter that dropped the first sample. Rows are never dropped: a row without a rationale
    still trains the label.

    Returns:
        ``rows``, ``rationale_asked``, ``rationale_kept``, ``rationale_dropped_<filter>`` for every
        filter of `FILTERS`, ``rationale_yield`` (kept / asked, -1 without rows), and the fields of
        `pipestill.generation.ask.usage`, and ``seconds``.

    Raises:
        UserError: as `ask`.
        WorkError: ``TEACHER_MIN_SUCCESS``, ``BUDGET_REACHED``.
    """
    begun = time.perf_counter()
    rows = list(read_jsonl(labelled_path, Labelled))
    prompt = load_prompt(teacher.prompt)
    questions = [
        Example(id=row.id, input_text=row.input_text, source_row=row.source_row) for row in rows
    ]
    answers = ask(
        questions,
        config=teacher,
        state_dir=state_dir,
        samples=teacher.samples,
        shots=teacher.shots,
    )
    size = teacher.samples
    groups = [answers[start : start + size] for start in range(0, len(answers), size)]
    _check(groups, teacher)
    done = [choose(row, group, prompt, config) for row, group in zip(rows, groups, strict=True)]
    write_jsonl(rationales_path, done)
    table = yield_table([row.rationale_status for row in done])
    print(yield_lines(table))
    seconds = round(time.perf_counter() - begun, 2)
    return {"rows": len(rows), **table, **usage(answers, teacher), "seconds": seconds}


def choose(
    row: Labelled, answers: Sequence[Answer], prompt: Prompt, config: RationaleConfig
) -> Labelled:
    """The row with the first rationale that passes all filters, or with the reason why none does.

    Also fills the teacher's majority label and its agreement.
    """
    vote = majority(answers, prompt.metric)
    verdicts = [
        verdict(Candidate(row=row, answer=answer, prompt=prompt, config=config))
        for answer in answers
    ]
    status = KEPT if KEPT in verdicts else verdicts[0]
    kept = answers[verdicts.index(KEPT)].rationale if status == KEPT else None
    return replace(
        row,
        teacher_label=vote.label,
        agreement=vote.agreement,
        rationale=kept,
        rationale_status=status,
    )


def verdict(item: Candidate) -> str:
    """``kept``, or the name of the first filter that drops the rationale."""
    return next((name for name, drops in FILTERS.items() if drops(item)), KEPT)


def yield_table(statuses: Sequence[str]) -> dict[str, int | float]:
    """How many rationales were asked for, kept, and dropped by each filter."""
    kept = statuses.count(KEPT)
    return {
        "rationale_asked": len(statuses),
        "rationale_kept": kept,
        **{f"rationale_dropped_{name}": statuses.count(name) for name in FILTERS},
        "rationale_yield": kept / len(statuses) if statuses else -1.0,
    }


def yield_lines(table: dict[str, int | float]) -> str:
    """The yield table as text, for the log."""
    asked = int(table["rationale_asked"])
    counts = {"asked": asked, "kept": int(table["rationale_kept"])}
    counts |= {f"dropped: {name}": int(table[f"rationale_dropped_{name}"]) for name in FILTERS}
    lines = [
        f"  {name:<20} {count:>8} {100 * count / asked if asked else 0:6.1f} %"
        for name, count in counts.items()
    ]
    return "\n".join(["rationales:", *lines])


def _check(groups: Sequence[Sequence[Answer]], teacher: TeacherConfig) -> None:
    failed = [
        {"id": group[0].id, "reason": group[0].error or "no label"}
        for group in groups
        if all(answer.label is None for answer in group)
    ]
    check_success(len(groups) - len(failed), len(groups), teacher, failed)
