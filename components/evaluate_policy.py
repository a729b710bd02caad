"""Component `evaluate_policy`: a tuned policy and its start answer the same held-out prompts."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from pipestill.components._base import component


@component
def evaluate_policy(
    policy: Input[Model],
    start: Input[Model],
    reward_model: Input[Model],
    prompt_evaluation: Input[Dataset],
    cache_key: str,
    predictions: Output[Dataset],
    metrics: Output[Metrics],
    state_dir: str = "",
    eval_rows: int = 0,
    latency_rows: int = 30,
    eval_batch_size: int = 64,
    temperature: float = 1.0,
    rlhf_eval_rows: int = 64,
    train_seed: int = 0,
    judge_prompt: str = "judge_helpful.v1",
    judge_model_reference: str = "",
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
    """Compares reward, reward at equal length, KL, fluency and length, and asks a judge if given.

    Args:
        policy: folder from `policy_train`.
        start: from `teacher_prepare`, what the policy started from.
        reward_model: folder from `reward_model_train`.
        prompt_evaluation: JSONL of `Example`, held out; the first rlhf_eval_rows of them, which
            chose the checkpoint, are left out where enough others remain.
        cache_key: digest of contents and code, from `data_digest`.
        predictions: JSONL, one row per prompt, arm (base, tuned) and mode (sampled, greedy).
        metrics: figures of both arms, paired comparisons with intervals, the judge's verdicts.
        state_dir: folder that outlives the run; the judge's journal lies in it.
        judge_model_reference: who compares the greedy answers, in both orders; empty = no judge.
    """
    from pipestill.config import PolicyConfig, TeacherConfig, TuneEvalConfig, pick
    from pipestill.records import write_json
    from pipestill.rlhf.evaluate import evaluate_policy

    given = dict(locals())
    summary = evaluate_policy(
        policy.path, start.path, reward_model.path, prompt_evaluation.path, predictions.path,
        config=pick(TuneEvalConfig, given), policy=pick(PolicyConfig, given), state_dir=state_dir,
        judge=pick(TeacherConfig, given, prefix="judge_") if judge_model_reference else None,
    )  # fmt: skip
    predictions.metadata.update({"rows": summary["rows"], "arms": sorted(summary["arms"])})
    write_json(metrics.path, summary)
