"""The tuning pipeline, end to end, on a tiny chat model: every step for real."""

import json

import pytest

from pipestill import pipelines
from pipestill.errors import UserError
from pipestill.pipelines.local import run_local
from tests.training.tiny import COLOURS, make_folder


def chats(path, count=40):
    rows = []
    for i in range(count):
        letter, colour = "abc"[i % 3], COLOURS[i % 3]
        turns = [("user", f"hi {i}"), ("assistant", "yes?"), ("user", letter * 3)]
        messages = [{"author": who, "content": text} for who, text in turns]
        rows.append({"messages": [*messages, {"author": "assistant", "content": colour}]})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def parameters(folder, **changes):
    return {
        "dataset_uri": chats(folder / "chats.jsonl"),
        "data_format": "chat_messages",
        "dedupe": False,
        "eval_fraction": 0.3,
        "large_model_reference": make_folder("llama", folder / "base"),
        "task": "chat",
        "method": "lora",
        "train_steps": 4,
        "batch_size": 4,
        "evaluation_interval": 2,
        "max_output_tokens": 32,
        "latency_rows": 1,
        "deploy_dir": str(folder / "served"),
        **changes,
    }


@pytest.mark.slow
def test_the_whole_pipeline(tmp_path):
    graph, lines = pipelines.build("supervised_tuning"), []
    given = parameters(tmp_path)
    summary = run_local(graph, given, tmp_path / "run", say=lines.append)
    assert summary["verdict"] in ("better", "worse", "cannot_tell")
    assert set(summary["arms"]) == {"tuned", "base"}
    assert summary["arms"]["tuned"]["perplexity"] > 1
    assert summary["data"]["rows_read"] == 80  # one row an assistant turn
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "What was trained" in page
    assert "<mark>" in page
    served = tmp_path / "served"
    assert (served / "model.safetensors").exists()
    assert not (served / "audit.json").exists()  # rows do not travel with the model
    card = (served / "README.md").read_text(encoding="utf-8")
    assert "tuned by pipestill" in card

    again = run_local(graph, given, tmp_path / "run", say=lines.append)
    assert again["steps"] == {"ran": 1, "cached": summary["steps"]["ran"] - 1}


@pytest.mark.slow
def test_a_failed_audit_is_one_line_with_the_row(tmp_path):
    """Text rows under task chat: refused in the tuning step, before any training."""
    rows = [{"id": f"r{i}", "input_text": f"row {i}", "output_text": "x"} for i in range(20)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    given = parameters(tmp_path, dataset_uri=str(path), data_format="auto")
    graph = pipelines.build("supervised_tuning")
    with pytest.raises(UserError, match=r"TRAIN_NO_MESSAGES.*supervised_tune: row r\d+") as error:
        run_local(graph, given, tmp_path / "run", say=lambda _: None)
    assert "\n" not in str(error.value)
