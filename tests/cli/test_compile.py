"""`pipestill compile`."""

import pytest
import yaml

from pipestill.cli import main as cli
from pipestill.pipelines import PIPELINES


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def inputs(path, step="student-train"):
    spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    return spec["components"][f"comp-{step}"]["inputDefinitions"]["parameters"]


def test_one(here, capsys):
    arguments = ["compile", "distill_step_by_step", "--profile", "a100-80gb-x8"]
    options = ["--project", "p", "--service-account", "s@p", "--label", "team=x"]
    assert cli.main([*arguments, *options, "--image-prefix", "reg/me", "-o", "x.yaml"]) == 0
    assert capsys.readouterr().out == "x.yaml\n"
    found = inputs(here / "x.yaml")
    assert found["project"]["defaultValue"] == "p"
    assert found["service_account"]["defaultValue"] == "s@p"
    assert found["labels"]["defaultValue"] == {"team": "x"}
    (pool,) = found["worker_pool_specs"]["defaultValue"]
    assert pool["container_spec"]["image_uri"].startswith("reg/me/gpu:")


@pytest.mark.slow
def test_default_name_and_all(here, capsys):
    assert cli.main(["compile", "distill_step_by_step"]) == 0
    assert (here / "distill_step_by_step.cpu-local.yaml").exists()
    assert cli.main(["compile", "--all", "-o", "folder"]) == 0
    assert len(list((here / "folder").iterdir())) == 3 * len(PIPELINES)


def test_another_count_of_the_same_machine_family(here):
    arguments = ["compile", "distill_step_by_step", "--profile", "tpu-v3-64", "-o", "x.yaml"]
    assert cli.main([*arguments, "--accelerator-count", "128"]) == 0
    (pool,) = inputs(here / "x.yaml")["worker_pool_specs"]["defaultValue"]
    assert pool["machine_spec"]["accelerator_count"] == 128


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--accelerator-count", "7"], "HARDWARE_COUNT"),
        (["--accelerator-type", "TPU_V9"], "HARDWARE_ACCELERATOR"),
        (["--location", "mars"], "HARDWARE_REGION"),
        (["--label", "x"], "KEY=VALUE"),
    ],
)
def test_refused(options, text, here, capsys):
    arguments = ["compile", "distill_step_by_step", "--profile", "tpu-v3-64", "-o", "x.yaml"]
    assert cli.main([*arguments, *options]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
    assert not (here / "x.yaml").exists()


def test_nothing_named(capsys):
    assert cli.main(["compile"]) == 2
    assert "name a PIPELINE" in capsys.readouterr().err
