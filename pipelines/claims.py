"""Pipeline `claims`: what tuning and distillation are said to do, measured on one held-out set.

Fewer worked examples, tokens, milliseconds and dollars after tuning; Distilling step-by-step
against standard fine-tuning and standard distillation at several numbers of rows, with and without
gold labels (Hsieh et al. 2023, section 4); size, memory and latency of student and teacher; reward
against KL; and the request count at which a student has paid for itself. Wiring only: what a step
does stands in its component.
"""

from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Metrics

from pipestill.components.check_accelerator import check_accelerator
from pipestill.components.collect_rows import collect_rows
from pipestill.components.data_digest import data_digest
from pipestill.components.data_prep import data_prep
from pipestill.components.evaluate_prompts import evaluate_prompts
from pipestill.components.rationale_extract import rationale_extract
from pipestill.components.report_claims import report_claims
from pipestill.components.reward_frontier import reward_frontier
from pipestill.components.supervised_tune import supervised_tune
from pipestill.components.teacher_label import teacher_label
from pipestill.components.train_curve import train_curve
from pipestill.pipelines.custom_job import JobOptions
from pipestill.pipelines.hardware import Profile
from pipestill.pipelines.placement import Placement, settings

ARMS = ["finetune", "distillation", "dss", "dss_teacher", "shuffled"]


def own(given: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The parameters that one step has for itself, by the names that it knows them by."""
    return {name.removeprefix(prefix): given[name] for name in given if name.startswith(prefix)}


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
    train_arm, tune_large = place.heavy(train_curve), place.heavy(supervised_tune)
    ask_all, train_policies = place.heavy(evaluate_prompts), place.heavy(reward_frontier)

    @dsl.pipeline(name="claims", description=__doc__)
    def claims(
        dataset_uri: str,
        evaluation_data_uri: str = "",
        teacher_model_reference: str = "pocket-teacher",
        student_model_reference: str = "pocket-base",
        large_model_reference: str = "pocket-teacher",
        shards: list = ["0/1"],  # noqa: B006 (a literal default)
        arms: list = ARMS,
        shares: str = "0.125,0.25,0.5,1",
        seeds: str = "0,1,2",
        learning_rates: str = "",
        search_seed: int = 1000,
        deploy_share: float = 1.0,
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
        # the large model that is tuned, and prompted as it was before
        tune_method: str = "full",
        tune_lora_rank: int = 16,
        tune_train_steps: int = 300,
        tune_batch_size: int = 32,
        tune_learning_rate: float = 0.0,
        tune_learning_rate_multiplier: float = 1.0,
        # reward against KL; no preferences = not measured
        preference_dataset: str = "",
        prompt_dataset: str = "",
        supervised_dataset: str = "",
        supervised_train_steps: int = 150,
        kl_coeffs: str = "0.1,0.4,1.6",
        policy_instruction: str = "",
        prompt_sequence_length: int = 512,
        target_sequence_length: int = 64,
        reward_model_reference: str = "",
        reward_method: str = "full",
        reward_lora_rank: int = 4,
        reward_model_train_steps: int = 1000,
        reward_batch_size: int = 64,
        reward_model_learning_rate: float = 0.0,
        reward_model_learning_rate_multiplier: float = 1.0,
        policy_objective: str = "ppo",
        policy_method: str = "full",
        policy_lora_rank: int = 16,
        kl_bound: float = 20.0,
        reinforcement_learning_train_steps: int = 1000,
        rollout_batch_size: int = 64,
        samples_per_prompt: int = 1,
        reinforcement_learning_rate: float = 0.0,
        reinforcement_learning_rate_multiplier: float = 1.0,
        rlhf_eval_rows: int = 64,
        policy_evaluation_interval: int = 20,
        policy_checkpoint_interval: int = 20,
        train_seed: int = 0,
        # evaluation and report
        eval_shots: str = "0,2,5,10",
        eval_rows: int = 0,
        latency_rows: int = 30,
        eval_batch_size: int = 64,
        serving_machine: str = "n1-standard-4",
        machine_usd_per_hour: float = 0.0,
        title: str = "Claims",
        plan_uri: str = "",
        # the platform
        accelerator_type: str = profile.kind,
        tensorboard_resource_id: str = "",
        encryption_spec_key_name: str = "",
    ) -> Outputs:
        given = dict(locals())
        job = place.job_inputs(encryption_spec_key_name, tensorboard_resource_id)

        digest = data_digest(teacher_dataset_uri=supervised_dataset, **settings(data_digest, given))
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
            # Each arm chooses for itself: without gold labels nothing can disagree with them.
            explained = explain_rows(
                labelled=labelled.outputs["labelled"],
                rationale_require_agreement=False,
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

        tuned = tune_large(
            train=rows.outputs["training_rows"],
            **settings(supervised_tune, given | own(given, "tune_")),
            **job,
        )
        place.settle(tuned, "Tune the large model", heavy=True)

        # The policy starts from the student's base: the model that is to be served. Nothing of it
        # is needed by the others, which wait in turn: one accelerator job at a time (decision 11).
        start = {"large_model_reference": student_model_reference}
        frontier = train_policies(
            **settings(reward_frontier, given | own(given, "policy_") | start), **job
        )
        place.settle(frontier, "Reward against KL", heavy=True)
        frontier.after(tuned)

        with place.each(arms, "arms") as arm:
            curve = train_arm(
                training_rows=rows.outputs["training_rows"],
                evaluation=data.outputs["evaluation"],
                arm=arm,
                **settings(train_curve, given),
                **job,
            )
            place.settle(curve, "Train on more and more rows", heavy=True)
            curve.after(frontier)

        asked = ask_all(
            tuned=tuned.outputs["model"],
            students=dsl.Collected(curve.outputs["student"]),
            evaluation=data.outputs["evaluation"],
            **settings(evaluate_prompts, given),
            **job,
        )
        place.settle(asked, "Tuned against prompted", heavy=True)

        result = report_claims(
            curve_predictions=dsl.Collected(curve.outputs["predictions"]),
            curve_metrics=dsl.Collected(curve.outputs["metrics"]),
            prompt_predictions=asked.outputs["predictions"],
            prompt_metrics=asked.outputs["metrics"],
            frontier_metrics=frontier.outputs["metrics"],
            training_rows=rows.outputs["training_rows"],
            rejects=data.outputs["rejects"],
            data_metrics=data.outputs["metrics"],
            label_metrics=rows.outputs["metrics"],
            tune_metrics=tuned.outputs["metrics"],
            title=title,
            plan_uri=plan_uri,
        )
        place.settle(result, "Report")
        return Outputs(
            page=result.outputs["page"],
            summary=result.outputs["summary"],
            verdict=result.outputs["Output"],
        )

    return claims
