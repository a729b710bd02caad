"""Logits at chosen positions equal the model's full logits there, whatever it does at its head."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipestill.losses import common
from pipestill.training.forward import (
    batch_chunks,
    batch_logits,
    batch_nll,
    collate,
    head_of,
    position_logits,
    position_states,
    split_point,
)
from tests.training.tiny import KINDS, make_data, make_loaded, make_model, make_rows


def special_model(name: str):
    """Models that scale, cap or shift what their head gives."""
    import transformers as t

    common = {
        "vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    if name == "gemma2":
        return t.Gemma2ForCausalLM(t.Gemma2Config(**common, final_logit_softcapping=0.05))
    if name == "bart":
        model = t.BartForConditionalGeneration(
            t.BartConfig(
                vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1,
                encoder_ffn_dim=24, decoder_ffn_dim=24, encoder_attention_heads=2,
                decoder_attention_heads=2, max_position_embeddings=32,
            )
        )  # fmt: skip
        model.final_logits_bias.normal_()
        return model
    if name == "granite":
        return t.GraniteForCausalLM(t.GraniteConfig(**common, logits_scaling=7.0))
    return t.CohereForCausalLM(t.CohereConfig(**common, logit_scale=0.3))


@pytest.mark.parametrize("name", ["gemma2", "granite", "cohere", *KINDS])
def test_chosen_logits_are_the_full_logits(name):
    model = make_model(name) if name in KINDS else special_model(name)
    model = model.double().eval()
    ids = torch.arange(2, 18).reshape(2, 8)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :5]
    full = model(**inputs).logits.flatten(0, 1)
    positions = torch.tensor([0, 3, 4, 9])
    chosen = position_logits(model, inputs, positions)
    assert chosen.shape == (4, full.shape[1])
    torch.testing.assert_close(chosen, full[positions], rtol=0, atol=1e-12)
    assert torch.equal(model(**inputs).logits.flatten(0, 1), full)  # the hook is gone


def test_the_hook_goes_away_when_the_model_fails():
    model = make_model("gpt2")
    with pytest.raises(IndexError):
        position_logits(model, {"input_ids": torch.tensor([[10**6]])}, torch.tensor([0]))
    assert model(input_ids=torch.tensor([[1, 2]])).logits.shape == (1, 2, 300)


@pytest.mark.parametrize(
    ("lengths", "first"), [([2, 2, 2, 30, 30], 3), ([5, 5, 5], 0), ([7], 0), ([9, 10, 11], 0)]
)
def test_short_targets_are_split_off_where_it_pays(lengths, first):
    assert split_point(lengths) == first


def test_an_encoder_decoder_batch_runs_labels_and_rationales_apart():
    rows = make_rows(6, every=0)
    data, shape = make_data(make_loaded("t5_tied"), rows)
    batch = collate(data, list(range(12)), shape)
    assert len(batch.pieces) == 2
    assert batch.encoder["input_ids"].shape[0] == 12
    widths = [piece.inputs["decoder_input_ids"].shape[1] for piece in batch.pieces]
    assert widths[0] < widths[1]


@pytest.mark.parametrize("kind", KINDS)
def test_every_target_token_is_predicted_once(kind):
    loaded = make_loaded(kind)
    rows = make_rows(5)
    data, shape = make_data(loaded, rows)
    sequences = [s for found in data.of_row for s in found]
    batch = collate(data, sequences, shape)
    found = sorted(t for piece in batch.pieces for t in piece.labels.tolist())
    assert found == sorted(data.target.tolist())
    for piece, logits in batch_logits(loaded.model, batch, shape):
        assert logits.shape == (len(piece.labels), 300)


def gradients(model, nll) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (nll * torch.linspace(0.5, 1.5, len(nll), dtype=nll.dtype)).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 7, 10**6])
def test_the_size_of_the_head_s_chunks_changes_nothing(kind, rows, monkeypatch):
    loaded = make_loaded(kind, torch.float64)
    data, shape = make_data(loaded, make_rows(6))
    batch = collate(data, [s for found in data.of_row for s in found], shape)
    wanted = batch_nll(loaded.model, batch, shape)
    expected = gradients(loaded.model, wanted)
    monkeypatch.setattr(common, "CHUNK_ELEMENTS", 300 * rows)
    found = batch_nll(loaded.model, batch, shape)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    for name, gradient in gradients(loaded.model, found).items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-12, msg=name)
    with torch.no_grad():
        parts = [logits for _, _, logits in batch_chunks(loaded.model, batch, shape)]
    assert max(map(len, parts)) <= rows
    full = torch.cat([logits for _, logits in batch_logits(loaded.model, batch, shape)])
    torch.testing.assert_close(torch.cat(parts), full, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["gemma2", "granite", "cohere", "bart", *KINDS])
def test_the_head_by_itself_does_what_the_model_does_at_its_head(name):
    model = (make_model(name) if name in KINDS else special_model(name)).double().eval()
    ids = torch.arange(2, 18).reshape(2, 8)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :5]
    wanted = model(**inputs).logits.flatten(0, 1)
    positions = torch.tensor([0, 3, 4, 9])
    states = position_states(model, inputs, positions)
    found = head_of(model)(states)
    torch.testing.assert_close(found, wanted[positions], rtol=0, atol=1e-12)
    assert torch.equal(model(**inputs).logits.flatten(0, 1), wanted)  # the body is back in place


class Largest(TorchDispatchMode):
    """Notes the largest tensor with the vocabulary's width, but the weights' gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.dim() and found.shape[-1] == 300:
            self.rows = max(self.rows, found.numel() // 300)
        return found


@pytest.mark.parametrize("kind", ["t5_tied", "t5_untied", "gpt2", "llama"])
def test_a_batch_never_holds_all_logits(kind, monkeypatch):
    loaded = make_loaded(kind)
    data, shape = make_data(loaded, make_rows(32, every=0))
    batch = collate(data, [s for found in data.of_row for s in found], shape)
    assert sum(len(piece.labels) for piece in batch.pieces) > 400
    monkeypatch.setattr(common, "CHUNK_ELEMENTS", 300 * 50)
    with Largest() as largest:
        batch_nll(loaded.model, batch, shape).mean().backward()
    assert 32 <= largest.rows <= 50  # 32: the transposed weights of the LM head
