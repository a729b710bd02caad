"""The reward model's job: model, head, renderer, rate and precision, settled from its settings."""

from collections.abc import Sequence
from typing import Any

from pipestill.config import RewardConfig, TrainConfig
from pipestill.models import lora
from pipestill.models.heads import ScalarHead, WithHead, width_of
from pipestill.models.loading import Loaded, best_device, choose_dtype
from pipestill.models.render import Renderer, renderer_for
from pipestill.records import Preference
from pipestill.rlhf.reward_data import Pairs, style_of
from pipestill.rlhf.reward_step import reward_objective
from pipestill.training.forward import shape_of
from pipestill.training.learning_rate import chosen
from pipestill.training.step import Job
from pipestill.training.student import autocast_of


def reward_renderer(loaded: Loaded, rows: Sequence[Preference], config: RewardConfig) -> Renderer:
    """The renderer of a run, and of the model that comes out of it."""
    info = {"style": style_of(rows), "instruction": config.instruction}
    return renderer_for(loaded, config.prompt_sequence_length, config.target_sequence_length, info)


def make_job(loaded: Loaded, train: Pairs, validation: Pairs, config: RewardConfig) -> Job:
    """The job of `fit`: the model under a fresh head, rate, precision and objective."""
    autocast = autocast_of(config.precision)
    if autocast is not None and loaded.model.device.type == "cpu":
        loaded.model.set_attn_implementation("eager")  # as pipestill.training.student.make_job
    head = ScalarHead(width_of(loaded.model), seed=config.train_seed)
    shared = TrainConfig(
        train_steps=config.reward_model_train_steps,
        batch_size=config.reward_batch_size,
        evaluation_interval=config.evaluation_interval,
        enable_early_stopping=config.enable_early_stopping,
        checkpoint_interval=config.checkpoint_interval,
    )
    higher = config.reward_method == "lora" and not config.reward_model_learning_rate
    rate = chosen(
        config.reward_model_learning_rate,
        config.reward_model_learning_rate_multiplier,
        loaded.parameters,
        config.reward_batch_size,
    )
    data = train.data
    sizes = data.source_length[::2] + data.target_length[::2] + data.target_length[1::2]
    return Job(
        model=WithHead(loaded.model, head),
        train=data,
        validation=validation.data if len(validation) else None,
        lengths=sizes.tolist(),
        shape=shape_of(loaded, autocast),
        config=shared,
        alpha=1.0,
        rate=rate * (lora.HIGHER_RATE if higher else 1.0),
        seed=config.train_seed,
        ids=train.ids,
        objective=reward_objective(loaded.model, train.margins, config.centering),
    )


def adapted(loaded: Loaded, config: RewardConfig) -> Any:
    """With LoRA the peft model around the (changed) backbone, else None."""
    if config.reward_method != "lora":
        return None
    rank, seed = config.reward_lora_rank, config.train_seed
    return lora.add(loaded.model, rank=rank, alpha=2.0 * rank, dropout=0.0, seed=seed)


def exported(model: WithHead, adapted: Any) -> WithHead:
    """The plain backbone under its head, on one device."""
    backbone = model.backbone if adapted is None else lora.merge(adapted)
    whole = WithHead(backbone, model.head)
    whole.to(best_device()).eval()
    return whole


def load_precision(config: RewardConfig) -> str:
    """Weights that learn are kept in fp32; frozen ones may be as small as the device computes."""
    import torch

    if config.reward_method == "lora" and torch.cuda.is_available():
        return "fp32" if choose_dtype(config.precision) == torch.float32 else "bf16"
    return "fp32"
