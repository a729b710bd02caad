"""The parts of a policy step: first pass, places of rewards, padding, adapters, errors."""

import dataclasses
import math

import pytest
import torch

from pipestill.errors import WorkError
from pipestill.rlhf import collect as collecting
from pipestill.rlhf import ppo_step
from pipestill.rlhf.collect import Rollout, collect, minibatches
from pipestill.rlhf.policy import collate, drop_value_head, evaluate_answers
from pipestill.rlhf.ppo_step import iterate, prepare, update
from pipestill.rlhf.rollout import Sampled, uniform
from pipestill.training.distributed import ALONE
from tests.rlhf.policies import (
    KINDS,
    config,
    count_reward,
    disturb,
    make,
    optimizer_of,
    questions,
)


def given_rollout(policy, responses, scores):
    """A rollout of answers that the test chose."""
    asked = questions(policy)[: len(responses)]
    lengths = torch.tensor([float(len(row)) for row in responses], dtype=torch.float64)
    ended = [row[-1] in policy.ends for row in responses]
    chances = [[0.0] * len(row) for row in responses]
    rewards = torch.tensor(scores)
    return Rollout(
        asked, Sampled(responses, chances), list(range(len(responses))), ended, rewards, rewards,
        lengths,
    )  # fmt: skip


def rolled(policy, settings, step=1):
    return collect(policy, questions(policy), settings, step, count_reward, ALONE)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("tokens", [64, 4096])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_in_the_first_pass_all_ratios_are_exactly_one(kind, method, tokens, kept, monkeypatch):
    """Also in several parts, with the graph of the first pass kept or not."""
    monkeypatch.setattr(collecting, "budget", lambda _: tokens)
    monkeypatch.setattr(ppo_step, "KEPT_BYTES", 10**9 if kept else 0)
    settings = config(method=method, minibatches=1 if kept else 2, temperature=0.9)
    policy = make(kind, settings)
    rollout = rolled(policy, settings)
    plan = minibatches(policy, rollout, settings, 1, 0)
    targets, outputs = prepare(policy, rollout, plan, settings, 0.1, ALONE)
    assert bool(outputs) == kept
    assert torch.equal(targets.old, targets.ref)  # and the policy begins as its reference
    found = update(policy, plan[0], outputs, targets, settings, 0.1, ALONE)
    assert found["approx_kl"] == found["clip_fraction"] == found["kl_sum"] == 0.0
    assert found["grad_norm"] > 0
    advantage = targets.advantages[[row for part in plan[0].parts for row in part.rows]]
    assert found["policy_loss"] == pytest.approx(float(-advantage.sum()) / plan[0].tokens, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kept_graph_changes_no_bit(kind, monkeypatch):
    ends = []
    for size in (10**9, 0):
        monkeypatch.setattr(ppo_step, "KEPT_BYTES", size)
        settings = config()
        policy = make(kind, settings)
        optimizer = optimizer_of(policy)
        for step in (1, 2):
            iterate(policy, optimizer, rolled(policy, settings, step), settings, step, 0.1, ALONE)
        ends.append({name: w.detach() for name, w in policy.model.named_parameters()})
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize("kind", ["llama", "t5_tied"])
def test_the_reward_lands_on_the_last_token_of_every_answer(kind):
    """An answer of one token (the end mark), one of full length without one, one between."""
    settings = config(gae_lambda=0.5, gamma=1.0)
    policy = make(kind, settings)
    end = policy.ends[0]
    responses = [[end], [5] * 10, [7, 8, 9, end]]
    rollout = given_rollout(policy, responses, [1.0, 2.0, -3.0])
    plan = minibatches(policy, rollout, settings, 1, 0)
    targets, _ = prepare(policy, rollout, plan, settings, 0.1, ALONE)
    # Values are zero and policy = reference: returns are the reward, discounted by λ backwards.
    for row, score in enumerate((1.0, 2.0, -3.0)):
        size = len(responses[row])
        wanted = [score * 0.5 ** (size - 1 - t) for t in range(size)]
        assert targets.returns[row, :size].tolist() == pytest.approx(wanted, abs=1e-6)
        assert not targets.returns[row, size:].any()
        assert targets.mask[row].tolist() == [t < size for t in range(10)]


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind):
    """Neither values nor gradients of an answer depend on longer prompts and answers beside it."""
    settings = config()
    policy = make(kind, settings, torch.float64)
    disturb(policy, 0.02)
    prompts = [q.ids for q in questions(policy)]
    responses = [[3 + i] * (1 + 2 * i) + [1] for i in range(len(prompts))]
    grads, alone = [], []
    for rows in ([0], list(range(len(prompts)))):
        batch = collate(policy.shape, [prompts[i] for i in rows], [responses[i] for i in rows])
        out = evaluate_answers(policy.model, batch, policy.shape, 1.0, values=True, spread=True)
        width = len(responses[0])
        alone.append([part[0, :width] for part in (out.logprobs, out.values, out.entropy)])
        (out.logprobs[0].sum() + out.values[0].sum()).backward()
        grads.append({n: w.grad.clone() for n, w in policy.model.named_parameters()})
        policy.model.zero_grad()
        assert not out.logprobs[~out.mask].any()
    for one, other in zip(*alone, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_with_its_adapter_off_the_policy_is_the_base(kind):
    base = make(kind, config())
    policy = make(kind, config(method="lora"))
    disturb(policy)
    prompts = [q.ids for q in questions(base)]
    batch = collate(base.shape, prompts, [[4, 5, 6, 1]] * len(prompts))
    with torch.no_grad():
        wanted = evaluate_answers(base.model, batch, base.shape, 1.0).logprobs
        with policy.frozen() as model:
            off = evaluate_answers(model, batch, policy.shape, 1.0).logprobs
        on = evaluate_answers(policy.model, batch, policy.shape, 1.0).logprobs
    assert torch.equal(off, wanted)
    assert (on - wanted).abs().max() > 1e-3
    trained = [w for w in policy.model.parameters() if w.requires_grad]
    assert trained  # switched on again, and learning
    assert sum(w.numel() for w in trained) < sum(w.numel() for w in base.model.parameters())


@pytest.mark.parametrize("kind", ["gpt2", "t5_tied"])
def test_the_reference_stays_and_the_value_head_starts_at_zero(kind):
    settings = config()
    policy = make(kind, settings)
    before = {name: w.clone() for name, w in policy.reference.named_parameters()}
    rollout = rolled(policy, settings)
    plan = minibatches(policy, rollout, settings, 1, 0)
    targets, _ = prepare(policy, rollout, plan, settings, 0.1, ALONE)
    assert not targets.values.any()
    iterate(policy, optimizer_of(policy), rollout, settings, 1, 0.1, ALONE)
    assert all(torch.equal(w, before[n]) for n, w in policy.reference.named_parameters())
    assert policy.model.value_head.weight.abs().max() > 0
    drop_value_head(policy.model)
    assert not any("value_head" in name for name in policy.model.state_dict())


def test_an_answer_that_does_not_end_is_penalised():
    settings = config(missing_eos_penalty=0.75)
    policy = make("gpt2", settings)
    policy.ends.extend(range(2, 40))
    rollout = rolled(policy, settings)
    assert {True, False} == set(rollout.ended)
    for reward, score, ended in zip(rollout.rewards, rollout.scores, rollout.ended, strict=True):
        assert float(reward - score) == pytest.approx(0.0 if ended else 0.75)


@pytest.mark.parametrize("objective", ["rloo", "grpo"])
def test_group_objectives_against_their_formulas(objective):
    """Advantages by hand; KL is in RLOO's reward, and in GRPO's loss."""
    settings = config(policy_objective=objective, samples_per_prompt=2)
    policy = make("llama", settings)
    disturb(policy, 0.03)
    rollout = rolled(policy, settings)
    plan = minibatches(policy, rollout, settings, 1, 0)
    targets, kept = prepare(policy, rollout, plan, settings, 0.2, ALONE)
    kl = (targets.old - targets.ref).sum(1)
    total = rollout.scores - (0.2 * kl if objective == "rloo" else 0.0)
    for row in range(len(total)):
        other = total[row ^ 1]
        wanted = total[row] - other
        if objective == "grpo":
            mean = (total[row] + other) / 2
            spread = (total[row] - other).abs() / math.sqrt(2)
            wanted = (total[row] - mean) / (spread + 1e-4)
        size = int(targets.mask[row].sum())
        assert targets.advantages[row, :size].tolist() == pytest.approx([float(wanted)] * size)
    assert targets.values is None
    found = update(policy, plan[0], kept, targets, settings, 0.2, ALONE)
    grads = [w.grad.clone() for w in policy.model.parameters()]
    policy.model.zero_grad()
    out = evaluate_answers(
        policy.model,
        collate(policy.shape, [q.ids for q in rollout.questions], rollout.sampled.responses),
        policy.shape,
        1.0,
    )
    loss = -(out.logprobs - out.logprobs.detach()).exp() * targets.advantages
    if objective == "grpo":
        gap = targets.ref - out.logprobs
        loss = loss + 0.2 * (gap.exp() - 1 - gap)
    (loss[out.mask].sum() / out.mask.sum()).backward()
    wanted = [w.grad for w in policy.model.parameters()]
    norm = torch.sqrt(sum(g.square().sum() for g in wanted))
    assert found["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    for grad, other in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, other * min(1.0, float(1 / norm)), rtol=0, atol=1e-5)


def test_answers_of_another_engine_are_weighted():
    settings = config(importance_cap=1.5, policy_objective="rloo", samples_per_prompt=2)
    policy = make("gpt2", settings)

    def engine(policy, prompts, samples, draws):
        found = collecting.own_sampler(policy, prompts, samples, draws)
        off = [[x - 0.3 if i % 2 else x + 0.2 for x in row] for i, row in
               enumerate(found.logprobs)]  # fmt: skip
        return Sampled(found.responses, off, foreign=True)

    rollout = collect(policy, questions(policy), settings, 1, count_reward, ALONE, engine)
    plan = minibatches(policy, rollout, settings, 1, 0)
    targets, kept = prepare(policy, rollout, plan, settings, 0.0, ALONE)
    for row, weights in enumerate(targets.weights):
        wanted = math.exp(0.3) if row % 2 else math.exp(-0.2)
        assert weights[targets.mask[row]].tolist() == pytest.approx(
            [wanted] * int(targets.mask[row].sum()), rel=1e-4
        )
    loss = -(targets.advantages * targets.weights)[targets.mask].mean()
    found = update(policy, plan[0], kept, targets, settings, 0.0, ALONE)
    assert found["policy_loss"] == pytest.approx(float(loss), rel=1e-4, abs=1e-7)
    capped = dataclasses.replace(settings, importance_cap=1.1)
    targets, _ = prepare(policy, rollout, plan, capped, 0.0, ALONE)
    assert float(targets.weights[1][targets.mask[1]].max()) == pytest.approx(1.1)


def test_the_epochs_end_at_the_bound():
    settings = config(kl_bound=0.05, ppo_epochs=50)
    policy = make("gpt2", settings)
    optimizer = optimizer_of(policy, 1e-2)
    found = iterate(policy, optimizer, rolled(policy, settings), settings, 1, 0.0, ALONE)
    assert 1 <= found["epochs"] < 50
    disturb(policy, 0.2)
    after = rolled(policy, settings, 2)
    weights = [w.clone() for w in policy.model.parameters()]
    found = iterate(policy, optimizer, after, settings, 2, 0.0, ALONE)
    assert found["kl"] > 0.05  # past it from the start: nothing is learnt from it
    assert found["epochs"] == 0
    assert all(torch.equal(a, b) for a, b in zip(weights, policy.model.parameters(), strict=True))


def test_what_is_no_number_stops_the_run_by_name():
    settings = config()
    policy = make("gpt2", settings)

    def bad(asked, responses):
        return [math.nan if q.id == "q2" else 1.0 for q in asked]

    with pytest.raises(WorkError, match=r"REWARD_NOT_FINITE.*step 3.*answers to q2"):
        collect(policy, questions(policy), settings, 3, bad, ALONE)
    rollout = rolled(policy, settings)
    before = [w.clone() for w in policy.model.parameters()]
    policy.model.value_head.weight.register_hook(lambda grad: grad * math.nan)
    with pytest.raises(WorkError, match=r"LOSS_NOT_FINITE.*step 4.*q0, q1, q2, q3"):
        iterate(policy, optimizer_of(policy), rollout, settings, 4, 0.1, ALONE)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True))


