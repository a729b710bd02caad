"""One source of every default: the dataclasses of `pipestill.config`."""

import dataclasses
import functools
import importlib
import inspect
from pathlib import Path

import pytest

from pipestill import components, pipelines
from pipestill.cloud.deploy_options import DeployOptions
from pipestill.config import (
    CostConfig,
    CurveConfig,
    DataConfig,
    DistillConfig,
    EvalConfig,
    FrontierConfig,
    PolicyConfig,
    PreferenceConfig,
    RationaleConfig,
    RewardConfig,
    TeacherConfig,
    TeacherLogitsConfig,
    TrainConfig,
    TuneConfig,
    TuneEvalConfig,
)
from pipestill.serving.batch import BatchConfig

NAMES = sorted(
    path.stem
    for folder in components.__path__
    for path in Path(folder).glob("*.py")
    if not path.name.startswith("_")
)
# component → (dataclass, prefix, fields that it does not need)
EVALUATE_SKIPS = {"shots", "samples", "temperature", "min_success", "audit_rows"}
CODE_FIELDS = {
    *("code_execution", "code_timeout_s", "code_memory_mb"),
    *("code_samples", "code_temperature"),
}
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
    "teacher_logits": [(TeacherLogitsConfig, "", set())],
    "distill_train": [(DistillConfig, "", set())],
    "evaluate_distilled": [(TuneEvalConfig, "", CODE_FIELDS)],
    "preference_prep": [(PreferenceConfig, "", set())],
    "judge_label": [(TeacherConfig, "judge_", EVALUATE_SKIPS)],
    "reward_model_train": [(RewardConfig, "", set())],
    "policy_train": [(PolicyConfig, "", {"large_model_reference"})],
    "evaluate_models": [(EvalConfig, "", set()), (TeacherConfig, "teacher_", EVALUATE_SKIPS)],
    "train_curve": [
        (CurveConfig, "", set()),
        (TrainConfig, "", set()),
        (EvalConfig, "", {"eval_shots", "latency_rows"}),
    ],
    "evaluate_prompts": [
        (EvalConfig, "", set()),
        (CostConfig, "", set()),
        (TeacherConfig, "teacher_", EVALUATE_SKIPS),
    ],
    "reward_frontier": [(FrontierConfig, "", set())],
    "batch_predict": [(BatchConfig, "", set())],
    "deploy_endpoint": [(DeployOptions, "", set())],
    "evaluate_policy": [
        (TuneEvalConfig, "", {"max_output_tokens", *CODE_FIELDS}),
        (TeacherConfig, "judge_", EVALUATE_SKIPS),
    ],
}
# (component, parameter) whose default is not the dataclass's, and what it is there
OTHER_DEFAULTS = {
    ("judge_label", "judge_prompt"): "judge_helpful.v1",
    ("evaluate_policy", "judge_prompt"): "judge_helpful.v1",
    ("evaluate_policy", "judge_model_reference"): "",  # no judge
    ("evaluate_models", "eval_shots"): "",  # no teacher
    ("evaluate_prompts", "eval_shots"): "0,2,5,10",
}
# inputs that are the wiring's own, not the user's
WIRING = {"cache_key", "model_key", "run", "shard", "compiled_for", "decision", "arm"}
# what another pipeline calls by another name (data_prep measures lengths by the model's tokenizer),
# and what has no place in it
PREFERENCES = {"preference_dataset", "prompt_dataset", "eval_dataset"}
TEACHER_ROWS = "teacher_dataset_uri"
RENAMED = {
    "distill_step_by_step": {TEACHER_ROWS, *PREFERENCES},
    "supervised_tuning": {
        *("student_model_reference", "teacher_replay_uri", TEACHER_ROWS),
        *PREFERENCES,
    },
    "distill": {"teacher_replay_uri", *PREFERENCES},
    "evaluate": {
        # of data_digest and data_prep: all rows are held out
        *("evaluation_data_uri", "student_model_reference", "eval_fraction", "split_seed"),
        *("leak_policy", TEACHER_ROWS),
        *PREFERENCES,
    },
    "claims": {
        *(TEACHER_ROWS, "eval_dataset"),  # of data_digest
        # of supervised_tune: they begin with tune_ there, or are left as they are
        *("method", "lora_rank", "lora_alpha", "lora_dropout", "task", "instruction"),
        *("gradient_checkpointing", "large_model_reference"),
        "rationale_require_agreement",  # each arm decides for itself
    },
    "batch_predict": {
        *("evaluation_data_uri", "teacher_replay_uri", TEACHER_ROWS),
        *PREFERENCES,
    },
    "rlhf": {
        # of data_digest and preference_prep: Google's names of the three data sets
        *("dataset_uri", "evaluation_data_uri", "teacher_replay_uri"),
        *("preference_dataset_uri", "prompt_dataset_uri", "eval_dataset_uri"),
        # of teacher_prepare: the supervised start
        *("teacher_dataset_uri", "teacher_model_reference", "teacher_train_steps"),
        *("teacher_batch_size", "teacher_learning_rate", "data_format", "input_field"),
        *("output_field", "max_output_tokens"),
    },
}
OWN_DEFAULT = {"title"}  # each report has its own
# rollouts are long: a policy is evaluated and kept more often than other models; a comparison has
# no judge unless one is named
OWN_DEFAULTS_OF = {
    "policy_train": {"evaluation_interval", "checkpoint_interval"},
    "evaluate_policy": {"judge_model_reference"},
    "evaluate_models": {"eval_shots"},
    "evaluate_prompts": {"eval_shots"},
    "reward_frontier": {"evaluation_interval", "checkpoint_interval"},
    "teacher_prepare": {"teacher_model_reference"},  # a base to tune, not one to be prompted
    "distill_train": {"run"},
}
# the arm that is served; no endpoint unless one is named
PIPELINE_DEFAULTS = {("distill", "objective"), ("rlhf", "endpoint")}
STANDALONE = {"judge_label"}  # run by itself, before a pipeline


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
            wanted = OTHER_DEFAULTS.get((name, prefix + field.name), field.default)
            assert found[prefix + field.name] == wanted, field.name
            assert type(found[prefix + field.name]) is type(field.default), field.name
            assert annotations[prefix + field.name] is field.type


