"""DPO, cDPO and IPO: losses against their formulas, the right direction, resuming."""

import json
import math

import pytest
import torch

from pipestill.records import Preference, write_jsonl
from pipestill.rlhf.policy import collate, evaluate_answers
from pipestill.rlhf.policy_train import train_policy
from pipestill.rlhf.preference_step import (
    pair_logprobs,
    pair_loss,
    preference_job,
    reference_logprobs,
)
from pipestill.rlhf.reward_data import encode_pairs, ids_of
from pipestill.training.loop import fit
from tests.rlhf.policies import KINDS, config, count_reward, disturb, make, rows
from tests.training.tiny import make_folder

DIRECT = ("dpo", "cdpo", "ipo")


def pairs(count: int) -> list[Preference]:
    """Red is preferred to green, whichever side it stands on."""
    return [
        Preference(
            id=f"r{i}", input_text=f"name {i % 7} then {i % 5} a{i}",
            candidate_0="red red" if i % 2 else "green", choice=1 - i % 2,
            candidate_1="green" if i % 2 else "red red",
        )
        for i in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_pair_log_probabilities_are_those_of_single_answers(kind):
    policy = make(kind, config(policy_objective="dpo"), torch.float64)
    data = encode_pairs(pairs(5), policy.renderer).data
    with torch.no_grad():
        found = pair_logprobs(policy.model, data, [3, 0, 4], policy.shape)
        for place, pair in enumerate((3, 0, 4)):
            for side in (0, 1):
                prompt, answer = ids_of(data, 2 * pair + side)
                batch = collate(policy.shape, [prompt], [answer])
                alone = evaluate_answers(policy.model, batch, policy.shape, 1.0).logprobs.sum()
                assert float(found[place, side]) == pytest.approx(float(alone), abs=1e-9)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_reference_is_the_start(method):
    policy = make("llama", config(policy_objective="dpo", method=method))
    data = encode_pairs(pairs(6), policy.renderer).data
    before = reference_logprobs(policy, data)
    disturb(policy)
    torch.testing.assert_close(reference_logprobs(policy, data), before)
    with torch.no_grad():
        moved = pair_logprobs(policy.model, data, range(6), policy.shape)
    assert (moved - before).abs().max() > 1e-3


@pytest.mark.parametrize("objective", DIRECT)
def test_losses_against_their_formulas(objective):
    """Of the start all gaps are 0; moved, the gap goes through the objective's own function."""
    settings = config(policy_objective=objective, kl_coeff=0.5, label_smoothing=0.2)
    reference = torch.tensor([[-5.0, -4.0], [-3.0, -6.0]])
    moved = reference + torch.tensor([[0.5, -0.5], [-1.0, 1.0]])
    zero, gap = pair_loss(reference, reference, settings)
    assert gap.tolist() == [0.0, 0.0]
    loss, gap = pair_loss(moved, reference, settings)
    assert gap.tolist() == pytest.approx([0.5, -1.0])

    def softplus(x):
        return math.log1p(math.exp(x))

    if objective == "ipo":
        wanted = [(x - 1.0) ** 2 for x in (1.0, -2.0)]
        assert zero.tolist() == pytest.approx([1.0, 1.0])
    else:
        smooth = 0.2 if objective == "cdpo" else 0.0
        wanted = [(1 - smooth) * softplus(-x) + smooth * softplus(x) for x in (0.5, -1.0)]
        assert zero.tolist() == pytest.approx([math.log(2)] * 2)
    assert loss.tolist() == pytest.approx(wanted)


@pytest.fixture
def given(tmp_path):
    write_jsonl(tmp_path / "held_out.jsonl", rows(12, start=100))
    write_jsonl(tmp_path / "pairs.jsonl", pairs(60))
    return tmp_path


def run(folder, kind, name="out", **changes):
    model = folder / kind
    if not model.is_dir():
        make_folder(kind, model)
    settings = config(
        **{"large_model_reference": str(model), "policy_objective": "dpo",
           "reinforcement_learning_train_steps": 20, "rollout_batch_size": 16,
           "evaluation_interval": 10, **changes}
    )  # fmt: skip
    return train_policy(
        folder / "prompts.jsonl", folder / "held_out.jsonl", folder / "pairs.jsonl", "",
        folder / name, state_dir="", config=settings, reward=count_reward,
        samples_path=folder / "samples.jsonl",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("objective", DIRECT)
@pytest.mark.parametrize(("kind", "method"), [("llama", "full"), ("t5_tied", "lora")])
def test_it_learns_to_prefer_what_is_preferred(given, kind, method, objective):
    found = run(given, kind, policy_objective=objective, method=method)
    log = [json.loads(x) for x in (given / "out" / "train_log.jsonl").read_text().splitlines()]
    last = [entry for entry in log if "val_preference_accuracy" in entry][-1]
    first = next(entry for entry in log if "preference_loss" in entry)
    assert last["val_preference_accuracy"] == 1.0
    assert last["val_preference_loss"] < first["preference_loss"]
    assert found["objective"] == objective
    assert found["preference_rows"] == 60
    assert math.isfinite(found["kl"])
    assert found["reward"] != found["base_reward"]
    assert (given / "samples.jsonl").read_text().count("\n") == 12


def test_past_the_bound_weights_are_not_selected(given):
    """Full steps go far at once; the first evaluation is within the bound, later ones are not."""
    found = run(given, "llama", kl_bound=0.02, evaluation_interval=1,
                reinforcement_learning_rate=5e-3)  # fmt: skip
    log = [json.loads(x) for x in (given / "out" / "train_log.jsonl").read_text().splitlines()]
    inside = [e["step"] for e in log if e.get("val_kl", 1.0) <= 0.02 and "val_choice" in e]
    assert any(entry.get("val_kl", 0.0) > 0.02 for entry in log)
    assert found["best_step"] in inside


def test_a_run_that_is_past_the_bound_at_once_gives_the_start_back(given):
    found = run(given, "llama", kl_bound=1e-9, evaluation_interval=5,
                reinforcement_learning_rate=1e-2)  # fmt: skip
    assert found["best_step"] == 0
    assert found["kl"] == 0.0
    assert found["reward"] == found["base_reward"]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_killed_run_ends_like_an_uninterrupted_one(tmp_path, method):
    settings = config(policy_objective="dpo", method=method, reinforcement_learning_train_steps=6,
                      rollout_batch_size=8)  # fmt: skip

    def job():
        policy = make("t5_tied", settings)
        train, held = (encode_pairs(p, policy.renderer) for p in (pairs(20), pairs(30)[20:]))
        return preference_job(policy, train, held, settings, 1e-3, dict)

    def cut(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    whole, again = job(), job()
    fit(whole, None)
    with pytest.raises(KeyboardInterrupt):
        fit(job(), tmp_path, cut)
    assert fit(again, tmp_path)[1] == 2
    for (name, one), (_, other) in zip(
        whole.model.named_parameters(), again.model.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name
