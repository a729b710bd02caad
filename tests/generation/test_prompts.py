"""Prompt files: the ones of the package, and how mistakes in one's own are named."""

import string
from pathlib import Path

import pytest
import yaml

from pipestill.errors import UserError
from pipestill.generation.parse import parse
from pipestill.generation.prompts import fill, load_prompt, prompt_names

GOOD = {
    "name": "mine", "version": 3, "source": "own", "query": "Q: {input}\nA:",
    "answer": " {rationale} So the answer is {label}.\n\n", "stop": ["\nQ:"],
    "parser": "so_the_answer_is", "labels": ["yes", "no"],
    "examples": [{"input": "a {label} {0}", "rationale": "{input} }{", "label": "yes"}],
}  # fmt: skip


def _write(folder: Path, value: object) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", prompt_names())
def test_own_examples_of_every_prompt_are_read_back_by_its_parser(name: str) -> None:
    prompt = load_prompt(name)
    assert f"{prompt.name}.v{prompt.version}" == name
    assert len(prompt.examples) >= 5
    for example in prompt.examples:
        answer = fill(prompt.answer, {"rationale": example.rationale, "label": example.label})
        parsed = parse(answer + prompt.ask("another one"), prompt, example.input)
        wanted = example.label
        if "Answer Choices:" in example.input:
            wanted = wanted.partition(") ")[2]
        assert parsed.label == wanted, parsed.reason
        assert parsed.rationale == example.rationale


def test_braces_in_data_stay_what_they_are(tmp_path: Path) -> None:
    prompt = load_prompt(_write(tmp_path, GOOD))
    assert prompt.prefix(1) == "Q: a {label} {0}\nA: {input} }{ So the answer is yes.\n\n"
    assert prompt.ask("{rationale}{") == "Q: {rationale}{\nA:"


def test_no_shots_leave_the_instruction_alone(tmp_path: Path) -> None:
    prompt = load_prompt(_write(tmp_path, GOOD | {"instruction": "Do it.\n"}))
    assert prompt.prefix(0) == "Do it.\n"
    with pytest.raises(UserError, match=r"PROMPT_SHOTS.*found 2, allowed: 0 to 1"):
        prompt.prefix(2)
    with pytest.raises(UserError, match="PROMPT_SHOTS"):
        prompt.prefix(-1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parser": "magic"}, "parser: found 'magic', allowed: so_the_answer_is"),
        ({"metric": "bleu"}, "metric: found 'bleu', allowed: exact"),
        ({"version": "3"}, "version: found '3', allowed: int"),
        ({"version": True}, "version: found True"),
        ({"labels": [True]}, "labels: found True.*quote yes, no"),
        ({"stop": [""]}, "stop: found ''"),
        ({"stop": "\nQ:"}, "stop: found .*allowed: list"),
        ({"query": "Q:"}, "query or answer: found no placeholder"),
        ({"colour": 1}, "colour: found an unknown key"),
        ({"examples": [{"input": "x"}]}, "examples, number 1: found"),
        ({"examples": [{"input": "x", "rationale": "y", "label": "perhaps"}]}, "label: found 'per"),
        ({"examples": [{"input": "x", "rationale": 5, "label": "yes"}]}, "number 1: found 5"),
        ({"examples": None}, "examples: found None"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: dict, words: str) -> None:
    with pytest.raises(UserError, match=f"PROMPT_INVALID.*mine.yaml, .*{words}"):
        load_prompt(_write(tmp_path, GOOD | change))


@pytest.mark.parametrize("key", ["name", "version", "source", "query", "answer", "parser"])
def test_missing_keys_are_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=f"PROMPT_INVALID.*{key}: found nothing"):
        load_prompt(_write(tmp_path, {k: v for k, v in GOOD.items() if k != key}))


def test_files_that_are_no_prompt(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"PROMPT_NOT_FOUND.*'nope', allowed: .*cqa\.v1"):
        load_prompt("nope")
    with pytest.raises(UserError, match="PROMPT_NOT_FOUND"):
        load_prompt(str(tmp_path / "absent.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,", encoding="utf-8")
    with pytest.raises(UserError, match="PROMPT_UNREADABLE"):
        load_prompt(str(broken))
    broken.write_text("!!python/object/apply:os.system ['true']", encoding="utf-8")
    with pytest.raises(UserError, match="PROMPT_UNREADABLE"):
        load_prompt(str(broken))
    broken.write_text("just words", encoding="utf-8")
    with pytest.raises(UserError, match="PROMPT_INVALID"):
        load_prompt(str(broken))
    broken.write_bytes(b"\xff\xfe" + string.printable.encode())
    with pytest.raises(UserError, match="PROMPT_NOT_FOUND"):
        load_prompt(str(broken))
