"""Component `preference_prep`: raw rows → preference pairs and prompts, some of both held out."""

from kfp.dsl import Dataset, Metrics, Output

from pipestill.components._base import component


@component
def preference_prep(
    preference_dataset_uri: str,
    prompt_dataset_uri: str,
    cache_key: str,
    preferences: Output[Dataset],
    preference_evaluation: Output[Dataset],
    prompts: Output[Dataset],
    prompt_evaluation: Output[Dataset],
    rejects: Output[Dataset],
    metrics: Output[Metrics],
    eval_dataset_uri: str = "",
    large_model_reference: str = "pocket-base",
    instruction: str = "",
    eval_fraction: float = 0.2,
    max_rejected_fraction: float = 0.05,
    max_rows: int = 0,
    prompt_sequence_length: int = 512,
    target_sequence_length: int = 64,
    split_seed: int = 0,
):
    """Reads and validates pairs and prompts, splits them by prompt and swaps sides by hash.

    Args:
        preference_dataset_uri: JSONL, JSON, CSV or Parquet; local, gs:// or hf://.
        prompt_dataset_uri: rows with input_text or messages; empty = the prompts of the pairs.
        cache_key: digest of contents and code, from `data_digest`.
        preferences, preference_evaluation: JSONL of `Preference`.
        prompts, prompt_evaluation: JSONL of `Example` without answers.
        rejects: rows set aside, each with file, line, field and reason (JSONL of `Reject`).
        metrics: counts, share of choice 0 before and after, token-length percentiles.
        eval_dataset_uri: held-out pairs, prompts or both; empty = split off by hash.
        large_model_reference: whose tokenizer cuts and measures.

    The other parameters are the fields of `pipestill.config.PreferenceConfig`.
    """
    from pipestill.config import PreferenceConfig, pick
    from pipestill.data.preferences import prepare
    from pipestill.records import write_json

    summary = prepare(
        preference_dataset_uri,
        prompt_dataset_uri,
        config=pick(PreferenceConfig, locals()),
        tokenizer_reference=large_model_reference,
        preferences_path=preferences.path,
        preference_evaluation_path=preference_evaluation.path,
        prompts_path=prompts.path,
        prompt_evaluation_path=prompt_evaluation.path,
        rejects_path=rejects.path,
        eval_dataset_uri=eval_dataset_uri,
    )
    for artifact in (preferences, preference_evaluation, prompts, prompt_evaluation, metrics):
        artifact.metadata.update(summary)
    write_json(metrics.path, summary)
