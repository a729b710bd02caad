"""An RLHF run in numbers: what its `summary.json` holds, and the table that a terminal shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipestill.evaluation import statistics
from pipestill.evaluation.summary import json_safe
from pipestill.evaluation.wording import number, percent

ARM_NAMES = {"base": "Start", "tuned": "Tuned policy"}
VERBS = {"better": "raises", "worse": "lowers", "cannot_tell": "may or may not change"}


def rlhf_summary(
    evaluation: Mapping[str, Any],
    decision: Mapping[str, Any],
    data: Mapping[str, Any],
    reward: Mapping[str, Any],
    training: Mapping[str, Any],
    rung: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Everything that the report says, as JSON-safe numbers.

    Args:
        evaluation: metrics of `evaluate_policy`.
        decision: what `gate` wrote.
        data: metrics of `preference_prep`.
        reward: metrics of `reward_model_train`.
        training: metrics of `policy_train`.
        rung: alarms of the training.

    Returns:
        ``verdict`` (on the reward of sampled answers), ``verdict_sentence``, ``decision``,
        ``gate``, ``alarms``, ``notes``, ``rows``, ``metric``, ``arms``, ``comparisons``, ``judge``,
        ``reward_model``, ``data``, ``training``, ``table`` (lines of text).
    """
    compared = evaluation["comparisons"]
    arms = {
        arm: {**entry, "accuracy": None, "seeds": [evaluation["seed"]] if arm == "tuned" else [-1]}
        for arm, entry in evaluation["arms"].items()
    }
    summary = {
        "verdict": statistics.verdict(tuple(compared["reward"]["ci95"])),
        "verdict_sentence": verdict_sentence(evaluation, decision),
        "decision": decision["decision"],
        "gate": dict(decision),
        "alarms": [dict(alarm) for alarm in rung],
        "notes": notes(evaluation, reward, training),
        "rows": evaluation["rows"],
        "metric": "reward",
        "objective": evaluation["objective"],
        "arms": arms,
        "comparisons": dict(compared),
        "judge": dict(evaluation.get("judge") or {}),
        "reward_model": dict(reward),
        "data": dict(data),
        "training": dict(training),
        "table": table(arms, compared),
    }
    safe: dict[str, Any] = json_safe(summary)
    return safe


def verdict_sentence(evaluation: Mapping[str, Any], decision: Mapping[str, Any]) -> str:
    """Two plain sentences with the numbers that they rest on."""
    compared, arms = evaluation["comparisons"], evaluation["arms"]
    gap = compared["reward"]
    low, high = gap["ci95"]
    word = VERBS[statistics.verdict((low, high))]
    return (
        f"{str(evaluation['objective']).upper()} {word} the reward from "
        f"{signed(arms['base']['reward'])} to {signed(arms['tuned']['reward'])}: "
        f"{signed(gap['difference'])} (95 % CI {signed(low)} to {signed(high)}) on "
        f"{evaluation['rows']} held-out prompts, for {compared['kl']['value']:.2f} nats of KL an "
        f"answer; perplexity under the start {number(arms['base']['perplexity'])} → "
        f"{number(arms['tuned']['perplexity'])}. {decision['sentence']}"
    )


def notes(
    evaluation: Mapping[str, Any], reward: Mapping[str, Any], training: Mapping[str, Any]
) -> list[str]:
    """How far the verdict carries."""
    found = [str(note) for note in evaluation.get("notes", [])]
    if training.get("objective") in ("ppo", "rloo", "grpo"):
        found.append(
            "The reward is that of the reward model that the policy was trained against: a gain "
            "shows that training worked, not that people would agree."
        )
    against = (reward.get("evaluation") or {}).get("against_length_model")
    if against not in (None, "better"):
        found.append("Nothing shows that the reward model is better than preferring by length.")
    if not evaluation.get("judge"):
        found.append("No judge was asked (judge_model_reference).")
    if training.get("stopped_early"):
        found.append(
            f"Training stopped early, after step {training.get('steps')}: its KL bound was passed."
        )
    found.append("One seed: the luck of training is not in these intervals.")
    return found


def table(arms: Mapping[str, Any], compared: Mapping[str, Any]) -> list[str]:
    """Aligned lines, at most 100 columns wide."""
    head = ("policy", "reward", "95 % CI", "KL", "tokens", "ends", "perplexity", "p50 ms")
    lines = [head]
    for arm, name in ARM_NAMES.items():
        entry = arms[arm]
        low, high = entry["reward_ci95"]
        kl = compared["kl"]["value"] if arm == "tuned" else 0.0
        lines.append(
            (
                name,
                signed(entry["reward"]),
                f"{signed(low)} to {signed(high)}",
                f"{kl:.2f}",
                number(entry["output_tokens"]),
                percent(entry["eos_share"]),
                number(entry["perplexity"]),
                number(entry["p50_ms"]),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = [
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        )
        for line in lines
    ]
    return [text[0], "-" * len(text[0]), *text[1:]]


def signed(value: float | None) -> str:
    """``+0.42``; None → a dash; a minus sign that is one."""
    if value is None:
        return "–"
    shown = f"{value:+.2f}"
    return "0.00" if float(shown) == 0 else shown.replace("-", "−")
