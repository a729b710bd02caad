"""Data preparation: what goes where, and what never happens."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipestill.config import DataConfig
from pipestill.data import lengths
from pipestill.data.prepare import prepare
from pipestill.data.raw import BadRow
from pipestill.data.split import is_held_out
from pipestill.data.text import normalise
from pipestill.errors import UserError
from pipestill.records import Example, read_jsonl

COUNTER = itertools.count()


class Result:
    def __init__(self, folder: Path, summary: dict[str, Any]) -> None:
        self.summary = summary
        self.train = list(read_jsonl(folder / "train.jsonl", Example))
        self.evaluation = list(read_jsonl(folder / "eval.jsonl", Example))
        self.rejects = list(read_jsonl(folder / "rejects.jsonl", BadRow))


def run(tmp_path: Path, rows: list, evaluation: list | None = None, **options: Any) -> Result:
    folder = tmp_path / str(next(COUNTER))
    folder.mkdir()
    uris = ["", ""]
    for place, part in enumerate((rows, evaluation)):
        if part is not None:
            path = folder / f"in{place}.jsonl"
            path.write_text(
                "".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in part)
            )
            uris[place] = str(path)
    tokenizer = options.pop("tokenizer_reference", "")
    summary = prepare(
        *uris,
        config=DataConfig(**options),
        tokenizer_reference=tokenizer,
        train_path=str(folder / "train.jsonl"),
        evaluation_path=str(folder / "eval.jsonl"),
        rejects_path=str(folder / "rejects.jsonl"),
    )
    return Result(folder, summary)


def row(text: str, label: object = "yes", **more: object) -> dict[str, object]:
    return {"input_text": text, "output_text": label, **more}


MANY = [row(f"question {n}", f"label {n % 3}") for n in range(60)]


def test_everything_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        *MANY,
        row("Question  7 ", "label 1"),  # the same as question 7
        row("twice", "a"),
        row("twice", "b"),
        row("no label", None),
        "{broken",
        {"output_text": "no input"},
    ]
    result = run(tmp_path, rows, max_rejected_fraction=0.1)
    expected = {
        "rows_read": 66,
        "rows_rejected": 4,
        "rejected_broken_json": 1,
        "rejected_missing_field": 1,
        "rejected_conflicting_label": 2,
        "duplicates_dropped": 1,
        "duplicates_conflicting": 2,
        "rows_unlabelled": 1,
        "rows_over_context": 0,
        "leaks_dropped": 0,
        "input_tokens_max": 2,
        "tokenizer_fingerprint": "words",
    }
    assert {name: result.summary[name] for name in expected} == expected
    assert len(result.train) + len(result.evaluation) == 61
    assert result.summary["rows_train"] == len(result.train)
    assert [(r.line, r.reason, r.source_row) for r in result.rejects] == [
        (65, "broken_json", 64),
        (66, "missing_field", 65),
        (62, "conflicting_label", 61),
        (63, "conflicting_label", 62),
    ]
    assert {type(value) for value in result.summary.values()} <= {int, float, str}
    assert "held out" in capsys.readouterr().out


def test_source_rows_align_with_recorded_outputs(tmp_path: Path) -> None:
    rows = ["{broken", *MANY]
    result = run(tmp_path, rows)
    for example in (*result.train, *result.evaluation):
        assert rows[example.source_row]["input_text"] == example.input_text


def test_a_labelled_copy_wins(tmp_path: Path) -> None:
    result = run(tmp_path, [row("x", None), row("X ", "label"), *MANY])
    found = [r for r in (*result.train, *result.evaluation) if normalise(r.input_text) == "x"]
    assert [r.output_text for r in found] == ["label"]


def test_without_deduplication_equal_inputs_share_a_side(tmp_path: Path) -> None:
    rows = [*MANY, *MANY, *[row(f"QUESTION {n}", "other") for n in range(60)]]
    result = run(tmp_path, rows, dedupe=False)
    assert len(result.train) + len(result.evaluation) == 180
    assert result.summary["leaks_dropped"] == 0
    ids = [r.id for r in (*result.train, *result.evaluation)]
    assert len(set(ids)) == 180


def test_unlabelled_rows_are_never_held_out(tmp_path: Path) -> None:
    rows = [row(f"u {n}", None) for n in range(100)]
    result = run(tmp_path, [*rows, *MANY])
    assert result.summary["rows_unlabelled"] == 100
    assert all(r.output_text for r in result.evaluation)


def test_given_evaluation_file(tmp_path: Path) -> None:
    held_out = [row("Question 5", "label 2"), row("new", "x"), row("no gold", None)]
    result = run(tmp_path, MANY, held_out)
    assert result.summary["leaks_dropped"] == 1
    assert len(result.train) == 59
    assert [r.input_text for r in result.evaluation] == ["Question 5", "new"]
    assert [r.reason for r in result.rejects] == ["missing_gold"]
    with pytest.raises(UserError, match=r"DATA_LEAK.*1 training rows.*in0\.jsonl:6"):
        run(tmp_path, MANY, held_out, leak_policy="fail")


def test_ids(tmp_path: Path) -> None:
    rows = [row("a", id="x"), row("b", id="x"), row("c", id=7), row("d", id=""), *MANY]
    result = run(tmp_path, rows)
    by_input = {r.input_text: r.id for r in (*result.train, *result.evaluation)}
    assert {by_input["a"], by_input["b"]} == {"x", "x-2"}
    assert by_input["c"] == "7"
    assert len(by_input["d"]) == 16
    assert len(set(by_input.values())) == len(by_input)


def test_long_rows_are_set_aside(tmp_path: Path) -> None:
    rows = [*MANY, row("word " * 9), row("short", "out " * 5)]
    result = run(tmp_path, rows, max_context_length="8", max_output_tokens=4)
    assert [(r.field, r.reason) for r in result.rejects] == [
        ("input_text", "too_long"),
        ("output_text", "output_too_long"),
    ]
    assert result.rejects[0].detail == "9, allowed 8"
    assert result.summary["rows_over_context"] == 1
    assert result.summary["input_tokens_max"] == 9
    assert result.summary["output_tokens_p95"] == 2


def test_a_real_tokenizer_measures() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    first = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    assert lengths.count_tokens(first, ["abc", "", "question"] * 1000) == [3, 0, 8] * 1000
    assert lengths.count_tokens(first, []) == []
    fingerprint = lengths.fingerprint(first)
    first.add_tokens(["z"])
    assert fingerprint != lengths.fingerprint(first) != "words"


def test_embedded_data_and_tokenizer(tmp_path: Path) -> None:
    try:
        summary = prepare(
            "pocket:train",
            "pocket:eval",
            config=DataConfig(),
            tokenizer_reference="pocket-base",
            train_path=str(tmp_path / "t"),
            evaluation_path=str(tmp_path / "e"),
            rejects_path=str(tmp_path / "r"),
        )
    except UserError as error:
        if error.code.startswith("MODEL") or error.code == "DATA_NOT_FOUND":
            pytest.skip(f"the embedded data or model is not there yet: {error}")
        raise
    assert summary["rows_rejected"] == 0
    assert summary["rows_eval"] > 100
    assert summary["input_tokens_p50"] > 5


@pytest.mark.parametrize(
    ("rows", "options", "code", "words"),
    [
        ([], {}, "DATA_EMPTY", "no rows"),
        (["{x", "{y"], {}, "DATA_NO_VALID_ROWS", "2 of 2 rows.*first: .*in0.jsonl:1 .row."),
        ([{"question": "q", "answer": "a"}] * 3, {}, "DATA_NO_VALID_ROWS", "data_format gsm8k"),
        ([{"foo": "q", "bar": "a"}] * 3, {}, "DATA_NO_VALID_ROWS", "set data_format"),
        ([*MANY[:3], "{x"], {}, "DATA_TOO_MANY_REJECTS", r"1 of 4 rows.*25\.0%, allowed 5\.0%"),
        ([row("a", "x"), row("a", "y"), *MANY], {"max_rejected_fraction": 0.0},
         "DATA_TOO_MANY_REJECTS", "set dedupe to false"),
        ([row("a", None)], {}, "DATA_NO_EVAL_ROWS", "add labelled rows"),
        (MANY, {"eval_fraction": 0.999999}, "DATA_NO_TRAIN_ROWS", "lower eval_fraction"),
        (MANY, {"eval_fraction": 0.0}, "DATA_SETTING", "eval_fraction"),
        (MANY, {"eval_fraction": float("nan")}, "DATA_SETTING", "eval_fraction"),
        (MANY, {"leak_policy": "keep"}, "DATA_SETTING", "drop or fail"),
        (MANY, {"max_rows": -1}, "DATA_SETTING", "max_rows"),
        (MANY, {"max_rejected_fraction": 5.0}, "DATA_SETTING", "0 to 1"),
        (MANY, {"data_format": "preference"}, "DATA_SETTING", "data_format"),
        (MANY, {"data_format": "xml"}, "DATA_FORMAT_UNKNOWN", "allowed: auto"),
        (MANY, {"max_context_length": "long"}, "LENGTH_UNREADABLE", "long"),
        (MANY, {"tokenizer_reference": "no/such/folder/here"}, "MODEL_NOT_FOUND", "no such"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    tmp_path: Path, rows: list, options: dict, code: str, words: str
) -> None:
    with pytest.raises(UserError, match=words) as error:
        run(tmp_path, rows, **options)
    assert error.value.code == code
    assert "\n" not in str(error.value)


def test_rejects_are_written_before_the_step_fails(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="all are listed in") as error:
        run(tmp_path, [*MANY[:3], "{x", "[1]"])
    named = str(error.value).rsplit(" ", 1)[1]
    assert [r.reason for r in read_jsonl(named, BadRow)] == ["broken_json", "not_an_object"]
    assert not Path(named).with_name("train.jsonl").exists()


def test_max_rows_counts_source_rows_of_the_dataset(tmp_path: Path) -> None:
    result = run(tmp_path, MANY, [row(f"e {n}") for n in range(9)], max_rows=5)
    assert (len(result.train), len(result.evaluation)) == (5, 9)


TEXTS = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6), max_size=30)


@given(TEXTS, TEXTS, st.integers(0, 3), st.booleans())
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_input_stands_on_both_sides_and_growth_moves_nothing(
    tmp_path: Path, first: list[str], more: list[str], seed: int, dedupe: bool
) -> None:
    base = [*MANY[:30], *(row(text) for text in first if text.strip() and "\0" not in text)]
    grown = [*base, *(row(text) for text in more if text.strip() and "\0" not in text)]
    random.Random(seed).shuffle(grown)
    options = {"split_seed": seed, "eval_fraction": 0.5, "dedupe": dedupe}
    small, large = run(tmp_path, base, **options), run(tmp_path, grown, **options)
    sides = [{normalise(r.input_text) for r in part} for part in (large.train, large.evaluation)]
    assert not sides[0] & sides[1]
    assert {normalise(r.input_text) for r in small.train} <= sides[0]
    assert {normalise(r.input_text) for r in small.evaluation} <= sides[1]


def test_the_split_is_fixed_for_good() -> None:
    """Another hash would move rows of users from one side to the other between versions."""
    sides = "".join(str(int(is_held_out(f"row {n}", 0.5, 0))) for n in range(24))
    assert sides == "011011010001111010111111"
    shares = [sum(is_held_out(f"r{n}", 0.2, s) for n in range(5000)) / 5000 for s in range(3)]
    assert all(0.18 < share < 0.22 for share in shares)


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = run(tmp_path, MANY), run(tmp_path, MANY)
    assert first.summary == second.summary
    third = run(tmp_path, [*MANY, row("one more")])
    assert third.summary["train_digest"] != first.summary["train_digest"] or (
        third.summary["eval_digest"] != first.summary["eval_digest"]
    )
