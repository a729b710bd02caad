"""Scalar heads: which state is read, padding, and prompts that are encoded once."""

import math

import pytest
import torch

from pipestill.models.heads import (
    ScalarHead,
    Tokens,
    WithHead,
    all_states,
    encode_prompts,
    load_head,
    padded,
    rewards,
    states,
    width_of,
)
from tests.training.tiny import KINDS, make_model

PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
RESPONSES = [[20, 1], [1], [21, 22, 23, 24]]  # an ended one, one of one token, one of full length


@pytest.fixture(params=KINDS)
def model(request):
    backbone = make_model(request.param).eval()
    return WithHead(backbone, ScalarHead(width_of(backbone), seed=3))


def alone(backbone, prompt, response):
    """(T + 1, d) by the model itself, one row without padding, its own hidden states."""
    if backbone.config.is_encoder_decoder:
        found = backbone(
            input_ids=torch.tensor([prompt]),
            decoder_input_ids=torch.tensor([[0, *response]]),
            output_hidden_states=True,
        ).decoder_hidden_states[-1][0]
        return found
    found = backbone(input_ids=torch.tensor([prompt + response]), output_hidden_states=True)
    return found.hidden_states[-1][0][len(prompt) - 1 :]


def on_the_left(tokens, more=0):
    """The same rows padded on the left, with `more` columns of padding."""
    rows = [row[mask].tolist() for row, mask in zip(tokens.ids, tokens.mask, strict=True)]
    width = max(map(len, rows)) + more
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return Tokens(ids, mask)


def on_the_right(tokens, more):
    return Tokens(
        torch.nn.functional.pad(tokens.ids, (0, more)),
        torch.nn.functional.pad(tokens.mask, (0, more)),
    )


@torch.no_grad()
def test_states_are_those_of_the_model_row_by_row(model):
    found = all_states(model.backbone, padded(PROMPTS, 0), padded(RESPONSES, 0))
    assert found.shape == (3, 5, 32)
    for row, prompt, response in zip(found, PROMPTS, RESPONSES, strict=True):
        wanted = alone(model.backbone, prompt, response)
        torch.testing.assert_close(row[: len(response) + 1], wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_reward_is_read_where_the_last_token_has_been_read(model):
    found = rewards(model, padded(PROMPTS, 0), padded(RESPONSES, 0))
    for value, prompt, response in zip(found, PROMPTS, RESPONSES, strict=True):
        last = alone(model.backbone, prompt, response)[-1]
        by_hand = last @ model.head.weight[0] + model.head.bias[0]
        assert float(value) == pytest.approx(float(by_hand), abs=1e-5)


@torch.no_grad()
def test_the_last_token_counts_and_a_longer_response_changes_no_earlier_state(model):
    prompts = padded([PROMPTS[0]] * 2, 0)
    ended, open_end = rewards(model, prompts, padded([[20, 21, 1], [20, 21, 22]], 0)).tolist()
    assert ended != open_end
    before = states(model.backbone, prompts, padded([[20, 21, 1], [20, 21, 22]], 0))
    torch.testing.assert_close(before[0], before[1], atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("more", [0, 3])
def test_padding_changes_nothing(model, more):
    prompts, responses = padded(PROMPTS, 0), padded(RESPONSES, 0)
    wanted = rewards(model, prompts, responses)
    for asked in (on_the_left(prompts, more), on_the_right(prompts, more)):
        for said in (on_the_left(responses, more), on_the_right(responses, more)):
            torch.testing.assert_close(rewards(model, asked, said), wanted, atol=1e-5, rtol=0)


def test_padding_changes_no_gradient(model):
    prompts, responses = padded(PROMPTS, 0), padded(RESPONSES, 0)
    found = []
    for asked, said in (
        (prompts, responses),
        (on_the_left(prompts, 2), on_the_right(responses, 3)),
    ):
        model.zero_grad()
        rewards(model, asked, said).square().sum().backward()
        found.append([w.grad.clone() for w in model.parameters() if w.grad is not None])
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_prompts_are_encoded_once_for_all_their_responses(model):
    of_prompt = torch.tensor([0, 0, 2, 1])
    responses = padded([*RESPONSES, [30, 31, 1]], 0)
    prompts = padded(PROMPTS, 0)
    once = rewards(model, prompts, responses, of_prompt)
    torch.testing.assert_close(
        once, rewards(model, prompts.take(of_prompt), responses), atol=1e-6, rtol=0
    )
    encoded = encode_prompts(model.backbone, prompts)
    if not model.config.is_encoder_decoder:
        assert encoded is None
        return
    given = states(model.backbone, prompts.take(of_prompt), responses, encoded[of_prompt])
    torch.testing.assert_close(
        given, states(model.backbone, prompts.take(of_prompt), responses), atol=1e-6, rtol=0
    )


@torch.no_grad()
def test_states_predict_their_tokens(model):
    """The LM head on state t gives the logits that the model itself has for token t."""
    prompt, response = PROMPTS[0], RESPONSES[2]
    found = states(model.backbone, padded([prompt], 0), padded([response], 0))[0]
    config = model.config
    if config.is_encoder_decoder:
        logits = model.backbone(
            input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[0, *response[:-1]]])
        ).logits[0]
        scaled = found * config.d_model**-0.5 if config.scale_decoder_outputs else found
    else:
        logits = model.backbone(input_ids=torch.tensor([prompt + response])).logits[0]
        logits, scaled = logits[len(prompt) - 1 : -1], found
    wanted = model.backbone.get_output_embeddings()(scaled)
    torch.testing.assert_close(wanted, logits, atol=1e-5, rtol=1e-5)


def test_first_weights():
    head = ScalarHead(4000, seed=1)
    assert float(head.weight.detach().std()) == pytest.approx(1 / math.sqrt(4001), rel=0.1)
    assert head.bias.tolist() == [0]
    assert torch.equal(head.weight, ScalarHead(4000, seed=1).weight)
    assert not torch.equal(head.weight, ScalarHead(4000, seed=2).weight)
    assert not ScalarHead(8, zeros=True).weight.any()


def test_the_head_computes_in_full_precision_under_autocast():
    head = ScalarHead(32, seed=1)
    given = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(given), head(given.clone()))
        assert head(given).dtype == torch.float32


def test_training_leaves_dropout_off():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=30, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.5,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = WithHead(T5ForConditionalGeneration(config), ScalarHead(16)).train()
    twice = [rewards(model, padded([[3, 4]], 0), padded([[5, 1]], 0)) for _ in range(2)]
    assert torch.equal(*twice)
    assert twice[0].requires_grad


@torch.no_grad()
def test_saved_and_loaded(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = WithHead(type(model.backbone).from_pretrained(tmp_path), load_head(tmp_path)).eval()
    given = padded(PROMPTS, 0), padded(RESPONSES, 0)
    assert torch.equal(rewards(again, *given), rewards(model, *given))
