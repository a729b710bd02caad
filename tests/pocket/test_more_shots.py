"""The prompt with twelve worked examples: made by code, new to every file, true to the rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipestill.generation.prompts import load_prompt
from pipestill.pocket import DATA_DIR, prompt, world

SHIPPED = DATA_DIR.parents[1] / "generation" / "prompts"


@pytest.mark.parametrize("version", [1, 2])
def test_the_file_is_what_the_code_writes(tmp_path: Path, version: int) -> None:
    prompt.write_prompt(tmp_path / "prompt.yaml", version)
    shipped = SHIPPED / f"refund_desk.v{version}.yaml"
    assert (tmp_path / "prompt.yaml").read_bytes() == shipped.read_bytes()


def test_the_second_version_only_adds_examples() -> None:
    first, second = load_prompt("refund_desk.v1"), load_prompt("refund_desk.v2")
    assert len(first.examples) == 8
    assert len(second.examples) == 12
    assert second.prefix(8) == first.prefix(8)
    assert second.ask("a note") == first.ask("a note")
    same = ("instruction", "stop", "parser", "labels", "metric")
    assert [getattr(second, name) for name in same] == [getattr(first, name) for name in same]


def test_the_examples_are_in_no_file_of_rows() -> None:
    notes = [case.note for case in world.more_shots()]
    assert len(set(notes)) == world.MORE_SHOTS
    files = sorted(DATA_DIR.glob("*.jsonl"))
    assert len(files) == 6
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not [note for note in notes if note in text], file.name
    assert not {case.note for case in world.tuning()} & set(notes)
    assert set(notes) <= world.reserved()
