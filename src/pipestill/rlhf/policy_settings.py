"""The settings of policy training, and which of them are allowed."""

from pipestill.config import PolicyConfig, refuse_out_of_range

SAMPLED, DIRECT = ("ppo", "rloo", "grpo"), ("dpo", "cdpo", "ipo")
METHODS = ("full", "lora")
COUNTS = (
    "reinforcement_learning_train_steps", "rollout_batch_size", "samples_per_prompt", "ppo_epochs",
    "minibatches", "prompt_sequence_length", "target_sequence_length", "evaluation_interval",
    "rlhf_eval_rows", "checkpoint_interval", "kl_horizon", "lora_rank",
)  # fmt: skip


def check(config: PolicyConfig) -> None:
    """Refuses settings out of range.

    Raises:
        UserError: ``CONFIG_VALUE``.
    """
    grouped = config.policy_objective in ("rloo", "grpo")
    rules: dict[str, tuple[bool, str]] = {
        name: (getattr(config, name) >= 1, "1 or more") for name in COUNTS
    }
    for name in ("clip", "value_clip", "temperature", "kl_bound", "importance_cap",
                 "reinforcement_learning_rate_multiplier"):  # fmt: skip
        rules[name] = (getattr(config, name) > 0, "above 0")
    for name in ("kl_target", "value_coeff", "max_grad_norm", "reinforcement_learning_rate"):
        rules[name] = (getattr(config, name) >= 0, "0 or more")
    rules |= {
        "policy_objective": (
            config.policy_objective in SAMPLED + DIRECT, ", ".join(SAMPLED + DIRECT)
        ),
        "method": (config.method in METHODS, ", ".join(METHODS)),
        "samples_per_prompt": (
            config.samples_per_prompt >= (2 if grouped else 1),
            "2 or more with rloo and grpo, else 1 or more",
        ),
        "rollout_batch_size": (
            config.rollout_batch_size >= 1
            and config.rollout_batch_size % max(1, config.samples_per_prompt) == 0,
            "a multiple of samples_per_prompt",
        ),
        "minibatches": (
            1 <= config.minibatches <= config.rollout_batch_size, "1 to rollout_batch_size"
        ),
        "kl_coeff": (
            config.kl_coeff > 0 or (config.kl_coeff == 0 and config.policy_objective in SAMPLED),
            "0 or more; above 0 with dpo, cdpo and ipo",
        ),
        "gamma": (0 <= config.gamma <= 1, "0 to 1"),
        "gae_lambda": (0 <= config.gae_lambda <= 1, "0 to 1"),
        "label_smoothing": (0 <= config.label_smoothing < 0.5, "0 to below 0.5"),
    }  # fmt: skip
    refuse_out_of_range(config, rules)
