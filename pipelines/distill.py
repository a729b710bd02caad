"""Pipeline `distill`: rows → teacher's answers and probabilities → students → comparison → served.

Response-based, feature-based, relation-based, self- and on-policy distillation, side by side with
the controls (gold labels, the teacher's answers alone, the untrained base, the teacher). Wiring
only: what a step does stands in its component.
"""

from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Metrics

from pipestill.components.check_accelerator import check_accelerator
from pipestill.components.data_digest import data_digest
from pipestill.components.data_prep import data_prep
from pipestill.components.distill_train import distill_train
from pipestill.components.evaluate_distilled import evaluate_distilled
from pipestill.components.report_distilled import report_distilled
from pipestill.components.teacher_logits import teacher_logits
from pipestill.components.teacher_prepare import teacher_prepare
from pipestill.pipelines.custom_job import JobOptions
from pipestill.pipelines.deploying import deploy_student
from pipestill.pipelines.hardware import Profile
from pipestill.pipelines.placement import Placement, settings

RUNS = [f"{name}:{seed}" for name in ("response", "teacher_labels") for seed in (0, 1, 2)]


class Outputs(NamedTuple):
    """What the pipeline hands out."""

    page: HTML
    summary: Metrics
    verdict: str


def build(profile: Profile, options: JobOptions | None = None) -> Any:
    """The pipeline for one hardware profile.

    Raises:
        UserError: ``HARDWARE_…`` where the platform does not have what the profile asks for.
    """
    place = Placement(profile, options or JobOptions())
    prepare_teacher, ask_teacher = place.heavy(teacher_prepare), place.heavy(teacher_logits)
    train_student, compare_arms = place.heavy(distill_train), place.heavy(evaluate_distilled)
    serve_student = deploy_student(place)

    @dsl.pipeline(name="distill", description=__doc__)
    def distill(
        dataset_uri: str,
        evaluation_data_uri: str = "",
        teacher_dataset_uri: str = "",
        teacher_model_reference: str = "pocket-base",
        student_model_reference: str = "pocket-base",
        runs: list = RUNS,
        state_dir: str = "",
        # data
        data_format: str = "auto",
        input_field: str = "input_text",
        output_field: str = "output_text",
        eval_fraction: float = 0.2,
        max_rejected_fraction: float = 0.05,
        dedupe: bool = True,
        leak_policy: str = "drop",
        max_rows: int = 0,
        max_context_length: str = "1024",
        max_output_tokens: int = 256,
        split_seed: int = 0,
        # teacher
        teacher_train_steps: int = 0,
        teacher_batch_size: int = 32,
        teacher_learning_rate: float = 0.0,
        targets: str = "teacher",
        top_k: int = 64,
        teacher_eval_batch_size: int = 64,
        # students
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
        validation_fraction: float = 0.1,
        evaluation_interval: int = 100,
        enable_early_stopping: bool = True,
        checkpoint_interval: int = 100,
        precision: str = "auto",
        # evaluation and report
        metric: str = "exact",
        eval_rows: int = 0,
        latency_rows: int = 30,
        eval_batch_size: int = 64,
        title: str = "Distillation",
        # the student that is served
        deploy_model: bool = True,
        objective: str = "response",
        model_display_name: str = "",
        deploy_dir: str = "",
        # the platform
        accelerator_type: str = profile.kind,
        tensorboard_resource_id: str = "",
        encryption_spec_key_name: str = "",
    ) -> Outputs:
        given = dict(locals())
        job = place.job_inputs(encryption_spec_key_name, tensorboard_resource_id)

        digest = data_digest(**settings(data_digest, given))
        place.settle(digest, "Digest of data and code", cached=False)
        if profile.machine_type:
            check = check_accelerator(compiled_for=profile.kind, accelerator_type=accelerator_type)
            digest.after(place.settle(check, "Check accelerator type"))
        given["cache_key"] = digest.output

        data = data_prep(**settings(data_prep, given))
        place.settle(data, "Prepare data")

        teacher = prepare_teacher(
            train=data.outputs["train"], **settings(teacher_prepare, given), **job
        )
        place.settle(teacher, "Prepare the teacher", heavy=True)

        answers = ask_teacher(
            train=data.outputs["train"],
            teacher=teacher.outputs["teacher"],
            **settings(teacher_logits, given),
            **job,
        )
        place.settle(answers, "Ask the teacher", heavy=True)

        with place.each(runs, "students") as run:
            student = train_student(
                training_rows=answers.outputs["training_rows"],
                store=answers.outputs["store"],
                teacher=teacher.outputs["teacher"],
                run=run,
                **settings(distill_train, given),
                **job,
            )
            place.settle(student, "Distil a student", heavy=True)

        scores = compare_arms(
            students=dsl.Collected(student.outputs["student"]),
            teacher=teacher.outputs["teacher"],
            evaluation=data.outputs["evaluation"],
            **settings(evaluate_distilled, given),
            **job,
        )
        place.settle(scores, "Evaluate all arms", heavy=True)

        result = report_distilled(
            predictions=scores.outputs["predictions"],
            evaluation_metrics=scores.outputs["metrics"],
            rejects=data.outputs["rejects"],
            data_metrics=data.outputs["metrics"],
            teacher_metrics=teacher.outputs["metrics"],
            label_metrics=answers.outputs["metrics"],
            train_metrics=dsl.Collected(student.outputs["metrics"]),
            title=title,
        )
        place.settle(result, "Report")

        serve_student(
            students=dsl.Collected(student.outputs["student"]),
            summary=result.outputs["summary"],
            deploy_model=deploy_model,
            objective=objective,
            model_display_name=model_display_name,
            deploy_dir=deploy_dir,
        ).set_display_name("Deploy, if asked for")
        return Outputs(
            page=result.outputs["page"],
            summary=result.outputs["summary"],
            verdict=result.outputs["Output"],
        )

    return distill
