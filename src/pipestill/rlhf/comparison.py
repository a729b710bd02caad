"""What tuning changed in a policy: paired comparisons of its answers with those of its start."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipestill.evaluation.gate import mean_interval, paired_mean_interval
from pipestill.evaluation.statistics import RESAMPLES, Scores, percentile_interval
from pipestill.rlhf.policy_eval import distinct

ARMS = ("base", "tuned")
MODES = ("sampled", "greedy")


def of(rows: Sequence[Mapping[str, Any]], arm: str, mode: str) -> list[Mapping[str, Any]]:
    """The rows of one arm and mode, by id, so that those of two arms are paired."""
    found = [row for row in rows if row["arm"] == arm and row["mode"] == mode]
    return sorted(found, key=lambda row: str(row["id"]))


def column(rows: Sequence[Mapping[str, Any]], name: str) -> Scores:
    """One figure of every row, as float64."""
    return np.array([float(row[name]) for row in rows], dtype=np.float64)


def described(rows: Sequence[Mapping[str, Any]], arm: str) -> dict[str, Any]:
    """Figures of one arm; those of its greedy answers under ``greedy_…``."""
    found: dict[str, Any] = {}
    for mode in MODES:
        own = of(rows, arm, mode)
        rewards, tokens = column(own, "reward"), column(own, "output_tokens")
        ids = [row["ids"] for row in own]
        figures = {
            "reward": float(rewards.mean()),
            "reward_ci95": list(mean_interval(rewards)),
            "eos_share": float(column(own, "ended").mean()),
            "output_tokens": float(tokens.mean()),
            "distinct_1": distinct(ids, 1),
            "distinct_2": distinct(ids, 2),
            "perplexity": math.exp(min(column(own, "nll").sum() / tokens.sum(), 700.0)),
            "prompt_tokens": float(column(own, "prompt_tokens").mean()),
        }
        prefix = "" if mode == "sampled" else "greedy_"
        found |= {prefix + name: value for name, value in figures.items()}
    return found


def comparisons(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What tuning changed, each with its paired 95 % interval; of sampled answers unless named.

    ``win_rate`` counts a tie of rewards as a half. ``kl`` is the mean of log π − log π_start over
    the tuned policy's samples (the unbiased estimate k1), in nats an answer.
    """
    found: dict[str, Any] = {}
    for mode, end in zip(MODES, ("", "_greedy"), strict=True):
        base, tuned = (of(rows, arm, mode) for arm in ARMS)
        rewards = column(tuned, "reward"), column(base, "reward")
        won = (np.sign(rewards[0] - rewards[1]) + 1) / 2
        found[f"reward{end}"] = _gap(*rewards)
        found[f"win_rate{end}"] = {"value": float(won.mean()), "ci95": list(mean_interval(won))}
    base, tuned = (of(rows, arm, "sampled") for arm in ARMS)
    found["reward_length_controlled"] = length_controlled(
        column(tuned, "reward"), column(base, "reward"),
        column(tuned, "output_tokens"), column(base, "output_tokens"),
    )  # fmt: skip
    kl = column(tuned, "kl")
    found["kl"] = {"value": float(kl.mean()), "ci95": list(mean_interval(kl))}
    for name in ("ended", "output_tokens"):
        found[name] = _gap(column(tuned, name), column(base, name))
    found["token_nll"] = _gap(token_nll(tuned), token_nll(base))
    return found


def token_nll(rows: Sequence[Mapping[str, Any]]) -> Scores:
    """(N,) negative log-likelihood of every answer under the start, in nats a token."""
    return column(rows, "nll") / column(rows, "output_tokens")


def length_controlled(
    tuned: Scores, base: Scores, tuned_lengths: Scores, base_lengths: Scores
) -> dict[str, Any]:
    """The difference of rewards at equal length.

    The coefficient of the arm in the least-squares regression of reward on arm and length over the
    pooled answers (analysis of covariance): the difference of means, less the slope within the arms
    times the difference of mean lengths. The slope is 0 where no length varies.

    Args:
        tuned, base: (N,) rewards of the same prompts.
        tuned_lengths, base_lengths: (N,) tokens.

    Returns:
        ``difference``, its ``ci95`` (bootstrap of prompts, the slope fitted anew in each), and
        ``slope``, reward a token.
    """
    table = np.stack(
        [
            tuned, tuned_lengths, tuned_lengths**2, tuned_lengths * tuned,
            base, base_lengths, base_lengths**2, base_lengths * base,
        ]
    )  # fmt: skip
    random, rows = np.random.default_rng(0), len(tuned)
    weights = random.multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES // 5) / rows
    difference, slope = _controlled(table.mean(1)[None])
    spread, _ = _controlled(weights @ table.T)
    return {
        "difference": float(difference[0]),
        "ci95": list(percentile_interval(spread)),
        "slope": float(slope[0]),
    }


def _controlled(means: Scores) -> tuple[Scores, Scores]:
    """Differences and slopes from (R, 8) means of reward, length, length², length·reward."""
    reward_t, length_t, square_t, both_t, reward_b, length_b, square_b, both_b = means.T
    spread = square_t - length_t**2 + square_b - length_b**2
    common = both_t - length_t * reward_t + both_b - length_b * reward_b
    varies = spread > 1e-9
    slope = np.where(varies, common / np.where(varies, spread, 1.0), 0.0)
    return reward_t - reward_b - slope * (length_t - length_b), slope


def _gap(new: Scores, old: Scores) -> dict[str, Any]:
    difference, interval = paired_mean_interval(new, old)
    return {"difference": difference, "ci95": list(interval)}
