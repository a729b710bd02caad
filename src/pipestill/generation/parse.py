"""Reads label and rationale out of a raw chain-of-thought answer. Never raises, whatever the text.

A completion often runs on into an invented next example, so it is cut first. Then the answer's
marker must stand in it exactly once; a second one means that the text holds more than one answer,
and guessing between them would put noise into the labels (the paper's released code refuses such
rows too).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipestill.evaluation.arithmetic import evaluate_expression
from pipestill.evaluation.scoring import normalise

if TYPE_CHECKING:
    from pipestill.generation.prompts import Prompt

_CHOICE = re.compile(r"^\(([a-z])\)[ \t]*(.*)$", re.MULTILINE)
_LETTER = re.compile(r"\(([a-z])\)")


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """`label` is None where the answer is unparsable; then `reason` says why, else it is empty."""

    label: str | None = None
    rationale: str | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Parser:
    """A layout of answers: the text before `marker` is the rationale, the rest holds the label.

    `read` gets the rest's first line, the prompt, and the row's own input; it gives the label, or
    raises ValueError with the reason.
    """

    marker: re.Pattern[str]
    read: Callable[[str, "Prompt", str], str]


def parse(raw: str, prompt: "Prompt", input_text: str = "", *, truncated: bool = False) -> Parsed:
    """Label and rationale of one raw answer.

    Args:
        raw: what the teacher wrote.
        prompt: says which parser, which stop strings and which labels.
        input_text: the row's input, for choices that differ from row to row.
        truncated: the answer ended because of its length; a label that reaches the very end of it
            may then be half a label, so it counts as unparsable unless the labels are a closed set.
    """
    text = cut(raw, prompt.stop)
    parser = PARSERS[prompt.parser]
    parts = parser.marker.split(text)
    if len(parts) != 2:
        return Parsed(reason="no answer marker" if len(parts) < 2 else "several answer markers")
    rationale = parts[0].strip() or None
    line, _, rest = parts[1].strip(" \t").lstrip("\n").partition("\n")
    open_end = truncated and text == raw and not rest and not line.rstrip().endswith((".", ")"))
    if open_end and not prompt.labels:
        return Parsed(rationale=rationale, reason="cut off")
    try:
        return Parsed(label=parser.read(line.strip(), prompt, input_text), rationale=rationale)
    except ValueError as error:
        return Parsed(rationale=rationale, reason=str(error))


def cut(raw: str, stops: tuple[str, ...]) -> str:
    """`raw` up to the first stop string, or up to the beginning of one at its very end."""
    ends = [place for stop in stops if (place := raw.find(stop)) >= 0]
    if ends:
        return raw[: min(ends)]
    for stop in (stop for stop in stops if stop[0].isspace()):
        for length in range(len(stop) - 1, 0, -1):
            if raw.endswith(stop[:length]):
                return raw[: len(raw) - length]
    return raw


def choices_of(input_text: str) -> dict[str, str]:
    """The choices that a row names in its own input, as ``{"a": "park", ...}``."""
    _, found, listed = input_text.partition("Answer Choices:")
    return dict(_CHOICE.findall(listed)) if found else {}


def _read_label(line: str, prompt: "Prompt", input_text: str) -> str:
    choices = choices_of(input_text)
    if choices:
        return _read_choice(line, choices)
    label = line.rstrip(".").strip()
    if not label:
        raise ValueError("empty answer")
    if not prompt.labels:
        return label
    for allowed in prompt.labels:
        if normalise(label) == normalise(allowed):
            return allowed
    raise ValueError("answer outside the labels")


def _read_choice(line: str, choices: dict[str, str]) -> str:
    """The chosen text in the teacher's own spelling.

    The text is the answer and the letter its pointer: text that is none of the row's choices is
    unparsable even with a letter in front, while a bare letter stands for its choice.
    """
    letters = _LETTER.findall(line)
    if len(letters) > 1:
        raise ValueError("several choices")
    text = re.sub(r"^\([a-z]\)", "", line).strip().rstrip(".").strip()
    if letters and not text and choices.get(letters[0]):
        return choices[letters[0]]
    if normalise(text) not in {normalise(choice) for choice in choices.values()} - {""}:
        raise ValueError("answer outside the choices")
    return text


def _read_equation(line: str, prompt: "Prompt", input_text: str) -> str:
    label = line.rstrip(" .")
    try:
        evaluate_expression(label)
    except ValueError as error:
        raise ValueError("no arithmetic") from error
    return label


PARSERS: dict[str, Parser] = {
    "so_the_answer_is": Parser(marker=re.compile("So the answer is"), read=_read_label),
    "answer_line": Parser(marker=re.compile(r"(?:^|\n)[ \t]*Answer:"), read=_read_label),
    "the_answer_is_equation": Parser(marker=re.compile("The answer is"), read=_read_equation),
}
