"""Reward against KL: a policy for every KL coefficient. What `reward_frontier` calls.

The more a policy is rewarded, the further it leaves its start (Gao et al. 2023, arXiv 2210.10760,
plot reward against KL). Each point of that line is a whole run of the same steps as pipeline
`rlhf`: prepared pairs, supervised start, reward model, policy, comparison with the start, gate.
"""

import dataclasses
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipestill.config import (
    FrontierConfig,
    PolicyConfig,
    PreferenceConfig,
    RewardConfig,
    TuneEvalConfig,
    config_value,
)
from pipestill.records import write_json, write_jsonl


def reward_frontier(
    output_path: str | Path,
    *,
    state_dir: str,
    config: FrontierConfig,
    preferences: PreferenceConfig,
    reward: RewardConfig,
    policy: PolicyConfig,
    evaluation: TuneEvalConfig,
    predictions_path: str | Path = "",
) -> dict[str, Any]:
    """Trains the reward model once and a policy for every coefficient, and measures each.

    Reward and KL are those of sampled answers to held-out prompts, in normalised reward and in nats
    an answer; a gain is the paired difference to the start's answers. Start, reward model and
    every measured policy are kept in `state_dir`: a killed run goes on after the last of them, and
    another coefficient costs one more policy.

    Args:
        output_path: JSON, written: what is returned.
        state_dir: folder that outlives the run; empty for none.
        config: data, coefficients, steps of the supervised start (on ``supervised_dataset``; none
            where that is empty).
        preferences: how pairs and prompts are read.
        reward: of the reward model; an empty reference = the start.
        policy: of every policy; ``kl_coeff`` is replaced.
        evaluation: prompts (``eval_rows``; those that chose the checkpoint are left out where
            enough remain) and batch size. Nothing is timed.
        predictions_path: JSONL, written where given: the rows of
            `pipestill.rlhf.evaluate.evaluate_policy`, each with its ``kl_coeff``.

    Returns:
        ``{"points": []}`` where ``config.preference_dataset`` is empty. Else ``rows``, ``start``
        (``reward``, ``reward_ci95``), ``points`` (``kl_coeff``, ``reward``, ``gain``, ``kl``, each
        with ``…_ci95``, ``perplexity`` under the start, ``decision`` of the gate, ``seconds`` of
        training, ``curve``: [step, reward, kl] of every evaluation), ``reward_model`` (what
        `pipestill.rlhf.reward_evaluation.evaluate` returns), ``seconds`` of this call.

    Raises:
        UserError: ``CONFIG_VALUE``, and what reading, loading and training raise.
        WorkError: ``LOSS_NOT_FINITE``, ``REWARD_NOT_FINITE``, ``PART_NOT_KEPT``.
    """
    if not config.preference_dataset:
        print("frontier: not measured, because preference_dataset is empty", flush=True)
        found: dict[str, Any] = {"points": []}
        write_json(output_path, found)
        if predictions_path:
            Path(predictions_path).touch()
        return found
    coefficients = coefficients_of(config, policy)
    from pipestill.rlhf import frontier_run as steps
    from pipestill.training.student import use_threads

    begun = time.perf_counter()
    use_threads()
    with tempfile.TemporaryDirectory(prefix="pipestill-frontier-") as name:
        run = steps.prepared(
            steps.Frontier(
                config, preferences, reward, policy, evaluation, state_dir, Path(name), None
            )
        )
        steps.supervised_start(run)
        judged = steps.reward_model(run)
        measured = []
        for at, coefficient in enumerate(coefficients, 1):
            measured.append(steps.point(run, coefficient))
            _tell(measured[-1]["point"], at, len(coefficients))
    found = {
        "rows": measured[0]["rows"],
        "start": measured[0]["start"],
        "points": [item["point"] for item in measured],
        "reward_model": judged.get("evaluation", {}),
        "seconds": round(time.perf_counter() - begun, 3),
    }
    write_json(output_path, found)
    if predictions_path:
        write_jsonl(predictions_path, [row for item in measured for row in item["predictions"]])
    return found


def coefficients_of(config: FrontierConfig, policy: PolicyConfig) -> list[float]:
    """``"0.1,0.4"`` or ``"[0.1, 0.4]"`` → [0.1, 0.4], smallest first, each once.

    Raises:
        UserError: ``CONFIG_VALUE``, also where a policy's settings are out of range.
    """
    from pipestill.rlhf.policy_settings import check

    parts = [part.strip() for part in config.kl_coeffs.strip(" []").split(",") if part.strip()]
    try:
        found = sorted({float(part) for part in parts})
    except ValueError:
        found = []
    if not found:
        raise config_value("kl_coeffs", config.kl_coeffs, "numbers, such as 0.1,0.4,1.6")
    if config.supervised_train_steps < 0:
        raise config_value("supervised_train_steps", config.supervised_train_steps, "0 or more")
    for value in found:
        check(dataclasses.replace(policy, kl_coeff=value))
    return found


def _tell(point: Mapping[str, Any], at: int, total: int) -> None:
    low, high = point["gain_ci95"]
    print(
        f"frontier: KL coefficient {point['kl_coeff']:g}: {at} of {total}, reward "
        f"{point['gain']:+.3f} (95 % CI {low:+.3f} to {high:+.3f}) at {point['kl']:.2f} nats, "
        f"gate: {point['decision']} ({point['seconds']:.1f} s)",
        flush=True,
    )
