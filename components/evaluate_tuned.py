"""Component `evaluate_tuned`: a tuned model and its base answer the same held-out rows."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from pipestill.components._base import component


@component
def evaluate_tuned(
    model: Input[Model],
    evaluation: Input[Dataset],
    cache_key: str,
    predictions: Output[Dataset],
    metrics: Output[Metrics],
    large_model_reference: str = "pocket-base",
    eval_rows: int = 0,
    latency_rows: int = 30,
    eval_batch_size: int = 64,
    max_output_tokens: int = 256,
    code_execution: bool = False,
    code_timeout_s: float = 5.0,
    code_memory_mb: int = 512,
    code_samples: int = 0,
    code_temperature: float = 0.8,
):
    """Runs the tuned model and the model before tuning from the same prompts.

    Args:
        model: folder from `supervised_tune`.
        evaluation: JSONL of `Example`, each with an answer.
        cache_key: digest of contents and code, from `data_digest`.
        predictions: JSONL of `Prediction`, both arms.
        metrics: per arm accuracy, likelihood, tokens, latency, parameters and bytes.
        large_model_reference: the model before tuning, evaluated as the arm ``base``.

    The other parameters are the fields of `pipestill.config.TuneEvalConfig`.
    """
    from pipestill.config import TuneEvalConfig, pick
    from pipestill.evaluation.tuned import evaluate_tuned
    from pipestill.records import write_json

    summary = evaluate_tuned(
        model.path,
        evaluation.path,
        predictions.path,
        base_reference=large_model_reference,
        config=pick(TuneEvalConfig, locals()),
    )
    predictions.metadata.update({"rows": summary["rows"], "arms": sorted(summary["arms"])})
    write_json(metrics.path, summary)
