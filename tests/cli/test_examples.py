"""The shipped configurations name only parameters that exist, with values of the right type."""

from pathlib import Path

import pytest

from pipestill import pipelines
from pipestill.cli.run import parameter_types
from pipestill.cli.settings import load

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


def test_there_are_examples():
    names = {path.stem for path in EXAMPLES}
    assert {"demo", "svamp_palm", "cqa_palm", "esnli_palm", "flan_t5"} <= names
    assert {"tune_text", "tune_chat", "tune_code"} <= names


PIPELINES = {
    "tune": "supervised_tuning",
    "distill": "distill",
    "rlhf": "rlhf",
    "retrain": "retrain",
    "batch": "batch_predict",
    "evaluate": "evaluate",
    "claims": "claims",
}


def pipeline_of(path: Path) -> str:
    return PIPELINES.get(path.stem.partition("_")[0], "distill_step_by_step")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, monkeypatch):
    monkeypatch.chdir(path.parents[1])
    found = load(str(path), [], parameter_types(pipelines.build(pipeline_of(path))))
    assert found.get("dataset_uri") or found["preference_dataset"]
    assert found.get("title") or pipeline_of(path) in ("batch_predict", "retrain")
    assert all(len(line) <= 100 for line in path.read_text(encoding="utf-8").splitlines())
    if path.stem.endswith("_palm"):
        assert found["teacher_backend"] == "replay"
        assert found["teacher_audit_rows"] == -1
        assert found["runs"] == ["dss:0", "label_only:0", "shuffled:0"]


def test_the_demo_compares_three_arms_over_the_same_five_seeds():
    (path,) = (path for path in EXAMPLES if path.stem == "demo")
    found = load(str(path), [], parameter_types(pipelines.build("distill_step_by_step")))
    arms = ("dss", "label_only", "shuffled")
    assert found["runs"] == [f"{arm}:{seed}" for arm in arms for seed in range(5)]
    assert found["eval_shots"] == "0,2,5"
