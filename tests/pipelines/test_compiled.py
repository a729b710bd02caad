"""The compiled templates: committed, up to date, and asking for the right machines."""

import json
import re
from pathlib import Path

import pytest
import yaml

from pipestill import pipelines
from pipestill.errors import UserError
from pipestill.pipelines.compile import COMPILED, compile_pipeline
from pipestill.pipelines.hardware import PROFILES

PAIRS = [(name, profile) for name in pipelines.PIPELINES for profile in PROFILES]
HEAVY = {
    "distill_step_by_step": ("teacher-label", "rationale-extract", "student-train", "evaluate"),
    "supervised_tuning": ("supervised-tune", "evaluate-tuned"),
    "evaluate": ("evaluate-models",),
    "batch_predict": ("batch-predict",),
    "retrain": ("teacher-label", "supervised-tune", "evaluate-tuned"),
    "distill": ("teacher-prepare", "teacher-logits", "distill-train", "evaluate-distilled"),
    "rlhf": ("teacher-prepare", "reward-model-train", "policy-train", "evaluate-policy"),
    "claims": (
        *("teacher-label", "rationale-extract", "train-curve", "supervised-tune"),
        *("reward-frontier", "evaluate-prompts"),
    ),
}
# Caching rests on what the first of these find; evaluate-models reads models that may have changed;
# the others enter a tick, which is done once anyway.
UNCACHED = (
    *("data-digest", "model-digest", "should-train", "evaluate-models"),
    *("tick-time", "skip-training", "promote", "report-tick", "deploy-endpoint"),
)
PREPARED = {"rlhf": "preference-prep", "batch_predict": None, "retrain": "retrain-data"}
LIGHT = {
    "distill_step_by_step": ("data-digest", "data-prep", "collect-rows", "report", "deploy"),
    "supervised_tuning": ("data-digest", "data-prep", "report-tuned", "deploy-tuned"),
    "evaluate": ("data-digest", "data-prep", "report-models"),
    "batch_predict": ("data-digest", "model-digest", "collect-predictions"),
    "retrain": ("should-train", "retrain-data", "skip-training", "promote", "report-tick"),
    "distill": ("data-digest", "data-prep", "report-distilled", "deploy"),
    "rlhf": ("data-digest", "preference-prep", "gate", "report-rlhf", "deploy-policy"),
    "claims": ("data-digest", "data-prep", "collect-rows", "report-claims"),
}


def load(name: str, profile: str) -> dict:
    path = COMPILED / f"{name}.{profile}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "profile"), PAIRS)
def test_recompiling_gives_the_committed_file(name, profile, tmp_path):
    """`pipestill compile --all` writes them again. Only kfp's own version may differ."""
    fresh = compile_pipeline(name, profile, tmp_path / "new.yaml")

    def stable(path: Path) -> list[str]:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if not line.startswith("sdkVersion:")]

    assert stable(fresh) == stable(COMPILED / f"{name}.{profile}.yaml")


def test_no_file_is_left_over():
    expected = {f"{name}.{profile}.yaml" for name, profile in PAIRS}
    assert {path.name for path in COMPILED.glob("*.yaml")} == expected


@pytest.mark.parametrize("name", HEAVY)
@pytest.mark.parametrize(
    ("profile", "machine", "region"),
    [
        ("a100-80gb-x8", ("a2-ultragpu-8g", "NVIDIA_A100_80GB", 8), "us-central1"),
        ("tpu-v3-64", ("cloud-tpu", "TPU_V3", 64), "europe-west4"),
    ],
)
def test_heavy_steps_are_custom_jobs(name, profile, machine, region):
    spec = load(name, profile)
    for step in HEAVY[name]:
        inputs = spec["components"][f"comp-{step}"]["inputDefinitions"]["parameters"]
        (pool,) = inputs["worker_pool_specs"]["defaultValue"]
        asked = pool["machine_spec"]
        assert (
            asked["machine_type"],
            asked["accelerator_type"],
            asked["accelerator_count"],
        ) == machine
        assert inputs["location"]["defaultValue"] == region
        image = pool["container_spec"]["image_uri"]
        assert image.startswith(f"pipestill/{PROFILES[profile].image}:")
        container = spec["deploymentSpec"]["executors"][f"exec-{step}"]["container"]
        assert container["command"][-1].endswith("custom_job.launcher")


