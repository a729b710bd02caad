"""Pipeline `supervised_tuning`: rows with answers → tuned model → comparison → served model.

Text, chat and code rows; any model that has safetensors, encoder-decoder or decoder-only, tuned
whole or by LoRA. Wiring only: what a step does stands in its component.
"""

from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Metrics

from pipestill.components.check_accelerator import check_accelerator
from pipestill.components.data_digest import data_digest
from pipestill.components.data_prep import data_prep
from pipestill.components.deploy_tuned import deploy_tuned
from pipestill.components.evaluate_tuned import evaluate_tuned
from pipestill.components.report_tuned import report_tuned
from pipestill.components.supervised_tune import supervised_tune
from pipestill.pipelines.custom_job import JobOptions
from pipestill.pipelines.hardware import Profile
from pipestill.pipelines.placement import Placement, settings


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
    tune_model, compare = place.heavy(supervised_tune), place.heavy(evaluate_tuned)

    @dsl.pipeline(name="supervised-tuning", description=__doc__)
    def supervised_tuning(
        dataset_uri: str,
        evaluation_data_uri: str = "",
        large_model_reference: str = "pocket-base",
        task: str = "text",
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
        # tuning
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
        # evaluation and report
        eval_rows: int = 0,
        latency_rows: int = 30,
        eval_batch_size: int = 64,
        code_execution: bool = False,
        code_timeout_s: float = 5.0,
        code_memory_mb: int = 512,
        code_samples: int = 0,
        code_temperature: float = 0.8,
        title: str = "Supervised tuning",
        # the model that is served
        deploy_model: bool = True,
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

        data = data_prep(
            student_model_reference=large_model_reference, **settings(data_prep, given)
        )
        place.settle(data, "Prepare data")

        tuned = tune_model(
            train=data.outputs["train"],
            **settings(supervised_tune, given),
            **job,
        )
        place.settle(tuned, "Tune the model", heavy=True)

        scores = compare(
            model=tuned.outputs["model"],
            evaluation=data.outputs["evaluation"],
            **settings(evaluate_tuned, given),
            **job,
        )
        place.settle(scores, "Evaluate against the base", heavy=True)

        result = report_tuned(
            predictions=scores.outputs["predictions"],
            evaluation_metrics=scores.outputs["metrics"],
            rejects=data.outputs["rejects"],
            data_metrics=data.outputs["metrics"],
            train_metrics=tuned.outputs["metrics"],
            model=tuned.outputs["model"],
            title=title,
        )
        place.settle(result, "Report")

        with dsl.If(deploy_model == True):  # noqa: E712 (KFP builds a condition from it)
            served = deploy_tuned(
                model=tuned.outputs["model"],
                summary=result.outputs["summary"],
                model_display_name=model_display_name,
                deploy_dir=deploy_dir,
            )
            place.settle(served, "Deploy")
        return Outputs(
            page=result.outputs["page"],
            summary=result.outputs["summary"],
            verdict=result.outputs["Output"],
        )

    return supervised_tuning
