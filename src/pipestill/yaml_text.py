"""YAML that a person gives, read within bounds: no bombs of aliases, no depths, no surprises."""

import json
from typing import Any

LONGEST = 1_000_000  # characters
DEEPEST = 50  # collections within collections
MOST_VALUES = 200_000  # with every alias written out
MOST_BRACKETS = 5_000  # where libyaml is not installed, whose stand-in takes minutes for more


def read_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: one line: what is wrong, and where.
    """
    import yaml

    check_bounds(text)
    try:
        return sound(yaml.safe_load(text))
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # a date or number that is none
        raise ValueError(" ".join(str(error).split())[:200]) from error


def sound(value: Any) -> Any:
    """The value, if it can be written: no half surrogate pairs, no numbers of 5,000 digits.

    Raises:
        ValueError: what cannot be written.
    """
    json.dumps(value, ensure_ascii=False, default=str).encode("utf-8")
    return value


def check_bounds(text: str, longest: int = LONGEST) -> None:
    """Refuses texts that are too long, too deep, no YAML, or mean far more than they say.

    Raises:
        ValueError: as `read_yaml`.
    """
    import yaml

    if len(text) > longest:
        raise ValueError(f"more than {longest:,} characters")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    if loader is yaml.SafeLoader and text.count("[") + text.count("{") > MOST_BRACKETS:
        raise ValueError(f"more than {MOST_BRACKETS:,} brackets")
    try:
        _count(yaml.parse(text, Loader=loader))
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error


def _count(events: Any) -> None:
    """Adds up the values as if every alias were written out; stops at the first bound passed."""
    import yaml

    counts, names, sizes = [0], list[str | None](), dict[str | None, int]()
    for event in events:
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"line {line}: *{event.anchor} names nothing that came before it")
            counts[-1] += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            counts[-1] += 1
            sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            counts.append(1)
            names.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            size = counts.pop()
            sizes[names.pop()] = size
            counts[-1] += size
        if counts[-1] > MOST_VALUES:
            raise ValueError(f"line {line}: more than {MOST_VALUES:,} values by its aliases")
        if len(counts) > DEEPEST:
            raise ValueError(f"line {line}: nested deeper than {DEEPEST} levels")
