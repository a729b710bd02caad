"""Pipeline `retrain`: one tick of a schedule. New rows → train? → challenger → gate → alias.

The tick's window is frozen first; a cheap step says with a reason whether it trains. A challenger
and the model in production then answer the same held-out new rows and a frozen regression set. The
gate promotes, keeps or cannot tell; the ledger gets one line, the alias moves only on a promotion.
A tick that has its line does nothing more. Wiring only.
"""

from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Metrics

from pipestill.components.check_accelerator import check_accelerator
from pipestill.components.evaluate_tuned import evaluate_tuned
from pipestill.components.promote import promote
from pipestill.components.report_tick import report_tick
from pipestill.components.retrain_data import retrain_data
from pipestill.components.should_train import should_train
from pipestill.components.skip_training import skip_training
from pipestill.components.supervised_tune import supervised_tune
from pipestill.components.teacher_label import teacher_label
from pipestill.components.tick_time import tick_time as read_time
from pipestill.pipelines.custom_job import JobOptions
from pipestill.pipelines.hardware import Profile
from pipestill.pipelines.placement import Placement, settings

SCHEDULED = "scheduled"  # the value of `tick_time` by which a schedule asks for its own time


class Outputs(NamedTuple):
    """What the pipeline hands out."""

    page: HTML
    summary: Metrics
    decision: str


def build(profile: Profile, options: JobOptions | None = None) -> Any:
    """The pipeline for one hardware profile.

    Raises:
        UserError: ``HARDWARE_…`` where the platform does not have what the profile asks for.
    """
    place = Placement(profile, options or JobOptions())
    label_rows, tune_model = place.heavy(teacher_label), place.heavy(supervised_tune)
    compare = place.heavy(evaluate_tuned)

    @dsl.pipeline(name="retrain", description=__doc__)
    def retrain(
        dataset_uri: str,
        retrain_dir: str,
        evaluation_data_uri: str = "",
        large_model_reference: str = "pocket-base",
        task: str = "text",
        state_dir: str = "",
        # the tick
        tick_time: str = "",
        cron: str = "0 3 * * 1",
        time_zone: str = "UTC",
        # whether to train
        min_new_rows: int = 500,
        least_new_rows: int = 50,
        max_age_days: int = 30,
        drift_level: float = 0.01,
        drift_effect: float = 0.02,
        drift_seed: int = 0,
        # data
        rows_from: str = "rows",
        log_share: float = 1.0,
        data_format: str = "auto",
        input_field: str = "input_text",
        output_field: str = "output_text",
        eval_fraction: float = 0.2,
        max_rejected_fraction: float = 0.05,
        max_context_length: str = "1024",
        max_output_tokens: int = 256,
        split_seed: int = 0,
        # teacher, for rows from logs
        teacher_model_reference: str = "pocket-teacher",
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
        # the challenger
        instruction: str = "",
        method: str = "full",
        lora_rank: int = 16,
        lora_alpha: float = 32.0,
        lora_dropout: float = 0.0,
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
        gradient_checkpointing: bool = False,
        packing: str = "auto",
        compile: str = "auto",
        train_seed: int = 0,
        # champion and challenger
        eval_rows: int = 0,
        latency_rows: int = 30,
        eval_batch_size: int = 64,
        code_execution: bool = False,
        code_timeout_s: float = 5.0,
        code_memory_mb: int = 512,
        code_samples: int = 0,
        code_temperature: float = 0.8,
        # the gate
        gate_require: str = "better",
        gate_margin: float = 0.02,
        gate_min_new: int = 100,
        gate_min_regression: int = 100,
        gate_slice_rows: int = 20,
        gate_level: float = 0.05,
        gate_override: str = "",
        title: str = "Retraining",
        # the platform
        accelerator_type: str = profile.kind,
        tensorboard_resource_id: str = "",
        encryption_spec_key_name: str = "",
    ) -> Outputs:
        given = dict(locals())
        job = place.job_inputs(encryption_spec_key_name, tensorboard_resource_id)

        def moment(text: Any) -> Any:
            return place.settle(read_time(tick_time=text), "Time of the tick", cached=False)

        # KFP's local runner does not know the placeholder; there its step is never run.
        with dsl.If(tick_time == SCHEDULED):
            planned = moment(dsl.PIPELINE_JOB_SCHEDULE_TIME_UTC_PLACEHOLDER)
        with dsl.Else():
            asked = moment(tick_time)
        given["tick_time"] = dsl.OneOf(planned.output, asked.output)

        looked = should_train(**settings(should_train, given))
        place.settle(looked, "Window, and whether to train", cached=False)
        if profile.machine_type:
            check = check_accelerator(compiled_for=profile.kind, accelerator_type=accelerator_type)
            looked.after(place.settle(check, "Check accelerator type"))
        tick = looked.outputs["tick"]
        given["cache_key"] = looked.outputs["cache_key"]

        def learn(from_logs: bool) -> Any:
            """The steps of a tick that trains; its decision."""
            data = retrain_data(tick=tick, **settings(retrain_data, given))
            place.settle(data, "Rows to train on and to judge by")
            rows = data.outputs["train"]
            if from_logs:
                labelled = label_rows(
                    train=rows,
                    evaluation=data.outputs["evaluation"],
                    shard="0/1",
                    **settings(teacher_label, given),
                    **job,
                )
                rows = place.settle(labelled, "Teacher labels", heavy=True).outputs["labelled"]
            tuned = tune_model(train=rows, **settings(supervised_tune, given), **job)
            place.settle(tuned, "Train the challenger", heavy=True)
            champion = {"large_model_reference": looked.outputs["champion"]}
            scores = compare(
                model=tuned.outputs["model"],
                evaluation=data.outputs["evaluation"],
                **(settings(evaluate_tuned, given) | champion),
                **job,
            )
            place.settle(scores, "Champion and challenger answer", heavy=True)
            gated = promote(
                tick=tick,
                predictions=scores.outputs["predictions"],
                train=rows,
                model=tuned.outputs["model"],
                **settings(promote, given),
            )
            return place.settle(gated, "Gate, ledger, alias", cached=False).outputs["Output"]

        with dsl.If(looked.outputs["path"] == "none"):
            skipped = skip_training(tick=tick, retrain_dir=retrain_dir)
            place.settle(skipped, "Not trained: enter the tick", cached=False)
        with dsl.Elif(rows_from == "logs"):
            from_logs = learn(from_logs=True)
        with dsl.Else():
            from_rows = learn(from_logs=False)

        result = report_tick(
            tick=tick,
            retrain_dir=retrain_dir,
            decision=dsl.OneOf(skipped.output, from_logs, from_rows),
            title=title,
        )
        place.settle(result, "Report", cached=False)
        return Outputs(
            page=result.outputs["page"],
            summary=result.outputs["summary"],
            decision=result.outputs["Output"],
        )

    return retrain
