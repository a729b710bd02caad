"""Whole runs through `train_policy`: learning, the best checkpoint, survival, export."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipestill.errors import UserError, WorkError
from pipestill.models.student import Student
from pipestill.records import Example, write_jsonl
from pipestill.rlhf import policy_train
from pipestill.rlhf.policy_loop import Problem, kl_coefficient, optimise
from pipestill.rlhf.policy_train import questions_of, train_policy
from pipestill.training.progress import Progress
from pipestill.training.stop import EXIT_STOPPED
from tests.rlhf.policies import config, count_reward, make, rows
from tests.training.tiny import make_folder, make_loaded

ROOT = Path(__file__).parents[2]


@pytest.fixture
def given(tmp_path):
    write_jsonl(tmp_path / "prompts.jsonl", rows(40))
    write_jsonl(tmp_path / "held_out.jsonl", rows(24, start=100))
    return tmp_path


def model_folder(kind: str, folder: Path) -> None:
    """A random model whose LM head is large enough for frozen weights to have something to say."""
    loaded = make_loaded(kind)
    if kind == "llama":
        with torch.no_grad():
            loaded.model.lm_head.weight *= 10
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)


def run(folder: Path, name: str = "out", reward=count_reward, **changes):
    settings = config(**changes)
    if not Path(settings.large_model_reference).is_dir():
        kind = {"pocket-base": "llama"}.get(settings.large_model_reference)
        kind = kind or settings.large_model_reference
        if not (folder / kind).is_dir():
            model_folder(kind, folder / kind)
        settings = config(**{**changes, "large_model_reference": str(folder / kind)})
    return train_policy(
        folder / "prompts.jsonl", folder / "held_out.jsonl", "", "", folder / name,
        state_dir="", config=settings, samples_path=folder / f"{name}.samples.jsonl",
        reward=reward,
    )  # fmt: skip


def log_of(folder: Path, name: str = "out"):
    text = (folder / name / "train_log.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


LEARNING = {
    "reinforcement_learning_train_steps": 40, "rollout_batch_size": 32, "rlhf_eval_rows": 24,
    "evaluation_interval": 5, "kl_coeff": 0.02, "kl_bound": 20.0, "missing_eos_penalty": 0.0,
    "target_sequence_length": 12,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "method", "rate"),
    [("llama", "full", 3e-3), ("t5_tied", "full", 3e-3), ("llama", "lora", 5e-3),
     ("t5_tied", "lora", 5e-3)],
)  # fmt: skip
def test_ppo_raises_the_reward_within_the_bound(given, kind, method, rate):
    found = run(
        given, large_model_reference=kind, method=method, reinforcement_learning_rate=rate,
        **LEARNING,
    )  # fmt: skip
    error = (found["reward_se"] ** 2 + found["base_reward_se"] ** 2) ** 0.5
    assert found["reward"] - found["base_reward"] > 3 * error
    assert 0 < found["kl"] < 20.0
    assert found["base_kl"] == pytest.approx(0.0, abs=1e-5)
    assert found["best_step"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["rloo", "grpo"])
@pytest.mark.parametrize("kind", ["llama", "t5_tied"])
def test_group_objectives_raise_the_reward(given, kind, objective):
    found = run(
        given, large_model_reference=kind, policy_objective=objective, samples_per_prompt=4,
        ppo_epochs=2, **LEARNING,
    )  # fmt: skip
    error = (found["reward_se"] ** 2 + found["base_reward_se"] ** 2) ** 0.5
    assert found["reward"] - found["base_reward"] > 3 * error
    assert 0 < found["kl"] < 20.0


@pytest.mark.parametrize(("kind", "method"), [("llama", "lora"), ("t5_tied", "full")])
def test_the_folder_is_an_ordinary_student_s(given, kind, method):
    found = run(given, large_model_reference=kind, method=method)
    student = Student.load(str(given / "out"))
    assert student.info["objective"] == "ppo"
    assert student.renderer.style == "plain"
    answers = student.answer(["red a"], batch_size=1, max_new_tokens=5)
    assert answers[0].output_tokens <= 5
    names = load_file(given / "out" / "model.safetensors").keys()
    assert not any("value_head" in name or "lora" in name for name in names)
    assert (given / "out" / "adapter").is_dir() == (method == "lora")
    assert list((given / "out.tensorboard").glob("events.*"))
    assert found["bytes"] > 0
    assert all(isinstance(value, str | int | float) for value in found.values())
    told = [json.loads(line) for line in (given / "out.samples.jsonl").read_text().splitlines()]
    assert len(told) == 16
    assert told[0].keys() >= {"id", "input_text", "base_answer", "tuned_answer", "base_reward",
                              "tuned_reward", "kl"}  # fmt: skip


def test_every_step_is_logged_in_full(given):
    run(given, kl_target=0.5, kl_horizon=10)
    log = log_of(given)
    assert [entry["step"] for entry in log] == list(range(7))
    wanted = {"reward", "kl", "kl_coeff", "policy_loss", "value_loss", "clip_fraction",
              "approx_kl", "entropy", "grad_norm", "length", "eos_share",
              "explained_variance"}  # fmt: skip
    assert all(entry.keys() >= wanted for entry in log[1:])
    held_out = {"val_reward", "val_reward_se", "val_kl", "val_eos_share", "val_length",
                "val_distinct_1", "val_distinct_2", "val_entropy", "val_perplexity",
                "val_reward_length_controlled"}  # fmt: skip
    seen = [entry["step"] for entry in log if entry.keys() >= held_out]
    assert seen == [0, 3, 6]
    assert log[1]["kl"] == pytest.approx(0.0, abs=1e-4)


def test_the_best_weights_are_those_of_the_best_evaluation(given):
    """A reward that turns against the policy: what it learnt first is kept."""
    calls = []

    def turning(questions, responses):
        calls.append(len(responses))
        return count_reward(questions, responses)

    found = run(given, reward=turning, reinforcement_learning_rate=3e-2,
                reinforcement_learning_train_steps=9)  # fmt: skip
    log = log_of(given)
    evaluated = {e["step"]: e["val_reward"] for e in log if "val_reward" in e}
    best = max(evaluated, key=lambda step: (evaluated[step], -step))
    assert found["best_step"] == best
    assert found["reward"] == pytest.approx(evaluated[best], abs=1e-6)  # measured anew at the end


def test_past_the_bound_the_run_ends_and_the_best_lies_below(given):
    found = run(given, kl_bound=0.3, kl_coeff=0.0, reinforcement_learning_rate=2e-2,
                reinforcement_learning_train_steps=30, evaluation_interval=1)  # fmt: skip
    assert found["steps"] < 30
    assert found["stopped_early"] == 1
    assert found["kl"] <= 0.3
    assert "KL_PAST_BOUND" in found["alarm_codes"]


def test_the_adaptive_coefficient_follows_the_log():
    settings = config(kl_target=6.0, kl_horizon=100, kl_coeff=0.2)
    assert kl_coefficient(Progress(), settings) == 0.2
    log = [{"step": 0}, {"step": 1, "kl_coeff": 0.2, "kl": 12.0, "answers": 10}]
    assert kl_coefficient(Progress(log=log), settings) == pytest.approx(0.2 * (1 + 0.2 * 0.1))
    assert kl_coefficient(Progress(log=log), config(kl_coeff=0.2)) == 0.2


class Cut(Exception):
    """Stands for a kill."""


def weights_after(kind, settings, folder, cut=0):
    policy = make(kind, settings)
    prompts = questions_of(rows(20), policy)
    problem = Problem(
        policy, prompts, questions_of(rows(8, 50), policy), settings, count_reward, 3e-3
    )

    def on_step(progress):
        if progress.step == cut:
            raise Cut

    progress, resumed = optimise(problem, folder, on_step)
    weights = {n: w.detach().clone() for n, w in policy.model.named_parameters()}
    return weights, progress, resumed


def comparable(log):
    return [{k: v for k, v in e.items() if "seconds" not in k} for e in log]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"kl_target": 1.0, "kl_horizon": 20, "minibatches": 2}),
        ("t5_tied", {"method": "lora"}),
        ("gpt2", {"policy_objective": "grpo", "samples_per_prompt": 2}),
        ("t5_untied", {"policy_objective": "rloo", "samples_per_prompt": 3}),
    ],
)
@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_killed_run_ends_like_an_uninterrupted_one(tmp_path, kind, changes, cut):
    """Weights, adapters, value head and the log, bit for bit, wherever it was cut."""
    settings = config(reinforcement_learning_train_steps=7, **changes)
    whole, progress, _ = weights_after(kind, settings, None)
    with pytest.raises(Cut):
        weights_after(kind, settings, tmp_path, cut)
    again, other, resumed = weights_after(kind, settings, tmp_path)
    assert resumed == cut - cut % 2
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    assert comparable(other.log) == comparable(progress.log)
    assert (other.best_step, other.best_loss) == (progress.best_step, progress.best_loss)


SCRIPT = """
import sys
from pathlib import Path
from pipestill.rlhf.policy_train import train_policy
from tests.rlhf.policies import config, count_reward
folder = Path(sys.argv[1])
settings = config(large_model_reference=str(folder / "llama"), checkpoint_interval=10**6,
    reinforcement_learning_train_steps=int(sys.argv[2]), evaluation_interval=10**6)
