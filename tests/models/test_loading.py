"""References: what they resolve to, and what a wrong one is told."""

import json

import pytest
import torch

from pipestill.errors import UserError
from pipestill.models.loading import (
    POCKET_NAMES,
    choose_dtype,
    folder_fingerprint,
    load,
    load_tokenizer,
    resolve_reference,
)
from tests.training.tiny import KINDS, make_folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    return {kind: make_folder(kind, base / kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_loads(folders, kind):
    loaded = load(folders[kind])
    assert loaded.is_encoder_decoder == kind.startswith("t5")
    assert loaded.parameters == sum(p.numel() for p in loaded.model.parameters())
    assert loaded.bytes > 4 * loaded.parameters
    assert len(loaded.fingerprint) == 64
    assert not loaded.model.training
    assert next(loaded.model.parameters()).dtype == choose_dtype("auto")


def test_the_fingerprint_follows_contents_and_nothing_else(tmp_path):
    a, b = (make_folder("gpt2", tmp_path / name) for name in ("a", "b"))
    first = folder_fingerprint(tmp_path / "a")
    assert load(a).fingerprint == load(b).fingerprint == first
    (tmp_path / "a" / "README.md").write_text("words")
    assert folder_fingerprint(tmp_path / "a") == first
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps({**config, "note": 1}))
    assert folder_fingerprint(tmp_path / "a") != first


def test_precision(folders):
    assert next(load(folders["gpt2"], precision="bf16").model.parameters()).dtype == torch.bfloat16
    with pytest.raises(UserError, match=r"PRECISION_UNKNOWN.*fp16.*auto, fp32, bf16"):
        load(folders["gpt2"], precision="fp16")


def test_a_tokenizer_without_a_pad_token_pads_with_its_end_mark(folders, tmp_path):
    tokenizer = load_tokenizer(folders["gpt2"])
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    load(folders["gpt2"]).model.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert again.pad_token_id == again.eos_token_id is not None


@pytest.mark.parametrize(
    ("reference", "code"),
    [("./no/such/folder", "MODEL_NOT_FOUND"), ("", "MODEL_NOT_FOUND"),
     ("s3://bucket/model", "MODEL_REMOTE"), ("https://example.org/m", "MODEL_REMOTE")],
)  # fmt: skip
def test_a_reference_that_is_none(reference, code):
    with pytest.raises(UserError) as error:
        resolve_reference(reference)
    assert error.value.code == code
    assert "\n" not in str(error.value)


def test_a_hub_name_that_cannot_be_had_is_one_line(monkeypatch):
    assert resolve_reference("nobody/no-such-model") == "nobody/no-such-model"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"MODEL_NOT_FOUND.*pipestill models") as error:
        load("nobody/no-such-model")
    assert "\n" not in str(error.value)


def test_a_folder_without_its_files_says_which(tmp_path):
    with pytest.raises(UserError, match=r"MODEL_INCOMPLETE.*config.json and \*.safetensors"):
        resolve_reference(str(tmp_path))


def test_pickled_weights_are_refused_with_the_way_out(folders, tmp_path):
    load(folders["gpt2"]).model.config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(UserError, match=r"MODEL_PICKLED.*pytorch_model.bin.*save_pretrained"):
        load(str(tmp_path))


def test_a_torn_weight_file_is_one_line(tmp_path):
    folder = make_folder("gpt2", tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="MODEL_UNREADABLE") as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_code_that_travels_with_a_model_is_not_run(folders, tmp_path):
    folder = make_folder("gpt2", tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    config["model_type"] = "evil"
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    (tmp_path / "m" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError):
        load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", POCKET_NAMES)
def test_pocket_models_load(name):
    try:
        folder = resolve_reference(name)
    except UserError as error:
        pytest.skip(f"the pocket models are not in this checkout: {error}")
    assert load(name).fingerprint == load(folder).fingerprint


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    from safetensors.torch import load_file, save_file

    folder = make_folder("gpt2", tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors[sorted(tensors)[-1]].view(-1)[0] = value
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"MODEL_NOT_FINITE.*hold NaN or infinity"):
        load(folder)
