"""Packed rows equal rows of their own: values, gradients, and what happens where they cannot."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipestill.errors import UserError
from pipestill.training.forward import batch_nll, collate
from pipestill.training.packing import packed_rows, refusal, with_packing
from pipestill.training.step import Job, accumulate, validate
from tests.training.tiny import config, make_data, make_loaded, make_rows

ROWS = make_rows(9, every=3)
DECODERS = ("gpt2", "llama")


def packed_and_plain(kind: str, attention: str = "sdpa", dtype=torch.float64, capacity: int = 96):
    loaded = make_loaded(kind, dtype)
    loaded.model.set_attn_implementation(attention)
    data, shape = make_data(loaded, ROWS)
    return loaded.model, data, dataclasses.replace(shape, packed=capacity), shape


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_log_likelihoods_are_the_unpacked_ones(kind, attention):
    model, data, packed, plain = packed_and_plain(kind, attention)
    sequences = [s for found in data.of_row for s in found]
    batch = collate(data, sequences, packed)
    assert batch.pieces[0].inputs["input_ids"].shape[0] < len(sequences) / 2
    together = batch_nll(model, batch, packed)
    for s in range(len(sequences)):
        alone = batch_nll(model, collate(data, [s], plain), plain)
        order = data.target_length.argsort(stable=True).tolist()
        mine = together[batch.pieces[0].row == order.index(s)]
        # Llama's eager attention takes its soft-max in fp32, whatever the model computes in.
        torch.testing.assert_close(mine, alone, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("capacity", [1, 96, 4000])
def test_a_packed_step_has_the_gradients_of_an_unpacked_one(kind, capacity):
    found = []
    for packed in (True, False):
        model, data, packed_shape, plain = packed_and_plain(kind, capacity=capacity)
        shape = packed_shape if packed else plain
        job = Job(model, data, data, [1] * len(ROWS), shape, config(), 0.3, 1e-3, 0)
        sums = accumulate(job, range(len(ROWS)))
        found.append((sums, gradients(model), validate(job)))
    (sums, packed_gradients, scores), (plain_sums, plain_gradients, plain_scores) = found
    assert float(sums.terms["label_loss"][0]) == pytest.approx(
        float(plain_sums.terms["label_loss"][0]), abs=1e-6
    )
    assert float(sums.terms["rationale_loss"][0]) == pytest.approx(
        float(plain_sums.terms["rationale_loss"][0]), abs=1e-6
    )
    assert scores == pytest.approx(plain_scores, abs=1e-6)
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, rtol=0, atol=1e-9, msg=name)


def test_what_stands_beside_an_example_does_not_change_it():
    """The same example beside others: a mask or a position too many would show."""
    model, data, packed, _ = packed_and_plain("llama")
    for other in (3, 5, 8):
        batch = collate(data, [0, other], packed)
        rank = sorted([0, other], key=lambda s: int(data.target_length[s])).index(0)
        beside = batch_nll(model, batch, packed)[batch.pieces[0].row == rank]
        alone = batch_nll(model, collate(data, [0], packed), packed)
        torch.testing.assert_close(beside, alone, rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=40), st.integers(1, 128))
def test_every_example_stands_in_one_row_that_has_room_for_it(lengths, capacity):
    rows = packed_rows(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    for row in rows:
        assert sum(lengths[i] for i in row) <= capacity or len(row) == 1


def test_packing_is_used_where_it_is_wanted_and_works():
    model, data, _, plain = packed_and_plain("llama", dtype=torch.float32)
    assert with_packing(model, plain, data, "on").packed > 0
    assert with_packing(model, plain, data, "off").packed == 0
    assert with_packing(model, plain, data, "auto").packed == 0  # on a CPU it gains nothing
    with pytest.raises(UserError, match=r"PACKING_MODE.*'yes'.*auto, on, off"):
        with_packing(model, plain, data, "yes")


@pytest.mark.parametrize("breaks", ["positions", "mask"])
def test_a_model_that_ignores_positions_or_mask_is_found_out(breaks, capsys):
    model, data, _, plain = packed_and_plain("gpt2", dtype=torch.float32)
    forward = model.forward

    def careless(**inputs):
        if breaks == "positions":
            inputs.pop("position_ids", None)
        else:
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        return forward(**inputs)

    model.forward = careless
    assert with_packing(model, plain, data, "on").packed == 0
    assert "packing is off: GPT2LMHeadModel gives other values" in capsys.readouterr().err


def test_models_without_attention_are_refused_by_name():
    import transformers as t

    mamba = t.MambaForCausalLM(
        t.MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, state_size=4)
    )
    _, data, packed, _ = packed_and_plain("gpt2", dtype=torch.float32)
    assert "MambaForCausalLM" in refusal(mamba, packed, data)


def test_an_example_longer_than_the_model_s_window_is_refused():
    import transformers as t

    torch.manual_seed(0)
    size = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    model = t.MistralForCausalLM(
        t.MistralConfig(**size, num_attention_heads=2, num_key_value_heads=1, sliding_window=8)
    )
    _, data, packed, _ = packed_and_plain("gpt2", dtype=torch.float32)
    assert "window of 8" in refusal(model, packed, data)


def test_encoder_decoders_are_refused():
    loaded = make_loaded("t5_tied")
    data, shape = make_data(loaded, ROWS)
    assert "encoder-decoder" in refusal(
        loaded.model, dataclasses.replace(shape, packed=96, is_encoder_decoder=True), data
    )
