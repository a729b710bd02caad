"""Component `should_train`: a tick's window, frozen, and whether it is worth training on."""

from typing import NamedTuple

from kfp.dsl import Dataset, Metrics, Output

from pipestill.components._base import component


@component
def should_train(
    dataset_uri: str,
    retrain_dir: str,
    tick: Output[Dataset],
    metrics: Output[Metrics],
    tick_time: str = "",
    cron: str = "0 3 * * 1",
    time_zone: str = "UTC",
    large_model_reference: str = "pocket-base",
    rows_from: str = "rows",
    log_share: float = 1.0,
    data_format: str = "auto",
    input_field: str = "input_text",
    output_field: str = "output_text",
    min_new_rows: int = 500,
    least_new_rows: int = 50,
    max_age_days: int = 30,
    drift_level: float = 0.01,
    drift_effect: float = 0.02,
    drift_seed: int = 0,
) -> NamedTuple("Outputs", [("path", str), ("champion", str), ("cache_key", str)]):
    """Decides by new rows, drift against the last training set, and age; writes its reason.

    Args:
        dataset_uri: folder or glob of row or log files; each belongs to the window of its time.
        retrain_dir: folder that outlives the runs: ledger, windows, promoted models, alias.
        tick: JSON of the window, the manifest's digest, the decision and its figures.
        metrics: the same.
        tick_time: the tick, or a later moment before the next one; empty = now.
        cron: five fields; a window ends at each tick and begins at the one before.
        time_zone: of the cron expression.
        large_model_reference: the champion before the first promotion.
        rows_from: rows | logs (request logs of `pipestill serve`, which the teacher answers).
        log_share: share of the logged inputs with consent.
        data_format, input_field, output_field: fields of `pipestill.config.DataConfig`.

    The other parameters are the fields of `pipestill.retrain.settings.TrainingRule`.

    Returns:
        path: rows, teacher or none (the tick does not train); champion: the model in production;
        cache_key: digest of window and code.
    """
    from pipestill.config import DataConfig, pick
    from pipestill.records import write_json
    from pipestill.retrain.decide import look
    from pipestill.retrain.settings import TrainingRule

    found = look(
        retrain_dir=retrain_dir,
        dataset_uri=dataset_uri,
        tick_time=tick_time,
        cron=cron,
        time_zone=time_zone,
        champion=large_model_reference,
        rule=pick(TrainingRule, locals()),
        data=pick(DataConfig, locals()),
        rows_from=rows_from,
        log_share=log_share,
    )
    print(f"tick {found['tick']} [{found['start']}, {found['end']}): {found['reason']}")
    for artifact in (tick, metrics):
        write_json(artifact.path, found)
    return found["path"], found["champion"], found["cache_key"]
