"""The retrain pipeline, end to end on a tiny model: trained, repeated, promoted, not trained."""

import json
from pathlib import Path

import pytest

from pipestill import pipelines
from pipestill.pipelines.local import run_local
from pipestill.retrain.ledger import Book
from tests.retrain.scripted import START, WEEK, fill, write_rows
from tests.training.tiny import make_folder


def parameters(folder, **changes):
    write_rows(folder / "regression.jsonl", "regression", 12)
    return {
        "dataset_uri": str(folder / "rows"),
        "retrain_dir": str(folder / "book"),
        "evaluation_data_uri": str(folder / "regression.jsonl"),
        "large_model_reference": make_folder("t5_tied", folder / "base"),
        "tick_time": "2026-01-05T03:00:00Z",
        "min_new_rows": 30,
        "least_new_rows": 10,
        "eval_fraction": 0.3,
        "train_steps": 2,
        "batch_size": 4,
        "evaluation_interval": 2,
        "max_output_tokens": 32,
        "latency_rows": 1,
        **changes,
    }


@pytest.mark.slow
def test_three_ticks(tmp_path):
    graph, lines = pipelines.build("retrain"), []
    for week, count in enumerate([50, 5]):
        fill(tmp_path / "rows", week, count)
    given = parameters(tmp_path, gate_override="first model, by hand")
    summary = run_local(graph, given, tmp_path / "run", say=lines.append)
    assert summary["decision"] == "promote"
    assert summary["entry"]["by_rules"] == "cannot_tell"
    assert summary["steps"]["ran"] == 7
    names = {rule["name"] for rule in summary["entry"]["numbers"]["rules"]}
    assert {"new_rows_better", "regression", "slices"} <= names
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "first model, by hand" in page
    book = Book.at(tmp_path / "book")
    alias = book.production()
    assert (Path(book.root) / alias["model"] / "model.safetensors").is_file()
    ledger = (Path(book.root) / "ledger.jsonl").read_bytes()

    again = run_local(graph, given, tmp_path / "run", say=lines.append)
    assert again["decision"] == "promote"
    assert "decided already" in again["verdict_sentence"]
    assert again["steps"] == {"ran": 4, "cached": 0}  # time, window, skip, report
    assert (Path(book.root) / "ledger.jsonl").read_bytes() == ledger

    later = (START + WEEK).strftime("%Y%m%d%H%M%S")
    few = run_local(graph, {**given, "tick_time": later}, tmp_path / "run", say=lines.append)
    assert few["decision"] == "not_trained"
    assert few["tick"]["champion"] == book.model_of(alias)
    assert few["verdict_sentence"].endswith("No: 5 new rows, wanted 10 at least.")
    assert [json.loads(line)["decision"] for line in few_lines(book)] == ["promote", "not_trained"]


def few_lines(book):
    return (Path(book.root) / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
