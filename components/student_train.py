"""Component `student_train`: one student, one objective, one seed."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from pipestill.components._base import component


@component
def student_train(
    training_rows: Input[Dataset],
    cache_key: str,
    student: Output[Model],
    metrics: Output[Metrics],
    run: str = "dss:0",
    state_dir: str = "",
    student_model_reference: str = "pocket-base",
    alpha: float = 0.5,
    rationale_fraction: float = 1.0,
    packing: str = "auto",
    compile: str = "auto",
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
    """Trains a student on label and rationale (Hsieh et al. 2023), or one of the controls.

    Args:
        training_rows: JSONL of `Labelled`.
        cache_key: digest of contents and code, from `data_digest`.
        student: a self-contained `save_pretrained` folder with tokenizer and `pipestill.json`.
        metrics: losses, steps, tokens, seconds, parameters.
        run: ``objective:seed``; objectives: dss, label_only, shuffled, label_then_rationale.
        state_dir: folder that outlives the run; checkpoints lie in it, a killed step resumes there.

    The other parameters are the fields of `pipestill.config.TrainConfig`.
    """
    from pipestill.config import TrainConfig, pick
    from pipestill.records import write_json
    from pipestill.training.student import train_student

    summary = train_student(
        training_rows.path,
        student.path,
        run=run,
        state_dir=state_dir,
        config=pick(TrainConfig, locals()),
    )
    student.metadata.update(summary)
    metrics.metadata.update(summary)
    write_json(metrics.path, summary)
