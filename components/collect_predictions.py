"""Component `collect_predictions`: the shards of `batch_predict` become one file."""

from kfp.dsl import Dataset, Input, Metrics, Output

from pipestill.components._base import component


@component
def collect_predictions(
    shards: Input[list[Dataset]],
    shard_rejects: Input[list[Dataset]],
    shard_metrics: Input[list[Metrics]],
    predictions: Output[Dataset],
    rejects: Output[Dataset],
    summary: Output[Metrics],
    output_uri: str = "",
):
    """Joins the shards in the order of the input; fails where a row is missing or doubled.

    Args:
        shards: the answers of every `batch_predict`.
        shard_rejects: their rejects.
        shard_metrics: their counts.
        predictions: all answers, JSONL.
        rejects: all rejects, JSONL.
        summary: the sums.
        output_uri: another place for the answers, a file or gs://; empty = the artifact alone.
    """
    from pipestill.records import write_json
    from pipestill.serving.batch_collect import collect_predictions

    found = collect_predictions(
        [item.path for item in shards],
        [item.path for item in shard_rejects],
        [item.path for item in shard_metrics],
        predictions.path,
        rejects.path,
        output_uri=output_uri,
    )
    counts = {name: value for name, value in found.items() if isinstance(value, int | float | str)}
    predictions.metadata.update(counts)
    summary.metadata.update(counts)
    write_json(summary.path, found)
