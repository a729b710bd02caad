"""Counted operations against torch's own counter, and the share of a device's peak."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipestill.training.flops import costs_of, flops_of_step, mfu, peak_flops
from pipestill.training.step import Job, accumulate
from tests.training.tiny import KINDS, config, make_data, make_loaded, make_rows


def same_lengths(kind: str, dtype=torch.float32):
    """Rows without padding, so that useful work is all work."""
    loaded = make_loaded(kind, dtype)
    loaded.model.set_attn_implementation("eager")
    row = make_rows(1, every=0)[0]
    rows = [dataclasses.replace(row, rationale=None)] * 4
    return loaded, *make_data(loaded, rows)


@pytest.mark.parametrize("kind", [*KINDS, "bart"])
def test_a_step_has_the_operations_that_torch_counts(kind):
    loaded, data, shape = same_lengths("t5_tied" if kind == "bart" else kind)
    model = bart() if kind == "bart" else loaded.model
    job = Job(model, data, None, [1] * 4, shape, config(), 1.0, 1e-3, 0)
    with FlopCounterMode(display=False) as counter:
        sums = accumulate(job, range(4))
    assert sums.flops == pytest.approx(counter.get_total_flops(), rel=0.05)


def bart():
    import transformers as t

    size = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_attention_heads": 4}
    layers = {"encoder_layers": 2, "decoder_layers": 1, "decoder_attention_heads": 4}
    torch.manual_seed(0)
    return t.BartForConditionalGeneration(
        t.BartConfig(vocab_size=300, d_model=32, **size, **layers, attn_implementation="eager")
    )


def test_frozen_weights_cost_two_thirds():
    loaded, data, _ = same_lengths("llama")
    whole = costs_of(loaded.model)
    loaded.model.requires_grad_(False)
    frozen = costs_of(loaded.model)
    assert frozen.decoder == pytest.approx(whole.decoder * 2 / 3)
    assert flops_of_step(frozen, data, [0]) < flops_of_step(whole, data, [0])


def test_a_decoder_costs_six_operations_a_weight_and_token():
    loaded, data, _ = same_lengths("llama")
    body = sum(
        layer.weight.numel()
        for name, layer in loaded.model.named_modules()
        if isinstance(layer, torch.nn.Linear) and name != "lm_head"
    )
    costs = costs_of(loaded.model)
    assert costs.decoder == 6 * body
    assert costs.decoder_pair == 12 * 32 * 2  # 12 · width · layers
    tokens = int(data.source_length[0] + data.target_length[0])
    attention, head = 12 * 32 * 2 * tokens**2, costs.head * int(data.target_length[0])
    assert flops_of_step(costs, data, [0]) == 6 * body * tokens + attention + head


def test_the_share_of_a_peak():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert mfu(1e12, 2.0, "NVIDIA H200", chips=2) == pytest.approx(0.25 / 989)
    assert mfu(1e12, 1.0, "cpu") is None
