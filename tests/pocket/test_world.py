"""The rules, the rationale and the label must tell the same story, and the files must match."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipestill.pocket import DATA_DIR, POCKET, corpus, desks, prompt, resolve, words, world

yaml = pytest.importorskip("yaml")

READ = re.compile(
    r"The limit is (\d+) days for a (\w+)\. (\d+) is (more|less) than (\d+), "
    r"so it is (late|in time)\. It is (new|used) because it is (\w+)\."
)


def read_back(rationale: str) -> tuple[str, str]:
    """Recompute the label from a rationale's own words, without the rules' code."""
    match = READ.fullmatch(rationale)
    assert match
    limit, kind, days, order, again, verdict, condition, _ = match.groups()
    assert limit == again
    assert (int(days) > int(limit)) == (order == "more") == (verdict == "late")
    faults = (verdict == "late") + (condition == "used")
    return kind, ("refund", "exchange", "refuse")[faults]


def load(name: str) -> list[dict[str, str]]:
    text = (DATA_DIR / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_label_follows_from_rationale() -> None:
    for row in load("eval.jsonl"):
        kind, label = read_back(row["rationale"])
        assert f" a {kind}." in row["input_text"]
        assert label == row["output_text"]


def test_rationale_is_true_of_its_note() -> None:
    for split in world.splits():
        for case in split:
            assert f" {case.days} days" in case.note
            assert f" {case.state}." in case.note
            assert str(case.limit) not in re.findall(r"(\d+) days", case.note)


def test_generation_is_deterministic(tmp_path: Path) -> None:
    world.write_data(tmp_path)
    prompt.write_prompt(tmp_path / "prompt.yaml")
    for name in ("train.jsonl", "eval.jsonl", "teacher.jsonl"):
        assert (tmp_path / name).read_bytes() == (DATA_DIR / name).read_bytes()
    shipped = DATA_DIR.parents[1] / "generation" / "prompts" / "refund_desk.v1.yaml"
    assert (tmp_path / "prompt.yaml").read_bytes() == shipped.read_bytes()


def test_files_are_disjoint_and_half_labelled() -> None:
    train, held_out = load("train.jsonl"), load("eval.jsonl")
    shots = {case.note for case in world.splits()[0]}
    notes = {row["input_text"] for row in train}
    assert len(notes) == len(train) == world.TRAIN_ROWS
    assert not notes & {row["input_text"] for row in held_out}
    assert not shots & notes
    assert sum("output_text" in row for row in train) * 2 == len(train)
    assert all("rationale" not in row for row in train)
    assert {row["output_text"] for row in held_out} == set(world.LABELS)


def test_the_teacher_s_rows_are_nobody_else_s() -> None:
    notes = [row["input_text"] for row in load("teacher.jsonl")]
    assert len(set(notes)) == len(notes) == world.TEACHER_ROWS
    assert not set(notes) & world.reserved()


def test_training_rows_cover_both_tables() -> None:
    train = world.splits()[1]
    assert {case.kind for case in train} == set(world.LIMITS)
    assert {case.state for case in train} == set(world.STATES)


def test_prompt_file_reads_as_the_generator_means() -> None:
    shipped = DATA_DIR.parents[1] / "generation" / "prompts" / "refund_desk.v1.yaml"
    assert yaml.safe_load(shipped.read_text(encoding="utf-8")) == prompt.prompt()


def test_other_desks_share_no_rule_word_with_the_refund_desk() -> None:
    assert not set(world.LIMITS) & set(words.DESK_NOUNS)
    assert not set(world.STATES) & set(words.DESK_MARKS)
    assert not set(world.LABELS) & set(words.DESK_OUTCOMES)


def test_base_texts_never_state_a_rule_of_the_refund_desk() -> None:
    rng = world.dice(7)
    for _ in range(3000):
        source, target = corpus.base_pair(rng)
        assert not any(label in target.split() for label in world.LABELS)
        if source.startswith(("predict: ", "explain: ")):
            assert not any(f" {state}" in source for state in world.STATES)


def test_pretraining_texts_leave_out_the_shipped_notes() -> None:
    rng, kept = world.dice(8), world.reserved()
    for _ in range(500):
        document = corpus.teacher_document(rng)
        assert not kept & set(re.findall(r"Q: (.*)\n", document))


def test_desks_are_fixed() -> None:
    desks.desks.cache_clear()
    first = desks.desks()
    desks.desks.cache_clear()
    assert first == desks.desks()


def test_resolve_knows_its_own_models_only() -> None:
    assert resolve("pocket-teacher") == POCKET["pocket-teacher"]
    assert resolve("pocket-base") == POCKET["pocket-base"]
    assert resolve("t5-small") is None
