"""Claim 1: a tuned model needs no examples in its prompt. And how many the untuned one needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipestill.claims.evidence import (
    CANNOT_TELL,
    NOT_MEASURED,
    NOT_SHOWN,
    SHOWN,
    Evidence,
    claim,
    untuned_arms,
)
from pipestill.evaluation import statistics
from pipestill.evaluation.arms import label, ordered, shots_of
from pipestill.evaluation.gate_slices import paired_interval
from pipestill.evaluation.wording import gap_words, listed, number, percent, signed_points

TUNED = "tuned"
TITLE = "A tuned model needs no examples in its prompt"
# A tuned model that is surely not worse by so much needs no examples: the margin of retraining.
MARGIN = 0.02
COSTS = ("prompt_tokens", "p50_ms", "p95_ms", "usd_per_1000")


def prompt_comparisons(evidence: Evidence) -> dict[str, Any]:
    """The tuned model against every other prompted model, adjusted after Holm."""
    untuned = list(untuned_arms(evidence).values())
    plain = ("base", "teacher_recorded")
    others = [arm for arm in evidence.scores if shots_of(arm) >= 0 or arm in plain]
    names = ordered({*untuned, *others})
    pairs = [(TUNED, arm) for arm in names if TUNED in evidence.scores]
    return statistics.compare_all(evidence.scores, evidence.samples, pairs)


def prompt_claim(
    evidence: Evidence, comparisons: Mapping[str, Any], match: Mapping[str, Any]
) -> dict[str, Any]:
    """Shown where the tuned model is surely not worse by `MARGIN` at any shot count.

    Each shot count is tested at the full level: the claim is that all of them hold (Berger 1982).
    """
    untuned = untuned_arms(evidence)
    if TUNED not in evidence.scores or not untuned:
        return claim(1, TITLE, NOT_MEASURED, f"Not measured: {_missing(evidence)}.")
    found = {k: comparisons[f"{TUNED}_vs_{arm}"] for k, arm in untuned.items()}
    by_word: dict[str, list[int]] = {"better": [], "level": [], "worse": [], "cannot_tell": []}
    for k, item in found.items():
        by_word[_reading(item, evidence.rows)].append(k)
    told = next(by_word[word] for word in ("worse", "cannot_tell", "level", "better")
                if by_word[word])  # fmt: skip
    closest = min(told, key=lambda k: found[k]["difference"])
    unclear = by_word["cannot_tell"] or not evidence.accuracy(TUNED)  # none right shows nothing
    outcome = NOT_SHOWN if by_word["worse"] else CANNOT_TELL if unclear else SHOWN
    against = (
        f"{_shots(closest)} ({percent(evidence.accuracy(untuned[closest]))}) the difference is "
        f"{gap_words(found[closest])}{_saved(evidence, untuned[closest])}"
    )
    return claim(
        1, TITLE, outcome, f"{_start(evidence, by_word)}: against {against}.",
        accuracy=evidence.accuracy(TUNED),
        margin=MARGIN,
        differences={str(k): item["difference"] for k, item in found.items()},
        ci95={str(k): list(item["ci95"]) for k, item in found.items()},
        p_holm={str(k): item["p_holm"] for k, item in found.items()},
        closest_shots=closest,
        shots_to_match=(match.get("not_surely_worse") or {}).get("shots"),
    )  # fmt: skip


def _reading(item: Mapping[str, Any], rows: int) -> str:
    """``better``, ``level`` (surely not worse by the margin), ``worse`` or ``cannot_tell``.

    Two models that agree on every row of a few have replicates of 0 alone, which is no proof: the
    score interval (Tango 1998) has to lie above the margin as well.
    """
    word = statistics.surely(item)
    low, _ = paired_interval(rows, int(item["rows_won"]), int(item["rows_lost"]))
    return "level" if word != "better" and min(low, item["ci95"][0]) > -MARGIN else word


def _start(evidence: Evidence, by_word: Mapping[str, list[int]]) -> str:
    """What is said of every shot count, before the closest one is given in numbers."""
    right = percent(evidence.accuracy(TUNED))
    parts = [f"Tuned and without examples, the large model answers {right} right"]
    said = {
        "better": "more than untuned with {} examples",
        "level": f"surely not {MARGIN * 100:.0f} points fewer than untuned with {{}} examples",
        "worse": "and falls behind untuned with {} examples",
        "cannot_tell": "and cannot be told from untuned with {} examples",
    }
    return ", ".join(parts + [words.format(_listed(by_word[word]))
                              for word, words in said.items() if by_word[word]])  # fmt: skip


def _missing(evidence: Evidence) -> str:
    if TUNED in evidence.scores:
        return "no untuned large model in this run"
    reason = evidence.measured(TUNED).get("error")
    return "no tuned large model in this run" + (f": {reason}" if reason else "")


def _saved(evidence: Evidence, untuned: str) -> str:
    tokens = [evidence.measured(arm).get("prompt_tokens") for arm in (TUNED, untuned)]
    if None in tokens:
        return ""
    return f"; its prompt has {number(tokens[0])} tokens instead of {number(tokens[1])}"


def _shots(count: int) -> str:
    return f"{count} shot{'' if count == 1 else 's'}"


def _listed(counts: list[int]) -> str:
    return listed([str(count) for count in counts])


def shots_to_match(evidence: Evidence, comparisons: Mapping[str, Any]) -> dict[str, Any]:
    """The smallest number of examples with which the untuned model matches the tuned one.

    Returns:
        ``measured``, the shot counts; ``not_surely_worse``, the first at which the tuned model is
        not surely ahead (Holm); ``reaches``, the first whose accuracy is the tuned one's or more.
        Each holds ``shots``, ``arm``, ``accuracy``, the costs, and ``ratio``, its costs as a
        multiple of the tuned model's; null where no measured count does it.
    """
    untuned = untuned_arms(evidence)
    if TUNED not in evidence.scores or not untuned:
        return {"measured": list(untuned), "not_surely_worse": None, "reaches": None}
    found = {k: comparisons[f"{TUNED}_vs_{arm}"] for k, arm in untuned.items()}
    level = next((k for k in found if statistics.surely(found[k]) != "better"), None)
    reached = next((k for k in found if found[k]["difference"] <= 0), None)
    return {
        "measured": list(untuned),
        "tuned": _costs(evidence, TUNED),
        "not_surely_worse": None if level is None else _match(evidence, level, untuned[level]),
        "reaches": None if reached is None else _match(evidence, reached, untuned[reached]),
    }


def _match(evidence: Evidence, shots: int, arm: str) -> dict[str, Any]:
    own, tuned = _costs(evidence, arm), _costs(evidence, TUNED)
    ratio = {
        name: own[name] / tuned[name]
        if own[name] is not None and tuned[name]
        else None
        for name in COSTS
    }  # fmt: skip
    return {"shots": shots, "arm": arm, **own, "ratio": ratio}


def _costs(evidence: Evidence, arm: str) -> dict[str, Any]:
    known = evidence.measured(arm)
    return {"accuracy": evidence.accuracy(arm), **{name: known.get(name) for name in COSTS}}


def match_words(match: Mapping[str, Any]) -> str:
    """How many examples the untuned model needs, and what they cost, in one sentence."""
    if not match.get("tuned"):
        return ""
    found, reached = match["not_surely_worse"], match["reaches"]
    if found is None:
        counts = _listed(list(match["measured"]))
        return f"No measured number of examples ({counts}) brings the untuned model level with it."
    ratios = [
        f"{found['ratio'][name]:.3g} times the {words}"
        for name, words in (("prompt_tokens", "prompt tokens"), ("p50_ms", "latency"),
                            ("usd_per_1000", "cost"))
        if found["ratio"][name] is not None
    ]  # fmt: skip
    cost = f", at {', '.join(ratios)} of a request to the tuned one" if ratios else ""
    gap = signed_points(found["accuracy"] - match["tuned"]["accuracy"])
    reach = f"; it reaches the tuned accuracy with {reached['shots']}" if reached else (
        "; no measured number reaches the tuned accuracy")  # fmt: skip
    return (
        f"Shots needed to match: {found['shots']} ({label(found['arm'])} is not surely worse than "
        f"tuned: {gap} points){cost}{reach}."
    )
