"""Component `teacher_prepare`: the teacher of a distillation, as it is or tuned first."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from pipestill.components._base import component


@component
def teacher_prepare(
    train: Input[Dataset],
    cache_key: str,
    teacher: Output[Model],
    metrics: Output[Metrics],
    state_dir: str = "",
    teacher_dataset_uri: str = "",
    teacher_model_reference: str = "pocket-base",
    teacher_train_steps: int = 0,
    teacher_batch_size: int = 32,
    teacher_learning_rate: float = 0.0,
    input_field: str = "input_text",
    output_field: str = "output_text",
    data_format: str = "auto",
    max_context_length: str = "1024",
    max_output_tokens: int = 256,
    precision: str = "auto",
):
    """Names the teacher, or tunes it on labelled rows.

    Args:
        train: JSONL of `Example`; its labelled rows tune where no teacher_dataset_uri is given.
        cache_key: digest of contents and code, from `data_digest`.
        teacher: a folder that names the teacher or holds it, see `pipestill.models.teacher`.
        metrics: reference, fingerprint, parameters; of a tuning losses, steps, tokens, seconds.
        state_dir: folder that outlives the run; checkpoints lie in it, a killed step resumes there.
        teacher_dataset_uri: labelled rows of the teacher's own; read as dataset_uri is.
        teacher_model_reference: the teacher, or what it is tuned from.
        teacher_train_steps: 0 = the teacher is used as it is.
        teacher_batch_size: examples a step.
        teacher_learning_rate: 0 = the recommended rate for this model and batch.
        precision: auto, fp32 or bf16.

    The other parameters are fields of `pipestill.config.DataConfig`.
    """
    from pipestill.config import DataConfig, pick
    from pipestill.records import write_json
    from pipestill.training.teacher_tuning import prepare_teacher

    summary = prepare_teacher(
        train.path,
        teacher.path,
        reference=teacher_model_reference,
        train_steps=teacher_train_steps,
        batch_size=teacher_batch_size,
        learning_rate=teacher_learning_rate,
        dataset_uri=teacher_dataset_uri,
        data=pick(DataConfig, locals()),
        precision=precision,
        state_dir=state_dir,
    )
    teacher.metadata.update(summary)
    metrics.metadata.update(summary)
    write_json(metrics.path, summary)
