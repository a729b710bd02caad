"""Component `evaluate_models`: any models answer the same held-out rows."""

from kfp.dsl import Dataset, Input, Metrics, Output

from pipestill.components._base import component


@component
def evaluate_models(
    train: Input[Dataset],
    evaluation: Input[Dataset],
    cache_key: str,
    predictions: Output[Dataset],
    metrics: Output[Metrics],
    models: list = ["pocket-base"],  # noqa: B006 (a literal default)
    baseline: str = "",
    metric: str = "exact",
    eval_shots: str = "",
    eval_rows: int = 0,
    latency_rows: int = 30,
    eval_batch_size: int = 64,
    max_output_tokens: int = 256,
    state_dir: str = "",
    teacher_model_reference: str = "pocket-teacher",
    teacher_backend: str = "transformers",
    teacher_prompt: str = "refund_desk.v1",
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
    teacher_max_retries: int = 6,
    teacher_timeout_s: float = 120.0,
):
    """Runs every model, and the few-shot teacher where there are shots, on all rows together.

    Args:
        train: rows (JSONL of `Example`) from `data_prep`, which splits: both parts are evaluated.
        evaluation: the other part.
        cache_key: digest of contents and code, from `data_digest`.
        predictions: JSONL of `Prediction`, all arms.
        metrics: per arm accuracy, tokens, latency, parameters and bytes.
        models: folders, pocket models, hub names, gs:// folders; ``name=reference`` names an arm.
        baseline: the arm that the others are compared with; empty = the first.
        metric: how an answer is compared with the gold label, `pipestill.evaluation.scoring`.
        state_dir: folder that outlives the run; the journal of teacher calls lies in it.

    The other parameters are the fields of `pipestill.config.EvalConfig` and, with the prefix
    ``teacher_``, of `pipestill.config.TeacherConfig`.
    """
    from pipestill.config import EvalConfig, TeacherConfig, pick
    from pipestill.evaluation.models_run import evaluate_models
    from pipestill.records import write_json

    summary = evaluate_models(
        models,
        [train.path, evaluation.path],
        predictions.path,
        baseline=baseline,
        metric=metric,
        state_dir=state_dir,
        config=pick(EvalConfig, locals()),
        teacher=pick(TeacherConfig, locals(), prefix="teacher_"),
    )
    predictions.metadata.update({"rows": summary["rows"], "arms": sorted(summary["arms"])})
    write_json(metrics.path, summary)
