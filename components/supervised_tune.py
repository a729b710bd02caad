"""Component `supervised_tune`: a model tuned on given answers, whole or by LoRA adapters."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from pipestill.components._base import component


@component
def supervised_tune(
    train: Input[Dataset],
    cache_key: str,
    model: Output[Model],
    metrics: Output[Metrics],
    state_dir: str = "",
    large_model_reference: str = "pocket-base",
    task: str = "text",
    method: str = "full",
    lora_rank: int = 16,
    lora_alpha: float = 32.0,
    lora_dropout: float = 0.0,
    instruction: str = "",
    gradient_checkpointing: bool = False,
    packing: str = "auto",
    compile: str = "auto",
    train_seed: int = 0,
    train_steps: int = 300,
    batch_size: int = 32,
    learning_rate: float = 0.0,
    learning_rate_multiplier: float = 1.0,
    warmup_fraction: float = 0.05,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    max_context_length: str = "1024",
    max_output_tokens: int = 256,
    validation_fraction: float = 0.1,
    evaluation_interval: int = 100,
    enable_early_stopping: bool = True,
    checkpoint_interval: int = 100,
    precision: str = "auto",
):
    """Tunes on text, chat or code rows; audits them before the first step.

    Args:
        train: JSONL of `Example` with answers.
        cache_key: digest of contents and code, from `data_digest`.
        model: a self-contained `save_pretrained` folder with tokenizer and `pipestill.json`.
        metrics: losses, steps, tokens, seconds, parameters.
        state_dir: folder that outlives the run; checkpoints lie in it, a killed step resumes there.

    The other parameters are the fields of `pipestill.config.TuneConfig`.
    """
    from pipestill.config import TuneConfig, pick
    from pipestill.records import write_json
    from pipestill.training.supervised import tune

    config = pick(TuneConfig, locals())
    summary = tune(train.path, "", model.path, state_dir=state_dir, config=config)
    model.metadata.update(summary)
    metrics.metadata.update(summary)
    write_json(metrics.path, summary)
