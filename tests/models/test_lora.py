"""Adapters: nothing changes before training, and merging changes nothing after it."""

import pytest
import torch

from pipestill.models import lora
from pipestill.training.forward import batch_nll, collate
from tests.training.tiny import KINDS, make_data, make_loaded, make_model, make_rows

SETTINGS = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "seed": 0}


def nll(loaded, model) -> torch.Tensor:
    data, shape = make_data(loaded, make_rows(6), "label_only")
    with torch.no_grad():
        return batch_nll(model, collate(data, range(6), shape), shape)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_equals_unmerged(kind, tmp_path):
    loaded = make_loaded(kind)
    before = nll(loaded, loaded.model)
    adapted = lora.add(loaded.model, **SETTINGS)
    loaded.model.eval()
    assert torch.equal(nll(loaded, loaded.model), before)  # the second matrix starts at zero
    torch.manual_seed(0)
    for name, weight in loaded.model.named_parameters():
        if weight.requires_grad:
            assert "lora_" in name
            weight.data.normal_(std=0.1)
    changed = nll(loaded, loaded.model)
    assert (changed - before).abs().max() > 1e-2
    lora.save(adapted, tmp_path / "adapter")
    merged = lora.merge(adapted).eval()
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    assert torch.allclose(nll(loaded, merged), changed, atol=1e-5)
    assert {p.name for p in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip

    from peft import PeftModel

    again = PeftModel.from_pretrained(make_model(kind), str(tmp_path / "adapter")).eval()
    assert torch.allclose(nll(loaded, again.get_base_model()), changed, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("t5_tied", {"q", "k", "v", "o", "wi", "wo"}),
        ("t5_untied", {"q", "k", "v", "o", "wi_0", "wi_1", "wo"}),
        ("gpt2", {"c_attn", "c_proj", "c_fc"}),
        ("llama", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_all_linear_layers_but_the_head(kind, names):
    model = make_model(kind)
    assert set(lora.target_modules(model)) == names
    lora.add(model, **SETTINGS)
    assert 0 < lora.trainable(model) < sum(p.numel() for p in model.parameters())
    assert not model.get_output_embeddings().weight.requires_grad


def test_the_seed_decides_and_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    values = []
    for seed in (0, 0, 1):
        model = make_model("llama")
        torch.set_rng_state(state)
        lora.add(model, **{**SETTINGS, "seed": seed})
        assert torch.equal(torch.get_rng_state(), state)
        values.append([w.clone() for w in model.parameters() if w.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(values[0], values[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(values[0], values[2], strict=True))
