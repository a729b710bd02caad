"""The labelling components in a row, as Kubeflow Pipelines calls them, on the pocket teacher."""

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from kfp import dsl

from pipestill import pocket
from pipestill.components.collect_rows import collect_rows
from pipestill.components.rationale_extract import rationale_extract
from pipestill.components.teacher_label import teacher_label
from pipestill.config import RationaleConfig, TeacherConfig
from pipestill.records import Example, Labelled, read_jsonl, write_jsonl


def _artifact(folder: Path, name: str, kind: type = dsl.Dataset) -> Any:
    return kind(name=name, uri=str(folder / name))


def _defaults(component: Any) -> dict[str, Any]:
    parameters = inspect.signature(component.python_func).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


@pytest.mark.parametrize(
    ("component", "config", "prefix", "without"),
    [
        (teacher_label, TeacherConfig, "teacher_", set()),
        (rationale_extract, TeacherConfig, "teacher_", {"audit_rows"}),
        (rationale_extract, RationaleConfig, "rationale_", set()),
    ],
)
def test_defaults_are_those_of_the_configuration(
    component: Any, config: type, prefix: str, without: set[str]
) -> None:
    defaults = _defaults(component)
    for field in dataclasses.fields(config):
        if field.name not in without:
            assert defaults[prefix + field.name] == field.default, field.name


def _rows(file: Path, count: int) -> list[Example]:
    rows = []
    with file.open(encoding="utf-8") as source:
        for number, line in zip(range(count), source, strict=False):
            value = json.loads(line)
            label, why = value.get("output_text"), value.get("rationale")
            rows.append(
                Example(
                    id=value["id"],
                    input_text=value["input_text"],
                    output_text=label,
                    rationale=why,
                    source_row=number,
                )
            )
    return rows


@pytest.mark.skipif(
    not pocket.POCKET["pocket-teacher"].is_dir(), reason="the pocket teacher is not built"
)
def test_two_shards_of_the_pocket_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    train, evaluation = _artifact(tmp_path, "train"), _artifact(tmp_path, "evaluation")
    write_jsonl(train.path, _rows(pocket.DATA_DIR / "train.jsonl", 24))
    write_jsonl(evaluation.path, _rows(pocket.DATA_DIR / "eval.jsonl", 12))
    shards, label_metrics, tables = [], [], []
    # Whole numbers may arrive as floats.
    teacher = {"state_dir": str(tmp_path / "state"), "teacher_shots": 3.0, "cache_key": "k"}
    for number in range(2):
        folder = tmp_path / str(number)
        labelled, rationales = _artifact(folder, "labelled"), _artifact(folder, "rationales")
        label_metrics.append(_artifact(folder, "label_metrics", dsl.Metrics))
        tables.append(_artifact(folder, "table", dsl.Metrics))
        teacher_label.python_func(
            train=train,
            evaluation=evaluation,
            labelled=labelled,
            metrics=label_metrics[-1],
            shard=f"{number}/2",
            teacher_audit_rows=12,
            **teacher,
        )
        rationale_extract.python_func(
            labelled=labelled, rationales=rationales, metrics=tables[-1], **teacher
        )
        shards.append(rationales)
    rows = _artifact(tmp_path, "training_rows")
    metrics = _artifact(tmp_path, "metrics", dsl.Metrics)
    collect_rows.python_func(
        shards=shards,
        shard_metrics=tables,
        label_metrics=label_metrics,
        training_rows=rows,
        metrics=metrics,
    )
    summary = json.loads(Path(metrics.path).read_text())
    assert rows.metadata == summary == metrics.metadata
    assert summary["rows"] == 24
    assert summary["audit_rows"] == 12
    found = list(read_jsonl(rows.path, Labelled))
    assert len(found) == summary["rows_labelled"] == 24 - summary["rows_failed"]
    assert {row.label_source for row in found} == {"gold", "teacher"}
    assert summary["teacher_accuracy"] == summary["audit_correct"] / 12
    kept = [row for row in found if row.rationale_status == "kept"]
    assert len(kept) == summary["rationale_kept"] > 0
    assert all(row.rationale and row.teacher_label == row.output_text for row in kept)
    # What the labelling step asked about, the rationale step finds in the journal.
    assert summary["calls_from_journal"] >= summary["rows_labelled"] - summary["rows_gold"]
    assert summary["cached_prompt_tokens"] > 0.5 * summary["prompt_tokens"]
    assert "teacher label accuracy" in capsys.readouterr().out
