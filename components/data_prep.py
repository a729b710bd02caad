"""Component `data_prep`: raw rows → validated training and held-out rows, and a file of rejects."""

from kfp.dsl import Dataset, Metrics, Output

from pipestill.components._base import component


@component
def data_prep(
    dataset_uri: str,
    cache_key: str,
    train: Output[Dataset],
    evaluation: Output[Dataset],
    rejects: Output[Dataset],
    metrics: Output[Metrics],
    evaluation_data_uri: str = "",
    student_model_reference: str = "pocket-base",
    data_format: str = "auto",
    input_field: str = "input_text",
    output_field: str = "output_text",
    eval_fraction: float = 0.2,
    max_rejected_fraction: float = 0.05,
    dedupe: bool = True,
    leak_policy: str = "drop",
    max_rows: int = 0,
    max_context_length: str = "1024",
    max_output_tokens: int = 256,
    split_seed: int = 0,
):
    """Reads, validates, deduplicates, checks for leaks and splits the data.

    Args:
        dataset_uri: JSONL, JSON, CSV or Parquet; file, folder or glob; local, gs:// or hf://.
        cache_key: digest of contents and code, from `data_digest`.
        train: rows to train on (JSONL of `Example`).
        evaluation: held-out rows, each with a gold label (JSONL of `Example`).
        rejects: rows set aside, each with file, line, field and reason (JSONL of `Reject`).
        metrics: counts and token-length percentiles.
        evaluation_data_uri: held-out rows; empty = split off by hash.
        student_model_reference: whose tokenizer measures lengths.

    The other parameters are the fields of `pipestill.config.DataConfig`.
    """
    from pipestill.config import DataConfig, pick
    from pipestill.data.prepare import prepare
    from pipestill.records import write_json

    summary = prepare(
        dataset_uri,
        evaluation_data_uri,
        config=pick(DataConfig, locals()),
        tokenizer_reference=student_model_reference,
        train_path=train.path,
        evaluation_path=evaluation.path,
        rejects_path=rejects.path,
    )
    for artifact in (train, evaluation, rejects, metrics):
        artifact.metadata.update(summary)
    write_json(metrics.path, summary)
