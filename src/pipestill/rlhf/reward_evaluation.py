"""How far a reward model can be trusted: accuracy, calibration and length bias on held-out pairs.

A reward model that prefers the longer answer is right more often than a coin (Singhal et al. 2023,
arXiv 2310.03716), so every accuracy is compared with that of length alone, pair by pair.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipestill.evaluation.statistics import bootstrap, compare, percentile_interval, verdict

Array: TypeAlias = NDArray[np.float64]

BINS = 10
NEWTON_STEPS = 50
RIDGE = 1e-3  # keeps the fit finite where length tells all


def evaluate(
    rewards: Array, lengths: Array, margins: Array, train_lengths: Array
) -> dict[str, Any]:
    """What is known of rewards on held-out pairs; column 0 is the preferred answer everywhere.

    Args:
        rewards: (N, 2) raw rewards, N >= 1.
        lengths: (N, 2) tokens of the whole answers, before any cut.
        margins: (N,) by how much the preferred answer is better; zeros where the data do not say.
        train_lengths: (M, 2) lengths of the training pairs, which the length model is fitted on.

    Returns:
        Plain values. ``accuracy`` counts a tie as a half. Against each baseline (``longer``: the
        longer answer; ``length_model``: logistic on differences of tokens and of log-tokens):
        its accuracy, the difference, its paired 95 % interval and the verdict. ``ece`` is the
        expected calibration error of σ(r_c − r_r) (Naeini et al. 2015), ``reliability`` its bins.
    """
    gap, longer = rewards[:, 0] - rewards[:, 1], lengths[:, 0] - lengths[:, 1]
    weights = fit_length_model(train_lengths)
    baselines = {"longer": longer, "length_model": length_features(lengths) @ weights}
    arms = {"reward": {0: won(gap)}} | {name: {0: won(by)} for name, by in baselines.items()}
    samples = bootstrap(arms)
    found: dict[str, Any] = {
        "pairs": len(gap),
        "accuracy": float(arms["reward"][0].mean()),
        "accuracy_ci95": list(percentile_interval(samples["reward"])),
    }
    for name in baselines:
        found[f"{name}_accuracy"] = float(arms[name][0].mean())
        found[f"{name}_accuracy_ci95"] = list(percentile_interval(samples[name]))
        against = compare(arms["reward"], arms[name], samples["reward"], samples[name])
        found[f"difference_to_{name}"] = against.difference
        found[f"difference_to_{name}_ci95"] = list(against.ci95)
        found[f"against_{name}"] = verdict(against.ci95)
    found |= calibration(gap)
    found |= length_bias(rewards, lengths)
    found |= {"reward_mean": float(rewards.mean()), "reward_std": float(rewards.std())}
    found["slices"] = slices(gap, margins)
    return found


def won(gap: Array) -> Array:
    """1 where the preferred answer is ahead, 0 where it is behind, a half where neither is."""
    ahead: Array = (np.sign(gap) + 1) / 2
    return ahead


def length_features(lengths: Array) -> Array:
    """(N, 2): differences of the two lengths, in hundreds of tokens and in logarithms."""
    logs = np.log1p(lengths)
    return np.stack(
        [(lengths[:, 0] - lengths[:, 1]) / 100, logs[:, 0] - logs[:, 1]], axis=1
    ).astype(np.float64)


def fit_length_model(lengths: Array) -> Array:
    """(2,) weights of a logistic model without a constant: the sides of a pair are exchangeable."""
    rows = length_features(lengths)
    weights = np.zeros(rows.shape[1])
    for _ in range(NEWTON_STEPS):
        chance = _sigmoid(rows @ weights)
        gradient = rows.T @ (1 - chance) - RIDGE * weights
        curve = (rows * (chance * (1 - chance))[:, None]).T @ rows + RIDGE * np.eye(len(weights))
        weights = weights + np.linalg.solve(curve, gradient)
    return weights


def calibration(gap: Array) -> dict[str, Any]:
    """Is the model right as often as it claims? Claims are max(p, 1 − p) of p = σ(gap).

    Returns:
        ``ece``; ``nll``, the mean of −log p; ``reliability``: of every filled bin its lower edge,
        pairs, mean claim and share of right ones.
    """
    claim, right = _sigmoid(np.abs(gap)), won(gap)
    place = np.minimum(((claim - 0.5) * 2 * BINS).astype(int), BINS - 1)
    bins = [
        {
            "from": 0.5 + b / (2 * BINS),
            "pairs": int((place == b).sum()),
            "claimed": float(claim[place == b].mean()),
            "right": float(right[place == b].mean()),
        }
        for b in np.unique(place)
    ]
    ece = sum(b["pairs"] * abs(b["claimed"] - b["right"]) for b in bins) / len(gap)
    return {"ece": ece, "nll": float(np.logaddexp(0, -gap).mean()), "reliability": bins}


def length_bias(rewards: Array, lengths: Array) -> dict[str, Any]:
    """Correlations of reward and length, over answers and within pairs, and accuracy by length.

    A correlation is 0 where one of the two never changes.
    """
    gap, longer = rewards[:, 0] - rewards[:, 1], lengths[:, 0] - lengths[:, 1]
    right = won(gap)
    return {
        "length_correlation": _correlation(rewards.ravel(), lengths.ravel()),
        "length_correlation_in_pairs": _correlation(gap, longer),
        "accuracy_where_longer_is_preferred": _share(right[longer > 0]),
        "pairs_where_longer_is_preferred": int((longer > 0).sum()),
        "accuracy_where_shorter_is_preferred": _share(right[longer < 0]),
        "pairs_where_shorter_is_preferred": int((longer < 0).sum()),
    }


def slices(gap: Array, margins: Array) -> list[dict[str, Any]]:
    """Accuracy by margin, in up to four parts of equal size; none where all margins are equal."""
    if not len(margins) or margins.min() == margins.max():
        return []
    edges = np.unique(np.quantile(margins, [0.25, 0.5, 0.75]))
    place = np.searchsorted(edges, margins, side="right")
    return [
        {
            "margin_from": float(margins[place == part].min()),
            "margin_to": float(margins[place == part].max()),
            "pairs": int((place == part).sum()),
            "accuracy": float(won(gap[place == part]).mean()),
        }
        for part in np.unique(place)
    ]


def flat(found: Mapping[str, Any]) -> dict[str, float | int | str]:
    """The single values under ``eval_…``, intervals as ``…_low`` and ``…_high``."""
    out: dict[str, float | int | str] = {}
    for name, value in found.items():
        if name.endswith("_ci95"):
            low, high = value
            out |= {f"eval_{name[:-5]}_low": low, f"eval_{name[:-5]}_high": high}
        elif isinstance(value, int | float | str):
            out[f"eval_{name}"] = value
    return out


def _share(right: Array) -> float | None:
    return float(right.mean()) if len(right) else None


def _correlation(first: Array, second: Array) -> float:
    if first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _sigmoid(values: Array) -> Array:
    found: Array = np.exp(-np.logaddexp(0, -values))
    return found
