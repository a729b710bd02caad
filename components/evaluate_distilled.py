"""Component `evaluate_distilled`: students, base and teacher answer the same held-out rows."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from pipestill.components._base import component


@component
def evaluate_distilled(
    students: Input[list[Model]],
    teacher: Input[Model],
    evaluation: Input[Dataset],
    cache_key: str,
    predictions: Output[Dataset],
    metrics: Output[Metrics],
    student_model_reference: str = "pocket-base",
    metric: str = "exact",
    eval_rows: int = 0,
    latency_rows: int = 30,
    eval_batch_size: int = 64,
    max_output_tokens: int = 256,
):
    """Runs every distilled student, the untrained base and the teacher, without examples.

    Args:
        students: folders from `distill_train`, any number of objectives, sizes and seeds.
        teacher: from `teacher_prepare`.
        evaluation: JSONL of `Example`, each with a gold label.
        cache_key: digest of contents and code, from `data_digest`.
        predictions: JSONL of `Prediction`, all arms.
        metrics: per arm accuracy, tokens, latency, parameters and bytes.
        student_model_reference: the untrained base, evaluated as the arm ``base``.
        metric: how an answer is compared with the gold label, `pipestill.evaluation.scoring`.

    The other parameters are fields of `pipestill.config.EvalConfig`.
    """
    from pipestill.config import EvalConfig, pick
    from pipestill.evaluation.distilled import evaluate_distilled
    from pipestill.models.teacher import teacher_reference
    from pipestill.records import write_json

    summary = evaluate_distilled(
        [student.path for student in students],
        teacher_reference(teacher.path),
        evaluation.path,
        predictions.path,
        base_reference=student_model_reference,
        metric=metric,
        config=pick(EvalConfig, locals()),
    )
    predictions.metadata.update({"rows": summary["rows"], "arms": sorted(summary["arms"])})
    write_json(metrics.path, summary)
