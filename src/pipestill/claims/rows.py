"""Claim 2: rationales make rows worth more. Accuracy against rows, and where the curves cross."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipestill.claims.evidence import (
    CANNOT_TELL,
    NOT_MEASURED,
    NOT_SHOWN,
    SHOWN,
    Evidence,
    claim,
    few_shot_teacher,
    shares_by_arm,
)
from pipestill.evaluation import statistics
from pipestill.evaluation.arms import ALL_SHARES, at_share, label, ordered, share_of
from pipestill.evaluation.curve_statistics import first_crossing, open_interval
from pipestill.evaluation.summary import accuracy_entry
from pipestill.evaluation.wording import gap_words, listed, number

TITLE = "Rationales make rows worth more: DSS needs fewer of them"
OWN, PLAIN, CONTROL = "dss", "finetune", "shuffled"
RIVALS = (PLAIN, "distillation", "dss_teacher", CONTROL)
# Which arm is compared with which others: with gold labels, and with the teacher's labels alone.
FAMILY = ((OWN, RIVALS), ("dss_teacher", ("distillation",)))
FINETUNE_ALL, TEACHER = "finetune_all_rows", "few_shot_teacher"


def row_curves(evidence: Evidence) -> dict[str, list[dict[str, Any]]]:
    """Arm → its points by growing share: rows, accuracy with interval over rows and seeds."""
    found = shares_by_arm(evidence.scores)
    return {
        arm: [
            {
                "share": share,
                "rows": _rows(evidence, arm, share),
                **accuracy_entry(
                    evidence.scores[at_share(arm, share)], evidence.samples[at_share(arm, share)]
                ),
            }
            for share in found[arm]
        ]
        for arm in ordered(found)
    }


def _rows(evidence: Evidence, arm: str, share: float) -> int | None:
    """Training rows at a share, from any arm that counted them: the shares are the same rows."""
    for item in sorted(evidence.curves, key=lambda item: item.get("arm") != arm):
        for point in item.get("points", []):
            if math.isclose(point.get("share", -1.0), share) and point.get("rows"):
                return int(point["rows"])
    available = evidence.curve(arm).get("rows_available")
    return round(share * available) if available else None


def row_comparisons(evidence: Evidence) -> dict[str, Any]:
    """DSS against every other arm at every share and on average over them, one Holm family."""
    shares = shares_by_arm(evidence.scores)
    teacher = few_shot_teacher(evidence)
    pairs = []
    for first, rivals in FAMILY:
        for place in [f"{share:g}" for share in shares.get(first, [])] + [ALL_SHARES]:
            pairs += [(f"{first}:{place}", f"{other}:{place}") for other in rivals]
            pairs += [(f"{first}:{place}", teacher)] if teacher and first == OWN else []
    known = [
        (first, second)
        for first, second in pairs
        if first in evidence.scores
        and second in evidence.scores
        and (not first.endswith(ALL_SHARES) or _same_shares(shares, first, second))
    ]
    return statistics.compare_all(evidence.scores, evidence.samples, known)


def _same_shares(shares: Mapping[str, list[float]], first: str, second: str) -> bool:
    """Means over shares compare only where both arms have the same ones."""
    one, other = first.partition(":")[0], second.partition(":")[0]
    return not second.endswith(f":{ALL_SHARES}") or shares[one] == shares[other]


def crossings(
    evidence: Evidence, curves: Mapping[str, list[dict[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """Where each arm reaches fine-tuning on all rows, and where the few-shot teacher.

    A target that gets no row right is none: it would be reached by knowing nothing.

    Returns:
        ``arm_reaches_target`` → ``arm``, ``target``, ``target_arm``, ``rows`` and ``share`` (null
        where no measured share reaches it), ``ci95_rows`` and ``ci95_share`` (null for a bound
        outside the measured range), ``at_smallest`` (reached at the smallest share already, so
        that `rows` is an upper bound).
    """
    named = {TEACHER: few_shot_teacher(evidence)}
    if curves.get(PLAIN):
        named[FINETUNE_ALL] = at_share(PLAIN, curves[PLAIN][-1]["share"])
    targets = {name: arm for name, arm in named.items() if arm and evidence.accuracy(arm) > 0}
    found = {}
    for arm, points in curves.items():
        known = all(point["rows"] for point in points) and len(points) > 1
        for target, target_arm in targets.items():
            if known and not (arm == PLAIN and target == FINETUNE_ALL):
                item = _crossing(evidence, arm, points, target_arm)
                found[f"{arm}_reaches_{target}"] = {"arm": arm, "target": target, **item}
    return found


def _crossing(
    evidence: Evidence, arm: str, points: list[dict[str, Any]], target_arm: str
) -> dict[str, Any]:
    rows = np.array([float(point["rows"]) for point in points])
    samples = np.stack([evidence.samples[at_share(arm, p["share"])] for p in points], axis=1)
    own = np.array([[point["accuracy"] for point in points]])
    goal = np.array([evidence.accuracy(target_arm)])
    at = float(first_crossing(rows, own, goal)[0])
    replicates = first_crossing(rows, samples, evidence.samples[target_arm])
    ends = open_interval(replicates)
    all_rows = rows[-1] / points[-1]["share"]
    return {
        "target_arm": target_arm,
        "target_accuracy": float(goal[0]),
        "rows": at if math.isfinite(at) else None,
        "share": at / all_rows if math.isfinite(at) else None,
        "at_smallest": at <= rows[0],
        "ci95_rows": [end if rows[0] < end < math.inf else None for end in ends],
        "ci95_share": [end / all_rows if rows[0] < end < math.inf else None for end in ends],
        "ci95_below": [end <= rows[0] for end in ends],
        "reached_in": float(np.isfinite(replicates).mean()),
        "smallest_rows": float(rows[0]),
        "largest_rows": float(rows[-1]),
    }


def crossing_words(item: Mapping[str, Any]) -> str:
    """``140 rows (95 % CI 90 to more than 400)`` or that it is not within the measured range."""
    if item["rows"] is None:
        at = "not within the measured range"
    elif item["at_smallest"]:
        at = f"at most {number(round(item['rows']))} rows, the smallest measured"
    else:
        at = f"{number(round(item['rows']))} rows"
    return f"{at} (95 % CI {crossing_interval(item)})"


def crossing_interval(item: Mapping[str, Any]) -> str:
    """The interval in rows; a bound outside the measured range is named as such."""
    words = []
    for bound, below in zip(item["ci95_rows"], item["ci95_below"], strict=True):
        if below:
            words.append(f"at most {number(round(item['smallest_rows']))}")
        elif bound is None:
            words.append(f"more than {number(round(item['largest_rows']))}")
        else:
            words.append(number(round(bound)))
    return words[0] if words[0] == words[1] else f"{words[0]} to {words[1]}"


def rows_claim(
    evidence: Evidence, comparisons: Mapping[str, Any], crossed: Mapping[str, Any]
) -> dict[str, Any]:
    """Shown where DSS surely beats fine-tuning at some share, or on average, and loses nowhere."""
    found = {
        name.partition("_vs_")[0].partition(":")[2]: item
        for name, item in comparisons.items()
        if name.startswith(f"{OWN}:") and f"_vs_{PLAIN}:" in name
    }
    if not found:
        return claim(2, TITLE, NOT_MEASURED, f"Not measured: {_missing(evidence)}.")
    better, worse = (
        [place for place, item in found.items() if statistics.surely(item) == word]
        for word in ("better", "worse")
    )
    outcome = CANNOT_TELL
    if bool(better) != bool(worse):
        outcome = SHOWN if better else NOT_SHOWN
    crossing = crossed.get(f"{OWN}_reaches_{FINETUNE_ALL}")
    sentence = _difference(found, better, worse) + _crossed(crossing) + _control(comparisons)
    return claim(
        2, TITLE, outcome, f"{sentence}.",
        differences={place: item["difference"] for place, item in found.items()},
        ci95={place: list(item["ci95"]) for place, item in found.items()},
        p_holm={place: item["p_holm"] for place, item in found.items()},
        better_at=better, worse_at=worse,
        crossing_rows=crossing["rows"] if crossing else None,
        crossing_ci95_rows=crossing["ci95_rows"] if crossing else None,
    )  # fmt: skip


def _difference(found: Mapping[str, Any], better: list[str], worse: list[str]) -> str:
    """Where DSS is better or worse than fine-tuning, and the largest of these differences."""
    verb = "cannot be told from standard fine-tuning"
    if better and worse:
        verb = f"beats standard fine-tuning {_places(better)} and falls behind it"
    elif better or worse:
        verb = f"{'beats' if better else 'falls behind'} standard fine-tuning"
    told = worse or better or list(found)
    largest = max(told, key=lambda place: abs(found[place]["difference"]))
    gap = f"the largest difference is {gap_words(found[largest])} {_places([largest])}"
    return f"DSS {verb} {_places(told)}: {gap}"


def _crossed(crossing: Mapping[str, Any] | None) -> str:
    if crossing is None:
        return ""
    whole = number(round(crossing["largest_rows"]))
    return f"; rows to reach fine-tuning on all {whole}: {crossing_words(crossing)}"


def _places(places: list[str]) -> str:
    shares = [f"{100 * float(place):g} %" for place in places if place != ALL_SHARES]
    words = []
    if shares:
        words.append(f"at {listed(shares)} of the rows")
    if ALL_SHARES in places:
        words.append("on average over the shares")
    return " and ".join(words)


def _control(comparisons: Mapping[str, Any]) -> str:
    """What shuffled rationales say of the reason."""
    item = comparisons.get(f"{OWN}:{ALL_SHARES}_vs_{CONTROL}:{ALL_SHARES}")
    if item is None:
        name = next((n for n in comparisons if n.startswith(OWN) and f"_vs_{CONTROL}:" in n), None)
        item = comparisons[name] if name else None
    if item is None:
        return ""
    words = {
        "better": "what the rationales say matters: against shuffled ones",
        "worse": "what the rationales say does not help: against shuffled ones",
        "cannot_tell": "whether it matters what the rationales say cannot be told: against "
        "shuffled ones",
    }[statistics.surely(item)]
    return f"; {words} {gap_words(item)}"


def _missing(evidence: Evidence) -> str:
    arms = shares_by_arm(evidence.scores)
    gone = [arm for arm in (OWN, PLAIN) if arm not in arms]
    why = [f"{label(arm)} {_reason(evidence, arm)}" for arm in gone]
    return " and ".join(why) if why else "DSS and fine-tuning have no share in common"


def _reason(evidence: Evidence, arm: str) -> str:
    error = evidence.curve(arm).get("error")
    return f"failed ({error})" if error else "was not trained"


def shares_of(curves: Mapping[str, list[dict[str, Any]]]) -> list[float]:
    """Every share that some arm was trained on, growing."""
    return sorted({point["share"] for points in curves.values() for point in points})


def place_of(name: str) -> tuple[str, str]:
    """``dss:0.5`` → ("dss", "0.5"); another arm → (arm, "")."""
    trained = share_of(name)
    if trained:
        return trained[0], f"{trained[1]:g}"
    arm, colon, place = name.rpartition(":")
    return (arm, place) if colon and place == ALL_SHARES else (name, "")
