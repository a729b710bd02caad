"""Preference rows and prompts: what is read, set aside, held out, and where each answer stands."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipestill.cli import data as cli
from pipestill.config import PreferenceConfig
from pipestill.data import pairs, preferences
from pipestill.data.convert_pairs import is_pair, preference
from pipestill.data.prompts import prompt_fields
from pipestill.data.raw import REASONS, RowProblem
from pipestill.errors import UserError
from pipestill.records import Example, Preference, read_jsonl

PAIR = {"candidate_0": "x", "candidate_1": "y", "choice": 0}
HI = "\n\nHuman: hi\n\nAssistant:"
ANOTHER = "\n\nHuman: b\n\nAssistant:"
NAMES = ("preferences", "preference_evaluation", "prompts", "prompt_evaluation", "rejects")


def user(text: str = "hi", key: str = "role", **more: object) -> dict[str, object]:
    return {key: "user", "content": text, **more}


def row(number: int, **more: object) -> dict[str, Any]:
    """Answer 0 is the better one in every row."""
    texts = {"candidate_0": f"good {number}", "candidate_1": f"bad {number}"}
    return {"input_text": f"question {number}", **texts, "choice": 0, **more}


class Prepared:
    """One run on rows that are written to files first."""

    def __init__(
        self,
        folder: Path,
        rows: Iterable[object] | str,
        *,
        prompts: Iterable[object] = (),
        held: Iterable[object] = (),
        tokenizer: str = "",
        **changes: Any,
    ) -> None:
        values = {"eval_fraction": 0.2, "max_rejected_fraction": 1.0} | changes
        uri = rows if isinstance(rows, str) else _file(folder / "rows.jsonl", rows)
        self.paths = {name: str(folder / "out" / name) for name in NAMES}
        self.summary = preferences.prepare(
            uri,
            _file(folder / "prompts.jsonl", prompts),
            config=PreferenceConfig(**values),
            tokenizer_reference=tokenizer,
            eval_dataset_uri=_file(folder / "held.jsonl", held),
            **{f"{name}_path": path for name, path in self.paths.items()},
        )
        pair_files = (read_jsonl(self.paths[name], Preference) for name in NAMES[:2])
        self.train, self.held = (list(rows) for rows in pair_files)
        prompt_files = (read_jsonl(self.paths[name], Example) for name in NAMES[2:4])
        self.prompts, self.held_prompts = (list(rows) for rows in prompt_files)
        lines = Path(self.paths["rejects"]).read_text().splitlines()
        self.rejects = [json.loads(line) for line in lines]


def _file(path: Path, rows: Iterable[object]) -> str:
    lines = [item if isinstance(item, str) else json.dumps(item) for item in rows]
    path.write_text("".join(line + "\n" for line in lines))
    return str(path) if lines else ""


def best(item: Preference) -> str:
    return (item.candidate_0, item.candidate_1)[item.choice]


def inputs(rows: Iterable[Any]) -> set[str]:
    return {item.input_text for item in rows}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"input_text": "p", **PAIR}, {"input_text": "p", **PAIR}),
        ({"input_text": "p", **PAIR, "choice": 1}, {"choice": 1}),
        ({"input_text": "p", **PAIR, "choice": 1.0}, {"choice": 1}),
        ({"input_text": "p", **PAIR, "choice": "1"}, {"choice": 1}),
        ({"input_text": "p", **PAIR, "choice": " 0 "}, {"choice": 0}),
        ({"input_text": "p", **PAIR, "margin": "0.5"}, {"margin": 0.5}),
        ({"input_text": "p", **PAIR, "margin": None, "id": "a"}, {"id": "a"}),
        ({"input_text": "p", **PAIR, "source": "judge"}, {"source": "judge"}),
        (
            {"messages": [user(key="author")], "context": "Be kind.", **PAIR},
            {
                "input_text": "Be kind.\n\nuser: hi\nassistant:",
                "messages": [{"role": "system", "content": "Be kind."}, user()],
            },
        ),
        ({"messages": None, "input_text": "p", **PAIR}, {"input_text": "p"}),
        (
            {"prompt": "p", "chosen": " a", "rejected": "b"},
            {"input_text": "p", "candidate_0": "a", "candidate_1": "b", "choice": 0},
        ),
        (
            {"chosen": HI + " a", "rejected": HI + " a b"},
            {"messages": [user()], "candidate_0": "a", "candidate_1": "a b", "choice": 0},
        ),
        (
            {
                "text": [HI + " a" + ANOTHER + " c", HI + " a" + ANOTHER + " d"],
                "score": [1.0, 2],
            },
            {
                "input_text": "user: hi\nassistant: a\nuser: b\nassistant:",
                "candidate_0": "c",
                "candidate_1": "d",
                "choice": 1,
            },
        ),
    ],
)  # fmt: skip
def test_layouts(value: dict, expected: dict) -> None:
    (found,) = preference(value)
    assert expected.items() <= found.items()
    assert type(found["choice"]) is int
    assert "margin" in found or "margin" not in expected
    assert is_pair(value)


def scored(*texts: object, score: object = (1, 0)) -> dict[str, object]:
    return {"text": list(texts), "score": list(score) if isinstance(score, tuple) else score}


@pytest.mark.parametrize(
    ("value", "field", "reason"),
    [
        *(
            ({"input_text": "p", **PAIR, "choice": choice}, "choice", "bad_choice")
            for choice in (2, -1, 0.5, True, False, "first", [0], {})
        ),
        *(
            ({"input_text": "p", **PAIR, "choice": choice}, "choice", "tie")
            for choice in (None, "", "tie", "Tie")
        ),
        ({"input_text": "p", "candidate_0": "x", "candidate_1": "y"}, "choice", "tie"),
        *(
            ({"input_text": "p", **PAIR, "margin": margin}, "margin", "bad_margin")
            for margin in (-1, True, "much", [1])
        ),
        ({"input_text": "p", **PAIR, "candidate_1": "x "}, "candidate_1", "identical_candidates"),
        ({"input_text": "p", "candidate_0": "x", "choice": 0}, "candidate_1", "missing_field"),
        ({"input_text": "p", **PAIR, "candidate_1": " "}, "candidate_1", "empty_input"),
        ({"input_text": "p", **PAIR, "candidate_1": 3}, "candidate_1", "wrong_type"),
        ({**PAIR}, "input_text", "missing_field"),
        ({"messages": [user(**PAIR)]}, "messages[-1].candidate_0", "nested_candidates"),
        ({"messages": [user(choice=0)], **PAIR}, "messages[-1].choice", "nested_candidates"),
        (
            {"messages": [user(), {"role": "assistant", "content": "yes"}], **PAIR},
            "messages",
            "bad_role",
        ),
        ({"chosen": HI + " a"}, "rejected", "missing_field"),
        ({"chosen": HI + " a", "rejected": HI + " "}, "candidate_1", "empty_input"),
        ({"chosen": "a", "rejected": "b"}, "rejected", "bad_dialogue"),
        (
            {"chosen": HI + " a", "rejected": HI + " b\n\nHuman: c\n\nAssistant: d"},
            "rejected",
            "bad_dialogue",
        ),
        ({"chosen": "Rules." + HI + " a", "rejected": "Rules." + HI + " b"}, "rejected",
         "bad_dialogue"),
        (scored(HI + " a", HI + " b", score=(1, 1)), "score", "tie"),
        (scored(HI + " a", HI + " b", score=(1, "2")), "score", "wrong_type"),
        (scored(HI + " a", HI + " b", score=(1, True)), "score", "wrong_type"),
        (scored(HI + " a", HI + " b", score=3), "score", "wrong_type"),
        (scored(HI + " a", HI + " b", HI + " c"), "text", "wrong_type"),
        (scored(HI + " a\n\nAssistant: b", HI + " a\n\nAssistant: c"), "messages", "bad_role"),
    ],
)  # fmt: skip
def test_problems_name_the_field(value: dict, field: str, reason: str) -> None:
    with pytest.raises(RowProblem) as problem:
        preference(value)
    assert (problem.value.field, problem.value.reason) == (field, reason)
    assert reason in REASONS


def test_nested_candidates_are_told_where_they_belong(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"rows.jsonl:1 messages\[-1\].candidate_0: .*move candidate_0, .* out of"
    ):
        Prepared(tmp_path, [{"messages": [user(**PAIR)]}])


def test_a_prompt_has_no_field_of_a_pair() -> None:
    assert not is_pair({"input_text": "p", "text": "a"})
    (found,) = prompt_fields({"messages": [user()], "output_text": "gone", "id": 3})
    assert (found["output_text"], found["id"]) == (None, "3")
    assert is_pair({"input_text": "p", "choice": 0})
    assert is_pair({"messages": [user(choice=0)]})


def test_reads_files_of_every_kind(tmp_path: Path) -> None:
    for folder, text in {
        "part_1.csv": "input_text,candidate_0,candidate_1,choice\nq1,a,b,0\nq2,a,b,1\nq3,a,b,\n",
        "part_2.json": json.dumps([row(n) for n in range(20)], indent=1),
        "part_10.jsonl": json.dumps({"prompt": "q9", "chosen": "a", "rejected": "b"}),
    }.items():
        (tmp_path / folder).write_text(text)
    found = Prepared(tmp_path, str(tmp_path / "part_*"))
    assert found.summary["pairs_read"] == 24
    assert found.summary["set_aside_tie"] == 1
    assert {item.source_row for item in (*found.train, *found.held)} == {*range(24)} - {2}
    assert {best(item) for item in found.train if item.source_row == 1} <= {"b"}


def test_half_of_the_rows_change_sides_and_the_better_answer_stays_the_better(
    tmp_path: Path,
) -> None:
    rows = [row(n) for n in range(400)]
    found = Prepared(tmp_path, rows)
    items = [*found.train, *found.held]
    assert all(best(item).startswith("good") for item in items)
    assert found.summary["choice_0_share_before"] == 1.0
    assert abs(found.summary["choice_0_share"] - 0.5) < 0.1
    assert found.summary["choice_0_share"] == sum(item.choice == 0 for item in items) / 400
    for side in (found.train, found.held):
        assert 0.3 < sum(item.choice for item in side) / len(side) < 0.7
    turned = [
        {
            **item,
            "candidate_0": item["candidate_1"],
            "candidate_1": item["candidate_0"],
            "choice": 1,
        }
        for item in reversed(rows)
    ]
    again = Prepared(tmp_path, turned)
    # Where an answer stood, and where its row stood, says nothing about where it is now.
    sides = {item.id: item.candidate_0.startswith("good") for item in (*again.train, *again.held)}
    same = sum(sides[item.id] == item.candidate_0.startswith("good") for item in items)
    assert same == 0, "the same rows change sides, so a file turned over comes out turned over"
    other = Prepared(tmp_path, rows, split_seed=1)
    choices = {item.id: item.choice for item in (*other.train, *other.held)}
    assert 100 < sum(choices[item.id] == item.choice for item in items) < 300


def test_no_prompt_is_on_both_sides_and_more_rows_move_none(tmp_path: Path) -> None:
    rows = [row(n // 3, candidate_0=f"good {n}") for n in range(300)]
    found = Prepared(tmp_path, rows, prompts=[{"input_text": f"Question  {n}"} for n in range(150)])
    trained = {text.split()[-1] for text in inputs(found.train) | inputs(found.prompts)}
    held = {text.split()[-1] for text in inputs(found.held) | inputs(found.held_prompts)}
    assert not trained & held
    assert len(found.prompts) + len(found.held_prompts) == 150
    assert len(found.train) + len(found.held) == 300
    assert 0.1 < len(found.held) / 300 < 0.3
    more = Prepared(tmp_path, [*(row(n) for n in range(900, 990)), *rows])
    assert inputs(found.held) <= inputs(more.held)
    assert inputs(found.train) <= inputs(more.train)


def test_prompts_are_those_of_the_training_pairs(tmp_path: Path) -> None:
    rows = [*(row(n // 2, candidate_0=f"good {n}", id=f"p{n}") for n in range(100)),
            *({**row(n), "input_text": None, "messages": [user(f"chat {n}")]}
              for n in range(50))]  # fmt: skip
    found = Prepared(tmp_path, rows)
    assert inputs(found.prompts) == inputs(found.train)
    assert inputs(found.held_prompts) == inputs(found.held)
    assert len(found.prompts) == len(inputs(found.prompts))
    assert all(item.output_text is None for item in found.prompts)
    ids = [item.id for item in (*found.prompts, *found.held_prompts)]
    assert len(ids) == len(set(ids)) == 100
    assert not set(ids) & {item.id for item in found.train}
    chats = [item for item in found.prompts if item.messages]
    assert chats
    assert all(item.input_text == f"user: {item.messages[0]['content']}\nassistant:"
               for item in chats)  # fmt: skip


def test_duplicates_are_dropped_and_contradictions_set_aside(tmp_path: Path) -> None:
    turned = {"candidate_0": "bad 1", "candidate_1": "good 1"}
    rows = [*(row(n) for n in range(30)),
            row(1, **turned, choice=1, input_text="Question   1"),  # the same, turned over
            row(2, choice=1),  # the opposite
            row(3, candidate_1="worse"),  # another pair for the same prompt
            ]  # fmt: skip
    found = Prepared(tmp_path, rows)
    assert found.summary["duplicates_dropped"] == 1
    assert found.summary["set_aside_contradictory_pair"] == 2
    assert [item["line"] for item in found.rejects] == [3, 32]
    assert len(found.train) + len(found.held) == 30
    assert sum(item.input_text == "question 3" for item in (*found.train, *found.held)) == 2


@pytest.mark.parametrize("tokenizer", ["", "pocket-base"])
def test_pairs_that_the_model_sees_no_difference_in_are_set_aside(
    tmp_path: Path, tokenizer: str
) -> None:
    long = "please refund the order " * 20
    rows = [*(row(n) for n in range(30)),
            row(40, candidate_0=long + "a", candidate_1=long + "b"),
            row(41, candidate_0="a " + long, candidate_1="b " + long)]  # fmt: skip
    found = Prepared(tmp_path, rows, tokenizer=tokenizer, target_sequence_length=16)
    assert found.summary["set_aside_same_after_cut"] == 1
    assert [(item["line"], item["reason"]) for item in found.rejects] == [(31, "same_after_cut")]
    assert found.summary["candidates_cut"] == 4
    kept = Prepared(tmp_path, rows, tokenizer=tokenizer, target_sequence_length=1000)
    assert kept.summary["set_aside_same_after_cut"] == kept.summary["candidates_cut"] == 0


def test_the_instruction_counts_in_the_length_and_stays_out_of_the_rows(tmp_path: Path) -> None:
    rows = [row(n) for n in range(30)]
    plain = Prepared(tmp_path, rows, prompt_sequence_length=3)
    told = Prepared(tmp_path, rows, prompt_sequence_length=3, instruction="Be kind.")
    assert (plain.summary["prompts_cut"], told.summary["prompts_cut"]) == (0, 30)
    assert told.summary["prompt_tokens_max"] == plain.summary["prompt_tokens_max"] + 2
    assert told.train == plain.train


KINDS = st.sampled_from(
    [
        lambda n: row(n % 7, candidate_0=f"good {n}"),
        lambda n: row(n % 3),
        lambda n: row(n % 3, choice=1),
        lambda n: row(n, choice=None),
        lambda n: row(n, candidate_1=f"good {n}"),
        lambda n: row(n, choice=7),
        lambda n: row(n, candidate_0="w " * 9 + "a", candidate_1="w " * 9 + "b"),
        lambda n: {"chosen": HI + f" {n}", "rejected": HI + " other"},
        lambda n: {"messages": [user(f"m {n % 4}")], **PAIR, "candidate_0": str(n)},
        lambda n: "{broken",
        lambda n: [1],
    ]
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kinds=st.lists(KINDS, max_size=40))
def test_no_row_is_lost(tmp_path: Path, kinds: list[Any]) -> None:
    rows = [*(row(n) for n in range(100, 130)), *(kind(n) for n, kind in enumerate(kinds))]
    found = Prepared(tmp_path, rows, target_sequence_length=8)
    s = found.summary
    names = ("pairs_train", "pairs_eval", "pairs_rejected", "pairs_set_aside",
             "duplicates_dropped", "leaks_dropped")  # fmt: skip
    assert s["pairs_read"] == len(rows) == sum(s[name] for name in names)
    assert s["leaks_dropped"] == 0
    assert s["pairs_set_aside"] == sum(s[f"set_aside_{name}"] for name in pairs.SET_ASIDE)
    assert len(found.rejects) == s["pairs_rejected"] + s["pairs_set_aside"]
    assert (len(found.train), len(found.held)) == (s["pairs_train"], s["pairs_eval"])
    assert not inputs(found.train) & inputs(found.held)
    assert not inputs(found.prompts) & inputs(found.held_prompts)
    ids = [item.id for item in (*found.train, *found.held)]
    assert len(ids) == len(set(ids))


CHATS = [
    {"messages": [user(f"chat {n}", key="author")], "context": "Be kind.", **row(n)}
    for n in range(30)
]
for chat in CHATS:
    del chat["input_text"]


def test_held_out_rows_are_prepared_as_training_rows_are(tmp_path: Path) -> None:
    """The evaluation rows of Google's pipeline skip the chat preparation of the training rows."""
    rows = [row(n) for n in range(50)]
    as_held = Prepared(tmp_path, rows, held=CHATS)
    as_train = Prepared(tmp_path, CHATS)
    assert len(as_held.held) == 30
    everything = {item.id: item for item in (*as_train.train, *as_train.held)}
    assert {item.id: item for item in as_held.held} == everything
    assert as_held.held[0].messages[0] == {"role": "system", "content": "Be kind."}
    assert inputs(as_held.held_prompts) == inputs(as_held.held)


