"""Component `report_claims`: five claims on one held-out set, each with what carries it."""

from kfp.dsl import HTML, Dataset, Input, Metrics, Output

from pipestill.components._base import component


@component
def report_claims(
    curve_predictions: Input[list[Dataset]],
    curve_metrics: Input[list[Metrics]],
    prompt_predictions: Input[Dataset],
    prompt_metrics: Input[Metrics],
    frontier_metrics: Input[Metrics],
    training_rows: Input[Dataset],
    rejects: Input[Dataset],
    data_metrics: Input[Metrics],
    label_metrics: Input[Metrics],
    tune_metrics: Input[Metrics],
    page: Output[HTML],
    summary: Output[Metrics],
    title: str = "Claims",
    plan_uri: str = "",
) -> str:
    """Judges the claims and writes the HTML page and the summary JSON.

    Args:
        curve_predictions: JSONL of `Prediction` of every `train_curve`.
        curve_metrics: their metrics JSON.
        prompt_predictions: JSONL of `Prediction` from `evaluate_prompts`.
        prompt_metrics: its metrics JSON.
        frontier_metrics: metrics JSON of `reward_frontier`.
        training_rows: JSONL of `Labelled`.
        rejects: JSONL of `Reject` from `data_prep`.
        data_metrics: metrics JSON of `data_prep`.
        label_metrics: metrics JSON of `collect_rows`.
        tune_metrics: metrics JSON of `supervised_tune`.
        page: the self-contained report.
        summary: ``claims``, ``verdict``, ``arms``, ``comparisons``, ``crossings`` and the rest.
        title: heading of the page.
        plan_uri: what `pipestill plan … --json` wrote, to be compared with the run.

    Returns:
        The verdict in one word: better, worse or cannot_tell.
    """
    from pipestill.claims.report import write_claims_report

    return write_claims_report(
        curve_predictions_paths=[item.path for item in curve_predictions],
        curve_metrics_paths=[item.path for item in curve_metrics],
        prompt_predictions_path=prompt_predictions.path, prompt_metrics_path=prompt_metrics.path,
        frontier_metrics_path=frontier_metrics.path, training_rows_path=training_rows.path,
        rejects_path=rejects.path, data_metrics_path=data_metrics.path,
        label_metrics_path=label_metrics.path, tune_metrics_path=tune_metrics.path,
        page_path=page.path, summary_path=summary.path, title=title,
        plan_uri=plan_uri,
    )  # fmt: skip
