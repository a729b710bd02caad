"""What the claims are judged by, read once: scores of every arm, their replicates, and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipestill.evaluation import statistics
from pipestill.evaluation.arms import ALL_SHARES, at_share, large_shots_of, share_of, shots_of
from pipestill.evaluation.statistics import Scores
from pipestill.evaluation.summary import ArmScores, collect_scores
from pipestill.records import Prediction

SHOWN, NOT_SHOWN, CANNOT_TELL, NOT_MEASURED = "shown", "not_shown", "cannot_tell", "not_measured"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that was measured on the held-out rows.

    `scores` and `samples` hold every arm, those trained on a share as ``dss:0.125``, and the mean
    of an arm over its shares as ``dss:mean``. `latencies` are milliseconds by arm and row id. The
    mappings are the metrics JSONs of the steps; a key that a step did not write is not there.
    """

    scores: ArmScores
    samples: Mapping[str, Scores]
    latencies: Mapping[str, Mapping[str, float]]
    prompts: Mapping[str, Any]
    curves: Sequence[Mapping[str, Any]]
    labels: Mapping[str, Any] = field(default_factory=dict)
    tune: Mapping[str, Any] = field(default_factory=dict)
    frontier: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Held-out rows."""
        return len(next(iter(next(iter(self.scores.values())).values())))

    def accuracy(self, arm: str) -> float:
        """The arm's accuracy over its seeds."""
        return float(statistics.mean_over_seeds(self.scores[arm]).mean())

    def measured(self, arm: str) -> Mapping[str, Any]:
        """What `evaluate_prompts` measured of an arm; empty where it has none."""
        found: Mapping[str, Any] = self.prompts.get("arms", {}).get(arm, {})
        return found

    def curve(self, arm: str) -> Mapping[str, Any]:
        """The metrics of `train_curve` for an arm; empty where it was not run."""
        return next((item for item in self.curves if item.get("arm") == arm), {})


def gather(
    predictions: Iterable[Prediction],
    *,
    prompts: Mapping[str, Any],
    curves: Sequence[Mapping[str, Any]],
    **metrics: Mapping[str, Any],
) -> Evidence:
    """Scores the predictions, which may be a stream, and draws their replicates.

    Raises:
        WorkError: ``NO_PREDICTIONS``, ``ROWS_DIFFER``.
    """
    latencies: dict[str, dict[str, float]] = {}
    scores = collect_scores(_timed(predictions, latencies))
    samples = statistics.bootstrap(scores)
    for arm, shares in shares_by_arm(scores).items():
        names = [at_share(arm, share) for share in shares]
        seeds = set.intersection(*(set(scores[name]) for name in names))
        if len(names) > 1 and seeds:
            scores[f"{arm}:{ALL_SHARES}"] = {
                seed: np.mean([scores[name][seed] for name in names], axis=0) for seed in seeds
            }
            samples[f"{arm}:{ALL_SHARES}"] = np.mean([samples[name] for name in names], axis=0)
    return Evidence(
        scores=scores,
        samples=samples,
        latencies=latencies,
        prompts=prompts,
        curves=curves,
        **metrics,
    )


def _timed(
    predictions: Iterable[Prediction], latencies: dict[str, dict[str, float]]
) -> Iterator[Prediction]:
    """The same stream; notes the latencies that pass."""
    for item in predictions:
        if item.latency_ms is not None:
            latencies.setdefault(item.arm, {})[item.id] = item.latency_ms
        yield item


def shares_by_arm(scores: Iterable[str]) -> dict[str, list[float]]:
    """Arm → its shares of the rows, growing; arms without shares are left out."""
    found: dict[str, list[float]] = {}
    for name in scores:
        trained = share_of(name)
        if trained:
            found.setdefault(trained[0], []).append(trained[1])
    return {arm: sorted(shares) for arm, shares in found.items()}


def untuned_arms(evidence: Evidence) -> dict[int, str]:
    """Worked examples → the arm of the untuned large model, in growing order.

    Where the large model is the teacher its own arms were left out, and the teacher's stand in.
    """
    of = shots_of if evidence.prompts.get("large_is_teacher") else large_shots_of
    found = {of(arm): arm for arm in evidence.scores if of(arm) >= 0}
    return dict(sorted(found.items()))


def few_shot_teacher(evidence: Evidence) -> str | None:
    """The teacher with its best number of examples on these rows, or as it was recorded.

    Choosing by the held-out rows favours the teacher, so what is said against it stays safe.
    """
    few = [arm for arm in evidence.scores if shots_of(arm) >= 1]
    if few:
        return max(few, key=lambda arm: (evidence.accuracy(arm), -shots_of(arm)))
    return next((arm for arm in ("teacher_recorded", "teacher_0_shot") if arm in evidence.scores),
                None)  # fmt: skip


def deployed_student(evidence: Evidence) -> str | None:
    """The student that is to be deployed: DSS, else the first trained one that was measured."""
    measured = evidence.prompts.get("arms", {})
    order = ("dss", "dss_teacher", "finetune", "distillation", "shuffled")
    known = [arm for arm in order if arm in measured and not measured[arm].get("error")]
    return known[0] if known else next((arm for arm in order if evidence.curve(arm)), None)


def claim(number: int, title: str, outcome: str, sentence: str, **numbers: Any) -> dict[str, Any]:
    """One claim as the summary holds it."""
    return {"number": number, "title": title, "outcome": outcome, "sentence": sentence,
            "numbers": numbers}  # fmt: skip
