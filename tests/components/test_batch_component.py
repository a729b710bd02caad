"""Components `batch_predict`, `collect_predictions` and `model_digest` as kfp runs them."""

import json

import pytest
from kfp import dsl, local

from pipestill.components.batch_predict import batch_predict
from pipestill.components.collect_predictions import collect_predictions
from pipestill.components.model_digest import model_digest
from pipestill.serving.batch import BatchConfig
from tests.training.tiny import make_folder


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [{"id": f"r{n}", "input_text": "a b c"} for n in range(5)] + [{"id": "bad"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def artifact(kind, path):
    return kind(name=path.name, uri=str(path), metadata={})


def test_a_shard_with_a_model_s_artifact(rows, tmp_path):
    folder = make_folder("t5_tied", tmp_path / "model")
    outputs = {name: artifact(dsl.Dataset, tmp_path / name) for name in ("predictions", "rejects")}
    metrics = artifact(dsl.Metrics, tmp_path / "metrics")
    batch_predict.python_func(
        rows,
        "key",
        **outputs,
        metrics=metrics,
        model=dsl.Model(name="model", uri=folder, metadata={}),
        model_reference="/not/used",
        shard="1/2",
        max_output_tokens=4,
        max_rejected_fraction=1.0,
    )
    found = [json.loads(line) for line in (tmp_path / "predictions").read_text().splitlines()]
    assert [row["id"] for row in found] == ["r1", "r3"]
    assert metrics.metadata["rows_rejected"] == 1
    assert json.loads((tmp_path / "metrics").read_text())["rows_read"] == 6
    json.dumps(metrics.metadata)


@pytest.mark.slow
def test_by_the_local_runner(rows, tmp_path):
    """The artifact is optional: without one the reference counts."""
    local.init(
        local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"),
        raise_on_error=True,
    )  # fmt: skip
    task = batch_predict(
        dataset_uri=rows,
        cache_key="key",
        model_reference=make_folder("t5_tied", tmp_path / "model"),
        batch_size=2,
        max_output_tokens=4,
        max_rejected_fraction=1.0,
    )
    assert task.outputs["metrics"].metadata["rows_answered"] == 5


def test_shards_are_joined(rows, tmp_path):
    folder = make_folder("t5_tied", tmp_path / "model")
    made = {"shards": [], "shard_rejects": [], "shard_metrics": []}
    for shard in ("0/2", "1/2"):
        place = tmp_path / shard.replace("/", "-")
        place.mkdir()
        outputs = {
            "predictions": artifact(dsl.Dataset, place / "out"),
            "rejects": artifact(dsl.Dataset, place / "bad"),
            "metrics": artifact(dsl.Metrics, place / "metrics"),
        }
        options = {"max_output_tokens": 4, "max_rejected_fraction": 1.0}
        batch_predict.python_func(
            rows, "key", **outputs, model_reference=folder, shard=shard, **options
        )
        for name, key in zip(made, outputs, strict=True):
            made[name].append(outputs[key])
    result = {
        "predictions": artifact(dsl.Dataset, tmp_path / "out"),
        "rejects": artifact(dsl.Dataset, tmp_path / "bad"),
        "summary": artifact(dsl.Metrics, tmp_path / "summary"),
    }
    collect_predictions.python_func(**made, **result, output_uri=str(tmp_path / "copy.jsonl"))
    summary = json.loads((tmp_path / "summary").read_text())
    assert (summary["rows_answered"], summary["rows_rejected"]) == (5, 1)
    assert (tmp_path / "copy.jsonl").read_bytes() == (tmp_path / "out").read_bytes()
    json.dumps(result["summary"].metadata)


def test_the_model_s_digest(tmp_path):
    folder = make_folder("t5_tied", tmp_path / "model")
    assert len(model_digest.python_func(folder)) == 64
    assert model_digest.python_func("pocket-base") != model_digest.python_func(folder)


def test_defaults_are_the_library_s():
    import dataclasses
    import inspect

    from pipestill.cloud.deploy_options import DeployOptions
    from pipestill.components.deploy_endpoint import deploy_endpoint

    for component, config in ((batch_predict, BatchConfig), (deploy_endpoint, DeployOptions)):
        given = inspect.signature(component.python_func).parameters
        for field in dataclasses.fields(config):
            assert given[field.name].default == field.default, field.name
