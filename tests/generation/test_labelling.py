"""The labelling steps, by recorded answers and by a server: labels, votes, rationales, sums."""

import json
from pathlib import Path

import pytest

from pipestill.config import RationaleConfig, TeacherConfig
from pipestill.errors import UserError, WorkError
from pipestill.generation.ask import Answer
from pipestill.generation.collect import collect
from pipestill.generation.label import audit_choice, in_shard, label_shard, parse_shard
from pipestill.generation.prompts import load_prompt
from pipestill.generation.rationale import FILTERS, choose, extract_rationales
from pipestill.generation.votes import majority
from pipestill.records import Example, Labelled, read_jsonl, write_json, write_jsonl
from tests.generation.helpers import rows, server, server_config

GOOD = "The kettle is new and boxed. So the answer is {}."


def _replay(folder: Path, texts: list[str], **changes: object) -> TeacherConfig:
    (folder / "recorded.json").write_text(json.dumps(texts))
    values: dict = {"backend": "replay", "prompt": "generic.v1", "min_success": 0.0}
    return TeacherConfig(**values | {"replay_uri": str(folder / "recorded.json")} | changes)


def _label(folder: Path, train: list[Example], config: TeacherConfig, **options: object) -> dict:
    write_jsonl(folder / "train.jsonl", train)
    write_jsonl(folder / "evaluation.jsonl", options.pop("evaluation", []))
    values: dict = {"shard": "0/1", "state_dir": str(folder / "state")}
    return label_shard(
        str(folder / "train.jsonl"),
        str(folder / "evaluation.jsonl"),
        str(folder / "labelled.jsonl"),
        **values | options,
        config=config,
    )


def _labelled(folder: Path) -> dict[str, Labelled]:
    return {row.id: row for row in read_jsonl(folder / "labelled.jsonl", Labelled)}


def test_gold_passes_through_and_missing_labels_are_filled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = [*rows(2), *rows(4, gold="keep")[2:]]
    texts = [GOOD.format("yes"), "No idea", GOOD.format("keep"), GOOD.format("drop")]
    summary = _label(tmp_path, train, _replay(tmp_path, texts))
    found = _labelled(tmp_path)
    assert list(found) == ["r0000", "r0002", "r0003"]
    first = found["r0000"]
    assert (first.output_text, first.label_source) == ("yes", "teacher")
    assert (first.teacher_label, first.agreement) == ("yes", 1.0)
    assert (found["r0003"].output_text, found["r0003"].label_source) == ("keep", "gold")
    assert found["r0003"].teacher_label == "drop"
    assert {k: summary[k] for k in ("rows", "rows_gold", "rows_missing", "rows_labelled",
                                    "rows_failed", "audit_rows", "audit_correct",
                                    "audit_unparsable")} == {
        "rows": 4, "rows_gold": 2, "rows_missing": 2, "rows_labelled": 3, "rows_failed": 1,
        "audit_rows": 2, "audit_correct": 1, "audit_unparsable": 0}  # fmt: skip
    assert summary["teacher_accuracy"] == 0.5
    assert "teacher label accuracy: 1 of 2 = 50.0 % (0 unparsable)" in capsys.readouterr().out
    (failed,) = (tmp_path / "labelled.jsonl.failed.jsonl").read_text().splitlines()
    assert json.loads(failed) == {"id": "r0001", "source_row": 1, "reason": "no answer marker"}
    assert all(type(value) in (int, float) for value in summary.values())


def test_too_few_answers_fail_the_step_with_counts(tmp_path: Path) -> None:
    texts = [GOOD.format("yes")] * 8 + ["Hm"] * 2
    assert _label(tmp_path, rows(10), _replay(tmp_path, texts, min_success=0.8))["rows"] == 10
    with pytest.raises(WorkError, match=r"TEACHER_MIN_SUCCESS.*8 of 10 rows = 80.0%, needed: 81"):
        _label(tmp_path, rows(10), _replay(tmp_path, texts, min_success=0.81))
    assert len((tmp_path / "labelled.jsonl.failed.jsonl").read_text().splitlines()) == 2


def test_an_audit_alone_never_fails_the_step(tmp_path: Path) -> None:
    config = _replay(tmp_path, ["Hm"] * 5, min_success=1.0)
    summary = _label(tmp_path, rows(5, gold="yes"), config)
    assert (summary["audit_unparsable"], summary["teacher_accuracy"]) == (5, 0.0)
    nothing = _label(tmp_path, [], config)
    assert (nothing["rows"], nothing["teacher_accuracy"]) == (0, -1.0)