def test_minibatches_hold_every_answer_once_and_change_with_the_epoch():
    settings = config(minibatches=3, samples_per_prompt=2)
    policy = make("gpt2", settings)
    rollout = rolled(policy, settings)
    orders = []
    for epoch in (0, 1):
        plan = minibatches(policy, rollout, settings, 1, epoch)
        rows = [[row for part in batch.parts for row in part.rows] for batch in plan]
        assert sorted(row for found in rows for row in found) == list(range(12))
        for batch, found in zip(plan, rows, strict=True):
            assert batch.tokens == sum(len(rollout.sampled.responses[row]) for row in found)
        orders.append([sorted(found) for found in rows])
    assert orders[0] != orders[1]


def test_rewards_may_be_whitened():
    settings = config(whiten_rewards=True, gae_lambda=1.0)
    policy = make("gpt2", settings)
    rollout = rolled(policy, settings)
    plan = minibatches(policy, rollout, settings, 1, 0)
    targets, _ = prepare(policy, rollout, plan, settings, 0.1, ALONE)
    flat = torch.zeros_like(targets.old)
    for row, found in enumerate(rollout.sampled.responses):
        flat[row, len(found) - 1] = rollout.scores[row]
    values = flat[targets.mask].double()
    scale = 1 / torch.sqrt(values.var(correction=0) + 1e-8)
    kept = values.mean() - values.mean() * scale  # the mean stays: shift_mean is false
    whole = (flat.double() * scale + kept).masked_fill(~targets.mask, 0.0)
    wanted = whole.flip(1).cumsum(1).flip(1)
    found = targets.returns.double()[targets.mask]
    torch.testing.assert_close(found, wanted[targets.mask], rtol=0, atol=1e-4)


def test_draws_of_a_step_are_its_own():
    settings = config()
    policy = make("gpt2", settings)
    one, again, other = (rolled(policy, settings, step).sampled.responses for step in (1, 1, 2))
    assert one == again
    assert one != other
    assert uniform(2, 2, 0, 1).dtype == torch.float64