@pytest.mark.parametrize(("name", "profile"), PAIRS)
def test_light_steps_are_plain_tasks_with_requests(name, profile):
    executors = load(name, profile)["deploymentSpec"]["executors"]
    for step in LIGHT[name]:
        container = executors[f"exec-{step}"]["container"]
        assert container["image"].startswith("pipestill/cpu:")
        assert container["resources"]["resourceCpuLimit"] == "4"
        assert "accelerator" not in container["resources"]


@pytest.mark.parametrize(("name", "profile"), PAIRS)
def test_heavy_steps_are_repeated_three_times_and_light_ones_once(name, profile):
    found = {step: task.get("retryPolicy", {}) for step, task in tasks(load(name, profile))}
    for step, count in [(s, 3) for s in HEAVY[name]] + [(s, 1) for s in LIGHT[name]]:
        assert found[step]["maxRetryCount"] == count, step
        assert found[step]["backoffDuration"] == "60s"


def tasks(spec: dict):
    yield from spec["root"]["dag"]["tasks"].items()
    for component in spec["components"].values():
        yield from component.get("dag", {}).get("tasks", {}).items()


def once(name: str) -> str:
    """The step's name, also where a pipeline has it twice (``promote-2``)."""
    return re.sub(r"-\d+$", "", name)


@pytest.mark.parametrize(("name", "profile"), PAIRS)
def test_caching_rests_on_the_digest(name, profile):
    spec = load(name, profile)
    groups = ("for-loop", "condition", "deploy-student")
    for task_name, task in tasks(spec):
        if not task_name.startswith(groups):
            caches = task["cachingOptions"].get("enableCache", False)
            assert caches is (once(task_name) not in UNCACHED), task_name
    keyed = {
        once(step.removeprefix("comp-"))
        for step, component in spec["components"].items()
        if "cache_key" in component.get("inputDefinitions", {}).get("parameters", {})
    }
    assert keyed == {PREPARED.get(name, "data-prep"), *HEAVY[name]} - {None}


@pytest.mark.parametrize(("name", "profile"), PAIRS)
def test_no_surprise_for_the_platform(name, profile):
    spec = load(name, profile)
    assert "defaultPipelineRoot" not in spec
    for key, parameter in spec["root"]["inputDefinitions"]["parameters"].items():
        assert "{{$" not in json.dumps(parameter), key


def test_images_from_ones_own_registry(tmp_path):
    path = compile_pipeline(
        "distill_step_by_step",
        "a100-80gb-x8",
        tmp_path / "x.yaml",
        image_prefix="europe-docker.pkg.dev/me/repo/",
    )
    text = path.read_text(encoding="utf-8")
    assert "europe-docker.pkg.dev/me/repo/gpu:" in text
    assert "europe-docker.pkg.dev/me/repo/cpu:" in text
    assert "pipestill/gpu" not in text
    assert "pipestill/cpu" not in text


def test_another_region_is_checked(tmp_path):
    with pytest.raises(UserError, match=r"HARDWARE_REGION.*europe-west4"):
        compile_pipeline(
            "distill_step_by_step", "tpu-v3-64", tmp_path / "x.yaml", location="us-west1"
        )
    assert not list(tmp_path.iterdir())


def test_unknown_pipeline(tmp_path):
    with pytest.raises(UserError, match="PIPELINE_UNKNOWN"):
        compile_pipeline("distil", "cpu-local", tmp_path / "x.yaml")
