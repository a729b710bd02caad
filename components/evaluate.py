"""Component `evaluate`: every arm answers the same held-out rows."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from pipestill.components._base import component


@component
def evaluate(
    students: Input[list[Model]],
    evaluation: Input[Dataset],
    cache_key: str,
    predictions: Output[Dataset],
    metrics: Output[Metrics],
    student_model_reference: str = "pocket-base",
    eval_shots: str = "0,2,5",
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
    """Runs trained students, the untrained base and the few-shot teacher on the held-out rows.

    Args:
        students: folders from `student_train`, any number of arms and seeds.
        evaluation: JSONL of `Example`, each with a gold label.
        cache_key: digest of contents and code, from `data_digest`.
        predictions: JSONL of `Prediction`, all arms.
        metrics: per arm accuracy, tokens, latency, parameters and bytes.
        student_model_reference: the untrained base, evaluated as the arm ``base``.
        state_dir: folder that outlives the run; the journal lies in it.

    The other parameters are the fields of `pipestill.config.EvalConfig` and, with the prefix
    ``teacher_``, of `pipestill.config.TeacherConfig`.
    """
    from pipestill.config import EvalConfig, TeacherConfig, pick
    from pipestill.evaluation.run import evaluate_arms
    from pipestill.records import write_json

    summary = evaluate_arms(
        [student.path for student in students],
        evaluation.path,
        predictions.path,
        base_reference=student_model_reference,
        state_dir=state_dir,
        config=pick(EvalConfig, locals()),
        teacher=pick(TeacherConfig, locals(), prefix="teacher_"),
    )
    predictions.metadata.update({"rows": summary["rows"], "arms": sorted(summary["arms"])})
    write_json(metrics.path, summary)
