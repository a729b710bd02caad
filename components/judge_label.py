"""Component `judge_label`: a judge prefers one answer of each pair, asked in both orders."""

from kfp.dsl import Dataset, Input, Metrics, Output

from pipestill.components._base import component


@component
def judge_label(
    candidates: Input[Dataset],
    cache_key: str,
    preferences: Output[Dataset],
    metrics: Output[Metrics],
    state_dir: str = "",
    judge_prompt: str = "judge_helpful.v1",
    judge_model_reference: str = "pocket-teacher",
    judge_backend: str = "transformers",
    judge_max_new_tokens: int = 96,
    judge_batch_size: int = 32,
    judge_concurrency: int = 8,
    judge_replay_uri: str = "",
    judge_base_url: str = "",
    judge_api_key_env: str = "OPENAI_API_KEY",
    judge_budget_tokens: int = 0,
    judge_budget_usd: float = 0.0,
    judge_usd_per_million_input: float = 0.0,
    judge_usd_per_million_output: float = 0.0,
    judge_max_retries: int = 6,
    judge_timeout_s: float = 120.0,
):
    """Shows every pair in both orders and keeps the preferences that both verdicts share.

    Args:
        candidates: JSONL of id, input_text or messages, candidate_0 and candidate_1.
        cache_key: digest of contents and code, from `data_digest`.
        preferences: JSONL of `Preference`; the other pairs lie beside it, with both verdicts.
        metrics: pairs, agreed, order conflicts, unparsable, share of A, calls, tokens, cost.
        state_dir: folder that outlives the run; the journal lies in it.
        judge_prompt: a versioned prompt file with the labels A and B, or a path to one.

    The other parameters are fields of `pipestill.config.TeacherConfig` with the prefix ``judge_``.
    """
    from pipestill.config import TeacherConfig, pick
    from pipestill.records import write_json
    from pipestill.rlhf.judge import label_pairs

    summary = label_pairs(
        candidates.path,
        preferences.path,
        state_dir=state_dir,
        config=pick(TeacherConfig, locals(), prefix="judge_"),
    )
    preferences.metadata.update(summary)
    metrics.metadata.update(summary)
    write_json(metrics.path, summary)
