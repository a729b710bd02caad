"""Students of fewer layers, cut from a bigger model."""

import dataclasses

import pytest
import torch

from pipestill.errors import UserError
from pipestill.models.loading import load
from pipestill.models.shrink import even_layers, shrink, stacks_of
from tests.training.tiny import make_loaded


def bigger(kind: str, layers: int):
    """A tiny model of `layers` layers in every stack."""
    loaded = make_loaded(kind)
    config = loaded.model.config.__class__.from_dict(loaded.model.config.to_dict())
    for name in ("num_layers", "num_decoder_layers", "num_hidden_layers", "n_layer"):
        if name in config.to_dict():
            setattr(config, name, layers)
    torch.manual_seed(2)
    model = type(loaded.model)(config).eval()
    return dataclasses.replace(loaded, model=model)


def qwen():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(2)
    config = Qwen3Config(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=5, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, use_sliding_window=True, sliding_window=4,
        max_window_layers=2, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    loaded = make_loaded("llama")
    return dataclasses.replace(loaded, model=Qwen3ForCausalLM(config).eval())


def test_layers_are_even_with_first_and_last():
    assert even_layers(12, 6) == [0, 2, 4, 7, 9, 11]
    assert even_layers(6, 6) == list(range(6))
    assert even_layers(5, 2) == [0, 4]
    assert even_layers(7, 1) == [0]
    for total in range(2, 40):
        for wanted in range(2, total + 1):
            found = even_layers(total, wanted)
            assert (found[0], found[-1], len(set(found))) == (0, total - 1, wanted)


def inputs(model):
    ids = torch.tensor([[5, 9, 30, 7, 8, 11, 2]])
    return (
        {"input_ids": ids, "decoder_input_ids": ids[:, :4]}
        if model.config.is_encoder_decoder
        else {"input_ids": ids}
    )


@pytest.mark.parametrize("kind", ["t5_tied", "t5_untied", "gpt2", "llama"])
def test_the_student_computes_what_its_layers_compute(kind):
    """Against the same model with the other layers made to do nothing, by hand."""
    loaded = bigger(kind, 5)
    small = shrink(loaded, "3")
    assert small.parameters < sum(p.numel() for p in loaded.model.parameters())
    for _, layers in stacks_of(loaded.model).values():
        kept = [layers[i] for i in (0, 2, 4)]
        while len(layers):
            del layers[-1]
        layers.extend(kept)
    if kind.startswith("t5"):
        for stack in (loaded.model.encoder, loaded.model.decoder):
            stack.config.num_layers = 3
    loaded.model.config.num_hidden_layers = 3
    with torch.no_grad():
        expected = loaded.model(**inputs(loaded.model), use_cache=False).logits
        found = small.model(**inputs(small.model), use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["t5_tied", "gpt2", "llama"])
def test_a_shrunk_model_saves_loads_and_generates(tmp_path, kind):
    small = shrink(bigger(kind, 4), "2")
    small.model.save_pretrained(tmp_path)
    small.tokenizer.save_pretrained(tmp_path)
    again = load(str(tmp_path)).model
    with torch.no_grad():
        one, other = (m(**inputs(m)).logits for m in (small.model, again))
        answer = again.generate(torch.tensor([[5, 9, 30]]), max_new_tokens=4, do_sample=False)
    torch.testing.assert_close(one, other)
    assert len(answer[0]) > 1


def test_lists_with_an_entry_a_layer_are_cut_too():
    loaded = qwen()
    small = shrink(loaded, "3").model
    kinds = loaded.model.config.layer_types
    assert small.config.layer_types == [kinds[i] for i in (0, 2, 4)]
    assert [layer.self_attn.layer_idx for layer in small.model.layers] == [0, 1, 2]
    assert loaded.model.config.num_hidden_layers == 5


def test_t5_keeps_its_relative_positions():
    loaded = bigger("t5_tied", 4)
    small = shrink(loaded, "1").model
    for stack in ("encoder", "decoder"):
        mine, theirs = (
            getattr(m, stack).block[0].layer[0].SelfAttention.relative_attention_bias.weight
            for m in (small, loaded.model)
        )
        assert torch.equal(mine, theirs)
    assert small.lm_head.weight is small.shared.weight


def test_stacks_may_have_different_sizes():
    model = shrink(bigger("t5_tied", 4), "3+1").model
    assert (model.config.num_layers, model.config.num_decoder_layers) == (3, 1)
    pocket = shrink(load("pocket-base"), "2").model.config
    assert (pocket.num_layers, pocket.num_decoder_layers) == (2, 1)


@pytest.mark.parametrize(
    ("kind", "layers", "code"),
    [
        ("t5_tied", "3", "LAYERS_TOO_MANY"),
        ("t5_tied", "3+1", "LAYERS_TOO_MANY"),
        ("llama", "1+1", "LAYERS_UNREADABLE"),
        ("llama", "0", "LAYERS_UNREADABLE"),
        ("llama", "two", "LAYERS_UNREADABLE"),
    ],
)
def test_impossible_sizes_are_refused(kind, layers, code):
    with pytest.raises(UserError) as caught:
        shrink(make_loaded(kind), layers)
    assert caught.value.code == code


def test_no_layers_named_is_the_model_itself():
    loaded = make_loaded("llama")
    assert shrink(loaded, "") is loaded
