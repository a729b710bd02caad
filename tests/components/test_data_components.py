"""The data components, as Kubeflow Pipelines calls them."""

import json
import os
from pathlib import Path

import pytest
from kfp import dsl, local

from pipestill.components.data_digest import data_digest
from pipestill.components.data_prep import data_prep
from pipestill.data.digest import run_digest
from pipestill.records import Example, read_jsonl


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = [{"input_text": f"question {n}", "output_text": "x"} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    return path


def test_digest_component(dataset: Path) -> None:
    assert data_digest.python_func(str(dataset)) == run_digest(dataset_uri=str(dataset))


def test_prep_component_in_process(dataset: Path, tmp_path: Path) -> None:
    artifacts = {
        name: kind(name=name, uri=str(tmp_path / name))
        for name, kind in {
            "train": dsl.Dataset,
            "evaluation": dsl.Dataset,
            "rejects": dsl.Dataset,
            "metrics": dsl.Metrics,
        }.items()
    }
    data_prep.python_func(
        dataset_uri=str(dataset), cache_key="k", student_model_reference="", **artifacts
    )
    summary = json.loads(Path(artifacts["metrics"].path).read_text())
    assert summary["rows_read"] == 41
    assert artifacts["train"].metadata == summary
    assert len(list(read_jsonl(artifacts["train"].path, Example))) == summary["rows_train"]


def test_components_run_as_a_pipeline(dataset: Path, tmp_path: Path) -> None:
    @dsl.pipeline
    def both(uri: str) -> None:
        key = data_digest(dataset_uri=uri)
        data_prep(dataset_uri=uri, cache_key=key.output, student_model_reference="")

    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        local.init(
            runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "out")
        )
        both(uri=str(dataset))
    finally:
        os.chdir(here)
    files = list((tmp_path / "out").rglob("metrics"))
    assert json.loads(files[0].read_text())["rejected_broken_json"] == 1
