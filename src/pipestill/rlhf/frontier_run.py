"""The steps of a frontier of reward against KL, each done once and kept: what `frontier` calls."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipestill.config import (
    DataConfig,
    FrontierConfig,
    PolicyConfig,
    PreferenceConfig,
    RewardConfig,
    TuneEvalConfig,
)
from pipestill.data.digest import content_digest
from pipestill.data.preferences import prepare
from pipestill.models.loading import load
from pipestill.models.teacher import teacher_reference
from pipestill.records import write_json
from pipestill.rlhf.evaluate import evaluate_policy
from pipestill.rlhf.policy_gate import gate_policy, read_answers, read_log
from pipestill.rlhf.policy_train import train_policy
from pipestill.rlhf.reward import train_reward_model
from pipestill.training import parts
from pipestill.training.checkpoint import run_folder
from pipestill.training.teacher_tuning import prepare_teacher

# What `preference_prep` writes, in the order in which its digests are taken.
DATA = ("preferences", "preference_evaluation", "prompts", "prompt_evaluation")
START_BATCH = 32  # examples a step of the supervised start, as in component `teacher_prepare`


@dataclass(frozen=True)
class Frontier:
    """A run under way: its settings, its folder, and the place of its finished parts."""

    config: FrontierConfig
    preferences: PreferenceConfig
    reward: RewardConfig
    policy: PolicyConfig
    evaluation: TuneEvalConfig
    state_dir: str
    folder: Path
    place: str | None

    def path(self, name: str) -> str:
        """Of a file or folder of this run."""
        return str(self.folder / name)


def prepared(run: Frontier) -> Frontier:
    """Reads pairs and prompts; settles the place of the finished parts."""
    prepare(
        run.config.preference_dataset,
        run.config.prompt_dataset,
        config=run.preferences,
        tokenizer_reference=run.policy.large_model_reference,
        rejects_path=run.path("rejects.jsonl"),
        **{f"{name}_path": run.path(name) for name in DATA},
    )
    own = run.config.supervised_dataset
    models = {run.policy.large_model_reference, run.reward.reward_model_reference} - {""}
    facts = (
        *(hashlib.sha256(Path(run.path(name)).read_bytes()).hexdigest() for name in DATA),
        content_digest(own) if own else "",
        sorted(load(reference).fingerprint for reference in models),
        run.config.supervised_train_steps,
        dataclasses.replace(run.policy, kl_coeff=0.0),
        *(run.preferences, run.reward, run.evaluation),
    )
    return dataclasses.replace(run, place=run_folder(run.state_dir, "frontier", *facts))


def supervised_start(run: Frontier) -> None:
    """The model that all policies start from."""
    if parts.find(run.place, "start", run.path("start")) is not None:
        return
    summary = prepare_teacher(
        run.path("prompts"),
        run.path("start"),
        reference=run.policy.large_model_reference,
        train_steps=run.config.supervised_train_steps if run.config.supervised_dataset else 0,
        batch_size=START_BATCH,
        learning_rate=0.0,
        dataset_uri=run.config.supervised_dataset,
        data=DataConfig(max_output_tokens=run.policy.target_sequence_length),
        precision=run.policy.precision,
        state_dir=run.state_dir,
    )
    parts.keep(run.place, "start", summary, run.path("start"))


def reward_model(run: Frontier) -> dict[str, Any]:
    """The summary of the reward model; it lies in ``reward_model``."""
    kept = parts.find(run.place, "reward_model", run.path("reward_model"))
    if kept is not None:
        return kept
    reference = run.reward.reward_model_reference or teacher_reference(run.path("start"))
    summary = train_reward_model(
        run.path("preferences"),
        run.path("preference_evaluation"),
        run.path("reward_model"),
        state_dir=run.state_dir,
        config=dataclasses.replace(run.reward, reward_model_reference=reference),
    )
    parts.keep(run.place, "reward_model", summary, run.path("reward_model"))
    return summary


def point(run: Frontier, coefficient: float) -> dict[str, Any]:
    """One policy, trained and measured where no earlier run has."""
    name = f"policy-{coefficient:g}"
    kept = parts.find(run.place, f"{name}-measured")
    if kept is not None:
        return kept
    settings, trained = _policy(run, coefficient, name)
    common = run.path("start"), run.path("reward_model"), run.path("prompt_evaluation")
    compared = evaluate_policy(
        run.path(name), *common, run.path("answers.jsonl"),
        config=dataclasses.replace(run.evaluation, latency_rows=0), policy=settings,
    )  # fmt: skip
    write_json(run.path("compared.json"), compared)
    decision = gate_policy(
        run.path("answers.jsonl"), run.path("compared.json"), run.path(name),
        run.path("decision.json"), kl_bound=settings.kl_bound,
        # The gate's own defaults (component `gate`).
        min_rows=50, min_gain=0.0, perplexity_margin=0.5, eos_margin=0.05,
    )  # fmt: skip
    found = {
        "rows": compared["rows"],
        "start": {key: compared["arms"]["base"][key] for key in ("reward", "reward_ci95")},
        "point": _described(run, coefficient, compared, decision, trained),
        "predictions": [
            {**row, "kl_coeff": coefficient} for row in read_answers(run.path("answers.jsonl"))
        ],
    }
    parts.keep(run.place, f"{name}-measured", found)
    parts.drop(run.place, name)
    return found


def _policy(run: Frontier, coefficient: float, name: str) -> tuple[PolicyConfig, dict[str, Any]]:
    """The policy of a coefficient, in the folder `name`, and its summary."""
    start = teacher_reference(run.path("start"))
    settings = dataclasses.replace(run.policy, kl_coeff=coefficient, large_model_reference=start)
    kept = parts.find(run.place, name, run.path(name))
    if kept is not None:
        return settings, kept
    summary = train_policy(
        run.path("prompts"),
        run.path("prompt_evaluation"),
        run.path("preferences"),
        run.path("reward_model"),
        run.path(name),
        state_dir=run.state_dir,
        config=settings,
    )
    parts.keep(run.place, name, summary, run.path(name))
    return settings, summary


def _described(
    run: Frontier,
    coefficient: float,
    compared: Mapping[str, Any],
    decision: str,
    trained: Mapping[str, Any],
) -> dict[str, Any]:
    tuned, gain, kl = (
        compared["arms"]["tuned"],
        *(compared["comparisons"][k] for k in ("reward", "kl")),
    )
    log = read_log(run.path(f"policy-{coefficient:g}"))
    return {
        "kl_coeff": coefficient,
        "reward": tuned["reward"],
        "reward_ci95": tuned["reward_ci95"],
        "gain": gain["difference"],
        "gain_ci95": gain["ci95"],
        "kl": kl["value"],
        "kl_ci95": kl["ci95"],
        "perplexity": tuned["perplexity"],
        "decision": decision,
        "seconds": trained["seconds"],
        "curve": [
            [entry["step"], entry.get("val_reward"), entry["val_kl"]]
            for entry in log
            if "val_kl" in entry
        ],
    }
