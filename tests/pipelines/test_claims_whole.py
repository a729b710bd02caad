"""The claims, end to end, on the pocket models: every step for real, at the smallest size."""

import pytest

from pipestill import pipelines
from pipestill.pipelines.local import run_local

FEW = {
    "dataset_uri": "pocket:teacher",
    "evaluation_data_uri": "pocket:eval",
    "max_rows": 40,
    "max_context_length": "96",
    "max_output_tokens": 48,
    "teacher_prompt": "refund_desk.v2",
    "teacher_shots": 2,
    "teacher_audit_rows": 4,
    "arms": ["finetune", "dss"],
    "shares": "0.5,1",
    "seeds": "0",
    "learning_rates": "0.001",
    "train_steps": 3,
    "batch_size": 8,
    "tune_train_steps": 3,
    "tune_batch_size": 8,
    "eval_shots": "0,2",
    "eval_rows": 24,
    "latency_rows": 2,
    "precision": "fp32",
}


@pytest.mark.slow
def test_the_whole_pipeline(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPESTILL_CODE_VERSION", "1")  # the checkout may change under the test
    graph = pipelines.build("claims")
    summary = run_local(graph, FEW, tmp_path / "run", say=lambda _: None)
    assert summary["rows"] == 24
    outcomes = {claim["number"]: claim["outcome"] for claim in summary["claims"]}
    assert set(outcomes) == {1, 2, 3, 4, 5}
    assert outcomes[4] == "not_measured"  # no preferences were given
    assert set(outcomes.values()) <= {"shown", "not_shown", "cannot_tell", "not_measured"}
    assert {"tuned", "teacher_0_shot", "teacher_2_shot", "dss", "finetune"} <= set(summary["arms"])
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "A tuned model needs no examples" in page
    assert len(page) < 2_000_000

    again = run_local(graph, FEW, tmp_path / "run", say=lambda _: None)
    assert again["steps"]["ran"] == 1  # the digest alone
    assert again["claims"] == summary["claims"]
