"""Component `report_tick`: one page about a tick: window, reason, rules, and the ledger so far."""

from kfp.dsl import HTML, Dataset, Input, Metrics, Output

from pipestill.components._base import component


@component
def report_tick(
    tick: Input[Dataset],
    retrain_dir: str,
    decision: str,
    page: Output[HTML],
    summary: Output[Metrics],
    title: str = "Retraining",
) -> str:
    """Writes the HTML page and the summary JSON.

    Args:
        tick: JSON from `should_train`.
        retrain_dir: the retraining's folder.
        decision: what came out: promote, keep, cannot_tell or not_trained.
        page: the self-contained report.
        summary: the tick, its ledger entry, and the ledger as a table.
        title: heading of the page.

    Returns:
        The decision.
    """
    from pipestill.retrain.report import write_tick_report

    return write_tick_report(
        tick.path,
        retrain_dir,
        decision,
        page_path=page.path,
        summary_path=summary.path,
        title=title,
    )
