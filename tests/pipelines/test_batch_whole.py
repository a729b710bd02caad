"""The batch pipeline, end to end: shards, rejects, a copy of the answers, and the cache."""

import json

import pytest

from pipestill import pipelines
from pipestill.errors import UserError
from pipestill.pipelines.local import run_local
from tests.training.tiny import make_folder


@pytest.mark.slow
def test_the_whole_pipeline(tmp_path):
    rows = [{"id": f"r{n}", "input_text": "a b " * (n % 7 + 1)} for n in range(30)]
    rows[11] = {"id": "bad", "input_text": ""}
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, copy = make_folder("llama", tmp_path / "model"), tmp_path / "answers.jsonl"
    given = {
        "dataset_uri": str(source),
        "model_reference": model,
        "shards": ["0/2", "1/2"],
        "output_uri": str(copy),
        "batch_size": 4,
        "max_output_tokens": 4,
        "max_rejected_fraction": 0.1,
    }
    graph, said = pipelines.build("batch_predict"), []
    summary = run_local(graph, given, tmp_path / "run", say=said.append)
    found = [json.loads(line) for line in copy.read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in found] == [row["id"] for row in rows if row["id"] != "bad"]
    assert (summary["rows_answered"], summary["rows_rejected"]) == (29, 1)
    assert summary["reasons"] == {"empty_input": 1}
    assert any("rows read" in line for line in summary["table"])
    (reject,) = (tmp_path / "answers.jsonl.rejects.jsonl").read_text().splitlines()
    assert json.loads(reject)["line"] == 12

    again = run_local(graph, given, tmp_path / "run", say=said.append)
    assert again["steps"] == {"ran": 2, "cached": 3}  # the digests always run
    (tmp_path / "model" / "pipestill.json").write_text(
        '{"objective": "label_only", "max_input_tokens": 64, "max_output_tokens": 3}'
    )
    changed = run_local(graph, given, tmp_path / "run", say=said.append)
    assert changed["steps"]["ran"] == 5  # another model at the same place is not found


@pytest.mark.slow
def test_too_many_bad_rows_are_one_line(tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_text('{"input_text": "a"}\n{oops\n')
    given = {"dataset_uri": str(source), "model_reference": make_folder("llama", tmp_path / "m")}
    with pytest.raises(UserError, match=r"BATCH_REJECTED.*1 of 2 rows.*rows.jsonl:2") as error:
        run_local("batch_predict", given, tmp_path / "run", say=lambda _: None)
    assert "\n" not in str(error.value)
