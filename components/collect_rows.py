"""Component `collect_rows`: the shards of the labelling steps become one training set."""

from kfp.dsl import Dataset, Input, Metrics, Output

from pipestill.components._base import component


@component
def collect_rows(
    shards: Input[list[Dataset]],
    shard_metrics: Input[list[Metrics]],
    label_metrics: Input[list[Metrics]],
    training_rows: Output[Dataset],
    metrics: Output[Metrics],
):
    """Joins the shards in id order, adds up their counts, prints the teacher's accuracy and yield.

    Args:
        shards: JSONL of `Labelled` from every `rationale_extract`.
        shard_metrics: the yield tables of the same steps.
        label_metrics: the counts of every `teacher_label`.
        training_rows: all rows, one file.
        metrics: the sums.
    """
    from pipestill.generation.collect import collect
    from pipestill.records import write_json

    summary = collect(
        [shard.path for shard in shards],
        [item.path for item in label_metrics],
        [item.path for item in shard_metrics],
        training_rows.path,
    )
    training_rows.metadata.update(summary)
    metrics.metadata.update(summary)
    write_json(metrics.path, summary)