def test_training_rows_with_a_held_out_prompt_are_dropped(tmp_path: Path) -> None:
    rows = [row(n) for n in range(50)]
    prompts = [{"input_text": f"question {n}"} for n in range(40, 60)]
    found = Prepared(
        tmp_path,
        rows,
        prompts=[*prompts, prompts[0]],
        held=[row(n, candidate_0="another") for n in range(10)]
        + [{"input_text": f"QUESTION  {n}"} for n in range(8, 42)],
    )
    s = found.summary
    assert (s["pairs_train"], s["pairs_eval"], s["leaks_dropped"]) == (8, 10, 42)
    assert (s["prompts_train"], s["prompts_eval"]) == (18, 34)
    assert (s["prompt_duplicates_dropped"], s["prompt_leaks_dropped"]) == (1, 2)
    assert s["eval_rows_read"] == 44


def test_what_the_evaluation_file_lacks_is_split_off(tmp_path: Path) -> None:
    held = [{"input_text": f"question {n}"} for n in range(100, 110)]
    found = Prepared(tmp_path, [row(n) for n in range(60)], held=held)
    assert inputs(found.held_prompts) == {item["input_text"] for item in held}
    assert found.held
    assert len(found.train) + len(found.held) == 60
    assert inputs(found.prompts) == inputs(found.train)
    with pytest.raises(UserError, match=r"DATA_SETTING.*eval_fraction: found 0"):
        Prepared(tmp_path, [row(n) for n in range(60)], held=held, eval_fraction=0.0)
    assert Prepared(tmp_path, [row(n) for n in range(60)], held=[row(99)], eval_fraction=0.0).held


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"foo": 1}, r"held.jsonl:31 input_text: is missing"),
        (row(99, choice=3), r"held.jsonl:31 choice: must be the integer 0 or 1"),
        ({"input_text": "p", "candidate_0": "x"}, r"held.jsonl:31 candidate_1: is missing"),
        ("{", r"held.jsonl:31 \(row\): is not valid JSON"),
        ({"messages": [user(**PAIR)]}, r"held.jsonl:31 messages\[-1\].candidate_0: "),
    ],
)
def test_a_bad_held_out_row_stops_the_run_and_is_named(
    tmp_path: Path, bad: object, words: str
) -> None:
    """Google's pipeline goes on without its evaluation where such a row is found."""
    with pytest.raises(UserError, match=f"DATA_EVAL_ROW.*1 of 31 rows are bad; first: .*{words}"):
        Prepared(tmp_path, [row(n) for n in range(50)], held=[*CHATS, bad])
    assert (tmp_path / "out" / "rejects").read_text().count("\n") == 1


