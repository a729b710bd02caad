"""Component `report_distilled`: which objective helped, by how much, and how sure that is."""

from kfp.dsl import HTML, Dataset, Input, Metrics, Output

from pipestill.components._base import component


@component
def report_distilled(
    predictions: Input[Dataset],
    evaluation_metrics: Input[Metrics],
    rejects: Input[Dataset],
    data_metrics: Input[Metrics],
    teacher_metrics: Input[Metrics],
    label_metrics: Input[Metrics],
    train_metrics: Input[list[Metrics]],
    page: Output[HTML],
    summary: Output[Metrics],
    title: str = "Distillation",
) -> str:
    """Compares every objective with plain training on the teacher's answers; writes page and JSON.

    Args:
        predictions: JSONL of `Prediction` from `evaluate_distilled`.
        evaluation_metrics: its metrics JSON.
        rejects: JSONL of `Reject` from `data_prep`.
        data_metrics: metrics JSON of `data_prep`.
        teacher_metrics: metrics JSON of `teacher_prepare`.
        label_metrics: metrics JSON of `teacher_logits`.
        train_metrics: metrics JSON of every `distill_train`.
        page: the self-contained report.
        summary: ``arms.<arm>.{accuracy,ci95,gap_closed,params,p50_ms,...}`` and ``verdict``.
        title: heading of the page.

    Returns:
        The verdict in one word: better, worse or cannot_tell.
    """
    from pipestill.evaluation.distilled_report import write_distilled_report

    return write_distilled_report(
        predictions_path=predictions.path,
        evaluation_metrics_path=evaluation_metrics.path,
        rejects_path=rejects.path,
        data_metrics_path=data_metrics.path,
        teacher_metrics_path=teacher_metrics.path,
        label_metrics_path=label_metrics.path,
        train_metrics_paths=[item.path for item in train_metrics],
        page_path=page.path,
        summary_path=summary.path,
        title=title,
    )
