"""A trained reward model in the loop: token ids pass to it as they were sampled."""

import pytest
import torch
from safetensors.torch import load_file

from pipestill.config import RewardConfig
from pipestill.records import write_jsonl
from pipestill.rlhf.policy_train import questions_of, reward_of, train_policy
from pipestill.rlhf.reward import train_reward_model
from pipestill.rlhf.scoring import RewardModel
from tests.rlhf.policies import config, make, rows
from tests.rlhf.test_dpo_train import pairs
from tests.training.tiny import make_folder


def trained(folder, reference, steps=2):
    write_jsonl(folder / "pairs.jsonl", pairs(40))
    settings = RewardConfig(
        reward_model_reference=reference, reward_model_train_steps=steps, reward_batch_size=8,
        prompt_sequence_length=64, target_sequence_length=10, evaluation_interval=steps,
        precision="fp32", reward_model_learning_rate=1e-3,
    )  # fmt: skip
    train_reward_model(folder / "pairs.jsonl", "", folder / "rm", state_dir="", config=settings)
    return RewardModel.load(folder / "rm", precision="fp32")


@pytest.mark.parametrize("kind", ["llama", "t5_tied"])
def test_with_the_same_tokenizer_it_scores_the_sampled_tokens(tmp_path, kind):
    """Also where it is of the other architecture: then the prompt is rendered for it."""
    model = trained(tmp_path, make_folder("t5_tied", tmp_path / "model"))
    policy = make(kind, config())
    asked = questions_of(rows(3), policy)
    # "red" as single bytes, which its text would not be tokenised to; no end mark, and one
    letters = [policy.renderer.tokenizer.convert_tokens_to_ids(x) for x in "red"]
    word = policy.renderer.tokenizer("red", add_special_tokens=False).input_ids
    assert word != letters
    responses = [letters, word, [*word, policy.ends[0]]]
    found = reward_of(model, policy)(asked, responses)
    prompts = [p.ids for p in model.renderer.prompts("predict", [q.text for q in asked])]
    torch.testing.assert_close(torch.tensor(found), model.score(prompts, responses))
    again = reward_of(model, policy)([asked[0]] * 3, responses)
    assert len({round(x, 6) for x in again}) == 3


def test_with_another_tokenizer_it_scores_the_text(tmp_path):
    model = trained(tmp_path, "pocket-base")
    kept = load_file(tmp_path / "rm" / "model.safetensors")  # also of a base that is stored in bf16
    assert {value.dtype for value in kept.values()} == {torch.float32}
    policy = make("llama", config())
    asked = questions_of(rows(2), policy)
    answers = [
        [*row, policy.ends[0]]
        for row in policy.renderer.tokenizer(["red", "green"], add_special_tokens=False).input_ids
    ]
    found = reward_of(model, policy)(asked, answers)
    wanted = model.score_texts([q.text for q in asked], ["red", "green"])
    torch.testing.assert_close(torch.tensor(found), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["ppo", "grpo"])
def test_a_policy_learns_what_the_reward_model_prefers(tmp_path, objective):
    trained(tmp_path, make_folder("t5_tied", tmp_path / "model"), steps=40)
    write_jsonl(tmp_path / "prompts.jsonl", rows(40))
    write_jsonl(tmp_path / "held_out.jsonl", rows(24, start=100))
    settings = config(
        large_model_reference=make_folder("llama", tmp_path / "policy"), kl_bound=20.0,
        policy_objective=objective, samples_per_prompt=1 if objective == "ppo" else 4,
        reinforcement_learning_train_steps=60, rollout_batch_size=32, rlhf_eval_rows=24,
        evaluation_interval=5, kl_coeff=0.02, missing_eos_penalty=0.0,
    )  # fmt: skip
    found = train_policy(
        tmp_path / "prompts.jsonl", tmp_path / "held_out.jsonl", "", tmp_path / "rm",
        tmp_path / "out", state_dir=str(tmp_path / "state"), config=settings,
    )  # fmt: skip
    error = (found["reward_se"] ** 2 + found["base_reward_se"] ** 2) ** 0.5
    assert found["reward"] - found["base_reward"] > 3 * error
    assert 0 < found["kl"] < 20.0
