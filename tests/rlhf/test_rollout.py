"""Sampling: its distribution, the end mark, and log-probabilities that training code repeats."""

import dataclasses
import math

import pytest
import torch

from pipestill.rlhf.collect import own_sampler, parts_of_answers
from pipestill.rlhf.policy import collate, evaluate_answers
from pipestill.rlhf.rollout import sample, uniform
from tests.rlhf.policies import KINDS, config, disturb, make, questions

TOLERANCE = 1e-5


def sampled(policy, prompts, samples, draws, **changes):
    given = {
        "ends": policy.ends, "temperature": policy.temperature, "pad": policy.shape.pad,
        "start": policy.shape.start, **changes,
    }  # fmt: skip
    return sample(policy.model, prompts, samples, draws, **given)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_training_code_gives_the_log_probabilities_of_sampling(kind, method):
    """Prompts of many lengths (left padding), three answers a prompt, rows that leave early."""
    temperature = 5.0 if kind == "t5_untied" else 0.7  # its random logits are large
    policy = make(kind, config(method=method, temperature=temperature))
    policy = dataclasses.replace(policy, ends=list(range(1, 60)))
    disturb(policy)
    asked = questions(policy)
    prompts = [q.ids for q in asked]
    assert len({len(ids) for ids in prompts}) > 3
    found = own_sampler(policy, prompts, 3, uniform(18, 10, 1))
    assert min(map(len, found.responses)) < 10 == max(map(len, found.responses))
    repeated = [ids for ids in prompts for _ in range(3)]
    for part in parts_of_answers(policy.shape, repeated, found.responses):
        with torch.no_grad():
            got = evaluate_answers(policy.model, part.batch, policy.shape, temperature).logprobs
        for row, values in zip(part.rows, got.tolist(), strict=True):
            wanted = found.logprobs[row]
            assert values[: len(wanted)] == pytest.approx(wanted, abs=TOLERANCE)


@pytest.mark.parametrize("kind", ["llama", "t5_tied"])
def test_an_answer_does_not_depend_on_its_neighbours(kind):
    policy = make(kind, config())
    prompts = [q.ids for q in questions(policy)]
    draws = uniform(len(prompts), 12, 3)
    together = own_sampler(policy, prompts, 1, draws).responses
    alone = [
        own_sampler(policy, [ids], 1, draws[i : i + 1]).responses[0]
        for i, ids in enumerate(prompts)
    ]
    assert together == alone


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_from_the_whole_tempered_distribution(temperature):
    policy = make("gpt2", config())
    disturb(policy, 0.3)
    (prompt,) = [q.ids for q in questions(policy, ("a",))]
    count = 20_000
    found = sampled(policy, [prompt], count, uniform(count, 1, 7), temperature=temperature)
    got = torch.bincount(torch.tensor([row[0] for row in found.responses]), minlength=300) / count
    with torch.no_grad():
        logits = policy.model(torch.tensor([prompt])).logits[0, -1]
    wanted = (logits / temperature).softmax(0)
    error = (wanted * (1 - wanted) / count).sqrt() + 1e-12
    z = (got - wanted) / error
    # 300 of them: chi-square over the cells that are likely enough to be normal
    likely = wanted * count > 10
    assert float(z[likely].square().mean()) < 1 + 5 * math.sqrt(2 / int(likely.sum()))
    assert float(got[~likely].sum()) == pytest.approx(float(wanted[~likely].sum()), abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_without_temperature_it_is_greedy_generation(kind):
    policy = make(kind, config())
    disturb(policy, 0.2)
    prompts = [q.ids for q in questions(policy)]
    found = sampled(policy, prompts, 1, uniform(len(prompts), 8, 0), temperature=0.0)
    for ids, row in zip(prompts, found.responses, strict=True):
        out = policy.model.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)).long(),
            do_sample=False, max_new_tokens=8, eos_token_id=policy.ends, pad_token_id=0,
        )[0]  # fmt: skip
        wanted = out[1:] if policy.shape.is_encoder_decoder else out[len(ids) :]
        assert row == wanted.tolist()


def forced(policy, token):
    """Makes `token` all but certain at every position."""
    head = policy.model.get_output_embeddings()
    return head.register_forward_hook(
        lambda _, __, out: out + 50.0 * torch.nn.functional.one_hot(torch.tensor(token), 300)
    )


@pytest.mark.parametrize("kind", ["llama", "t5_untied"])
def test_the_end_mark_ends_an_answer_and_the_batch(kind):
    policy = make(kind, config())
    prompts = [q.ids for q in questions(policy)]
    calls = []
    counter = policy.model.register_forward_hook(lambda *_: calls.append(1))
    handle = forced(policy, policy.ends[0])
    found = own_sampler(policy, prompts, 2, uniform(12, 40, 1))
    handle.remove()
    assert found.responses == [[policy.ends[0]]] * 12  # one token, the mark itself
    assert len(calls) == 1
    calls.clear()
    handle = forced(policy, 77)
    found = own_sampler(policy, prompts, 2, uniform(12, 9, 1))
    handle.remove()
    counter.remove()
    assert found.responses == [[77] * 9] * 12  # never forced to end
    assert len(calls) == 9


def test_an_encoder_reads_each_prompt_once():
    policy = make("t5_tied", config())
    prompts = [q.ids for q in questions(policy)]
    read = []
    policy.model.get_encoder().register_forward_hook(
        lambda _, __, out: read.append(len(out.last_hidden_state))
    )
    found = own_sampler(policy, prompts, 4, uniform(24, 6, 1))
    assert read == [6]
    read.clear()
    batch = collate(policy.shape, [p for p in prompts for _ in range(4)], found.responses)
    evaluate_answers(policy.model, batch, policy.shape, 1.0)
    assert read == [6]


def test_numbers_follow_from_the_keys_alone():
    assert torch.equal(uniform(3, 4, 0, 1, 2), uniform(3, 4, 0, 1, 2))
    tables = [uniform(3, 4, *keys) for keys in ((0, 1, 2), (0, 2, 1), (1, 1, 2), (0, 1, 3))]
    assert len({tuple(table.flatten().tolist()) for table in tables}) == 4
    assert float(uniform(400, 400, 9).mean()) == pytest.approx(0.5, abs=0.01)
