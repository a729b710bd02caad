"""Component `policy_train`: a policy trained against a reward model, or on preferences directly."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from pipestill.components._base import component


@component
def policy_train(
    prompts: Input[Dataset],
    prompt_evaluation: Input[Dataset],
    preferences: Input[Dataset],
    reward_model: Input[Model],
    start: Input[Model],
    cache_key: str,
    policy: Output[Model],
    samples: Output[Dataset],
    metrics: Output[Metrics],
    state_dir: str = "",
    policy_objective: str = "ppo",
    instruction: str = "",
    method: str = "full",
    lora_rank: int = 16,
    kl_coeff: float = 0.1,
    kl_target: float = 0.0,
    kl_horizon: int = 10_000,
    kl_bound: float = 20.0,
    reinforcement_learning_train_steps: int = 1000,
    rollout_batch_size: int = 64,
    samples_per_prompt: int = 1,
    ppo_epochs: int = 4,
    minibatches: int = 1,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
    clip: float = 0.2,
    value_clip: float = 0.2,
    value_coeff: float = 0.1,
    whiten_rewards: bool = False,
    temperature: float = 1.0,
    missing_eos_penalty: float = 1.0,
    label_smoothing: float = 0.1,
    importance_cap: float = 2.0,
    reinforcement_learning_rate: float = 0.0,
    reinforcement_learning_rate_multiplier: float = 1.0,
    max_grad_norm: float = 1.0,
    prompt_sequence_length: int = 512,
    target_sequence_length: int = 64,
    evaluation_interval: int = 20,
    rlhf_eval_rows: int = 64,
    checkpoint_interval: int = 20,
    precision: str = "auto",
    train_seed: int = 0,
):
    """Optimises by PPO, RLOO, GRPO (with the reward model) or DPO, cDPO, IPO (on the pairs).

    Args:
        prompts: JSONL of `Example` to answer in training.
        prompt_evaluation: the same, held out: reward and KL are measured on it.
        preferences: JSONL of `Preference`, for the direct objectives.
        reward_model: from `reward_model_train`.
        start: from `teacher_prepare`: the model that is trained, and the reference.
        cache_key: digest of contents and code, from `data_digest`.
        policy: a self-contained `save_pretrained` folder with tokenizer and `pipestill.json`.
        samples: JSONL, answers of base and policy to the same held-out prompts with rewards.
        metrics: rewards and KL before and after, steps, tokens, seconds, alarms.
        state_dir: folder that outlives the run; checkpoints lie in it, a killed step resumes there.

    The other parameters are fields of `pipestill.config.PolicyConfig`.
    """
    from pipestill.config import PolicyConfig, pick
    from pipestill.models.teacher import teacher_reference
    from pipestill.records import write_json
    from pipestill.rlhf.policy_train import train_policy

    large_model_reference = teacher_reference(start.path)
    summary = train_policy(
        prompts.path, prompt_evaluation.path, preferences.path, reward_model.path, policy.path,
        state_dir=state_dir, config=pick(PolicyConfig, locals()), samples_path=samples.path,
    )  # fmt: skip
    policy.metadata.update(summary)
    metrics.metadata.update(summary)
    write_json(metrics.path, summary)
