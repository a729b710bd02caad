"""Pipeline `distill_step_by_step`: raw rows → teacher → students → comparison → served student.

Hsieh et al. 2023, "Distilling Step-by-Step!". Wiring only: what a step does stands in its
component. Every step after `data_digest` takes that step's output as `cache_key`, so that the same
contents and code are found in the cache and changed contents at the same path are not.
"""

from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Metrics

from pipestill.components.check_accelerator import check_accelerator
from pipestill.components.collect_rows import collect_rows
from pipestill.components.data_digest import data_digest
from pipestill.components.data_prep import data_prep
from pipestill.components.evaluate import evaluate
from pipestill.components.rationale_extract import rationale_extract
from pipestill.components.report import report
from pipestill.components.student_train import student_train
from pipestill.components.teacher_label import teacher_label
from pipestill.pipelines.custom_job import JobOptions
from pipestill.pipelines.deploying import deploy_student
from pipestill.pipelines.hardware import Profile
from pipestill.pipelines.placement import Placement, settings

OBJECTIVES = ("dss", "label_only", "shuffled")
RUNS = [f"{objective}:{seed}" for objective in OBJECTIVES for seed in (0, 1, 2)]


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
    label_rows, explain_rows = place.heavy(teacher_label), place.heavy(rationale_extract)
    train_student, compare_arms = place.heavy(student_train), place.heavy(evaluate)
    serve_student = deploy_student(place)

    @dsl.pipeline(name="distill-step-by-step", description=__doc__)
    def distill_step_by_step(
        dataset_uri: str,
        evaluation_data_uri: str = "",
        teacher_model_reference: str = "pocket-teacher",
        student_model_reference: str = "pocket-base",
        shards: list = ["0/1"],  # noqa: B006 (a literal default)
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
        teacher_backend: str = "transformers",
        teacher_prompt: str = "refund_desk.v1",
        teacher_shots: int = 5,
        teacher_samples: int = 1,
        teacher_temperature: float = 0.7,
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
        teacher_min_success: float = 0.9,
        teacher_audit_rows: int = 200,
        teacher_max_retries: int = 6,
        teacher_timeout_s: float = 120.0,
        # rationales
        rationale_require_agreement: bool = True,
        rationale_min_words: int = 3,
        rationale_max_words: int = 200,
        rationale_drop_leaks: bool = True,
        # students
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
        validation_fraction: float = 0.1,
        evaluation_interval: int = 100,
        enable_early_stopping: bool = True,
        checkpoint_interval: int = 100,
        precision: str = "auto",
        # evaluation and report
        eval_shots: str = "0,2,5",
        eval_rows: int = 0,
        latency_rows: int = 30,
        eval_batch_size: int = 64,
        title: str = "Distilling step-by-step",
        # the student that is served
        deploy_model: bool = True,
        objective: str = "dss",
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

        with place.each(shards, "shards") as shard:
            labelled = label_rows(
                train=data.outputs["train"],
                evaluation=data.outputs["evaluation"],
                shard=shard,
                **settings(teacher_label, given),
                **job,
            )
            place.settle(labelled, "Label with the teacher", heavy=True)
            explained = explain_rows(
                labelled=labelled.outputs["labelled"],
                **settings(rationale_extract, given),
                **job,
            )
            place.settle(explained, "Extract rationales", heavy=True)

        rows = collect_rows(
            shards=dsl.Collected(explained.outputs["rationales"]),
            shard_metrics=dsl.Collected(explained.outputs["metrics"]),
            label_metrics=dsl.Collected(labelled.outputs["metrics"]),
        )
        place.settle(rows, "Collect rows")

        with place.each(runs, "students") as run:
            student = train_student(
                training_rows=rows.outputs["training_rows"],
                run=run,
                **settings(student_train, given),
                **job,
            )
            place.settle(student, "Train student", heavy=True)

        scores = compare_arms(
            students=dsl.Collected(student.outputs["student"]),
            evaluation=data.outputs["evaluation"],
            **settings(evaluate, given),
            **job,
        )
        place.settle(scores, "Evaluate all arms", heavy=True)

        result = report(
            predictions=scores.outputs["predictions"],
            evaluation_metrics=scores.outputs["metrics"],
            training_rows=rows.outputs["training_rows"],
            rejects=data.outputs["rejects"],
            data_metrics=data.outputs["metrics"],
            label_metrics=rows.outputs["metrics"],
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

    return distill_step_by_step
