"""What in a policy's log says not to trust its reward: a pure function over the entries."""

from collections.abc import Sequence
from statistics import median
from typing import Any

WINDOW = 10  # steps over which a trend or an absence counts
COLLAPSE = 0.5  # share of the first distinct-n under which the answers have become alike
EXPLOSION = 10.0  # times the median value loss so far
SURE = 2.0  # standard errors that make a change of the reward count

Entry = dict[str, Any]
# What is compared with the reward: key of the log, code, what it means.
CHECKS = (
    (
        "val_reward_length_controlled",
        "LENGTH_EXPLOITED",
        "the reward rises by length: at the first answers' length it has fallen",
    ),
    ("val_judge", "JUDGE_DISAGREES", "the reward rises while the held-out judge's falls"),
)


def alarms(log: Sequence[Entry], kl_bound: float) -> list[Entry]:
    """All alarms of a run, each at the first step that raises it.

    Args:
        log: entries of ``train_log.jsonl``, by step; keys that are missing raise nothing.
        kl_bound: nats an answer.

    Returns:
        ``{"code": …, "step": …, "text": …}`` by step. Codes: ``LENGTH_EXPLOITED``,
        ``JUDGE_DISAGREES``, ``KL_PAST_BOUND``, ``KL_RUNAWAY``, ``ANSWERS_ALIKE``,
        ``EOS_NEVER_SAMPLED``, ``VALUE_LOSS_EXPLODED``.
    """
    found = [
        *_against_reward(log),
        *_past_bound(log, kl_bound),
        *_runaway(log, kl_bound),
        *_alike(log),
        *_endless(log),
        *_exploded(log),
    ]
    return sorted(found, key=lambda alarm: alarm["step"])


def _against_reward(log: Sequence[Entry]) -> list[Entry]:
    """Reward up by more than its error while a second opinion is below where it began."""
    found = []
    for key, code, text in CHECKS:
        seen = [entry for entry in log if key in entry and "val_reward" in entry]
        for entry in seen[1:]:
            error = max(entry.get("val_reward_se", 0.0), seen[0].get("val_reward_se", 0.0))
            rise = entry["val_reward"] - seen[0]["val_reward"]
            if rise > SURE * error and entry[key] < seen[0][key]:
                values = f"reward +{rise:.3g}, {key} {seen[0][key]:.3g} to {entry[key]:.3g}"
                found.append(_alarm(code, entry, f"{text} ({values})"))
                break
    return found


def _past_bound(log: Sequence[Entry], bound: float) -> list[Entry]:
    for entry in log:
        kl = max(entry.get("kl", 0.0), entry.get("val_kl", 0.0))
        if kl > bound:
            text = f"KL to the reference is {kl:.3g} nats an answer, its bound {bound:g}"
            return [_alarm("KL_PAST_BOUND", entry, text)]
    return []


def _runaway(log: Sequence[Entry], bound: float) -> list[Entry]:
    """Half the bound is used, and at the slope of the last steps it is passed in as many more."""
    seen = [entry for entry in log if "kl" in entry]
    for last in range(WINDOW - 1, len(seen)):
        window = [entry["kl"] for entry in seen[last - WINDOW + 1 : last + 1]]
        half = WINDOW // 2
        pace = (sum(window[half:]) - sum(window[:half])) / half / half  # nats a step
        ahead = window[-1] + WINDOW * pace
        if bound / 2 < window[-1] <= bound < ahead:
            text = f"KL grows by {pace:.3g} nats a step: past its bound {bound:g} in {WINDOW} steps"
            return [_alarm("KL_RUNAWAY", seen[last], text)]
    return []


def _alike(log: Sequence[Entry]) -> list[Entry]:
    for key in ("val_distinct_2", "val_distinct_1"):
        seen = [entry for entry in log if key in entry]
        for entry in seen[1:]:
            if entry[key] < COLLAPSE * seen[0][key]:
                text = f"answers become alike: {key} {seen[0][key]:.3g} to {entry[key]:.3g}"
                return [_alarm("ANSWERS_ALIKE", entry, text)]
    return []


def _endless(log: Sequence[Entry]) -> list[Entry]:
    run = 0
    for entry in log:
        if "eos_share" in entry:
            run = run + 1 if entry["eos_share"] == 0.0 else 0
        if run >= WINDOW:
            text = f"no answer of the last {run} rollouts has ended before its full length"
            return [_alarm("EOS_NEVER_SAMPLED", entry, text)]
    return []


def _exploded(log: Sequence[Entry]) -> list[Entry]:
    losses: list[float] = []
    for entry in log:
        loss = entry.get("value_loss")
        if loss is None:
            continue
        usual = median(losses) if losses else 0.0
        if len(losses) >= WINDOW // 2 and loss > EXPLOSION * usual > 0:
            text = f"value loss {loss:.3g}, so far {usual:.3g}"
            return [_alarm("VALUE_LOSS_EXPLODED", entry, text)]
        losses.append(loss)
    return []


def _alarm(code: str, entry: Entry, text: str) -> Entry:
    return {"code": code, "step": int(entry["step"]), "text": text}