def test_held_out_pairs_that_teach_nothing_are_set_aside_too(tmp_path: Path) -> None:
    long = "word " * 9
    held = [row(90), row(90), row(91, choice=None), row(92), row(92, choice=1),
            row(93, candidate_0=long + "a", candidate_1=long + "b")]  # fmt: skip
    s = Prepared(tmp_path, [row(n) for n in range(9)], held=held, target_sequence_length=8).summary
    assert (s["pairs_eval"], s["pairs_train"]) == (1, 9)
    assert (s["set_aside_tie"], s["duplicates_dropped"]) == (1, 1)
    assert (s["set_aside_contradictory_pair"], s["set_aside_same_after_cut"]) == (2, 1)


def test_what_stops_a_run(tmp_path: Path) -> None:
    rows = [row(n) for n in range(20)]
    with pytest.raises(UserError, match=r"DATA_TOO_MANY_REJECTS.*pairs: 2 of 22 .*2 bad_choice"):
        Prepared(tmp_path, [*rows, row(1, choice=5), row(2, choice=5)], max_rejected_fraction=0.05)
    assert len((tmp_path / "out" / "rejects").read_text().splitlines()) == 2
    # Ties are no mistakes, however many there are.
    ties = [row(n, choice="tie") for n in range(50, 90)]
    assert Prepared(tmp_path, [*rows, *ties], max_rejected_fraction=0.0).train
    with pytest.raises(UserError, match=r"DATA_TOO_MANY_REJECTS.*prompts: 1 of 2"):
        Prepared(tmp_path, rows, prompts=[{"input_text": "p"}, {}], max_rejected_fraction=0.4)
    with pytest.raises(UserError, match=r"DATA_NO_VALID_ROWS.*none of 40 .*40 tie in choice"):
        Prepared(tmp_path, ties)
    misspelt = [{**{k: v for k, v in item.items() if k != "choice"}, "choise": 0} for item in rows]
    with pytest.raises(UserError, match=r"none of 20 .*first: .*choice: .*choise"):
        Prepared(tmp_path, misspelt)
    with pytest.raises(UserError, match=r"DATA_NO_TRAIN_ROWS.*does not hold all prompts"):
        Prepared(tmp_path, rows, held=rows)
    with pytest.raises(UserError, match="DATA_NO_EVAL_ROWS"):
        Prepared(tmp_path, rows[:1], eval_fraction=1e-9)
    for name, value in (
        ("eval_fraction", 1.0),
        ("max_rejected_fraction", 2.0),
        ("max_rows", -1),
        ("prompt_sequence_length", 0),
        ("target_sequence_length", 0),
    ):
        with pytest.raises(UserError, match=f"DATA_SETTING.*{name}: found"):
            Prepared(tmp_path, rows, **{name: value})


