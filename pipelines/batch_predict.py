"""Pipeline `batch_predict`: a file of rows → a model's answers, in shards that can be resumed.

Wiring only: what a step does stands in its component.
"""

from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import Dataset, Metrics

from pipestill.components.batch_predict import batch_predict
from pipestill.components.check_accelerator import check_accelerator
from pipestill.components.collect_predictions import collect_predictions
from pipestill.components.data_digest import data_digest
from pipestill.components.model_digest import model_digest
from pipestill.pipelines.custom_job import JobOptions
from pipestill.pipelines.hardware import Profile
from pipestill.pipelines.placement import Placement, settings


class Outputs(NamedTuple):
    """What the pipeline hands out."""

    predictions: Dataset
    rejects: Dataset
    summary: Metrics


def build(profile: Profile, options: JobOptions | None = None) -> Any:
    """The pipeline for one hardware profile.

    Raises:
        UserError: ``HARDWARE_…`` where the platform does not have what the profile asks for.
    """
    place = Placement(profile, options or JobOptions())
    answer_rows = place.heavy(batch_predict)

    @dsl.pipeline(name="batch-predict", description=__doc__)
    def batch_predict_pipeline(
        dataset_uri: str,
        model_reference: str,
        shards: list = ["0/1"],  # noqa: B006 (a literal default)
        output_uri: str = "",
        state_dir: str = "",
        batch_size: int = 32,
        max_output_tokens: int = 256,
        explain: bool = False,
        max_rejected_fraction: float = 0.05,
        # the platform
        accelerator_type: str = profile.kind,
        tensorboard_resource_id: str = "",
        encryption_spec_key_name: str = "",
    ) -> Outputs:
        given = dict(locals())
        job = place.job_inputs(encryption_spec_key_name, tensorboard_resource_id)

        digest = data_digest(dataset_uri=dataset_uri)
        place.settle(digest, "Digest of data and code", cached=False)
        if profile.machine_type:
            check = check_accelerator(compiled_for=profile.kind, accelerator_type=accelerator_type)
            digest.after(place.settle(check, "Check accelerator type"))
        given["cache_key"] = digest.output
        which = model_digest(model_reference=model_reference)
        place.settle(which, "Digest of the model", cached=False)
        given["model_key"] = which.output

        with dsl.ParallelFor(shards, name="shards") as shard:
            answered = answer_rows(shard=shard, **settings(batch_predict, given), **job)
            place.settle(answered, "Answer a shard", heavy=True)

        result = collect_predictions(
            shards=dsl.Collected(answered.outputs["predictions"]),
            shard_rejects=dsl.Collected(answered.outputs["rejects"]),
            shard_metrics=dsl.Collected(answered.outputs["metrics"]),
            output_uri=output_uri,
        )
        place.settle(result, "Collect answers")
        return Outputs(
            predictions=result.outputs["predictions"],
            rejects=result.outputs["rejects"],
            summary=result.outputs["summary"],
        )

    return batch_predict_pipeline
