"""Component `distill_train`: one student, one objective of distillation, one seed."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from pipestill.components._base import component


@component
def distill_train(
    training_rows: Input[Dataset],
    store: Input[Dataset],
    teacher: Input[Model],
    cache_key: str,
    student: Output[Model],
    metrics: Output[Metrics],
    run: str = "response:0",
    state_dir: str = "",
    student_model_reference: str = "pocket-base",
    targets: str = "teacher",
    teacher_source: str = "online",
    kd_weight: float = 0.5,
    tau: float = 1.0,
    scale_by_tau2: bool = True,
    jsd_beta: float = 0.5,
    skew: float = 0.1,
    feature_weight: float = 1.0,
    relation_weight: float = 1.0,
    layer_map: str = "uniform",
    auto_balance: bool = False,
    cross_tokenizer: str = "refuse",
    ema_decay: float = 0.99,
    generations: int = 1,
    context_shots: int = 4,
    on_policy_fraction: float = 0.5,
    sample_temperature: float = 1.0,
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
):
    """Distils a student: response, feature, relation, self or on_policy, or one of the controls.

    Args:
        training_rows: JSONL of `Labelled` with the teacher's answers, from `teacher_logits`.
        store: the teacher's stored probabilities; empty where it works online.
        teacher: folder of `teacher_prepare`, which names the teacher or holds it.
        cache_key: digest of contents and code, from `data_digest`.
        student: a self-contained `save_pretrained` folder with tokenizer and `pipestill.json`.
        metrics: losses, shares of the gradient, steps, tokens, seconds, parameters.
        run: ``objective:seed`` or ``objective@LAYERS:seed``; controls: gold, teacher_labels.
        state_dir: folder that outlives the run; checkpoints lie in it, a killed step resumes there.

    The other parameters are the fields of `pipestill.config.DistillConfig`.
    """
    from pipestill.config import DistillConfig, pick
    from pipestill.records import write_json
    from pipestill.training.distill import distill_student

    config = pick(DistillConfig, locals())
    places = training_rows.path, store.path, teacher.path, student.path
    summary = distill_student(*places, run=run, state_dir=state_dir, config=config)
    student.metadata.update(summary)
    metrics.metadata.update(summary)
    write_json(metrics.path, summary)