@pytest.mark.parametrize("name", NAMES)
def test_same_name_same_default_in_every_component(name):
    mine = defaults_of(name)
    for other in NAMES:
        for parameter, default in defaults_of(other).items():
            own = {*OWN_DEFAULTS_OF.get(name, ()), *OWN_DEFAULTS_OF.get(other, ())}
            if parameter in OWN_DEFAULT | own:
                continue
            if parameter in mine and inspect.Parameter.empty not in (default, mine[parameter]):
                assert mine[parameter] == default, (other, parameter)


@functools.cache
def built(pipeline: str):
    return pipelines.build(pipeline)


def used_in(name: str) -> list:
    """The pipelines that run the component (`check_accelerator` only where there is a machine)."""
    found = []
    for pipeline in pipelines.PIPELINES:
        graph = built(pipeline)
        if f"comp-{name.replace('_', '-')}" in graph.pipeline_spec.components:
            found.append((pipeline, graph))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_one_of_the_pipeline_with_the_same_default(name):
    component, users = load(name), used_in(name)
    assert users or name in {"check_accelerator", *STANDALONE}
    for pipeline, graph in users:
        wired = graph.component_spec.inputs
        for parameter, spec in component.component_spec.inputs.items():
            outside = WIRING | RENAMED.get(pipeline, set())
            if pipeline == "rlhf":  # under other names: policy_evaluation_interval, …
                outside |= OWN_DEFAULTS_OF.get(name, set()) - {"judge_model_reference"}
            if parameter in outside or spec.type.startswith("system."):
                continue
            assert parameter in wired, parameter
            assert wired[parameter].type == spec.type
            asked_for = not wired[parameter].optional or (pipeline, parameter) in PIPELINE_DEFAULTS
            if spec.optional and not asked_for:
                assert wired[parameter].default == spec.default


def test_the_tuning_pipeline_keeps_the_names_that_users_know():
    wired = pipelines.build("supervised_tuning").component_spec.inputs
    known = """large_model_reference dataset_uri evaluation_data_uri train_steps instruction
        learning_rate_multiplier max_context_length model_display_name tensorboard_resource_id
        encryption_spec_key_name accelerator_type enable_early_stopping evaluation_interval"""
    assert set(known.split()) <= set(wired)
    assert [name for name, spec in wired.items() if not spec.optional] == ["dataset_uri"]


def test_the_rlhf_pipeline_keeps_google_s_names_and_defaults():
    wired = pipelines.build("rlhf").component_spec.inputs
    known = {
        "prompt_sequence_length": 512,
        "target_sequence_length": 64,
        "reward_model_learning_rate_multiplier": 1.0,
        "reinforcement_learning_rate_multiplier": 1.0,
        "reward_model_train_steps": 1000,
        "reinforcement_learning_train_steps": 1000,
        "kl_coeff": 0.1,
        "instruction": "",
        "deploy_model": True,
        "eval_dataset": "",
        "model_display_name": "",
        "encryption_spec_key_name": "",
        "tensorboard_resource_id": "",
    }
    assert {name: wired[name].default for name in known} == known
    assert {"prompt_dataset", "large_model_reference", "accelerator_type"} <= set(wired)
    assert [name for name, spec in wired.items() if not spec.optional] == ["preference_dataset"]


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
