"""Few-shot prompts as versioned files, read and checked, and rendered without `str.format`.

A prompt file holds the worked examples, how a question and its answer are laid out, where to cut a
run-on answer and how to read the label out of it. A changed prompt is a new file with a new version
number, because the journal and the reports refer to the old one by name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pipestill.errors import UserError
from pipestill.evaluation.scoring import METRICS
from pipestill.generation.parse import PARSERS
from pipestill.yaml_text import read_yaml

_PLACEHOLDER = re.compile(r"\{(input|rationale|label)\}")


@dataclass(frozen=True, kw_only=True)
class PromptExample:
    """One worked example."""

    input: str
    rationale: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt file, checked.

    `labels` is the closed set of answers, empty where any answer is allowed. `stop` are the strings
    that begin an invented next example. `parser` is a key of `pipestill.generation.parse.PARSERS`,
    `metric` one of `pipestill.evaluation.scoring.METRICS`.
    """

    name: str
    version: int
    source: str
    instruction: str
    query: str
    answer: str
    stop: tuple[str, ...]
    parser: str
    labels: tuple[str, ...]
    metric: str
    examples: tuple[PromptExample, ...]

    def prefix(self, shots: int) -> str:
        """What every row shares: the instruction and the first `shots` worked examples.

        Raises:
            UserError: ``PROMPT_SHOTS`` where the file has fewer examples.
        """
        if not 0 <= shots <= len(self.examples):
            raise UserError(
                "PROMPT_SHOTS",
                f"shots: found {shots}, allowed: 0 to {len(self.examples)}, because prompt "
                f"{self.name}.v{self.version} has {len(self.examples)} examples",
                "lower the shots or add examples to a copy of the prompt file",
            )
        shown = self.examples[:shots]
        return self.instruction + "".join(
            fill(self.query, {"input": item.input})
            + fill(self.answer, {"rationale": item.rationale, "label": item.label})
            for item in shown
        )

    def ask(self, text: str) -> str:
        """The question about one row, which follows the prefix."""
        return fill(self.query, {"input": text})


def fill(template: str, values: Mapping[str, str]) -> str:
    """Puts values where ``{input}``, ``{rationale}`` and ``{label}`` stand, in one pass.

    Braces within the values stay what they are, which `str.format` would not promise.
    """
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), template)


def prompt_names() -> list[str]:
    """The prompts that come with the package, such as ``cqa.v1``."""
    folder = resources.files("pipestill.generation").joinpath("prompts")
    names = [item.name for item in folder.iterdir() if item.name.endswith(".yaml")]
    return sorted(name.removesuffix(".yaml") for name in names)


def load_prompt(name_or_path: str) -> Prompt:
    """Reads a prompt by name (``cqa.v1``) or from a file of one's own (``my/prompt.yaml``).

    Raises:
        UserError: ``PROMPT_NOT_FOUND``, ``PROMPT_UNREADABLE`` or ``PROMPT_INVALID``, which names
            the field, what was found and what is allowed.
    """
    text = _read(name_or_path)
    try:
        value = read_yaml(text)
    except ValueError as error:
        raise UserError(
            "PROMPT_UNREADABLE", f"{name_or_path}: not YAML ({error})", "correct the file"
        ) from error
    return _checked(name_or_path, value)


def _read(name_or_path: str) -> str:
    path = Path(name_or_path)
    is_path = path.suffix in (".yaml", ".yml") or "/" in name_or_path
    if not is_path and name_or_path in prompt_names():
        folder = resources.files("pipestill.generation").joinpath("prompts")
        return folder.joinpath(f"{name_or_path}.yaml").read_text(encoding="utf-8")
    if not is_path:
        raise UserError(
            "PROMPT_NOT_FOUND",
            f"prompt: found {name_or_path!r}, allowed: {', '.join(prompt_names())}, or a file",
            "correct the name or give the path of a .yaml file",
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            "PROMPT_NOT_FOUND", f"prompt file {name_or_path}: {error}", "correct the path"
        ) from error


_REQUIRED: dict[str, type] = {
    "name": str, "version": int, "source": str, "query": str, "answer": str, "parser": str,
    "examples": list,
}  # fmt: skip
_OPTIONAL: dict[str, Any] = {"instruction": "", "stop": [], "labels": [], "metric": "exact"}


def _checked(where: str, value: Any) -> Prompt:
    if not isinstance(value, dict):
        raise _invalid(where, "the file", type(value).__name__, "a mapping of keys")
    for name, kind in (_REQUIRED | {k: type(v) for k, v in _OPTIONAL.items()}).items():
        if name in _REQUIRED and name not in value:
            raise _invalid(where, name, "nothing", kind.__name__)
        if type(value.get(name, _OPTIONAL.get(name))) is not kind:
            raise _invalid(where, name, repr(value[name])[:60], kind.__name__)
    unknown = [str(k) for k in value if k not in _REQUIRED and k not in _OPTIONAL]
    if unknown:
        raise _invalid(where, unknown[0], "an unknown key", ", ".join([*_REQUIRED, *_OPTIONAL]))
    filled = _OPTIONAL | value
    _check_choice(where, "parser", filled["parser"], PARSERS)
    _check_choice(where, "metric", filled["metric"], METRICS)
    _check_strings(where, "stop", filled["stop"])
    _check_strings(where, "labels", filled["labels"])
    if "{input}" not in filled["query"] or "{label}" not in filled["answer"]:
        raise _invalid(
            where, "query or answer", "no placeholder", "{input} in query, {label} in answer"
        )
    filled["examples"] = tuple(
        _checked_example(where, number, item, filled["labels"])
        for number, item in enumerate(filled["examples"], 1)
    )
    return Prompt(**filled | {"stop": tuple(filled["stop"]), "labels": tuple(filled["labels"])})


def _checked_example(where: str, number: int, item: Any, labels: list[str]) -> PromptExample:
    field = f"examples, number {number}"
    keys = {"input", "rationale", "label"}
    if not isinstance(item, dict) or set(item) != keys:
        raise _invalid(where, field, repr(item)[:60], "input, rationale and label")
    _check_strings(where, field, list(item.values()))
    if labels and item["label"] not in labels:
        raise _invalid(where, f"{field}, label", repr(item["label"]), ", ".join(labels))
    return PromptExample(**item)


def _check_choice(where: str, field: str, found: str, table: Mapping[str, Any]) -> None:
    if found not in table:
        raise _invalid(where, field, repr(found), ", ".join(table))


def _check_strings(where: str, field: str, values: list[Any]) -> None:
    wrong = [value for value in values if not isinstance(value, str) or not value]
    if wrong:
        raise _invalid(where, field, repr(wrong[0])[:60], "text that is not empty (quote yes, no)")


def _invalid(where: str, field: str, found: str, allowed: str) -> UserError:
    return UserError(
        "PROMPT_INVALID",
        f"prompt {where}, {field}: found {found}, allowed: {allowed}",
        "correct the prompt file; docs/teachers.md shows its format",
    )
