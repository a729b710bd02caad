"""Component `batch_predict`: a model answers the rows of one shard."""

from typing import Optional

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from pipestill.components._base import component


@component
def batch_predict(
    dataset_uri: str,
    cache_key: str,
    predictions: Output[Dataset],
    rejects: Output[Dataset],
    metrics: Output[Metrics],
    model: Optional[Input[Model]] = None,  # noqa: UP045 (KFP reads the annotation)
    model_reference: str = "",
    model_key: str = "",
    shard: str = "0/1",
    state_dir: str = "",
    batch_size: int = 32,
    max_output_tokens: int = 256,
    explain: bool = False,
    max_rejected_fraction: float = 0.05,
):
    """Answers the rows as the server does; a killed step goes on where it was.

    Args:
        dataset_uri: rows with input_text or messages, and perhaps id; file, folder or glob.
        cache_key: digest of contents and code, from `data_digest`.
        predictions: JSONL in the order of the input, the rows' own ids kept.
        rejects: rows that were not answered, each with file, line, field and reason.
        metrics: counts, tokens, tokens a second.
        model: a model's folder; without one `model_reference` counts.
        model_reference: folder, pocket model, hub name or gs:// folder.
        model_key: digest of the model, from `model_digest`.
        shard: ``i/n``: source rows whose number leaves i when divided by n.
        state_dir: folder that outlives the run; the journal lies in it.

    The other parameters are the fields of `pipestill.serving.batch.BatchConfig`.
    """
    from pipestill.records import write_json
    from pipestill.serving.batch import predict_shard

    summary = predict_shard(
        dataset_uri,
        predictions.path,
        rejects.path,
        model_reference=model.path if model else model_reference,
        shard=shard,
        state_dir=state_dir,
        batch_size=batch_size,
        max_output_tokens=max_output_tokens,
        explain=explain,
        max_rejected_fraction=max_rejected_fraction,
    )
    predictions.metadata.update(summary)
    metrics.metadata.update(summary)
    write_json(metrics.path, summary)
