"""Component `retrain_data`: what a tick trains on, and what champion and challenger both answer."""

from kfp.dsl import Dataset, Input, Metrics, Output

from pipestill.components._base import component


@component
def retrain_data(
    tick: Input[Dataset],
    retrain_dir: str,
    cache_key: str,
    train: Output[Dataset],
    evaluation: Output[Dataset],
    rejects: Output[Dataset],
    metrics: Output[Metrics],
    evaluation_data_uri: str = "",
    large_model_reference: str = "pocket-base",
    rows_from: str = "rows",
    log_share: float = 1.0,
    data_format: str = "auto",
    input_field: str = "input_text",
    output_field: str = "output_text",
    eval_fraction: float = 0.2,
    max_rejected_fraction: float = 0.05,
    max_context_length: str = "1024",
    max_output_tokens: int = 256,
    split_seed: int = 0,
):
    """Joins the new rows with the last training set; holds some out; adds the regression set.

    Args:
        tick: JSON from `should_train`.
        retrain_dir: the retraining's folder.
        cache_key: digest of window and code.
        train: JSONL of `Example`.
        evaluation: JSONL of `Example`: held-out new rows and the frozen regression set.
        rejects: rows set aside.
        metrics: counts.
        evaluation_data_uri: the regression set, frozen by the first tick that trains; empty = half
            of what that tick holds out.
        large_model_reference: whose tokenizer measures lengths.
        rows_from, log_share: as in `should_train`.

    The other parameters are fields of `pipestill.config.DataConfig`.
    """
    from pipestill.config import DataConfig, pick
    from pipestill.records import write_json
    from pipestill.retrain.rows import assemble_tick

    summary = assemble_tick(
        tick.path,
        retrain_dir,
        config=pick(DataConfig, locals()),
        evaluation_data_uri=evaluation_data_uri,
        tokenizer_reference=large_model_reference,
        train_path=train.path,
        evaluation_path=evaluation.path,
        rejects_path=rejects.path,
        log_share=log_share if rows_from == "logs" else 0.0,
    )
    write_json(metrics.path, summary)
