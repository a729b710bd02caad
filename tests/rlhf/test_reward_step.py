"""Pairs as token ids, and the pairwise loss through the real path."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipestill.errors import UserError
from pipestill.models.heads import padded, rewards
from pipestill.rlhf.reward_data import collate_pairs, encode_pairs, hold_out, ids_of, pair_batches
from pipestill.rlhf.reward_job import make_job, reward_renderer
from pipestill.rlhf.reward_step import accumulate, audit_pairs, validate
from pipestill.training.flops import costs_of
from tests.losses.rl_oracles import stored
from tests.rlhf.tiny_rl import (
    KINDS,
    config,
    make_loaded,
    make_pairs,
    make_preferences,
    make_renderer,
    one_pair,
)


def job_of(kind, count=12, **changes):
    return make_job(
        make_loaded(kind), make_pairs(kind, count), make_pairs(kind, 7, 1), config(**changes)
    )


def gradients(job, rows, tokens, margins=None, centering=0.01):
    job.model.zero_grad()
    margins = torch.zeros(len(job.train.of_row)) if margins is None else margins
    sums = accumulate(job, rows, margins, centering, costs_of(job.model.backbone), tokens)
    return sums, [w.grad.clone() for w in job.model.parameters() if w.grad is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_the_preferred_answer_comes_first_and_ends(kind):
    renderer = make_renderer(kind)
    pairs = encode_pairs([one_pair("red", "green blue", choice=1)], renderer)
    prompt, preferred = ids_of(pairs.data, 0)
    assert renderer.tokenizer.decode(preferred) == "green blue</s>"
    assert renderer.tokenizer.decode(ids_of(pairs.data, 1)[1]) == "red</s>"
    assert prompt == renderer.prompts("predict", ["a b"])[0].ids == ids_of(pairs.data, 1)[0]
    assert pairs.lengths.tolist() == [[len(preferred), len(ids_of(pairs.data, 1)[1])]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_answer_has_no_end_mark_and_equal_ones_are_dropped(kind):
    renderer = make_renderer(kind, limit=4)
    rows = [
        one_pair("red", "blue blue blue blue"),
        one_pair("red red red red x", "red red red red y"),
    ]
    pairs = encode_pairs(rows, renderer)
    assert len(pairs) == 1
    assert pairs.identical == 1
    assert pairs.cut_answers == 1
    whole, cut = ids_of(pairs.data, 0)[1], ids_of(pairs.data, 1)[1]
    assert whole[-1] == renderer.end
    assert len(cut) == 4
    assert renderer.end not in cut
    assert int(pairs.lengths[0, 1]) > 4


def test_an_unknown_choice_names_the_row():
    with pytest.raises(UserError, match="row x: choice: found 2"):
        encode_pairs([one_pair("a", "b", choice=2)], make_renderer("llama"))


def test_chat_rows_are_rendered_as_conversations():
    rows = make_preferences(3, chat=True)
    loaded = make_loaded("llama")
    renderer = reward_renderer(loaded, rows, config(instruction="Be kind."))
    assert renderer.style == "chat"
    pairs = encode_pairs(rows, renderer)
    text = renderer.tokenizer.decode(ids_of(pairs.data, 0)[0])
    assert text.startswith("Be kind.")
    assert text.endswith("assistant:")


def test_no_prompt_is_on_both_sides():
    rows = make_preferences(30)
    rows += [dataclasses.replace(row, id=f"{row.id}-again") for row in rows]
    train, held = hold_out(rows, 0.1)
    assert (len(train), len(held)) == (54, 6)
    assert not {row.input_text for row in train} & {row.input_text for row in held}
    assert hold_out(rows[::-1], 0.1)[1] == held[::-1]


@given(st.integers(1, 400), st.lists(st.integers(0, 11), min_size=1, max_size=12, unique=True))
@settings(max_examples=30, deadline=None)
def test_batches_hold_every_pair_once_within_the_budget(tokens, chosen):
    data = make_pairs("llama", 12).data
    found = list(pair_batches(data, chosen, tokens))
    assert sorted(p for part in found for p in part) == sorted(chosen)
    for part in found:
        prompts, answers, _ = collate_pairs(data, part, 0, "cpu")
        size = 2 * len(part) * int(prompts.lengths.max() + answers.lengths.max())
        assert len(part) == 1 or size <= 2 * tokens  # the longest two parts may be different rows


@pytest.mark.parametrize("kind", ["t5_tied", "t5_untied", "gpt2", "llama"])
@pytest.mark.parametrize("tokens", [1, 150])
def test_micro_batches_change_neither_loss_nor_gradients(kind, tokens):
    job = job_of(kind)
    margins = torch.linspace(0, 1, 12)
    whole, wanted = gradients(job, range(8), 10**6, margins)
    parts, found = gradients(job, range(8), tokens, margins)
    for name, (value, count) in whole.terms.items():
        assert count == 8
        assert float(parts.terms[name][0]) == pytest.approx(float(value), rel=1e-5)
    for first, second in zip(wanted, found, strict=True):
        torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-4)
    assert whole.flops == parts.flops > 0


def test_an_encoder_is_paid_for_once_a_pair():
    job = job_of("t5_untied")
    costs = costs_of(job.model.backbone)
    free = dataclasses.replace(costs, encoder=0.0, encoder_pair=0.0)
    margins = torch.zeros(12)
    paid, rest = (accumulate(job, range(5), margins, 0.0, c).flops for c in (costs, free))
    read = job.train.source_length[:10:2].double()
    wanted = costs.encoder * read.sum() + costs.encoder_pair * read.square().sum()
    assert paid - rest == pytest.approx(float(wanted))


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_rows_scored_alone(kind):
    job = job_of(kind)
    sums, _ = gradients(job, range(5), 10**6, torch.full((12,), 0.5))
    by_hand = 0.0
    with torch.no_grad():
        for pair in range(5):
            alone = [
                float(rewards(job.model, padded([prompt], 0), padded([answer], 0)))
                for prompt, answer in (ids_of(job.train, 2 * pair + side) for side in (0, 1))
            ]
            gap = alone[0] - alone[1] - 0.5
            by_hand += math.log1p(math.exp(-gap)) + 0.01 * sum(alone) ** 2
    assert float(sums.terms["reward_loss"][0]) == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "centering", "margin"),
    [("bt", 0.0, 0.0), ("bt_center_0.01", 0.01, 0.0), ("bt_margin_.5", 0.0, 0.5)],
)
def test_oracles_through_the_step(shared_data, monkeypatch, name, centering, margin):
    """Known rewards in the place of the model's: pairing, margin, centring and mean are ours."""
    job = job_of("llama", count=3)
    pairs = {0: (1.2, 0.2), 1: (-0.3, 0.1), 2: (0.8, -1.0)}
    given = {tuple(ids_of(job.train, 2 * p + s)[1]): r[s] for p, r in pairs.items() for s in (0, 1)}

    def known(model, prompts, answers, of_prompt, autocast):
        rows = [tuple(i[m].tolist()) for i, m in zip(answers.ids, answers.mask, strict=True)]
        values = torch.tensor([given[row] for row in rows], dtype=torch.float64)
        return values + 0 * model.head.bias

    monkeypatch.setattr("pipestill.rlhf.reward_step.rewards", known)
    sums, _ = gradients(job, [2, 0, 1], 60, torch.full((3,), margin), centering)
    total, count = sums.terms["reward_loss"]
    assert float(total) / count == pytest.approx(stored(shared_data, "rm")[name], abs=1e-6)
    assert float(sums.terms["reward_accuracy"][0]) == 2


def test_validation_is_the_likelihood_of_the_held_out_order():
    job = job_of("t5_untied")
    found = validate(job)
    data = job.validation
    with torch.no_grad():
        prompts, answers, of = collate_pairs(data, range(7), 0, "cpu")
        values = rewards(job.model, prompts, answers, of)
    gap = values[:7] - values[7:]
    wanted = float(torch.nn.functional.softplus(-gap).mean())
    assert found["val_reward_loss"] == pytest.approx(wanted, rel=1e-5)
    assert found["val_reward_accuracy"] == pytest.approx(float((gap > 0).float().mean()))


def test_the_audit_shows_where_the_reward_is_read(tmp_path):
    renderer = make_renderer("llama", limit=5)
    rows = [one_pair("red", "blue blue blue blue")]
    seen = audit_pairs(encode_pairs(rows, renderer), renderer, tmp_path / "m")
    assert "a b\nred⟦</s>⟧" in (tmp_path / "m.audit.txt").read_text(encoding="utf-8")
    assert seen.samples[1].segments[-1].text != "</s>"
    assert "50% of the answers" in seen.notes[0]
