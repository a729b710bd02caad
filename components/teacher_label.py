"""Component `teacher_label`: the teacher labels the rows whose label is missing."""

from kfp.dsl import Dataset, Input, Metrics, Output

from pipestill.components._base import component


@component
def teacher_label(
    train: Input[Dataset],
    evaluation: Input[Dataset],
    cache_key: str,
    labelled: Output[Dataset],
    metrics: Output[Metrics],
    shard: str = "0/1",
    state_dir: str = "",
    teacher_model_reference: str = "pocket-teacher",
    teacher_backend: str = "transformers",
    teacher_prompt: str = "refund_desk.v1",
    teacher_shots: int = 5,
    teacher_samples: int = 1,
    teacher_temperature: float = 0.7,
    teacher_max_new_tokens: int = 96,
    teacher_batch_size: int = 32,
    teacher_concurrency: int = 8,
    teacher_replay_uri: str = "",
    teacher_base_url: str = "",
    teacher_api_key_env: str = "OPENAI_API_KEY",
    teacher_budget_tokens: int = 0,
    teacher_budget_usd: float = 0.0,
    teacher_usd_per_million_input: float = 0.0,
    teacher_usd_per_million_output: float = 0.0,
    teacher_min_success: float = 0.9,
    teacher_audit_rows: int = 200,
    teacher_max_retries: int = 6,
    teacher_timeout_s: float = 120.0,
):
    """Fills missing labels by few-shot chain of thought, and audits the teacher on gold rows.

    Rows with a gold label are passed through untouched. On up to `teacher_audit_rows` gold rows of
    both sets the teacher's own accuracy is measured and printed.

    Args:
        train: JSONL of `Example`; only the rows of `shard` are handled.
        evaluation: JSONL of `Example`, used for the audit alone.
        cache_key: digest of contents and code, from `data_digest`.
        labelled: JSONL of `Labelled`, rationales not yet filled.
        metrics: counts, accuracy, tokens, cost, calls made and calls found in the journal.
        shard: ``i/n``: this step handles the rows whose id hashes to i of n.
        state_dir: folder that outlives the run; the journal lies in it.

    The other parameters are the fields of `pipestill.config.TeacherConfig` with the prefix
    ``teacher_``.
    """
    from pipestill.config import TeacherConfig, pick
    from pipestill.generation.label import label_shard
    from pipestill.records import write_json

    summary = label_shard(
        train.path,
        evaluation.path,
        labelled.path,
        shard=shard,
        state_dir=state_dir,
        config=pick(TeacherConfig, locals(), prefix="teacher_"),
    )
    labelled.metadata.update(summary)
    metrics.metadata.update(summary)
    write_json(metrics.path, summary)