train_policy(folder / "prompts.jsonl", folder / "held_out.jsonl", "", "", folder / "out",
    state_dir=str(folder / "state"), config=settings, reward=count_reward)
"""


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_its_own_code(given):
    make_folder("llama", given / "llama")
    victim = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(given), "5000"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    next(line for line in victim.stderr if line.startswith("step "))
    victim.send_signal(signal.SIGTERM)
    said = victim.stderr.read()
    assert victim.wait(60) == EXIT_STOPPED
    assert "stopped by SIGTERM after step" in said
    assert len(list((given / "state").glob("checkpoints/*/step-*/state.json"))) == 1


def test_checkpoints_go_after_success_unless_they_are_kept(given):
    make_folder("llama", given / "llama")
    settings = config(large_model_reference=str(given / "llama"))
    paths = given / "prompts.jsonl", given / "held_out.jsonl", "", "", given / "out"
    state = str(given / "state")
    train_policy(*paths, state_dir=state, config=settings, reward=count_reward)
    assert not list((given / "state").glob("checkpoints/*/step-*"))
    train_policy(
        *paths, state_dir=state, config=settings, reward=count_reward, keep_checkpoints=True
    )
    assert list((given / "state").glob("checkpoints/*/step-*"))
    again = train_policy(*paths, state_dir=state, config=settings, reward=count_reward)
    assert again["resumed_from_step"] == 4


def test_rewards_that_are_no_numbers_name_their_prompts(given):
    def bad(questions, responses):
        return [float("nan") if q.id == "p7" else 1.0 for q in questions]

    with pytest.raises(WorkError, match=r"REWARD_NOT_FINITE.*p7"):
        run(given, reward=bad, rollout_batch_size=40)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy_objective": "a2c"}, r"policy_objective: found 'a2c', allowed: ppo, rloo"),
        ({"policy_objective": "grpo"}, r"samples_per_prompt: found 1, allowed: 2 or more"),
        ({"temperature": 0.0}, r"temperature: found 0.0, allowed: above 0"),
        ({"samples_per_prompt": 5}, r"rollout_batch_size: found 12, allowed: a multiple"),
        ({"minibatches": 13}, r"minibatches: found 13"),
        ({"policy_objective": "dpo", "kl_coeff": 0.0}, r"kl_coeff: found 0.0"),
        ({"label_smoothing": 0.5}, r"label_smoothing: found 0.5"),
        ({"kl_bound": 0.0}, r"kl_bound: found 0.0"),
    ],
)
def test_settings_out_of_range_are_named(changes, message):
    with pytest.raises(UserError, match=r"CONFIG_VALUE.*" + message):
        policy_train.check(config(**changes))


def test_without_prompts_or_rewards_there_is_one_clear_line(given):
    (given / "prompts.jsonl").write_text("")
    with pytest.raises(UserError, match=r"TRAIN_EMPTY.*prompts\.jsonl"):
        run(given)
    write_jsonl(given / "prompts.jsonl", rows(4))
    with pytest.raises(UserError, match=r"REWARD_MODEL_EXPECTED.*ppo needs a reward model"):
        run(given, reward=None)


def test_rows_with_messages_are_chats(given):
    def chat(row: Example) -> Example:
        messages = [{"role": "user", "content": row.input_text}]
        return Example(id=row.id, input_text=row.input_text, messages=messages)

    write_jsonl(given / "prompts.jsonl", map(chat, rows(20)))
    write_jsonl(given / "held_out.jsonl", map(chat, rows(8, 30)))
    found = run(given, instruction="be brief", reinforcement_learning_train_steps=2)
    assert found["style"] == "chat"
    student = Student.load(str(given / "out"))
    assert student.renderer.style == "chat"
    assert student.renderer.instruction == "be brief"
