"""Component `reward_frontier`: reward against KL, one policy a coefficient."""

from kfp.dsl import Dataset, Metrics, Output

from pipestill.components._base import component


@component
def reward_frontier(
    cache_key: str,
    predictions: Output[Dataset],
    metrics: Output[Metrics],
    preference_dataset: str = "",
    prompt_dataset: str = "",
    supervised_dataset: str = "",
    supervised_train_steps: int = 150,
    kl_coeffs: str = "0.1,0.4,1.6",
    state_dir: str = "",
    large_model_reference: str = "pocket-base",
    reward_model_reference: str = "",
    instruction: str = "",
    prompt_sequence_length: int = 512,
    target_sequence_length: int = 64,
    reward_method: str = "full",
    reward_lora_rank: int = 4,
    reward_model_train_steps: int = 1000,
    reward_batch_size: int = 64,
    reward_model_learning_rate: float = 0.0,
    reward_model_learning_rate_multiplier: float = 1.0,
    policy_objective: str = "ppo",
    method: str = "full",
    lora_rank: int = 16,
    kl_bound: float = 20.0,
    reinforcement_learning_train_steps: int = 1000,
    rollout_batch_size: int = 64,
    samples_per_prompt: int = 1,
    reinforcement_learning_rate: float = 0.0,
    reinforcement_learning_rate_multiplier: float = 1.0,
    rlhf_eval_rows: int = 64,
    evaluation_interval: int = 100,
    checkpoint_interval: int = 100,
    precision: str = "auto",
    train_seed: int = 0,
    eval_batch_size: int = 64,
):
    """Trains one reward model and one policy per coefficient, each compared with their start.

    Args:
        cache_key: digest of contents and code, from `data_digest`.
        predictions: JSONL, one row per coefficient, prompt, arm (base, tuned) and mode.
        metrics: the points: reward, gain and KL with intervals, the gate's decision.
        preference_dataset: pairs; empty = not measured.
        state_dir: folder that outlives the run; finished policies and checkpoints lie in it.

    The other parameters are fields of `FrontierConfig`, `RewardConfig` and `PolicyConfig`.
    """
    from pipestill import config
    from pipestill.rlhf.frontier import reward_frontier

    given = dict(locals())
    kinds = {
        "config": config.FrontierConfig,
        "preferences": config.PreferenceConfig,
        "reward": config.RewardConfig,
        "policy": config.PolicyConfig,
        "evaluation": config.TuneEvalConfig,
    }
    settings = {name: config.pick(kind, given) for name, kind in kinds.items()}
    summary = reward_frontier(
        metrics.path, state_dir=state_dir, predictions_path=predictions.path, **settings
    )
    metrics.metadata.update({"points": len(summary["points"])})
