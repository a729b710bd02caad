"""What a distillation run says about its objectives: summary, reading, and the page."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipestill.evaluation import statistics
from pipestill.evaluation.arms import is_teacher, label, ordered
from pipestill.evaluation.distilled_report import write_distilled_report
from pipestill.evaluation.distilled_summary import distilled_summary, gap_closed
from pipestill.records import write_json, write_jsonl
from tests.evaluation.synthetic import predictions

SCORES = {
    "response": 0.82,
    "feature/cka": 0.7,
    "self/ema": 0.69,
    "teacher_labels": 0.7,
    "gold": 0.72,
    "base": 0.3,
    "teacher": 0.9,
}


def summary(scores=SCORES, rows=600, **changes):
    given = {"evaluation": {"metric": "exact"}, "data": {}, "teacher": {}, "labels": {}}
    training = [
        {"run": f"{arm}:{seed}", "objective": arm, "seed": seed, "cpu_seconds": 10.0 + seed}
        for arm in scores
        for seed in range(3)
        if arm not in ("base", "teacher")
    ]
    return distilled_summary(
        predictions(rows, scores), **{**given, "training": training, **changes}
    )


def test_the_objective_that_helped_is_named_and_the_others_are_not():
    found = summary()
    assert found["verdict"] == "better"
    assert found["helped"] == ["response"]
    assert found["verdict_sentence"].startswith("Response (+")
    assert "3 compared" in found["verdict_sentence"]
    assert found["comparisons"]["teacher_labels_vs_gold"]["p_holm"] is None
    assert found["arms"]["response"]["train_cpu_seconds"] == pytest.approx(11.0)


def test_nothing_helped_is_said_as_such():
    level = {**SCORES, "response": 0.7}
    found = summary(level)
    assert found["verdict"] == "cannot_tell"
    assert found["helped"] == []
    assert found["verdict_sentence"].startswith("Cannot tell Feature, cka (")
    worse = summary({**SCORES, "response": 0.5, "feature/cka": 0.71})
    assert worse["verdict"] == "worse"
    assert "falls behind" in worse["verdict_sentence"]


def test_what_hurt_is_said_beside_what_helped():
    found = summary({**SCORES, "self/ema": 0.4})
    assert found["verdict"] == "better"
    assert any(note.startswith("Self-distillation, ema falls behind") for note in found["notes"])


def test_each_size_is_compared_with_its_own_control():
    scores = {"response@2": 0.6, "teacher_labels@2": 0.5, "teacher_labels": 0.8, "base": 0.2}
    found = summary(scores, training=[])
    assert list(found["comparisons"]) == ["response@2_vs_teacher_labels@2"]


def test_a_run_without_its_control_cannot_tell():
    found = summary({"response": 0.8, "base": 0.2, "teacher": 0.9}, training=[])
    assert found["verdict"] == "cannot_tell"
    assert "teacher_labels" in found["verdict_sentence"]


def test_the_share_of_the_gap():
    flat = {arm: np.full(1000, value) for arm, value in SCORES.items()}
    found = gap_closed("response", flat)
    assert found["gap_closed"] == pytest.approx((0.82 - 0.3) / 0.6)
    assert found["gap_closed_ci95"] == pytest.approx([found["gap_closed"]] * 2)
    assert gap_closed("teacher", flat)["gap_closed"] is None
    no_room = {**flat, "teacher": np.full(1000, 0.3)}
    assert gap_closed("response", no_room)["gap_closed"] is None


def test_holm_by_hand():
    found = statistics.holm({"a": 0.04, "b": 0.01, "c": 0.03})
    assert found == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})
    assert statistics.holm({}) == {}
    assert statistics.holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_bootstrap_p_holds_its_level_where_nothing_differs():
    """Of 200 comparisons of two equal arms about 5 % have p < 0.05."""
    random = np.random.default_rng(0)
    small = 0
    for _ in range(200):
        one, other = (random.random(120) < 0.6 for _ in range(2))
        scores = {"a": {0: one.astype(float)}, "b": {0: other.astype(float)}}
        samples = statistics.bootstrap(scores, resamples=400)
        small += statistics.bootstrap_p(samples["a"], samples["b"]) < 0.05
    assert 2 <= small <= 22


def test_names_of_arms():
    assert label("feature/hidden_mse@5+1") == "Feature, hidden mse, 5+1 layers"
    assert label("teacher_labels@2") == "Teacher's answers, 2 layers"
    assert not is_teacher("teacher_labels@2")
    assert is_teacher("teacher")
    assert ordered(["base", "teacher", "gold", "self/ema", "response@2"]) == [
        "response@2",
        "self/ema",
        "gold",
        "base",
        "teacher",
    ]


def write_page(folder: Path) -> tuple[str, dict]:
    """A whole report from made-up files; the page's text and the summary."""
    made = predictions(300, SCORES)
    write_jsonl(folder / "p.jsonl", made)
    write_jsonl(folder / "rejects.jsonl", [])
    sizes = {arm: {"params": 1e6, "bytes": 4e6, "p50_ms": 5.0, "p95_ms": 6.0} for arm in SCORES}
    tokens = {"prompt_tokens": 38, "output_tokens": 2}
    curve = {"response:0": [[s, 1 / s, 0.5] for s in range(1, 9)]}
    arms = {arm: {**facts, **tokens} for arm, facts in sizes.items()}
    write_json(folder / "e.json", {"metric": "exact", "arms": arms, "curves": curve})
    write_json(folder / "d.json", {"rows_read": 400, "rows_train": 300, "rows_eval": 100})
    write_json(folder / "t.json", {"reference": "<b>teacher</b>", "parameters": 5_000_000})
    write_json(folder / "l.json", {"rows": 300, "accuracy": 0.91, "top_k": 64})
    paths = []
    for arm in ("response", "feature/cka"):
        facts = {"run": f"{arm}:0", "objective": arm, "seed": 0, "cpu_seconds": 12.0}
        shares = {"ce_share": 0.6, "kd_share": 0.4} if arm == "response" else {"cka_share": 0.01}
        paths.append(folder / f"{arm.replace('/', '-')}.json")
        write_json(paths[-1], {**facts, **shares})
    word = write_distilled_report(
        predictions_path=str(folder / "p.jsonl"),
        evaluation_metrics_path=str(folder / "e.json"),
        rejects_path=str(folder / "rejects.jsonl"),
        data_metrics_path=str(folder / "d.json"),
        teacher_metrics_path=str(folder / "t.json"),
        label_metrics_path=str(folder / "l.json"),
        train_metrics_paths=[str(path) for path in paths],
        page_path=str(folder / "page.html"),
        summary_path=str(folder / "s.json"),
        title="Bake-off",
    )
    found = json.loads((folder / "s.json").read_text())
    assert word == found["verdict"]
    return (folder / "page.html").read_text(), found


def test_the_page_holds_the_table_and_escapes_what_others_wrote(tmp_path):
    page, found = write_page(tmp_path)
    assert found["arms"]["response"]["gap_closed"] is not None
    for words in ("Gap closed", "Feature, cka", "Which objective helped", "ce", "91.0 %"):
        assert words in page
    assert "<b>teacher</b>" not in page
    assert "&lt;b&gt;teacher" in page
    assert "<script" not in page
    assert len(page) < 2_000_000