def test_shards_part_the_rows_and_the_audit(tmp_path: Path) -> None:
    config = _replay(tmp_path, [GOOD.format("yes")] * 300, audit_rows=40)
    train = [*rows(100), *rows(200, gold="yes")[100:]]
    held = [Example(id=f"e{n}", input_text="x", output_text="no", source_row=n) for n in range(60)]
    seen: set[str] = set()
    sums = {"rows": 0, "audit_rows": 0, "audit_correct": 0}
    for number in range(3):
        options = {"shard": f"{number}/3", "evaluation": held}
        summary = _label(tmp_path, train, config, **options)
        ids = set(_labelled(tmp_path))
        assert not ids & seen
        assert 40 < len(ids) < 90
        seen |= ids
        sums = {name: sums[name] + summary[name] for name in sums}
    whole = _label(tmp_path, train, config, evaluation=held)
    assert len(seen) == 200
    assert sums == {name: whole[name] for name in sums}
    assert whole["audit_rows"] == 40
    assert 0 < whole["audit_correct"] < 40


def test_audit_choice_does_not_depend_on_order() -> None:
    gold = rows(50, gold="x")
    chosen = audit_choice([*rows(5), *gold], 10)
    assert len(chosen) == 10
    assert audit_choice(list(reversed(gold)), 10) == chosen
    assert audit_choice(gold, -1) == gold
    assert audit_choice(gold, 0) == []


@pytest.mark.parametrize("shard", ["", "1", "2/2", "-1/2", "0/0", "a/b", "0/1/2", "²/3"])
def test_a_wrong_shard_is_named(shard: str) -> None:
    with pytest.raises(UserError, match="SHARD"):
        parse_shard(shard)
    assert parse_shard("1/2") == (1, 2)
    assert in_shard("x", 0, 1)


def _answers(*labels: str | None) -> list[Answer]:
    return [
        Answer(id="r", sample=n, raw="r", label=label, rationale=f"because of {n} reasons")
        for n, label in enumerate(labels)
    ]


def test_majority_votes() -> None:
    assert majority(_answers("a", "b", "B "), "exact").label == "b"
    assert majority(_answers("b", "a", None), "exact").label == "b"
    vote = majority(_answers("1 + 1", None, "3", "4 / 2"), "equation")
    assert (vote.label, vote.agreement) == ("1 + 1", pytest.approx(2 / 3))
    assert majority(_answers(None, None), "exact").label is None


def test_samples_vote_on_the_label(tmp_path: Path) -> None:
    with server() as state:
        replies = iter([GOOD.format(label) for label in ("no", "yes", "yes")])
        state.reply = lambda prompt: next(replies)
        config = server_config(state, samples=3, concurrency=1, audit_rows=0)
        _label(tmp_path, rows(1), config)
        row = _labelled(tmp_path)["r0000"]
        assert (row.output_text, row.agreement) == ("yes", pytest.approx(2 / 3))
        config_two = RationaleConfig()
        table = extract_rationales(
            str(tmp_path / "labelled.jsonl"), str(tmp_path / "done.jsonl"),
            state_dir=str(tmp_path / "state"), teacher=config, config=config_two,
        )  # fmt: skip
        assert (table["calls_made"], table["calls_from_journal"]) == (0, 3)
        assert table["rationale_kept"] == 1


FILTER_CASES = [
    ("", "unparsed"),
    ("Words without an end", "unparsed"),
    ("So the answer is yes.", "unparsed"),
    ("The kettle is new and boxed. So the answer is no.", "disagrees"),
    ("New. So the answer is yes.", "too_short"),
    ("word " * 30 + "So the answer is yes.", "too_long"),
    ("The answer is yes. So the answer is yes.", "leak"),
    ("a red kettle, boxed So the answer is yes.", "leak"),
    ("The kettle is new. Q: next So the answer is yes.", "unparsed"),
    ("The kettle is new and boxed. So the answer is yes.", "kept"),
]


