"""`pipestill submit --kfp-endpoint` against a loopback server, through kfp's own client."""

import re

import pytest

from pipestill.cli import main as cli

DATA = ["--set", "dataset_uri=gs://bucket/rows.jsonl"]


def run(kubeflow, *words) -> int:
    return cli.main(["submit", "supervised_tuning", "--kfp-endpoint", kubeflow.url, *words])


def test_a_run_is_created_and_awaited(kubeflow, capsys):
    options = ["--set", "train_steps=7", "--experiment", "first", "--wait"]
    assert run(kubeflow, *DATA, *options) == 0
    printed = capsys.readouterr().out
    assert f"server     {kubeflow.url}/#/runs/details/r0\n" in printed
    assert "supervised-tune: done in 1m30s\n" in printed
    assert printed.endswith("run r0: succeeded\n")
    made = kubeflow.runs["r0"]
    assert made["runtime_config"]["parameters"] == {
        "dataset_uri": "gs://bucket/rows.jsonl",
        "train_steps": 7,
    }
    assert kubeflow.experiments[made["experiment_id"]]["display_name"] == "first"


def test_a_failed_run_names_the_step(kubeflow, capsys):
    kubeflow.failing["data-prep"] = "no rows"
    assert run(kubeflow, *DATA, "--wait") == 1
    printed = capsys.readouterr().out
    assert "failed step data-prep: no rows\n" in printed
    assert printed.endswith("run r0: failed\n")


def test_local_data_go_to_the_bucket(kubeflow, vertex, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"input_text": "a", "output_text": "b"}\n')
    given = ["--set", f"dataset_uri={rows}"]
    assert run(kubeflow, *given) == 2
    assert "[KFP_LOCAL_DATA] dataset_uri: found a local path" in capsys.readouterr().err
    bucket = ["--staging-bucket", "gs://stage", "--project", "proj"]
    assert run(kubeflow, *given, *bucket, "--no-cache") == 0
    runtime = kubeflow.runs["r0"]["runtime_config"]
    assert runtime["pipeline_root"] == "gs://stage/pipeline_root"
    assert runtime["parameters"]["dataset_uri"].startswith("gs://stage/data/")
    assert len(vertex.bucket.objects) == 1


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--profile", "a100-80gb-x8"], r"KFP_PROFILE.*machine type.*cpu-local"),
        (["--profile", "tpu-v3-64"], r"KFP_PROFILE"),
        (["--kfp-endpoint", "kubeflow"], r"KFP_ENDPOINT.*http"),
        (["--set", "train_steps=much"], r"CONFIG_TYPE"),
    ],
)
def test_mistakes_are_one_line(kubeflow, capsys, options, line):
    assert run(kubeflow, *DATA, *options) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"error \[{line}.*\n", error), error
    assert not kubeflow.requests


def test_a_server_that_wants_a_token(kubeflow, capsys, monkeypatch):
    kubeflow.token = "secret"
    assert run(kubeflow, *DATA) == 2
    assert re.match(r"error \[KFP_REFUSED\].*set KFP_TOKEN", capsys.readouterr().err)
    monkeypatch.setenv("KFP_TOKEN", "secret")
    assert run(kubeflow, *DATA) == 0
    assert "secret" not in capsys.readouterr().out


def test_nobody_answers(capsys):
    code = cli.main(["submit", "supervised_tuning", "--kfp-endpoint", "http://127.0.0.1:9", *DATA])
    assert code == 1
    assert "[KFP_UNREACHABLE]" in capsys.readouterr().err
