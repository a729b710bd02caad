"""Pipeline `rlhf`: preferences → reward model → policy → comparison → gate → served model.

PPO, RLOO and GRPO learn from a reward model, DPO, cDPO and IPO from the pairs; for encoder-decoder
and decoder-only models. The names and defaults of Google's `rlhf_pipeline` are kept. Wiring only:
what a step does stands in its component.
"""

from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Metrics

from pipestill.components.check_accelerator import check_accelerator
from pipestill.components.data_digest import data_digest
from pipestill.components.deploy_endpoint import deploy_endpoint
from pipestill.components.deploy_policy import deploy_policy
from pipestill.components.evaluate_policy import evaluate_policy
from pipestill.components.gate import gate
from pipestill.components.policy_train import policy_train
from pipestill.components.preference_prep import preference_prep
from pipestill.components.report_rlhf import report_rlhf
from pipestill.components.reward_model_train import reward_model_train
from pipestill.components.teacher_prepare import teacher_prepare
from pipestill.pipelines.custom_job import JobOptions
from pipestill.pipelines.hardware import Profile
from pipestill.pipelines.placement import Placement, settings


class Outputs(NamedTuple):
    """What the pipeline hands out."""

    page: HTML
    summary: Metrics
    verdict: str
    decision: str


def build(profile: Profile, options: JobOptions | None = None) -> Any:
    """The pipeline for one hardware profile.

    Raises:
        UserError: ``HARDWARE_…`` where the platform does not have what the profile asks for.
    """
    place = Placement(profile, options or JobOptions())
    prepare_start, train_reward = place.heavy(teacher_prepare), place.heavy(reward_model_train)
    train_policy, compare = place.heavy(policy_train), place.heavy(evaluate_policy)

    @dsl.pipeline(name="rlhf", description=__doc__)
    def rlhf(
        preference_dataset: str,
        prompt_dataset: str = "",
        eval_dataset: str = "",
        large_model_reference: str = "pocket-base",
        state_dir: str = "",
        # data
        instruction: str = "",
        prompt_sequence_length: int = 512,
        target_sequence_length: int = 64,
        eval_fraction: float = 0.2,
        max_rejected_fraction: float = 0.05,
        max_rows: int = 0,
        split_seed: int = 0,
        # supervised start
        supervised_dataset: str = "",
        supervised_train_steps: int = 0,
        max_context_length: str = "1024",
        # reward model
        reward_model_reference: str = "",
        reward_method: str = "full",
        reward_lora_rank: int = 4,
        centering: float = 0.01,
        reward_model_train_steps: int = 1000,
        reward_batch_size: int = 64,
        reward_model_learning_rate: float = 0.0,
        reward_model_learning_rate_multiplier: float = 1.0,
        evaluation_interval: int = 100,
        enable_early_stopping: bool = True,
        checkpoint_interval: int = 100,
        # policy
        policy_objective: str = "ppo",
        method: str = "full",
        lora_rank: int = 16,
        kl_coeff: float = 0.1,
        kl_target: float = 0.0,
        kl_horizon: int = 10_000,
        kl_bound: float = 20.0,
        reinforcement_learning_train_steps: int = 1000,
        reinforcement_learning_rate: float = 0.0,
        reinforcement_learning_rate_multiplier: float = 1.0,
        rollout_batch_size: int = 64,
        samples_per_prompt: int = 1,
        ppo_epochs: int = 4,
        minibatches: int = 1,
        gamma: float = 1.0,
        gae_lambda: float = 0.95,
        clip: float = 0.2,
        value_clip: float = 0.2,
        value_coeff: float = 0.1,
        whiten_rewards: bool = False,
        temperature: float = 1.0,
        missing_eos_penalty: float = 1.0,
        label_smoothing: float = 0.1,
        importance_cap: float = 2.0,
        max_grad_norm: float = 1.0,
        rlhf_eval_rows: int = 64,
        policy_evaluation_interval: int = 20,
        policy_checkpoint_interval: int = 20,
        precision: str = "auto",
        train_seed: int = 0,
        # evaluation and report
        eval_rows: int = 0,
        latency_rows: int = 30,
        eval_batch_size: int = 64,
        judge_prompt: str = "judge_helpful.v1",
        judge_model_reference: str = "",
        judge_backend: str = "transformers",
        judge_max_new_tokens: int = 96,
        judge_batch_size: int = 32,
        judge_concurrency: int = 8,
        judge_replay_uri: str = "",
        judge_base_url: str = "",
        judge_api_key_env: str = "OPENAI_API_KEY",
        judge_budget_tokens: int = 0,
        judge_budget_usd: float = 0.0,
        judge_usd_per_million_input: float = 0.0,
        judge_usd_per_million_output: float = 0.0,
        judge_max_retries: int = 6,
        judge_timeout_s: float = 120.0,
        title: str = "RLHF",
        # the gate and the model that is served
        gate_min_rows: int = 50,
        gate_min_gain: float = 0.0,
        gate_perplexity_margin: float = 0.5,
        gate_eos_margin: float = 0.05,
        gate_override: str = "",
        deploy_model: bool = True,
        model_display_name: str = "",
        deploy_dir: str = "",
        # the endpoint it is served at; none = the folder alone
        endpoint: str = "",
        project: str = "",
        location: str = profile.location or "us-central1",
        staging_bucket: str = "",
        serving_image: str = "",
        reason: str = "",
        ledger_uri: str = "",
        smoke_uri: str = "",
        service_account: str = "",
        labels: str = "",
        machine_type: str = "n1-standard-4",
        serving_accelerator: str = "",
        accelerator_count: int = 0,
        min_replicas: int = 1,
        max_replicas: int = 1,
        spot: bool = False,
        dedicated_endpoint: bool = True,
        traffic_stages: str = "100",
        stage_wait_s: float = 0.0,
        alias: str = "production",
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

        data = preference_prep(
            preference_dataset_uri=preference_dataset,
            prompt_dataset_uri=prompt_dataset,
            eval_dataset_uri=eval_dataset,
            **settings(preference_prep, given),
        )
        place.settle(data, "Prepare preferences and prompts")

        start = prepare_start(
            train=data.outputs["prompts"],
            teacher_dataset_uri=supervised_dataset,
            teacher_model_reference=large_model_reference,
            teacher_train_steps=supervised_train_steps,
            max_output_tokens=target_sequence_length,
            **settings(teacher_prepare, given),
            **job,
        )
        place.settle(start, "Supervised start", heavy=True)

        reward = train_reward(
            preferences=data.outputs["preferences"],
            preference_evaluation=data.outputs["preference_evaluation"],
            start=start.outputs["teacher"],
            **settings(reward_model_train, given),
            **job,
        )
        place.settle(reward, "Train the reward model", heavy=True)

        intervals = {
            "evaluation_interval": policy_evaluation_interval,
            "checkpoint_interval": policy_checkpoint_interval,
        }
        tuned = train_policy(
            prompts=data.outputs["prompts"],
            prompt_evaluation=data.outputs["prompt_evaluation"],
            preferences=data.outputs["preferences"],
            reward_model=reward.outputs["reward_model"],
            start=start.outputs["teacher"],
            **settings(policy_train, given | intervals),
            **job,
        )
        place.settle(tuned, "Train the policy", heavy=True)

        scores = compare(
            policy=tuned.outputs["policy"],
            start=start.outputs["teacher"],
            reward_model=reward.outputs["reward_model"],
            prompt_evaluation=data.outputs["prompt_evaluation"],
            **settings(evaluate_policy, given),
            **job,
        )
        place.settle(scores, "Evaluate against the start", heavy=True)

        decided = gate(
            predictions=scores.outputs["predictions"],
            evaluation_metrics=scores.outputs["metrics"],
            policy=tuned.outputs["policy"],
            **settings(gate, given),
        )
        place.settle(decided, "Gate")

        result = report_rlhf(
            predictions=scores.outputs["predictions"],
            evaluation_metrics=scores.outputs["metrics"],
            decision=decided.outputs["decision"],
            rejects=data.outputs["rejects"],
            data_metrics=data.outputs["metrics"],
            reward_metrics=reward.outputs["metrics"],
            train_metrics=tuned.outputs["metrics"],
            policy=tuned.outputs["policy"],
            **settings(report_rlhf, given),
        )
        place.settle(result, "Report")

        with dsl.If(deploy_model == True):  # noqa: E712, SIM117 (KFP builds conditions from them)
            with dsl.If(decided.outputs["Output"] == "promote"):
                served = deploy_policy(
                    policy=tuned.outputs["policy"],
                    summary=result.outputs["summary"],
                    policy_objective=policy_objective,
                    model_display_name=model_display_name,
                    deploy_dir=deploy_dir,
                )
                place.settle(served, "Deploy")
                with dsl.If(endpoint != ""):
                    live = deploy_endpoint(
                        served=served.outputs["served"],
                        decision=decided.outputs["Output"],
                        **settings(deploy_endpoint, given),
                    )
                    place.settle(live, "To the endpoint", cached=False)
        return Outputs(
            page=result.outputs["page"],
            summary=result.outputs["summary"],
            verdict=result.outputs["Output"],
            decision=decided.outputs["Output"],
        )

    return rlhf
