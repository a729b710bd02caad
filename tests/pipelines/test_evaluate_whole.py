"""The evaluation pipeline, end to end, on tiny models with known answers."""

import json

import pytest

from pipestill import pipelines
from pipestill.cli.run import closing
from pipestill.errors import UserError
from pipestill.pipelines.local import run_local
from tests.evaluation import tiny


def parameters(folder, **changes):
    rows = [
        {"id": r.id, "input_text": r.input_text, "output_text": r.output_text} for r in tiny.rows()
    ]
    rows += [{"id": "open", "input_text": "no answer"}, {"id": "bad", "input_text": ""}]
    source = folder / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {
        "dataset_uri": str(source),
        "models": [
            tiny.student(folder / "runs" / "yes" / "model", "dss", 0, "yes"),
            f"plain={tiny.base(folder / 'no', 'no')}",
        ],
        "baseline": "plain",
        "latency_rows": 2,
        **changes,
    }


@pytest.mark.slow
def test_the_whole_pipeline(tmp_path):
    graph, given = pipelines.build("evaluate"), parameters(tmp_path)
    summary = run_local(graph, given, tmp_path / "run", say=lambda _: None)
    assert summary["rows"] == 24
    accuracy = {arm: entry["accuracy"] for arm, entry in summary["arms"].items()}
    assert accuracy == pytest.approx({"yes": 16 / 24, "plain": 8 / 24})
    assert list(summary["comparisons"]) == ["yes_vs_plain"]
    # every row that was read is asked, or said to be left out
    data = summary["data"]
    assert (data["rows_read"], data["rows_rejected"], data["rows_without_gold"]) == (26, 1, 1)
    shown = closing(summary, tmp_path / "run")
    assert "66.7 %" in shown
    assert "which were not asked: 1." in shown
    assert "Against plain" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")

    tiny.base(tmp_path / "no", "yes")  # another model at the same place is not found in the cache
    again = run_local(graph, given, tmp_path / "run", say=lambda _: None)
    assert again["arms"]["plain"]["accuracy"] == pytest.approx(16 / 24)

    with pytest.raises(UserError, match=r"BASELINE_UNKNOWN.*allowed: yes, plain") as error:
        run_local(graph, {**given, "baseline": "x"}, tmp_path / "run", say=lambda _: None)
    assert "\n" not in str(error.value)
