"""Component `reward_model_train`: preference pairs → a model that scores answers."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from pipestill.components._base import component


@component
def reward_model_train(
    preferences: Input[Dataset],
    preference_evaluation: Input[Dataset],
    start: Input[Model],
    cache_key: str,
    reward_model: Output[Model],
    metrics: Output[Metrics],
    state_dir: str = "",
    reward_model_reference: str = "",
    instruction: str = "",
    reward_method: str = "full",
    reward_lora_rank: int = 4,
    centering: float = 0.01,
    reward_model_train_steps: int = 1000,
    reward_batch_size: int = 64,
    reward_model_learning_rate: float = 0.0,
    reward_model_learning_rate_multiplier: float = 1.0,
    prompt_sequence_length: int = 512,
    target_sequence_length: int = 64,
    evaluation_interval: int = 100,
    enable_early_stopping: bool = True,
    checkpoint_interval: int = 100,
    precision: str = "auto",
    train_seed: int = 0,
):
    """Trains a Bradley-Terry reward model and measures it on held-out pairs.

    Args:
        preferences: JSONL of `Preference`; a tenth of their prompts selects the checkpoint.
        preference_evaluation: the same, held out; only measured on.
        start: from `teacher_prepare`; it is trained where reward_model_reference is empty.
        cache_key: digest of contents and code, from `data_digest`.
        reward_model: a folder that `pipestill.rlhf.scoring.RewardModel` loads.
        metrics: losses, sizes; accuracy against length alone, calibration, length bias.
        state_dir: folder that outlives the run; checkpoints lie in it, a killed step resumes there.

    The other parameters are the fields of `pipestill.config.RewardConfig`.
    """
    from pipestill.config import RewardConfig, pick
    from pipestill.models.teacher import teacher_reference
    from pipestill.records import write_json
    from pipestill.rlhf.reward import train_reward_model

    reward_model_reference = reward_model_reference or teacher_reference(start.path)
    config = pick(RewardConfig, locals())
    rows = preferences.path, preference_evaluation.path
    summary = train_reward_model(*rows, reward_model.path, state_dir=state_dir, config=config)
    plain = {name: value for name, value in summary.items() if not isinstance(value, dict)}
    reward_model.metadata.update(plain)
    metrics.metadata.update(plain)
    write_json(metrics.path, summary)
