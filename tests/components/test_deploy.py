"""Component `deploy`: its signature, and a run of its body on kfp's own artifacts."""

import inspect
import json
from pathlib import Path

import pytest
from kfp import dsl

from pipestill.components.deploy import deploy
from pipestill.errors import UserError
from pipestill.serving.package import package_student


def tiny_student(folder: Path, objective: str, accuracy: float) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from pipestill.models.student import save_student

    words = ["<pad>", "</s>", "<unk>", "a", "b", ":"]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **special)
    shape = {"n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=6, eos_token_id=1, bos_token_id=1, **shape))
    info = {"objective": objective, "seed": 0, "val_label_accuracy": accuracy}
    limits = {"max_input_tokens": 32, "max_output_tokens": 8}
    save_student(model, tokenizer, folder, {**info, **limits})
    return folder


def artifact(kind, path: Path):
    return kind(name=path.name, uri=str(path), metadata={})


@pytest.fixture
def inputs(tmp_path):
    students = [
        tiny_student(tmp_path / f"{objective}-{accuracy}", objective, accuracy)
        for objective, accuracy in (("dss", 0.4), ("dss", 0.6), ("label_only", 0.9))
    ]
    (tmp_path / "summary.json").write_text('{"arms": {}}')
    return {
        "students": [artifact(dsl.Model, folder) for folder in students],
        "summary": artifact(dsl.Metrics, tmp_path / "summary.json"),
        "served": artifact(dsl.Model, tmp_path / "served"),
    }


def test_the_chosen_student_is_served_and_described(inputs, tmp_path):
    place = tmp_path / "live"
    location = deploy.python_func(**inputs, deploy_dir=str(place), model_display_name="x")
    assert location == str(place)
    for folder in (tmp_path / "served", place):
        assert json.loads((folder / "pipestill.json").read_text())["val_label_accuracy"] == 0.6
    metadata = inputs["served"].metadata
    assert metadata["display_name"] == "x"
    assert metadata["objective"] == "dss"
    assert metadata["parameters"] > 0
    json.dumps(metadata)


def test_an_objective_that_was_not_trained_is_refused(inputs):
    with pytest.raises(UserError, match="dss, label_only"):
        deploy.python_func(**inputs, objective="shuffled")


def test_parameters_have_the_librarys_meaning():
    component = inspect.signature(deploy.python_func).parameters
    library = inspect.signature(package_student).parameters
    assert {"objective", "deploy_dir"} <= component.keys() & library.keys()
    assert component["deploy_dir"].default == library["deploy_dir"].default == ""
    assert component["model_display_name"].default == library["display_name"].default == ""
