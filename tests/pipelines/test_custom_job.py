"""Our CustomJob wrapper against Google's."""

import json

import pytest

from pipestill.components.evaluate import evaluate
from pipestill.components.rationale_extract import rationale_extract
from pipestill.components.student_train import student_train
from pipestill.components.teacher_label import teacher_label
from pipestill.pipelines.custom_job import ESCAPED_EXECUTOR_INPUT
from tests.pipelines import gcpc

STEPS = (teacher_label, rationale_extract, student_train, evaluate)


@pytest.mark.parametrize("case", gcpc.CASES)
def test_same_fields_as_googles_wrapper(case):
    golden = json.loads(gcpc.GOLDEN.read_text(encoding="utf-8"))
    profile, options = gcpc.CASES[case]
    assert gcpc.without_source(gcpc.ours(gcpc.subject, profile, options)) == golden[case]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
@pytest.mark.parametrize("case", gcpc.CASES)
def test_same_as_the_installed_wrapper(step, case):
    """`pip install google-cloud-pipeline-components==2.22.*` in another environment runs it."""
    pytest.importorskip("google_cloud_pipeline_components")
    profile, options = gcpc.CASES[case]
    assert gcpc.ours(step, profile, options) == gcpc.theirs(step, profile, options)


def test_worker_runs_the_components_own_command():
    profile, options = gcpc.CASES["a100-80gb-x8"]
    found = gcpc.ours(student_train, profile, options)
    (pool,) = found["component"]["inputDefinitions"]["parameters"]["worker_pool_specs"][
        "defaultValue"
    ]
    assert "def student_train(" in pool["container_spec"]["command"][-1]
    assert pool["container_spec"]["args"] == [
        "--executor_input",
        ESCAPED_EXECUTOR_INPUT,
        "--function_to_execute",
        "student_train",
    ]


def test_payload_is_json_once_the_placeholders_are_filled():
    profile, options = gcpc.CASES["tpu-v3-64 with options"]
    found = gcpc.ours(student_train, profile, options)
    payload = found["container"]["args"][3]
    for name, spec in found["component"]["inputDefinitions"]["parameters"].items():
        value = spec.get("defaultValue", [] if spec["parameterType"] == "LIST" else {})
        text = value if isinstance(value, str) else json.dumps(value)
        payload = payload.replace(f"{{{{$.inputs.parameters['{name}']}}}}", text)
    job = json.loads(payload)
    (pool,) = job["job_spec"]["worker_pool_specs"]
    assert pool["machine_spec"] == {
        "machine_type": "cloud-tpu",
        "accelerator_type": "TPU_V3",
        "accelerator_count": 64,
    }
    assert job["job_spec"]["scheduling"]["timeout"] == "3600s"
    assert job["labels"] == {"team": "distil"}
