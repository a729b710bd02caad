"""A judge on a loopback server, on recordings and on a local model: verdicts, counts, restarts."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipestill import pocket
from pipestill.config import PreferenceConfig, TeacherConfig
from pipestill.data import preferences
from pipestill.errors import UserError, WorkError
from pipestill.records import Preference, read_jsonl, write_json, write_jsonl
from pipestill.rlhf.judge import label_pairs, lay_out, set_aside_path, verdict
from tests.generation.helpers import Server, save_tiny, server, server_config

SUMS = ("agreed", "order_conflicts", "unparsable", "failed", "identical")


def pair(number: int, **more: object) -> dict[str, Any]:
    """Candidate 0 is the better one in even rows."""
    texts = [f"good {number}", f"bad {number}"]
    first, second = texts if number % 2 == 0 else texts[::-1]
    asked = {"id": f"r{number}", "input_text": f"question {number}"}
    return {**asked, "candidate_0": first, "candidate_1": second, **more}


def good_judge(prompt: str) -> str:
    place = "A" if "[Answer A]\ngood" in prompt.rpartition("[Conversation]")[2] else "B"
    return f"It is the better one.\nAnswer: {place}"


def judge(state: Server, reply: Callable[[str], str], **changes: Any) -> TeacherConfig:
    state.reply = reply
    return server_config(state, prompt="judge_helpful.v1", **changes)


def label(
    folder: Path, rows: list[dict[str, Any]], config: TeacherConfig
) -> tuple[dict[str, Any], list[Preference], list[dict[str, Any]]]:
    write_jsonl(folder / "candidates.jsonl", rows)
    out = folder / "preferences"
    summary = label_pairs(
        folder / "candidates.jsonl", out, state_dir=str(folder / "state"), config=config
    )
    assert summary["pairs"] == len(rows) == sum(summary[name] for name in SUMS)
    assert all(type(value) in (int, float) for value in summary.values())
    left = [json.loads(line) for line in set_aside_path(out).read_text().splitlines()]
    found = list(read_jsonl(out, Preference))
    assert (len(found), len(left)) == (summary["agreed"], len(rows) - summary["agreed"])
    return summary, found, left


def test_a_good_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prices = {"usd_per_million_input": 1.0, "usd_per_million_output": 2.0}
    with server() as state:
        config = judge(state, good_judge, **prices)
        summary, found, _ = label(tmp_path, [pair(n) for n in range(10)], config)
        assert len(state.prompts) == 20
        assert state.prompts[0].startswith("Which answer")
        assert state.prompts[0].count("[Verdict]") == 7
    assert summary["agreed"] == 10
    assert [item.choice for item in found] == [0, 1] * 5
    assert {item.source for item in found} == {"judge"}
    assert [item.id for item in found] == [f"r{n}" for n in range(10)]
    assert found[3].candidate_0 == "bad 3"
    # Both orders of every pair: a judge that knows says A once and B once.
    assert summary["first_place_share"] == summary["choice_0_share"] == 0.5
    assert (summary["calls_made"], summary["calls_from_journal"]) == (20, 0)
    cost = summary["prompt_tokens"] + 2 * summary["output_tokens"]
    assert summary["cost_usd"] == pytest.approx(cost / 1e6)
    assert "10 of 10 pairs agreed in both orders; 0 followed the place" in capsys.readouterr().out


def test_a_judge_that_always_names_the_first_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with server() as state:
        config = judge(state, lambda prompt: "A")
        summary, found, left = label(tmp_path, [pair(n) for n in range(6)], config)
    assert (summary["order_conflicts"], summary["first_place_share"]) == (6, 1.0)
    assert summary["choice_0_share"] == -1.0
    assert found == []
    assert left[0] == {"id": "r0", "source_row": 0, "reason": "order_conflict",
                       "answers": ["A", "A"], "errors": ["no answer marker"] * 2}  # fmt: skip
    assert "no preference was found" in capsys.readouterr().out


def test_one_verdict_that_cannot_be_read_costs_its_pair(tmp_path: Path) -> None:
    def reply(prompt: str) -> str:
        last = prompt.rpartition("[Conversation]")[2]
        unsure = "question 1" in last and "[Answer A]\ngood" in last
        return "Both are fine." if unsure else good_judge(prompt)

    with server() as state:
        summary, found, left = label(tmp_path, [pair(n) for n in range(4)], judge(state, reply))
    assert (summary["agreed"], summary["unparsable"]) == (3, 1)
    assert summary["verdicts_unparsable"] == 1
    assert [item["id"] for item in left] == ["r1"]
    assert [item.id for item in found] == ["r0", "r2", "r3"]


@pytest.mark.parametrize(
    ("raw", "label", "expected"),
    [
        ("A", None, "A"),
        (" B\n", None, "B"),
        ("why\nAnswer: B", "B", "B"),
        ("a", None, None),
        ("A or B", None, None),
        ("AB", None, None),
        ("", None, None),
        (None, None, None),
        ("Answer: C", None, None),
        ("x", "C", None),
    ],
)
def test_verdicts_are_strict(raw: str | None, label: str | None, expected: str | None) -> None:
    assert verdict(raw, label) == expected


@pytest.mark.parametrize(
    "text", ["Answer: A or B", "Answer: both", "Answer: A\nAnswer: B", "A is better", "Answer:"]
)
def test_anything_else_is_unparsable(tmp_path: Path, text: str) -> None:
    with server() as state:
        summary, _, _ = label(tmp_path, [pair(0)], judge(state, lambda prompt: text))
    assert (summary["unparsable"], summary["verdicts_unparsable"]) == (1, 2)
    assert summary["first_place_share"] == -1.0


def test_failed_calls_and_identical_answers(tmp_path: Path) -> None:
    rows = [pair(0), pair(1, candidate_0="same", candidate_1=" same"), pair(2)]
    with server() as state:
        state.script = ["400"]
        summary, _, left = label(tmp_path, rows, judge(state, good_judge, concurrency=1))
        assert len(state.prompts) == 4, "identical answers are not asked about"
    assert (summary["failed"], summary["identical"], summary["agreed"]) == (1, 1, 1)
    assert summary["unparsable"] == summary["verdicts_unparsable"] == 0
    assert {item["reason"] for item in left} == {"failed", "identical"}


def test_a_run_that_was_stopped_pays_for_no_call_twice(tmp_path: Path) -> None:
    rows = [pair(n) for n in range(12)]
    with server() as state:
        config = judge(state, good_judge, concurrency=2)
        state.script = ["answer"] * 9 + ["401"]
        with pytest.raises(UserError, match=r"TEACHER_REFUSED.*judge_model_reference"):
            label(tmp_path, rows, config)
        assert not (tmp_path / "preferences").exists()
        before = state.answered
        assert before >= 9
        summary, found, _ = label(tmp_path, rows, config)
        assert state.answered == 24
        assert (summary["calls_made"], summary["calls_from_journal"]) == (24 - before, before)
        assert len(found) == 12
        again, _, _ = label(tmp_path, rows, config)
        assert (again["calls_made"], state.answered) == (0, 24)


def test_the_budget_stops_before_it_is_passed(tmp_path: Path) -> None:
    rows = [pair(n) for n in range(12)]
    with server() as state:
        config = judge(state, good_judge, concurrency=1, budget_tokens=6000, max_new_tokens=16)
        with pytest.raises(WorkError, match=r"BUDGET_REACHED.*raise judge_budget_tokens"):
            label(tmp_path, rows, config)
        assert 0 < state.answered < 24
        done = state.answered
        summary, _, _ = label(tmp_path, rows, judge(state, good_judge, max_new_tokens=16))
        assert (state.answered, summary["calls_from_journal"]) == (24, done)


def test_judged_pairs_are_ordinary_preference_rows(tmp_path: Path) -> None:
    chat = [{"author": "user", "content": "hi"}]
    rows = [pair(n, context="Be kind.", messages=chat[:1]) for n in range(3)]
    rows = [{k: v for k, v in item.items() if k != "input_text"} for item in rows]
    rows += [pair(n) for n in range(3, 40)]
    with server() as state:
        _, found, _ = label(tmp_path, rows, judge(state, good_judge))
        assert any("[Conversation]\nBe kind.\n\nuser: hi\nassistant:\n\n[Answer A]" in prompt
                   for prompt in state.prompts)  # fmt: skip
    assert found[0].messages[-1] == {"role": "user", "content": "hi"}
    paths = {
        f"{name}_path": str(tmp_path / name)
        for name in ("preferences", "preference_evaluation", "prompts", "prompt_evaluation",
                     "rejects")
    }  # fmt: skip
    (tmp_path / "preferences").rename(tmp_path / "judged.jsonl")
    summary = preferences.prepare(
        str(tmp_path / "judged.jsonl"),
        "",
        config=PreferenceConfig(eval_fraction=0.3),
        tokenizer_reference="",
        **paths,
    )
    assert summary["pairs_train"] + summary["pairs_eval"] == 40
    read = list(read_jsonl(tmp_path / "preferences", Preference))
    assert {item.source for item in read} == {"judge"}
    assert all((item.candidate_0, item.candidate_1)[item.choice].startswith("good")
               for item in read)  # fmt: skip
    assert {item.id for item in read} < {item.id for item in found}


def test_recorded_verdicts(tmp_path: Path) -> None:
    verdicts = ["Answer: A", "Answer: B", "B", "A", "A", "A", "?", "B"]
    write_json(tmp_path / "recorded.json", verdicts)
    config = TeacherConfig(
        backend="replay", prompt="judge_helpful.v1", replay_uri=str(tmp_path / "recorded.json")
    )
    summary, found, _ = label(tmp_path, [pair(n) for n in range(5)], config)
    assert [(item.id, item.choice) for item in found] == [("r0", 0), ("r1", 1)]
    assert {name: summary[name] for name in SUMS} == {
        "agreed": 2, "order_conflicts": 1, "unparsable": 1, "failed": 1, "identical": 0
    }  # fmt: skip
    assert summary["first_place_share"] == 4 / 7


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([pair(0), {"input_text": "x", "candidate_0": "a"}], "jsonl:2 candidate_1: is missing"),
        ([{"messages": [{"role": "user", "content": "x", "candidate_0": "a"}]}], "nested|inside"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, rows: list[dict[str, Any]], words: str) -> None:
    config = TeacherConfig(backend="replay", prompt="judge_helpful.v1", replay_uri="absent")
    with pytest.raises(UserError, match=f"JUDGE_ROW.*({words})"):
        label(tmp_path, rows, config)


def test_a_wrong_judge_is_named(tmp_path: Path) -> None:
    def refused(words: str, **values: Any) -> None:
        with pytest.raises(UserError, match=words):
            label(tmp_path, [pair(0)], TeacherConfig(**values))

    refused(r"JUDGE_PROMPT.*judge_prompt anli.v1.*allowed: \[A, B\]", prompt="anli.v1")
    refused("PROMPT_NOT_FOUND", prompt="nobody.v1")
    refused("BACKEND_UNKNOWN.*judge_backend", prompt="judge_helpful.v1", backend="x")
    refused(
        "REPLAY_NOT_FOUND.*judge_replay_uri",
        prompt="judge_helpful.v1",
        backend="replay",
        replay_uri=str(tmp_path / "absent.json"),
    )


def test_examples_of_the_prompt_favour_neither_place_nor_length() -> None:
    from pipestill.generation.prompts import load_prompt

    prompt = load_prompt("judge_helpful.v1")
    texts = [re.split(r"\n\n\[Answer [AB]\]\n", item.input) for item in prompt.examples]
    for item, (asked, first, second) in zip(prompt.examples, texts, strict=True):
        assert item.input == lay_out(asked.removeprefix("[Conversation]\n"), first, second)
    firsts = [item.label == "A" for item in prompt.examples]
    longer = [
        (len(parts[1]) > len(parts[2])) == (item.label == "A")
        for parts, item in zip(texts, prompt.examples, strict=True)
    ]
    assert sum(firsts) * 2 == sum(longer) * 2 == len(texts)


def test_a_random_model_as_the_judge(tmp_path: Path) -> None:
    """It runs, its words are no verdicts, and all of them are counted."""
    short = yaml.safe_load("""
        {name: short, version: 1, source: own, query: "{input}\\n", answer: "Answer: {label}\\n",
         parser: answer_line, labels: [A, B], examples: []}
    """)
    path = tmp_path / "short.v1.yaml"
    path.write_text(yaml.safe_dump(short))
    model = save_tiny(tmp_path / "model", "llama")
    config = TeacherConfig(
        model_reference=model, prompt=str(path), max_new_tokens=8, batch_size=4
    )  # fmt: skip
    summary, _, _ = label(tmp_path, [pair(n) for n in range(3)], config)
    assert (summary["calls_made"], summary["failed"]) == (6, 0)
    assert summary["unparsable"] == 3
    assert summary["verdicts_unparsable"] >= 3


@pytest.mark.skipif(
    not pocket.POCKET["pocket-teacher"].is_dir(), reason="the pocket teacher is not built"
)
def test_the_pocket_teacher_as_the_judge(tmp_path: Path) -> None:
    import torch

    torch.set_num_threads(1)
    config = TeacherConfig(prompt="judge_helpful.v1", max_new_tokens=24)
    summary, _, left = label(tmp_path, [pair(n) for n in range(2)], config)
    assert (summary["calls_made"], summary["failed"]) == (4, 0), left
    assert summary["cached_prompt_tokens"] > 0.5 * summary["prompt_tokens"]
