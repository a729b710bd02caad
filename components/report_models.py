"""Component `report_models`: which models are better than the baseline, and how sure that is."""

from kfp.dsl import HTML, Dataset, Input, Metrics, Output

from pipestill.components._base import component


@component
def report_models(
    predictions: Input[Dataset],
    evaluation_metrics: Input[Metrics],
    rejects: Input[Dataset],
    data_metrics: Input[Metrics],
    page: Output[HTML],
    summary: Output[Metrics],
    title: str = "Evaluation",
) -> str:
    """Compares every arm with the baseline and writes the HTML page and the summary JSON.

    Args:
        predictions: JSONL of `Prediction` from `evaluate_models`.
        evaluation_metrics: its metrics JSON.
        rejects: JSONL of `Reject` from `data_prep`.
        data_metrics: metrics JSON of `data_prep`.
        page: the self-contained report.
        summary: ``arms.<arm>.{accuracy,ci95,params,p50_ms,...}``, ``comparisons``, ``verdict``.
        title: heading of the page.

    Returns:
        The verdict in one word: better, worse or cannot_tell.
    """
    from pipestill.evaluation.models_report import write_models_report

    return write_models_report(
        predictions_path=predictions.path,
        evaluation_metrics_path=evaluation_metrics.path,
        rejects_path=rejects.path,
        data_metrics_path=data_metrics.path,
        page_path=page.path,
        summary_path=summary.path,
        title=title,
    )
