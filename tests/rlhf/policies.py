"""Tiny policies, prompts and rewards for the tests of policy training."""

import dataclasses
from typing import Any

import torch

from pipestill.config import PolicyConfig
from pipestill.records import Example
from pipestill.rlhf.collect import Question
from pipestill.rlhf.policy import Policy, policy_of
from pipestill.training.loop import make_optimizer
from tests.training.tiny import make_loaded

KINDS = ("gpt2", "llama", "t5_tied", "t5_untied")
TEXTS = ("a", "name the colour", "red", "green or blue, which of them is it", "b c", "then names")
CONFIG = PolicyConfig(
    rollout_batch_size=12,
    target_sequence_length=10,
    prompt_sequence_length=64,
    reinforcement_learning_train_steps=6,
    reinforcement_learning_rate=3e-3,
    evaluation_interval=3,
    checkpoint_interval=2,
    rlhf_eval_rows=16,
    kl_bound=1e6,
    missing_eos_penalty=0.5,
    precision="fp32",
)


def config(**changes: Any) -> PolicyConfig:
    return dataclasses.replace(CONFIG, **changes)


def make(kind: str, settings: PolicyConfig, dtype: torch.dtype = torch.float32) -> Policy:
    """A tiny policy; its adapters, where there are some, are moved away from zero."""
    policy = policy_of(
        make_loaded(kind, dtype), settings, "plain", value_head=settings.policy_objective == "ppo"
    )
    policy.model.to(dtype)
    return policy


def disturb(policy: Policy, scale: float = 0.05) -> None:
    """Moves every trained weight, so that the policy is no longer its reference."""
    dice = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in policy.model.parameters():
            if weight.requires_grad:
                noise = torch.randn(weight.shape, generator=dice, dtype=torch.float64)
                weight += scale * noise.to(weight.dtype)


def questions(policy: Policy, texts: tuple[str, ...] = TEXTS) -> list[Question]:
    prompts = policy.renderer.prompts("predict", list(texts))
    pairs = zip(texts, prompts, strict=True)
    return [Question(f"q{i}", t, p.ids) for i, (t, p) in enumerate(pairs)]


def rows(count: int, start: int = 0) -> list[Example]:
    words = ("red", "green", "blue", "then", "names", "a b", "because")
    return [
        Example(id=f"p{i}", input_text=f"{words[i % 7]} {words[(i // 7) % 7]} {i % 10}")
        for i in range(start, start + count)
    ]


def count_reward(questions: Any, responses: Any) -> list[float]:
    """Share of tokens that lie in one seventh of the vocabulary."""
    return [5.0 * sum(token % 7 == 3 for token in row) / len(row) for row in responses]


def optimizer_of(policy: Policy, rate: float = 3e-3) -> Any:
    optimizer = make_optimizer(policy.model, 0.0)
    for group in optimizer.param_groups:
        group["lr"], group["eps"] = rate, 1e-5
    return optimizer
