"""Component `report`: one page that says which arm is better, by how much, and how sure that is."""

from kfp.dsl import HTML, Dataset, Input, Metrics, Output

from pipestill.components._base import component


@component
def report(
    predictions: Input[Dataset],
    evaluation_metrics: Input[Metrics],
    training_rows: Input[Dataset],
    rejects: Input[Dataset],
    data_metrics: Input[Metrics],
    label_metrics: Input[Metrics],
    train_metrics: Input[list[Metrics]],
    page: Output[HTML],
    summary: Output[Metrics],
    title: str = "Distilling step-by-step",
) -> str:
    """Compares the arms by paired bootstrap and writes the HTML page and the summary JSON.

    Args:
        predictions: JSONL of `Prediction` from `evaluate`.
        evaluation_metrics: its metrics JSON.
        training_rows: JSONL of `Labelled`, for the rationale samples and the yield.
        rejects: JSONL of `Reject` from `data_prep`.
        data_metrics: metrics JSON of `data_prep`.
        label_metrics: metrics JSON of `collect_rows`.
        train_metrics: metrics JSON of every `student_train`.
        page: the self-contained report.
        summary: ``arms.<arm>.{accuracy,ci95,params,p50_ms,prompt_tokens,...}`` and ``verdict``.
        title: heading of the page.

    Returns:
        The verdict in one word: better, worse or cannot_tell.
    """
    from pipestill.evaluation.report import write_report

    return write_report(
        predictions_path=predictions.path,
        evaluation_metrics_path=evaluation_metrics.path,
        training_rows_path=training_rows.path,
        rejects_path=rejects.path,
        data_metrics_path=data_metrics.path,
        label_metrics_path=label_metrics.path,
        train_metrics_paths=[item.path for item in train_metrics],
        page_path=page.path,
        summary_path=summary.path,
        title=title,
    )
