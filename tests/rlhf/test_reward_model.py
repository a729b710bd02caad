"""The reward model as a whole: training, resuming, saving, scoring; it learns."""

import dataclasses
import json

import pytest
import torch

from pipestill.errors import UserError
from pipestill.models.heads import rewards
from pipestill.records import write_jsonl
from pipestill.rlhf import reward as module
from pipestill.rlhf.reward import train_reward_model
from pipestill.rlhf.reward_data import collate_pairs, encode_pairs, hold_out, ids_of
from pipestill.rlhf.reward_job import adapted, exported, make_job
from pipestill.rlhf.scoring import RewardModel
from tests.rlhf.tiny_rl import (
    KINDS,
    config,
    make_files,
    make_folder,
    make_loaded,
    make_pairs,
    make_preferences,
    make_renderer,
    one_pair,
)


def trained(folder, kind, state="", name="m", count=40, **changes):
    model = folder / kind
    if not model.is_dir():
        make_folder(kind, model)
    files = make_files(folder, count)
    settings = config(reward_model_reference=str(model), **changes)
    return train_reward_model(*files, folder / name, state_dir=state, config=settings)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_leaves_a_model_that_scores_as_it_was_measured(tmp_path, kind, method):
    summary = trained(tmp_path, kind, reward_method=method)
    assert summary["steps"] == 6
    assert (summary["trained_parameters"] < summary["parameters"]) == (method == "lora")
    info = json.loads((tmp_path / "m" / "pipestill.json").read_text())
    assert info["objective"] == "reward_model"
    assert info["normalisation"] == summary["normalisation"]
    assert info["evaluation"]["pairs"] == summary["eval_pairs"] == 20
    model = RewardModel.load(tmp_path / "m")
    rows = make_preferences(20, seed=1)
    pairs = encode_pairs(rows, model.renderer)
    ids = [ids_of(pairs.data, s) for s in range(40)]
    raw = model.raw([p for p, _ in ids], [a for _, a in ids])
    assert float(raw.mean()) == pytest.approx(summary["eval_reward_mean"], abs=1e-5)
    right = (raw[::2] > raw[1::2]).float().mean()
    assert float(right) == pytest.approx(summary["eval_accuracy"], abs=1e-6)
    score = model.score([p for p, _ in ids], [a for _, a in ids])
    torch.testing.assert_close(score, (raw - model.mean) / model.std)
    texts = model.score_texts(
        [row.input_text for row in rows],
        [(row.candidate_0, row.candidate_1)[row.choice] for row in rows],
    )
    torch.testing.assert_close(texts, score[::2], atol=1e-6, rtol=0)
    assert list((tmp_path / "m.tensorboard").glob("events.*"))
    log = [json.loads(x) for x in (tmp_path / "m" / "train_log.jsonl").read_text().splitlines()]
    assert {"reward_loss", "reward_accuracy", "val_reward_loss"} <= log[-1].keys()


