"""Other schemas become our rows; what they cannot become is named."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipestill.config import DataConfig
from pipestill.data.convert import CONVERTERS, MARKS, likely_format, tidy_equation
from pipestill.data.raw import RowProblem
from pipestill.data.rows import Row, check, read_rows
from pipestill.errors import UserError
from pipestill.records import write_jsonl

CQA = {
    "id": "x1",
    "question": "Where?",
    "choices": ["park", "zoo"],
    "answer": "zoo",
    "abstractive_explanation": "because",
}


def test_dss_cqa() -> None:
    assert CONVERTERS["dss_cqa"](CQA) == [
        {
            "input_text": "Where?\nAnswer Choices:\n(a) park\n(b) zoo",
            "output_text": "zoo",
            "rationale": "because",
            "id": "x1",
        }
    ]


@pytest.mark.parametrize(
    ("label", "expected"), [(0, "entailment"), (2, "contradiction"), ("1", "neutral"), ("", "")]
)
def test_dss_esnli(label: object, expected: str) -> None:
    row = {"premise": "A", "hypothesis": "B", "label": label, "explanation_1": "e"}
    assert CONVERTERS["dss_esnli"](row) == [
        {"input_text": "Premise: A\nHypothesis: B", "output_text": expected, "rationale": "e"}
    ]


@pytest.mark.parametrize(
    ("raw", "tidy"),
    [
        ("( 84.0 / 2.0 )", "84 / 2"),
        ("( ( 7.0 + 3.0 ) * 2.5 )", "(7 + 3) * 2.5"),
        ("( 7.0 + 3.0 ) * ( 2.0 - 1.0 )", "(7 + 3) * (2 - 1)"),
        ("((1))", "1"),
        ("10.05*100.0", "10.05 * 100"),
        ("5", "5"),
    ],
)
def test_equations(raw: str, tidy: str) -> None:
    assert tidy_equation(raw) == tidy


@pytest.mark.parametrize("raw", ["__import__('os')", "( 1 + 2", "()", "x + 1", "1 ** y"])
def test_texts_that_are_no_equation(raw: str) -> None:
    with pytest.raises(RowProblem, match="bad_equation"):
        tidy_equation(raw)


def test_gsm8k() -> None:
    row = {"question": "Q", "answer": "48/2 = <<48/2=24>>24 clips.\n#### 1,024"}
    assert CONVERTERS["gsm8k"](row) == [
        {"input_text": "Q", "output_text": "1024", "rationale": "48/2 = 24 clips."}
    ]


def test_a_chat_gives_one_row_an_assistant_turn() -> None:
    turns = [("user", "hi"), ("assistant", "hello"), ("user", "bye"), ("assistant", "ciao")]
    messages = [{"author": role, "content": text} for role, text in turns]
    rows = CONVERTERS["chat_messages"]({"context": "Be short.", "messages": messages})
    assert [(row["input_text"], row["output_text"]) for row in rows] == [
        ("Be short.\n\nuser: hi\nassistant:", "hello"),
        ("Be short.\n\nuser: hi\nassistant: hello\nuser: bye\nassistant:", "ciao"),
    ]
    system = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hi"}]
    assert CONVERTERS["chat_messages"]({"messages": system}) == [
        {
            "input_text": "Be short.\n\nuser: hi\nassistant:",
            "output_text": None,
            "messages": system,
        }
    ]
    assert rows[1]["messages"] == [
        {"role": "system", "content": "Be short."},
        *({"role": role, "content": text} for role, text in turns[:3]),
    ]


def test_a_schema_guided_dialogue_is_a_chat() -> None:
    turns = [("USER", "hi"), ("SYSTEM", "hello"), ("USER", "bye"), ("SYSTEM", "ciao")]
    row = {"turns": [{"speaker": who, "utterance": text, "frames": []} for who, text in turns]}
    found = CONVERTERS["sgd_dialogue"](row)
    assert [item["output_text"] for item in found] == ["hello", "ciao"]
    assert found[1]["input_text"] == "user: hi\nassistant: hello\nuser: bye\nassistant:"


def test_humaneval_rows_bring_their_tests() -> None:
    row = {"task_id": "t/0", "prompt": "def f():\n", "entry_point": "f", 
           "test": "def check(c):\n  c()",
           "canonical_solution": "    return 1\n"}  # fmt: skip
    (found,) = CONVERTERS["humaneval"](row)
    assert found["tests"] == "def check(c):\n  c()\n\ncheck(f)\n"
    with pytest.raises(RowProblem):
        CONVERTERS["humaneval"]({**row, "entry_point": "f); import os; (f"})


def user(text: object = "hi", **more: object) -> dict[str, object]:
    return {"role": "user", "content": text, **more}


PAIR = {"candidate_0": "x", "candidate_1": "y", "choice": 0}


def test_preference() -> None:
    assert CONVERTERS["preference"]({"input_text": "p", **PAIR}) == [{"input_text": "p", **PAIR}]
    chat = CONVERTERS["preference"]({"messages": [user()], **PAIR})
    assert chat == [{"input_text": "user: hi\nassistant:", "messages": [user()], **PAIR}]


@pytest.mark.parametrize(
    ("name", "row", "field", "reason"),
    [
        ("dss_cqa", {**CQA, "answer": "moon"}, "answer", "unknown_label"),
        ("dss_cqa", {"question": "q"}, "choices", "missing_field"),
        ("dss_cqa", {**CQA, "choices": "a b"}, "choices", "wrong_type"),
        ("dss_cqa", {**CQA, "question": 3}, "question", "wrong_type"),
        ("dss_esnli", {"premise": "a", "hypothesis": "b", "label": 3}, "label", "unknown_label"),
        ("dss_esnli", {"premise": "a", "hypothesis": "b", "label": True}, "label", "unknown_label"),
        ("dss_esnli", {"premise": "a"}, "hypothesis", "missing_field"),
        ("dss_svamp", {"input": "q", "label": "2 apples"}, "label", "bad_equation"),
        ("gsm8k", {"question": "q", "answer": "no mark"}, "answer", "no_answer_mark"),
        ("banking77", {"text": " ", "category": "c"}, "text", "empty_input"),
        ("nl2bash", {"nl": "x"}, "input_text", "missing_field"),
        ("chat_messages", {"messages": []}, "messages", "no_turn"),
        ("chat_messages", {"messages": "hi"}, "messages", "wrong_type"),
        ("chat_messages", {}, "messages", "missing_field"),
        ("chat_messages", {"messages": [user(), user()]}, "messages", "bad_role"),
        ("chat_messages", {"messages": ["hi"]}, "messages[0]", "not_an_object"),
        ("sgd_dialogue", {"turns": [3]}, "messages[0]", "not_an_object"),
        ("sgd_dialogue", {"turns": [{"speaker": "X"}]}, "messages[0].role", "bad_role"),
        ("chat_messages", {"messages": [user(3)]}, "messages[0].content", "wrong_type"),
        ("chat_messages", {"messages": [user("")]}, "messages[0].content", "empty_turn"),
        (
            "chat_messages",
            {"messages": [{"role": "x", "content": "y"}]},
            "messages[0].role",
            "bad_role",
        ),
        ("chat_messages", {"messages": [user()], "context": 3}, "context", "wrong_type"),
        ("preference", {"input_text": "p", **PAIR, "choice": 2}, "choice", "bad_choice"),
        ("preference", {"input_text": "p", **PAIR, "choice": "x"}, "choice", "bad_choice"),
        ("preference", {"input_text": "p", **PAIR, "choice": False}, "choice", "bad_choice"),
        ("preference", {"input_text": "p", "candidate_0": "x"}, "candidate_1", "missing_field"),
        (
            "preference",
            {"messages": [user(**PAIR)]},
            "messages[-1].candidate_0",
            "nested_candidates",
        ),
    ],
)
def test_problems_name_the_field(name: str, row: dict, field: str, reason: str) -> None:
    with pytest.raises(RowProblem) as problem:
        CONVERTERS[name](row)
    assert (problem.value.field, problem.value.reason) == (field, reason)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("x", "x"),
        (" x ", "x"),
        (3, "3"),
        (3.0, "3"),
        (2.5, "2.5"),
        (None, None),
        ("", None),
        (" ", None),
    ],
)
def test_labels(output: object, expected: str | None) -> None:
    row = {"input_text": "a", "output_text": output}
    assert check(row, "input_text", "output_text")["output_text"] == expected


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"output_text": "b"}, "input_text", "missing_field"),
        ({"input_text": 3}, "input_text", "wrong_type"),
        ({"input_text": None}, "input_text", "wrong_type"),
        ({"input_text": " \n"}, "input_text", "empty_input"),
        ({"input_text": "a\0"}, "input_text", "nul_byte"),
        ({"input_text": "\ud800"}, "input_text", "invalid_unicode"),
        ({"input_text": "a", "output_text": True}, "output_text", "wrong_type"),
        ({"input_text": "a", "output_text": ["b"]}, "output_text", "wrong_type"),
        ({"input_text": "a", "output_text": float("inf")}, "output_text", "bad_number"),
        ({"input_text": "a", "id": {}}, "id", "wrong_type"),
        ({"input_text": "a", "rationale": 1.5j}, "rationale", "wrong_type"),
    ],
)
def test_validation(row: dict, field: str, reason: str) -> None:
    with pytest.raises(RowProblem) as problem:
        check(row, "input_text", "output_text")
    assert (problem.value.field, problem.value.reason) == (field, reason)


FIELDS = sorted(set().union(*MARKS.values()) | {"answer", "label", "choice", "id", "input_text"})
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "user", "\ud800"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=3), VALUES, max_size=6))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_object_gives_rows_or_a_problem_that_can_be_written(tmp_path: Path, row: dict) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    for name in ("auto", *CONVERTERS):
        items = list(read_rows(str(path), DataConfig(data_format=name)))
        assert items
        write_jsonl(tmp_path / "out", [getattr(item, "fields", item) for item in items])


def test_formats_are_recognised() -> None:
    assert set(MARKS) == set(CONVERTERS)
    assert likely_format(set(CQA)) == "dss_cqa"
    assert likely_format({"input_text"}) == ""


def test_unknown_format_lists_those_there_are() -> None:
    with pytest.raises(UserError, match=r"DATA_FORMAT_UNKNOWN.*dss_cqa"):
        next(read_rows("x", DataConfig(data_format="dss_cqq")))


@pytest.mark.parametrize(
    ("path", "name", "count"),
    [
        ("dss_cqa/cqa_train.json", "dss_cqa", 9741),
        ("dss_esnli/esnli_valid.json", "dss_esnli", 9842),
        ("dss_svamp/svamp_train.json", "dss_svamp", 800),
        ("gsm8k/train.jsonl", "gsm8k", 7473),
        ("banking77/train.csv", "banking77", 10003),
    ],
)
def test_real_files_have_no_bad_row(shared_data: Path, path: str, name: str, count: int) -> None:
    items = list(read_rows(str(shared_data / path), DataConfig(data_format=name)))
    assert Counter(type(item) for item in items) == {Row: count}
    assert [item.source_row for item in items] == list(range(count))
    assert all(item.fields["output_text"] for item in items)
    json.dumps([item.fields for item in items], ensure_ascii=False).encode()


def test_real_svamp_and_esnli_labels(shared_data: Path) -> None:
    config = DataConfig(data_format="dss_svamp")
    first = next(iter(read_rows(str(shared_data / "dss_svamp/svamp_train.json"), config)))
    assert first.fields["output_text"] == "84 / 2"
    config = DataConfig(data_format="dss_esnli")
    labels = Counter(
        row.fields["output_text"]
        for row in read_rows(str(shared_data / "dss_esnli/esnli_valid.json"), config)
    )
    assert labels == {"entailment": 3329, "neutral": 3235, "contradiction": 3278}
