"""Component `train_curve`: one way of training, at several numbers of rows and several seeds."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from pipestill.components._base import component


@component
def train_curve(
    training_rows: Input[Dataset],
    evaluation: Input[Dataset],
    cache_key: str,
    predictions: Output[Dataset],
    student: Output[Model],
    metrics: Output[Metrics],
    arm: str = "dss",
    state_dir: str = "",
    teacher_prompt: str = "refund_desk.v1",
    shares: str = "0.125,0.25,0.5,1",
    seeds: str = "0,1,2",
    learning_rates: str = "",
    search_seed: int = 1000,
    deploy_share: float = 1.0,
    student_model_reference: str = "pocket-base",
    alpha: float = 0.5,
    rationale_fraction: float = 1.0,
    packing: str = "auto",
    compile: str = "auto",
    train_steps: int = 300,
    batch_size: int = 32,
    learning_rate: float = 0.0,
    learning_rate_multiplier: float = 1.0,
    warmup_fraction: float = 0.05,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    max_context_length: str = "1024",
    max_output_tokens: int = 256,
    validation_fraction: float = 0.1,
    evaluation_interval: int = 100,
    enable_early_stopping: bool = True,
    checkpoint_interval: int = 100,
    precision: str = "auto",
    eval_rows: int = 0,
    eval_batch_size: int = 64,
):
    """Searches a learning rate on validation rows, trains shares × seeds, answers held-out rows.

    Args:
        training_rows: JSONL of `Labelled`, with the teacher's labels and rationales.
        evaluation: JSONL of `Example`, each with a gold label.
        cache_key: digest of contents and code, from `data_digest`.
        predictions: JSONL of `Prediction`, arm ``<arm>:<share>``.
        student: the student of deploy_share and the first seed; empty where the arm has no rows.
        metrics: points, rates tried, training curves, seconds; ``error`` where it has no rows.
        arm: finetune, distillation, dss, dss_teacher or shuffled.
        state_dir: folder that outlives the run; finished students and checkpoints lie in it.
        teacher_prompt: the prompt file, whose metric says which answers are right.

    The other parameters are fields of `CurveConfig`, `TrainConfig` and `EvalConfig`.
    """
    from pipestill.config import CurveConfig, EvalConfig, TrainConfig, pick
    from pipestill.generation.prompts import load_prompt
    from pipestill.records import write_json
    from pipestill.training.curve import train_curve

    given = dict(locals())
    summary = train_curve(
        training_rows.path, evaluation.path, predictions.path, student.path,
        arm=arm, state_dir=state_dir, metric=load_prompt(teacher_prompt).metric,
        config=pick(TrainConfig, given), curve=pick(CurveConfig, given),
        evaluation=pick(EvalConfig, given),
    )  # fmt: skip
    plain = {name: value for name, value in summary.items() if isinstance(value, str | int | float)}
    student.metadata.update(plain)
    metrics.metadata.update(plain)
    write_json(metrics.path, summary)
