"""One source of every default: the dataclasses of `pipestill.config`."""

import dataclasses
import importlib
import inspect
from pathlib import Path

import pytest

from pipestill import components, pipelines
from pipestill.config import (
    DataConfig,
    EvalConfig,
    RationaleConfig,
    TeacherConfig,
    TrainConfig,
    TuneConfig,
    TuneEvalConfig,
)

NAMES = sorted(
    path.stem
    for folder in components.__path__
    for path in Path(folder).glob("*.py")
    if not path.name.startswith("_")
)
# component → (dataclass, prefix, fields that it does not need)
EVALUATE_SKIPS = {"shots", "samples", "temperature", "min_success", "audit_rows"}
CONFIGS = {
    "data_prep": [(DataConfig, "", set())],
    "teacher_label": [(TeacherConfig, "teacher_", set())],
    "rationale_extract": [
        (TeacherConfig, "teacher_", {"audit_rows"}),
        (RationaleConfig, "rationale_", set()),
    ],
    "student_train": [(TrainConfig, "", set())],
    "supervised_tune": [(TuneConfig, "", set())],
    "evaluate_tuned": [(TuneEvalConfig, "", set())],
    "evaluate": [(EvalConfig, "", set()), (TeacherConfig, "teacher_", EVALUATE_SKIPS)],
}
# inputs that are the wiring's own, not the user's
WIRING = {"cache_key", "run", "shard", "compiled_for"}
# what another pipeline calls by another name (data_prep measures lengths by the model's tokenizer),
# and what has no place in it
RENAMED = {"supervised_tuning": {"student_model_reference", "teacher_replay_uri"}}
OWN_DEFAULT = {"title"}  # each report has its own


def load(name):
    return getattr(importlib.import_module(f"pipestill.components.{name}"), name)


def defaults_of(name) -> dict:
    parameters = inspect.signature(load(name).python_func).parameters.values()
    return {item.name: item.default for item in parameters}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_is_a_parameter_with_the_same_default_and_type(name):
    found = defaults_of(name)
    annotations = load(name).python_func.__annotations__
    for config, prefix, skipped in CONFIGS[name]:
        for field in dataclasses.fields(config):
            if field.name in skipped:
                assert prefix + field.name not in found
                continue
            assert found[prefix + field.name] == field.default, field.name
            assert type(found[prefix + field.name]) is type(field.default), field.name
            assert annotations[prefix + field.name] is field.type


@pytest.mark.parametrize("name", NAMES)
def test_same_name_same_default_in_every_component(name):
    mine = defaults_of(name)
    for other in NAMES:
        for parameter, default in defaults_of(other).items():
            if parameter in OWN_DEFAULT:
                continue
            if parameter in mine and inspect.Parameter.empty not in (default, mine[parameter]):
                assert mine[parameter] == default, (other, parameter)


def used_in(name: str) -> list:
    """The pipelines that run the component (`check_accelerator` only where there is a machine)."""
    found = []
    for pipeline in pipelines.PIPELINES:
        graph = pipelines.build(pipeline)
        if f"comp-{name.replace('_', '-')}" in graph.pipeline_spec.components:
            found.append((pipeline, graph))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_one_of_the_pipeline_with_the_same_default(name):
    component, users = load(name), used_in(name)
    assert users or name == "check_accelerator"
    for pipeline, graph in users:
        wired = graph.component_spec.inputs
        for parameter, spec in component.component_spec.inputs.items():
            outside = WIRING | RENAMED.get(pipeline, set())
            if parameter in outside or spec.type.startswith("system."):
                continue
            assert parameter in wired, parameter
            assert wired[parameter].type == spec.type
            if spec.optional:
                assert wired[parameter].default == spec.default


def test_the_tuning_pipeline_keeps_the_names_that_users_know():
    wired = pipelines.build("supervised_tuning").component_spec.inputs
    known = """large_model_reference dataset_uri evaluation_data_uri train_steps instruction
        learning_rate_multiplier max_context_length model_display_name tensorboard_resource_id
        encryption_spec_key_name accelerator_type enable_early_stopping evaluation_interval"""
    assert set(known.split()) <= set(wired)
    assert [name for name, spec in wired.items() if not spec.optional] == ["dataset_uri"]


def test_the_pipeline_keeps_the_names_that_users_know():
    wired = pipelines.build("distill_step_by_step").component_spec.inputs
    known = """teacher_model_reference student_model_reference dataset_uri evaluation_data_uri
        train_steps learning_rate_multiplier max_context_length model_display_name
        tensorboard_resource_id encryption_spec_key_name accelerator_type enable_early_stopping
        evaluation_interval"""
    assert set(known.split()) <= set(wired)
    assert [name for name, spec in wired.items() if not spec.optional] == ["dataset_uri"]


@pytest.mark.parametrize("name", NAMES)
def test_components_are_thin_and_documented(name):
    module = importlib.import_module(f"pipestill.components.{name}")
    function = load(name).python_func
    assert module.__doc__.startswith(f"Component `{name}`: ")
    assert inspect.getdoc(function)
    tree = inspect.getsource(function)
    assert tree.count("from pipestill.") <= 4


def test_accelerator_check():
    from pipestill.errors import UserError

    check = load("check_accelerator").python_func
    check(compiled_for="GPU", accelerator_type="gpu")
    with pytest.raises(UserError, match="ACCELERATOR_MISMATCH"):
        check(compiled_for="GPU", accelerator_type="TPU")
