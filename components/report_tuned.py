"""Component `report_tuned`: one page that says what tuning changed, and how sure that is."""

from kfp.dsl import HTML, Dataset, Input, Metrics, Model, Output

from pipestill.components._base import component


@component
def report_tuned(
    predictions: Input[Dataset],
    evaluation_metrics: Input[Metrics],
    rejects: Input[Dataset],
    data_metrics: Input[Metrics],
    train_metrics: Input[Metrics],
    model: Input[Model],
    page: Output[HTML],
    summary: Output[Metrics],
    title: str = "Supervised tuning",
) -> str:
    """Compares the tuned model with its base and writes the HTML page and the summary JSON.

    Args:
        predictions: JSONL of `Prediction` from `evaluate_tuned`.
        evaluation_metrics: its metrics JSON.
        rejects: JSONL of `Reject` from `data_prep`.
        data_metrics: metrics JSON of `data_prep`.
        train_metrics: metrics JSON of `supervised_tune`.
        model: the tuned model; the audited sample lies beside it.
        page: the self-contained report.
        summary: ``arms.<arm>.{accuracy,ci95,perplexity,params,p50_ms,...}`` and ``verdict``.
        title: heading of the page.

    Returns:
        The verdict in one word: better, worse or cannot_tell.
    """
    from pipestill.evaluation.tuned_report import write_tuned_report

    return write_tuned_report(
        predictions_path=predictions.path,
        evaluation_metrics_path=evaluation_metrics.path,
        rejects_path=rejects.path,
        data_metrics_path=data_metrics.path,
        train_metrics_path=train_metrics.path,
        model_path=model.path,
        page_path=page.path,
        summary_path=summary.path,
        title=title,
    )