def test_normalised_rewards_of_the_training_answers_have_mean_0_and_spread_1(tmp_path):
    trained(tmp_path, "llama")
    model = RewardModel.load(tmp_path / "m")
    train, _ = hold_out(make_preferences(40), 0.1)
    pairs = encode_pairs(train, model.renderer)
    ids = [ids_of(pairs.data, s) for s in range(2 * len(pairs))]
    score = model.score([p for p, _ in ids], [a for _, a in ids])
    assert float(score.mean()) == pytest.approx(0, abs=1e-4)
    assert float(score.std(correction=0)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_adapters_score_as_they_did_beside_the_weights(kind):
    loaded = make_loaded(kind)
    settings = config(reward_method="lora")
    beside = adapted(loaded, settings)
    job = make_job(loaded, make_pairs(kind, 12), make_pairs(kind, 7, 1), settings)
    with torch.no_grad():
        for name, weight in job.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
        batch = collate_pairs(job.train, range(12), 0, "cpu")
        before = rewards(job.model, *batch)
        after = rewards(exported(job.model, beside), *batch)
        plain = rewards(
            make_job(make_loaded(kind), *[make_pairs(kind, 12)] * 2, config()).model, *batch
        )
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    assert float((before - plain).abs().max()) > 1e-3


@pytest.mark.parametrize(("kind", "method"), [("llama", "lora"), ("t5_untied", "full")])
def test_a_killed_run_ends_with_the_same_bits(tmp_path, monkeypatch, kind, method):
    whole = trained(tmp_path, kind, name="whole", reward_method=method)
    real = module.fit_logged

    class Killed(Exception):
        pass

    def dies(job, folder, path):
        steps = []

        def stop(job, step):
            steps.append(step)
            if step == 5:
                raise Killed

        return real(
            dataclasses.replace(job, objective=dataclasses.replace(job.objective, updated=stop)),
            folder,
            path,
        )

    state = str(tmp_path / "state")
    monkeypatch.setattr(module, "fit_logged", dies)
    with pytest.raises(Killed):
        trained(tmp_path, kind, state, name="again", reward_method=method)
    monkeypatch.setattr(module, "fit_logged", real)
    again = trained(tmp_path, kind, state, name="again", reward_method=method)
    assert again["resumed_from_step"] == 4
    for name in ("model.safetensors", "reward_head.safetensors"):
        first, second = tmp_path / "whole" / name, tmp_path / "again" / name
        assert first.read_bytes() == second.read_bytes()
    assert again["evaluation"] == whole["evaluation"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reward_method": "all"}, "reward_method: found 'all', allowed: full, lora"),
        ({"reward_batch_size": 0}, "reward_batch_size: found 0"),
        ({"reward_model_reference": ""}, "reward_model_reference: found ''"),
        ({"centering": -0.1}, "centering: found -0.1"),
        ({"target_sequence_length": 1}, "are identical after cutting"),
    ],
)
def test_what_is_refused(tmp_path, changes, words):
    files = make_files(tmp_path)
    if "target_sequence_length" in changes:
        write_jsonl(files[0], [one_pair("red blue", "red green")])
    settings = config(**{"reward_model_reference": make_folder("llama", tmp_path / "l"), **changes})
    with pytest.raises(UserError) as found:
        train_reward_model(*files, tmp_path / "m", state_dir="", config=settings)
    assert words in str(found.value)


def test_another_folder_is_no_reward_model(tmp_path):
    folder = make_folder("llama", tmp_path / "l")
    with pytest.raises(UserError, match=r"REWARD_MODEL_EXPECTED.*no readable pipestill\.json"):
        RewardModel.load(folder)
    (tmp_path / "l" / "pipestill.json").write_text('{"objective": "tuned"}')
    with pytest.raises(UserError, match="objective 'tuned'"):
        RewardModel.load(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_which_word_is_wanted(tmp_path, kind):
    files = make_files(tmp_path, 600, 200)
    settings = config(
        reward_model_reference=make_folder(kind, tmp_path / kind), reward_model_train_steps=200,
        reward_batch_size=16, evaluation_interval=50, checkpoint_interval=1000,
        reward_model_learning_rate=3e-3,
    )  # fmt: skip
    found = train_reward_model(*files, tmp_path / "m", state_dir="", config=settings)
    assert found["eval_accuracy"] >= 0.95
    assert found["eval_against_longer"] == "better"
    assert found["eval_against_length_model"] == "better"


def test_equal_prompts_and_any_order_score_the_same():
    for kind in KINDS:
        job = make_job(make_loaded(kind), make_pairs(kind, 12), make_pairs(kind, 3, 1), config())
        model = RewardModel(job.model.eval(), make_renderer(kind))
        prompts = [[5, 6, 7], [8, 9], [5, 6, 7], [8, 9, 10, 11], [5, 6, 7]]
        answers = [[20, 1], [1], [21, 22, 1], [23], [24, 25, 26, 27]]
        found = model.raw(prompts, answers)
        alone = [float(model.raw([p], [a])) for p, a in zip(prompts, answers, strict=True)]
        torch.testing.assert_close(found, torch.tensor(alone), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "method"), [("t5_untied", "full"), ("llama", "lora")])
def test_two_processes_train_like_one(tmp_path, monkeypatch, kind, method):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one = trained(tmp_path, kind, name="one", reward_method=method, reward_batch_size=5)
    monkeypatch.setenv("PIPESTILL_PROCESSES", "2")
    two = trained(tmp_path, kind, name="two", reward_method=method, reward_batch_size=5)
    assert two["val_reward_loss"] == pytest.approx(one["val_reward_loss"], rel=1e-5)
    assert two["eval_nll"] == pytest.approx(one["eval_nll"], rel=1e-5)
    assert two["normalisation"] == pytest.approx(one["normalisation"], abs=1e-4)
