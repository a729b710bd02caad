"""The recorded PaLM-540B answers of three real data sets, through the labelling step."""

import json
from pathlib import Path

import pytest

from pipestill.config import RationaleConfig, TeacherConfig
from pipestill.generation.label import label_shard
from pipestill.generation.rationale import extract_rationales
from pipestill.records import Example, write_jsonl

NLI = ("entailment", "neutral", "contradiction")


def _cqa(row: dict) -> tuple[str, str]:
    choices = "\n".join(
        f"({letter}) {text}" for letter, text in zip("abcde", row["choices"], strict=True)
    )
    return f"{row['question']}\nAnswer Choices:\n{choices}", row["answer"]


def _esnli(row: dict) -> tuple[str, str]:
    return f"Premise: {row['premise']}\nHypothesis: {row['hypothesis']}", NLI[row["label"]]


def _svamp(row: dict) -> tuple[str, str]:
    return row["input"], row["label"]


# data set: rows, recorded answers, reader, rows in all, right answers, unparsable answers
SETS = {
    "cqa": ("dss_cqa/cqa_train.json", "dss_cqa/llm/train_CoT_*.json", _cqa, 9741, 7234, 318),
    "esnli": (
        "dss_esnli/esnli_valid.json",
        "dss_esnli/llm/valid_CoT_*.json",
        _esnli,
        9842,
        7201,
        4,
    ),
    "svamp": ("dss_svamp/svamp_train.json", "dss_svamp/llm/train_CoT_*.json", _svamp, 800, 594, 34),
}


def _rows(path: Path, reader) -> list[Example]:
    rows = []
    with path.open(encoding="utf-8") as source:
        for number, line in enumerate(source):
            text, label = reader(json.loads(line))
            rows.append(
                Example(id=f"{number:06d}", input_text=text, output_text=label, source_row=number)
            )
    return rows


@pytest.mark.parametrize("name", SETS)
def test_teacher_accuracy_on_recorded_answers(
    name: str, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows_file, recorded, reader, total, correct, unparsable = SETS[name]
    teacher = TeacherConfig(
        backend="replay",
        prompt=f"{name}.v1",
        replay_uri=str(shared_data / recorded),
        audit_rows=-1,
    )
    write_jsonl(tmp_path / "train.jsonl", _rows(shared_data / rows_file, reader))
    write_jsonl(tmp_path / "evaluation.jsonl", [])
    summary = label_shard(
        str(tmp_path / "train.jsonl"),
        str(tmp_path / "evaluation.jsonl"),
        str(tmp_path / "labelled.jsonl"),
        shard="0/1",
        state_dir=str(tmp_path / "state"),
        config=teacher,
    )
    assert summary["audit_rows"] == summary["rows"] == total
    assert (summary["audit_correct"], summary["audit_unparsable"]) == (correct, unparsable)
    line = f"teacher label accuracy: {correct} of {total} = {100 * correct / total:.1f} %"
    assert line in capsys.readouterr().out

    table = extract_rationales(
        str(tmp_path / "labelled.jsonl"),
        str(tmp_path / "rationales.jsonl"),
        state_dir=str(tmp_path / "state"),
        teacher=teacher,
        config=RationaleConfig(),
    )
    assert table["calls_made"] == 0
    assert table["calls_from_journal"] == total
    assert 0.7 < table["rationale_yield"] <= correct / total
    dropped = sum(v for k, v in table.items() if k.startswith("rationale_dropped_"))
    assert dropped + table["rationale_kept"] == total


def test_the_recorded_answers_can_give_the_missing_labels(
    shared_data: Path, tmp_path: Path
) -> None:
    rows_file, recorded, reader, *_ = SETS["svamp"]
    rows = _rows(shared_data / rows_file, reader)[:100]
    bare = [Example(id=r.id, input_text=r.input_text, source_row=r.source_row) for r in rows]
    write_jsonl(tmp_path / "train.jsonl", bare)
    write_jsonl(tmp_path / "evaluation.jsonl", [])
    summary = label_shard(
        str(tmp_path / "train.jsonl"),
        str(tmp_path / "evaluation.jsonl"),
        str(tmp_path / "labelled.jsonl"),
        shard="0/1",
        state_dir="",
        config=TeacherConfig(
            backend="replay", prompt="svamp.v1", replay_uri=str(shared_data / recorded)
        ),
    )
    assert summary["rows_labelled"] + summary["rows_failed"] == 100
    assert summary["rows_labelled"] >= 90
    assert summary["rows_gold"] == 0
    failed = (tmp_path / "labelled.jsonl.failed.jsonl").read_text().splitlines()
    assert len(failed) == summary["rows_failed"]
