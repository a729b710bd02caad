"""The catalogue's facts, look-up, and the memory arithmetic."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipestill.errors import UserError
from pipestill.models.catalogue import check_fits, describe, find, fits, load_catalogue
from pipestill.models.counting import count_parameters
from pipestill.models.memory import (
    ARCHITECTURES,
    LOCAL_MEMORY_VARIABLE,
    METHODS,
    PROFILES,
    count,
    depth_times_width,
    memory_need,
    profile_named,
)


@pytest.fixture(autouse=True)
def _no_override(monkeypatch):
    monkeypatch.delenv(LOCAL_MEMORY_VARIABLE, raising=False)


def test_every_entry_is_complete_and_named_once():
    entries = load_catalogue()
    assert len(entries) > 60
    assert len({entry.reference.lower() for entry in entries}) == len(entries)
    for entry in entries:
        assert entry.architecture in ARCHITECTURES
        assert entry.roles
        assert set(entry.roles) <= {"teacher", "student", "tunable"}
        assert set(entry.methods) <= set(METHODS) - {"inference"}
        assert entry.licence != "unknown"
        assert entry.source
        assert entry.context
        assert entry.parameters or entry.family == "Pocket"


def built(name: str) -> int:
    """Parameters of the published architecture, built without memory from its known shape."""
    import torch
    import transformers as t

    t5_shape = {"vocab_size": 32128}
    if name == "google-t5/t5-base":
        config = t.T5Config(
            **t5_shape, d_model=768, d_ff=3072, d_kv=64, num_heads=12, num_layers=12
        )
        kind = t.T5ForConditionalGeneration
    elif name == "openai-community/gpt2-medium":
        config, kind = t.GPT2Config(n_embd=1024, n_layer=24, n_head=16), t.GPT2LMHeadModel
    else:
        vocabulary, width, inner, layers, heads, groups, tied, head = {
            "Qwen/Qwen2.5-7B": (152064, 3584, 18944, 28, 28, 4, False, None),
            "Qwen/Qwen3-4B": (151936, 2560, 9728, 36, 32, 8, True, 128),
            "meta-llama/Llama-3.1-8B": (128256, 4096, 14336, 32, 32, 8, False, 128),
            "mistralai/Mistral-7B-v0.3": (32768, 4096, 14336, 32, 32, 8, False, 128),
            "google/gemma-2-9b": (256000, 3584, 14336, 42, 16, 8, True, 256),
            "HuggingFaceTB/SmolLM2-360M": (49152, 960, 2560, 32, 15, 5, True, 64),
        }[name]
        family = {"Qwen2.5": "Qwen2", "Qwen3": "Qwen3", "gemma": "Gemma2"}.get(
            name.split("/")[1].split("-")[0], "Llama"
        )
        shape = {"head_dim": head} if head else {}
        config = getattr(t, f"{family}Config")(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            tie_word_embeddings=tied,
            **shape,
        )
        kind = getattr(t, f"{family}ForCausalLM")
    with torch.device("meta"):
        return kind(config).num_parameters()


@pytest.mark.parametrize(
    "name",
    [
        "google-t5/t5-base",
        "openai-community/gpt2-medium",
        "Qwen/Qwen2.5-7B",
        "Qwen/Qwen3-4B",
        "meta-llama/Llama-3.1-8B",
        "mistralai/Mistral-7B-v0.3",
        "google/gemma-2-9b",
        "HuggingFaceTB/SmolLM2-360M",
    ],
)
def test_parameter_counts_are_those_of_the_architecture(name):
    assert find(name).parameters == built(name)


@pytest.mark.parametrize(
    "name",
    ["google/flan-t5-xxl", "GOOGLE/FLAN_T5_XXL", "flan-t5_xxl", " Flan-T5-XXL ", "flan-t5-xxl@abc"],
)
def test_find_is_tolerant(name):
    assert find(name).reference == "google/flan-t5-xxl"


@given(st.sampled_from(load_catalogue()), st.booleans(), st.booleans())
def test_every_entry_is_found_by_its_own_name(entry, upper, underscores):
    name = entry.reference.upper() if upper else entry.reference
    assert find(name.replace("-", "_") if underscores else name) == entry


def test_an_unknown_name_suggests_close_ones():
    with pytest.raises(UserError, match="flan-t5-xl") as caught:
        describe("flan-t5-xk")
    assert caught.value.code == "MODEL_UNKNOWN"
    assert find("flan-t5-xk") is None


def test_the_arithmetic_is_the_sum_that_it_says():
    need = memory_need(11_000_000_000, "sft", "bf16", "encoder-decoder")
    assert (need.weights, need.gradients, need.optimiser) == (22 * 10**9, 22 * 10**9, 132 * 10**9)
    assert need.weights + need.gradients + need.optimiser == 176 * 10**9
    assert "11 B parameters × (2 weights + 2 gradients + 12 optimiser bytes) = 176.0 GB" in (
        need.arithmetic()
    )
    # AdamW with fp32 weights: two moments of 4 bytes, no master copy.
    need = memory_need(10**9, "dss", "fp32")
    assert (need.weights, need.gradients, need.optimiser) == (4 * 10**9, 4 * 10**9, 8 * 10**9)


def test_a_teacher_needs_weights_and_cache_only():
    need = memory_need(10**9, "inference", "bf16")
    assert (need.weights, need.gradients, need.optimiser) == (2 * 10**9, 0, 0)
    assert need.activations == 0
    assert need.kv_cache > 0


def test_rlhf_reads_two_frozen_models_more():
    assert memory_need(10**9, "rlhf", "bf16").frozen == 2 * 2 * 10**9


@pytest.mark.parametrize(
    ("parameters", "layers", "width"), [(8_030_261_248, 32, 4096), (1_543_714_304, 28, 1536)]
)
def test_the_shape_estimate_is_within_a_factor_of_two(parameters, layers, width):
    ratio = depth_times_width(parameters, "decoder-only") / (layers * width)
    assert 0.5 < ratio < 2


@given(
    st.integers(1, 10**12),
    st.integers(1, 10**12),
    st.sampled_from(METHODS),
    st.sampled_from(["fp32", "bf16"]),
    st.sampled_from(ARCHITECTURES),
)
def test_more_parameters_never_need_less(first, second, method, precision, architecture):
    small, large = sorted((first, second))
    need = memory_need(small, method, precision, architecture)
    assert need.total <= memory_need(large, method, precision, architecture).total
    assert need.total >= need.weights > 0


@pytest.mark.parametrize("wrong", [("x", "bf16", "decoder-only"), ("sft", "fp8", "decoder-only")])
def test_unknown_options_are_refused(wrong):
    with pytest.raises(UserError, match="allowed"):
        memory_need(1, *wrong)


def test_profiles_have_the_memory_they_are_said_to_have():
    assert PROFILES["cpu-local"].memory == 16 * 10**9
    assert PROFILES["a100-80gb-x8"].memory == 640 * 10**9
    assert PROFILES["tpu-v3-64"].memory == 2**40


def test_a_model_that_is_too_big_is_refused_with_the_arithmetic():
    with pytest.raises(UserError) as caught:
        check_fits("flan_t5_xxl", "dss", "cpu-local")
    assert caught.value.code == "MODEL_TOO_BIG"
    for text in ("google/flan-t5-xxl: 11.1 B parameters × (", "178.2 GB", "16.0 GB"):
        assert text in caught.value.message
    assert "it fits a100-80gb-x8 and tpu-v3-64" in caught.value.hint
    assert "\n" not in str(caught.value)
    assert check_fits("flan_t5_xxl", "dss", "a100-80gb-x8").total < 640 * 10**9


def test_the_advice_fits():
    with pytest.raises(UserError) as caught:
        check_fits("Qwen2.5-72B-Instruct", "inference", "cpu-local")
    advised = caught.value.hint.split("the largest that fits is ")[1].split(";")[0]
    assert check_fits(advised, "inference", "cpu-local").total <= 16 * 10**9


def test_numbers_and_stated_memory_are_taken(monkeypatch):
    with pytest.raises(UserError, match="MODEL_TOO_BIG"):
        check_fits(10**9, "sft", "cpu-local")
    assert check_fits(10**9, "sft", "cpu-local", memory_gb=128).parameters == 10**9
    monkeypatch.setenv(LOCAL_MEMORY_VARIABLE, "128")
    assert check_fits(10**9, "sft", "cpu-local") is not None
    assert profile_named("a100-80gb-x8", 1).memory == 640 * 10**9


@pytest.mark.parametrize("text", ["many", "-3", "0", "inf", "nan"])
def test_memory_that_is_no_number_is_refused(monkeypatch, text):
    monkeypatch.setenv(LOCAL_MEMORY_VARIABLE, text)
    with pytest.raises(UserError, match="MEMORY_GB"):
        profile_named("cpu-local")


def test_an_unknown_profile_is_refused_with_the_list():
    with pytest.raises(UserError, match="cpu-local, a100-80gb-x8, tpu-v3-64"):
        check_fits("gpt2", "sft", "h100")


def test_a_hub_name_outside_the_catalogue_is_allowed_unchecked():
    entry = describe("someone/some-model")
    assert entry.parameters is None
    assert "not checked" in entry.note
    assert check_fits("someone/some-model", "sft", "cpu-local") is None
    assert fits(entry, "sft", PROFILES["cpu-local"]) is None


def test_a_local_folder_is_counted(tmp_path):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2))
    model.save_pretrained(tmp_path / "whole")
    model.config.save_pretrained(tmp_path / "config_only")
    expected = sum(parameter.numel() for parameter in model.parameters())
    for folder in (tmp_path / "whole", tmp_path / "config_only"):
        entry = describe(str(folder))
        assert entry.parameters == expected
        assert entry.architecture == "decoder-only"
        assert check_fits(str(folder), "sft", "cpu-local").parameters == expected
    assert torch.get_default_dtype() == torch.float32


def test_a_folder_wins_over_a_hub_name(tmp_path, monkeypatch):
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "nothing known"}')
    monkeypatch.chdir(tmp_path)
    assert describe("gpt2").family == "outside the catalogue"
    assert describe("gpt2").parameters is None


def test_a_type_that_is_not_known_is_not_counted(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mystery"}))
    assert describe(str(tmp_path)).parameters is None


@pytest.mark.parametrize(
    "content",
    [b"", b"short", struct.pack("<Q", 10**9), struct.pack("<Q", 2) + b"[]", b"\x80\x04pickle...."],
)
def test_a_file_that_is_no_safetensors_is_told(tmp_path, content):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="WEIGHTS_BROKEN"):
        count_parameters(tmp_path)


def test_a_config_that_is_no_json_is_told(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="MODEL_CONFIG"):
        describe(str(tmp_path))


def test_numbers_read_as_people_write_them():
    found = [count(n) for n in (60_506_624, 999_885_952, 11_135_332_352, 910_000, 12)]
    assert found == ["60.5 M", "1 B", "11.1 B", "910 k", "12"]