@pytest.mark.parametrize(("text", "status"), FILTER_CASES)
def test_each_filter_drops_its_case(tmp_path: Path, text: str, status: str) -> None:
    train = [Example(id="a", input_text="a red kettle, boxed (0)", output_text="yes", source_row=0)]
    config = _replay(tmp_path, [text], prompt="cqa.v1")
    _label(tmp_path, train, config)
    table = extract_rationales(
        str(tmp_path / "labelled.jsonl"), str(tmp_path / "done.jsonl"), state_dir="",
        teacher=config, config=RationaleConfig(max_words=20),
    )  # fmt: skip
    (row,) = read_jsonl(tmp_path / "done.jsonl", Labelled)
    assert row.rationale_status == status
    assert (row.rationale is not None) is (status == "kept")
    name = "rationale_kept" if status == "kept" else f"rationale_dropped_{status}"
    assert table[name] == 1
    assert table["rationale_asked"] == 1
    assert row.output_text == "yes"


def test_every_filter_has_a_case() -> None:
    assert {status for _, status in FILTER_CASES} | {"unanswered"} == {*FILTERS, "kept"}


def test_filters_can_be_switched_off_and_a_failed_call_is_counted(tmp_path: Path) -> None:
    config = _replay(tmp_path, [GOOD.format("no"), "The answer is yes. So the answer is yes."])
    _label(tmp_path, rows(3, gold="yes"), config)
    options = RationaleConfig(require_agreement=False, drop_leaks=False, min_words=0)
    table = extract_rationales(
        str(tmp_path / "labelled.jsonl"), str(tmp_path / "done.jsonl"), state_dir="",
        teacher=config, config=options,
    )  # fmt: skip
    assert (table["rationale_kept"], table["rationale_dropped_unanswered"]) == (2, 1)
    with pytest.raises(WorkError, match=r"TEACHER_MIN_SUCCESS.*2 of 3.*no recorded answer"):
        extract_rationales(
            str(tmp_path / "labelled.jsonl"), str(tmp_path / "done.jsonl"), state_dir="",
            teacher=TeacherConfig(**vars(config) | {"min_success": 0.9}), config=options,
        )  # fmt: skip


def test_the_first_sample_that_passes_is_kept() -> None:
    row = Labelled(id="r", input_text="q", output_text="b", label_source="gold")
    prompt = load_prompt("generic.v1")
    chosen = choose(row, _answers(None, "a", "b", "b"), prompt, RationaleConfig())
    assert (chosen.rationale, chosen.rationale_status) == ("because of 2 reasons", "kept")
    assert (chosen.teacher_label, chosen.output_text) == ("b", "b")
    none = choose(row, _answers("a", None), prompt, RationaleConfig())
    assert (none.rationale, none.rationale_status) == (None, "disagrees")


def test_collect_joins_and_sums(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [GOOD.format("yes" if n % 4 else "no") for n in range(60)]
    config = _replay(tmp_path, texts, audit_rows=-1)
    train = rows(60, gold="yes")
    paths: dict[str, list[str]] = {"rows": [], "labels": [], "rationales": []}
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        labels = _label(folder, train, config, shard=f"{number}/2")
        table = extract_rationales(
            str(folder / "labelled.jsonl"), str(folder / "rows.jsonl"),
            state_dir=str(folder / "state"), teacher=config, config=RationaleConfig(),
        )  # fmt: skip
        write_json(folder / "labels.json", labels)
        write_json(folder / "table.json", table)
        for kind, name in zip(paths, ("rows.jsonl", "labels.json", "table.json"), strict=True):
            paths[kind].append(str(folder / name))
    target = tmp_path / "all.jsonl"
    summary = collect(paths["rows"], paths["labels"], paths["rationales"], str(target))
    assert [row.id for row in read_jsonl(target, Labelled)] == [row.id for row in train]
    assert summary["teacher_accuracy"] == 0.75
    assert summary["audit_rows"] == 60
    assert summary["rationale_kept"] == 45
    assert summary["rationale_yield"] == 0.75
    assert (summary["calls_made"], summary["calls_from_journal"]) == (60, 60)
    assert summary["rationale_dropped_disagrees"] == 15
    out = capsys.readouterr().out
    assert "teacher label accuracy: 45 of 60 = 75.0 %" in out
    assert "60 calls made" in out
    with pytest.raises(UserError, match="SHARD_ROWS_DOUBLE"):
        collect([paths["rows"][0]] * 2, [], [], str(target))
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(UserError, match="METRICS_UNREADABLE"):
        collect([], [str(tmp_path / "bad.json")], [], str(target))