def test_max_rows_limits_training_rows_only(tmp_path: Path) -> None:
    found = Prepared(tmp_path, [row(n) for n in range(50)], held=CHATS, max_rows=20)
    assert (found.summary["pairs_read"], found.summary["pairs_eval"]) == (20, 30)


def test_check_shows_a_preference_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(1), row(1), row(2, choice=1), row(3, choice=None), row(4, choice=8)]
    path = _file(tmp_path / "rows.jsonl", rows)
    parser = argparse.ArgumentParser()
    cli.configure(parser)
    args = parser.parse_args(
        ["check", path, "--format", "preference", "--tokenizer", "pocket-base"]
    )
    assert cli.main(args) == 2
    out = capsys.readouterr().out
    facts = dict(line.rsplit("  ", 1) for line in out.splitlines() if "  " in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    assert facts["rows"] == "5"
    assert (facts["good"], facts["bad"], facts["no preference"]) == ("3", "1", "1")
    assert (facts["tie"], facts["bad_choice"], facts["duplicates"]) == ("1", "1", "1")
    assert facts["the first answer preferred"] == "66.7%"
    assert not facts["output tokens p50 / p95 / max"].startswith("0")
    assert f"{path}:5 choice: must be" in out


def test_real_human_preferences(shared_data: Path, tmp_path: Path) -> None:
    """Of 1,852 pairs 9 part before the last reply, 6 have a speaker twice, 3 an empty turn."""
    source = shared_data / "hh_helpful" / "helpful.json"
    found = Prepared(tmp_path, str(source), tokenizer="pocket-base", max_rejected_fraction=0.01)
    s = found.summary
    assert s["pairs_read"] == 1852
    assert len(found.train) + len(found.held) + len(found.rejects) == 1852
    assert {k: v for k, v in s.items() if k.startswith("rejected_")} == {
        "rejected_bad_dialogue": 9, "rejected_bad_role": 6, "rejected_empty_input": 2,
        "rejected_empty_turn": 1,
    }  # fmt: skip
    assert (s["pairs_set_aside"], s["duplicates_dropped"], s["leaks_dropped"]) == (0, 0, 0)
    assert s["choice_0_share_before"] == 1.0
    assert 0.46 < s["choice_0_share"] < 0.54
    assert not inputs(found.train) & inputs(found.held)
    # Every pair that was kept can be put together again.
    dialogues = json.loads(source.read_text())
    names = {"user": "Human", "assistant": "Assistant"}
    for item in (*found.train, *found.held):
        asked = "".join(f"{names[m['role']]}{m['content']}Assistant" for m in item.messages[-1:])
        text = dialogues[item.source_row]["text"][0]
        assert "".join(text.replace(":", " ").split()).endswith(
            "".join((asked + best(item)).replace(":", " ").split())
        )
