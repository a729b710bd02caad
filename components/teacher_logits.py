"""Component `teacher_logits`: the teacher's answers to all rows and its top-k log-probabilities."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from pipestill.components._base import component


@component
def teacher_logits(
    train: Input[Dataset],
    teacher: Input[Model],
    cache_key: str,
    training_rows: Output[Dataset],
    store: Output[Dataset],
    metrics: Output[Metrics],
    student_model_reference: str = "pocket-base",
    state_dir: str = "",
    targets: str = "teacher",
    top_k: int = 64,
    tau: float = 1.0,
    teacher_eval_batch_size: int = 64,
    max_context_length: str = "1024",
    max_output_tokens: int = 256,
    precision: str = "auto",
):
    """Asks the teacher for an answer to every row and stores what it thinks of every target token.

    Args:
        train: JSONL of `Example`.
        teacher: from `teacher_prepare`.
        cache_key: digest of contents and code, from `data_digest`.
        training_rows: JSONL of `Labelled`, each with the teacher's answer.
        store: a folder of shards, see `pipestill.generation.logits_store`; empty for top_k 0.
        metrics: rows, accuracy on gold labels, tokens, bytes a token, mean mass of the k largest.
        student_model_reference: whose tokens the targets are.
        state_dir: folder that outlives the run; a killed step goes on there.

    The other parameters are the fields of `pipestill.config.TeacherLogitsConfig`.
    """
    from pipestill.config import TeacherLogitsConfig, pick
    from pipestill.generation import teacher_logits as library
    from pipestill.records import write_json

    summary = library.teacher_logits(
        train.path,
        teacher.path,
        training_rows.path,
        store.path,
        student_reference=student_model_reference,
        state_dir=state_dir,
        config=pick(TeacherLogitsConfig, locals()),
    )
    for artifact in (training_rows, store, metrics):
        artifact.metadata.update(summary)
    write_json(metrics.path, summary)
