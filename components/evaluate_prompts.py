"""Component `evaluate_prompts`: a tuned model zero-shot, against prompts with worked examples."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from pipestill.components._base import component


@component
def evaluate_prompts(
    tuned: Input[Model],
    students: Input[list[Model]],
    evaluation: Input[Dataset],
    cache_key: str,
    large_model_reference: str,
    predictions: Output[Dataset],
    metrics: Output[Metrics],
    student_model_reference: str = "pocket-base",
    eval_shots: str = "0,2,5,10",
    eval_rows: int = 0,
    latency_rows: int = 30,
    eval_batch_size: int = 64,
    max_output_tokens: int = 256,
    serving_machine: str = "n1-standard-4",
    machine_usd_per_hour: float = 0.0,
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
    """Runs tuned model, students, untrained base, untuned large model and teacher on all rows.

    Args:
        tuned: folder from `supervised_tune`, asked zero-shot.
        students: folders from `train_curve`, an arm each.
        evaluation: JSONL of `Example`, each with a gold label.
        cache_key: digest of contents and code, from `data_digest`.
        large_model_reference: the model that was tuned; also prompted, where it is no teacher.
        predictions: JSONL of `Prediction`, all arms.
        metrics: per arm accuracy, tokens, latency, parameters, bytes, memory, cost.
        student_model_reference: the untrained base, evaluated as the arm ``base``.
        state_dir: folder that outlives the run; the journal lies in it.

    The other parameters are the fields of `pipestill.config.EvalConfig`, `CostConfig` and, with the
    prefix ``teacher_``, `TeacherConfig`.
    """
    from pipestill.config import CostConfig, EvalConfig, TeacherConfig, pick
    from pipestill.evaluation.prompted import evaluate_prompts
    from pipestill.records import write_json

    summary = evaluate_prompts(
        tuned.path, [student.path for student in students], evaluation.path, predictions.path,
        large_reference=large_model_reference, base_reference=student_model_reference,
        state_dir=state_dir, config=pick(EvalConfig, locals()), cost=pick(CostConfig, locals()),
        teacher=pick(TeacherConfig, locals(), prefix="teacher_"),
    )  # fmt: skip
    predictions.metadata.update({"rows": summary["rows"], "arms": sorted(summary["arms"])})
    write_json(metrics.path, summary)
