"""The components of preference data, as Kubeflow Pipelines calls them."""

import dataclasses
import inspect
import json
import os
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl, local

from pipestill.components.judge_label import judge_label
from pipestill.components.preference_prep import preference_prep
from pipestill.config import PreferenceConfig, TeacherConfig
from pipestill.records import Example, Preference, read_jsonl, write_jsonl

# What a judge has no use for: it is greedy, takes all examples of its prompt and audits nothing.
NO_JUDGE = {"shots", "samples", "temperature", "min_success", "audit_rows", "prompt"}
OUTPUTS = ("preferences", "preference_evaluation", "prompts", "prompt_evaluation", "rejects")


def defaults_of(component: Any) -> dict[str, Any]:
    parameters = inspect.signature(component.python_func).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


@pytest.mark.parametrize(
    ("component", "config", "prefix", "without"),
    [
        (preference_prep, PreferenceConfig, "", set()),
        (judge_label, TeacherConfig, "judge_", NO_JUDGE),
    ],
)
def test_defaults_are_those_of_the_configuration(
    component: Any, config: type, prefix: str, without: set[str]
) -> None:
    defaults = defaults_of(component)
    for field in dataclasses.fields(config):
        if field.name not in without:
            assert defaults[prefix + field.name] == field.default, field.name
            assert type(defaults[prefix + field.name]) is type(field.default), field.name


def artifact(folder: Path, name: str, kind: type = dsl.Dataset) -> Any:
    return kind(name=name, uri=str(folder / name))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"id": f"p{n}", "input_text": f"q {n}", "candidate_0": "a", "candidate_1": "b", "choice": 0}
        for n in range(60)
    ]
    write_jsonl(path, rows)
    return path


def test_prep_component_in_process(pairs: Path, tmp_path: Path) -> None:
    outputs = {name: artifact(tmp_path, f"out_{name}") for name in OUTPUTS}
    metrics = artifact(tmp_path, "metrics", dsl.Metrics)
    # Whole numbers may arrive as floats.
    preference_prep.python_func(
        str(pairs), "", "k", metrics=metrics, target_sequence_length=32.0, **outputs
    )
    summary = json.loads(Path(metrics.path).read_text())
    assert outputs["preferences"].metadata == outputs["prompts"].metadata == summary
    rows = list(read_jsonl(outputs["preferences"].path, Preference))
    assert len(rows) == summary["pairs_train"] == 60 - summary["pairs_eval"]
    held = list(read_jsonl(outputs["prompt_evaluation"].path, Example))
    assert len(held) == summary["prompts_eval"] > 0


def test_judge_component_in_process(pairs: Path, tmp_path: Path) -> None:
    recorded = tmp_path / "recorded.json"
    recorded.write_text(json.dumps(["A", "B"] * 30 + ["A"] * 60))
    candidates = artifact(tmp_path, "pairs.jsonl")
    preferences, metrics = (
        artifact(tmp_path, name, kind)
        for name, kind in (("judged", dsl.Dataset), ("metrics", dsl.Metrics))
    )
    judge_label.python_func(
        candidates, "k", preferences, metrics, judge_backend="replay",
        judge_replay_uri=str(recorded),
    )  # fmt: skip
    summary = json.loads(Path(metrics.path).read_text())
    assert (summary["agreed"], summary["order_conflicts"]) == (30, 30)
    assert preferences.metadata == metrics.metadata == summary
    assert len(list(read_jsonl(preferences.path, Preference))) == 30


def test_the_components_run_as_a_pipeline(pairs: Path, tmp_path: Path) -> None:
    recorded = tmp_path / "recorded.json"
    recorded.write_text(json.dumps(["A", "B"] * 60))

    @dsl.pipeline
    def feedback(pair_uri: str, replay_uri: str) -> None:
        rows = dsl.importer(artifact_uri=pair_uri, artifact_class=dsl.Dataset, reimport=False)
        judge_label(
            candidates=rows.output, cache_key="k", judge_backend="replay",
            judge_replay_uri=replay_uri,
        )  # fmt: skip
        preference_prep(
            preference_dataset_uri=pair_uri, prompt_dataset_uri="", cache_key="k",
            large_model_reference="",
        )  # fmt: skip

    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        local.init(
            runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "out")
        )
        feedback(pair_uri=str(pairs), replay_uri=str(recorded))
    finally:
        os.chdir(here)
    found = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("metrics")]
    assert sorted(item.get("agreed", 0) for item in found) == [0, 60]
    assert max(item.get("pairs_train", 0) for item in found) > 40
