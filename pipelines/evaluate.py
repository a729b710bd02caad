"""Pipeline `evaluate`: rows with right answers → any models side by side → comparison.

Trained models, untrained ones and, where asked for, a few-shot teacher answer one held-out set.
Wiring only: what a step does stands in its component.
"""

from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Metrics

from pipestill.components.check_accelerator import check_accelerator
from pipestill.components.data_digest import data_digest
from pipestill.components.data_prep import data_prep
from pipestill.components.evaluate_models import evaluate_models
from pipestill.components.report_models import report_models
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
    compare = place.heavy(evaluate_models)

    @dsl.pipeline(name="evaluate", description=__doc__)
    def evaluate(
        dataset_uri: str,
        models: list = ["pocket-base"],  # noqa: B006 (a literal default)
        baseline: str = "",
        state_dir: str = "",
        # data
        data_format: str = "auto",
        input_field: str = "input_text",
        output_field: str = "output_text",
        max_rejected_fraction: float = 0.05,
        dedupe: bool = True,
        max_rows: int = 0,
        max_context_length: str = "1024",
        max_output_tokens: int = 256,
        # evaluation and report
        metric: str = "exact",
        eval_rows: int = 0,
        latency_rows: int = 30,
        eval_batch_size: int = 64,
        title: str = "Evaluation",
        # the few-shot arms of a teacher; no shots = none
        eval_shots: str = "",
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

        # Both parts of its split are evaluated. Models differ in their tokens: words are counted.
        data = data_prep(
            eval_fraction=0.5, student_model_reference="", **settings(data_prep, given)
        )
        place.settle(data, "Prepare data")

        scores = compare(
            train=data.outputs["train"],
            evaluation=data.outputs["evaluation"],
            **settings(evaluate_models, given),
            **job,
        )
        # Not from the cache: a model's folder may hold another model by now.
        place.settle(scores, "Evaluate all models", heavy=True, cached=False)

        result = report_models(
            predictions=scores.outputs["predictions"],
            evaluation_metrics=scores.outputs["metrics"],
            rejects=data.outputs["rejects"],
            data_metrics=data.outputs["metrics"],
            title=title,
        )
        place.settle(result, "Report")
        return Outputs(
            page=result.outputs["page"],
            summary=result.outputs["summary"],
            verdict=result.outputs["Output"],
        )

    return evaluate
