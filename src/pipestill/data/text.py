"""Small text helpers: what may be shown to a person, and when two inputs count as the same."""

import json
import reprlib

EXCERPT = 80
_SHORT = reprlib.Repr()
_SHORT.maxdict = _SHORT.maxlist = 4
_SHORT.maxlevel = 3
_SHORT.maxstring = EXCERPT


def printable(text: str) -> str:
    """Replaces what could disturb a terminal or cannot be written as UTF-8."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "?" for c in text)


def excerpt(value: object) -> str:
    """What was found, in at most 80 printable characters; JSON notation for simple values."""
    if isinstance(value, str):
        shown = json.dumps(value[: EXCERPT + 1], ensure_ascii=False)
    elif value is None or isinstance(value, bool):
        shown = json.dumps(value)
    else:
        shown = _SHORT.repr(value)
    shown = printable(shown)
    return shown if len(shown) <= EXCERPT else shown[: EXCERPT - 1] + "…"


def normalise(text: str) -> str:
    """Inputs that differ only in white space and letter case are the same input."""
    return " ".join(text.split()).casefold()
