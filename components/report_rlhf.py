"""Component `report_rlhf`: one page that says what RLHF changed, and whether to trust it."""

from kfp.dsl import HTML, Dataset, Input, Metrics, Model, Output

from pipestill.components._base import component


@component
def report_rlhf(
    predictions: Input[Dataset],
    evaluation_metrics: Input[Metrics],
    decision: Input[Metrics],
    rejects: Input[Dataset],
    data_metrics: Input[Metrics],
    reward_metrics: Input[Metrics],
    train_metrics: Input[Metrics],
    policy: Input[Model],
    page: Output[HTML],
    summary: Output[Metrics],
    kl_bound: float = 20.0,
    title: str = "RLHF",
) -> str:
    """Writes the HTML page and the summary JSON.

    Args:
        predictions: rows of `evaluate_policy`.
        evaluation_metrics: its metrics JSON.
        decision: from `gate`.
        rejects: rows that `preference_prep` set aside.
        data_metrics: metrics JSON of `preference_prep`.
        reward_metrics: metrics JSON of `reward_model_train`.
        train_metrics: metrics JSON of `policy_train`.
        policy: folder from `policy_train`; its training log is drawn.
        page: the self-contained report.
        summary: arms, comparisons, reward model, data, training, gate, verdict.
        kl_bound: nats an answer past which the training raises an alarm.
        title: heading of the page.

    Returns:
        The verdict in one word: better, worse or cannot_tell.
    """
    from pipestill.evaluation.rlhf_report import write_rlhf_report

    return write_rlhf_report(
        predictions_path=predictions.path, evaluation_metrics_path=evaluation_metrics.path,
        decision_path=decision.path, rejects_path=rejects.path,
        data_metrics_path=data_metrics.path, reward_metrics_path=reward_metrics.path,
        train_metrics_path=train_metrics.path, model_path=policy.path,
        page_path=page.path, summary_path=summary.path, kl_bound=kl_bound, title=title,
    )  # fmt: skip
