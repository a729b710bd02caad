"""The report of an RLHF run: what the policy gained, what that cost, and whether to trust it."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipestill.evaluation import data_views, row_views, statistics
from pipestill.evaluation.charts import Trace, both_widths, legend_mark, trace_chart
from pipestill.evaluation.report_page import (
    WORDS,
    data_context,
    finish,
    read_metrics,
    verdict_context,
)
from pipestill.evaluation.rlhf_summary import ARM_NAMES, rlhf_summary, signed
from pipestill.evaluation.sections import HALF
from pipestill.evaluation.wording import NOTHING, interval, number, percent
from pipestill.rlhf.alarms import alarms
from pipestill.rlhf.comparison import of
from pipestill.rlhf.policy_gate import read_answers, read_log

FUNNEL = (
    ("pairs_read", "Pairs read", ""),
    ("pairs_rejected", "Bad rows", "out"),
    ("set_aside_tie", "Set aside, ties", "out"),
    ("set_aside_identical_candidates", "Set aside, two equal answers", "out"),
    ("set_aside_same_after_cut", "Set aside, equal after cutting", "out"),
    ("set_aside_contradictory_pair", "Set aside, contradictory", "out"),
    ("duplicates_dropped", "Left out, duplicates", "out"),
    ("leaks_dropped", "Left out, prompt is held out", "out"),
    ("pairs_train", "Pairs to train on", "keep"),
    ("pairs_eval", "Pairs held out", "keep"),
    ("prompts_train", "Prompts to train on", "keep"),
    ("prompts_eval", "Prompts held out", "keep"),
)
OUTCOMES = {"pass": ("pass", "good"), "fail": ("fail", "bad"), "open": ("not settled", "open")}
HELD, SEEN = ("Held-out prompts", "dss"), ("Training rollouts", "base")
SHOWN = 3  # samples of each kind
MOST_POINTS = 400  # of one curve on the page


def write_rlhf_report(
    *,
    predictions_path: str,
    evaluation_metrics_path: str,
    decision_path: str,
    rejects_path: str,
    data_metrics_path: str,
    reward_metrics_path: str,
    train_metrics_path: str,
    model_path: str,
    page_path: str,
    summary_path: str,
    kl_bound: float,
    title: str,
) -> str:
    """Writes summary JSON and HTML page.

    Args:
        predictions_path: rows of `evaluate_policy`.
        evaluation_metrics_path: its metrics JSON.
        decision_path: what `gate` wrote.
        rejects_path: JSONL of `Reject`.
        data_metrics_path: metrics JSON of `preference_prep`.
        reward_metrics_path: metrics JSON of `reward_model_train`.
        train_metrics_path: metrics JSON of `policy_train`.
        model_path: the policy's folder; the training log in it is drawn, where there is one.
        page_path: the page, written.
        summary_path: the summary, written.
        kl_bound: nats an answer past which there is an alarm.
        title: heading of the page.

    Returns:
        The verdict on the reward: better, worse or cannot_tell.

    Raises:
        UserError: ``METRICS_UNREADABLE``, ``ROW_UNREADABLE``.
    """
    rows = read_answers(predictions_path)
    evaluation, reward = read_metrics(evaluation_metrics_path), read_metrics(reward_metrics_path)
    log = read_log(model_path)
    summary = rlhf_summary(
        evaluation,
        read_metrics(decision_path),
        read_metrics(data_metrics_path),
        reward,
        read_metrics(train_metrics_path),
        alarms(log, kl_bound),
    )
    context = {
        **verdict_context(summary, title),
        **verdict_view(summary["verdict"], summary["decision"]),
        **data_context(summary["data"], rejects_path, FUNNEL),
        "alarms": summary["alarms"],
        "gate": gate_view(summary["gate"]),
        "scores": score_rows(summary),
        "comparisons": comparison_rows(summary["comparisons"]),
        "judge": judge_facts(summary["judge"]),
        "charts": curves(log),
        "legend": [{"mark": legend_mark(style), "name": name} for name, style in (HELD, SEEN)],
        "samples": samples(rows),
        "reward": reward_card(reward),
        "swapped": swapped_words(summary["data"]),
        "training": training_facts(summary["training"]),
        "latency_rows": evaluation.get("latency_rows"),
        "reproduction": data_views.reproduction(evaluation, summary, {"answers": predictions_path}),
    }
    return finish(
        summary, context, template="rlhf.html.j2", page_path=page_path, summary_path=summary_path
    )


def verdict_view(verdict: str, decision: str) -> dict[str, str]:
    """Word and colour of the headline; what the gate does not promote is not green."""
    gated = verdict == "better" and decision != "promote"
    words = f"{WORDS[verdict]} in reward, gate: {decision.replace('_', ' ')}"
    return {"verdict": "cannot_tell" if gated else verdict, "verdict_word": words}


def gate_view(gate: Mapping[str, Any]) -> dict[str, Any]:
    """The decision, rule by rule."""
    return {
        "decision": gate["decision"].replace("_", " "),
        "sentence": gate["sentence"],
        "override": row_views.clip(gate.get("override", "")),
        "rules": [
            {
                "name": _capital(rule["name"].replace("_", " ")),
                "outcome": OUTCOMES[rule["outcome"]][0],
                "style": OUTCOMES[rule["outcome"]][1],
                "text": rule["text"],
            }
            for rule in gate["rules"]
        ],
    }


def score_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every figure of both arms."""
    figures = (
        ("reward", "Reward, normalised", signed),
        ("greedy_reward", "Reward of greedy answers", signed),
        ("eos_share", "Answers that end by themselves", percent),
        ("output_tokens", "Tokens an answer", number),
        ("distinct_1", "Distinct words (distinct-1)", partial(number)),
        ("distinct_2", "Distinct pairs (distinct-2)", partial(number)),
        ("perplexity", "Perplexity under the start", number),
        ("prompt_tokens", "Tokens a prompt", number),
        ("p50_ms", "p50 latency, ms", number),
        ("p95_ms", "p95 latency, ms", number),
    )
    arms = summary["arms"]
    return [
        {"name": words, **{arm: show(arms[arm].get(key)) for arm in ARM_NAMES}}
        for key, words, show in figures
    ]


def comparison_rows(compared: Mapping[str, Any]) -> list[dict[str, str]]:
    """The paired comparisons in words."""
    names = {
        "reward": "Reward, sampled answers",
        "reward_greedy": "Reward, greedy answers",
        "reward_length_controlled": "Reward at equal length",
        "output_tokens": "Tokens an answer",
        "token_nll": "Negative log-likelihood under the start, nats a token",
    }
    rows = []
    for key, words in names.items():
        item = compared[key]
        low, high = item["ci95"]
        rows.append(
            {
                "name": words,
                "value": signed(item["difference"]),
                "interval": f"{signed(low)} to {signed(high)}",
            }
        )
    for key, words in (
        ("win_rate", "Share won by reward, sampled (ties a half)"),
        ("win_rate_greedy", "Share won by reward, greedy (ties a half)"),
    ):
        item = compared[key]
        rows.append(
            {"name": words, "value": percent(item["value"]), "interval": interval(item["ci95"])}
        )
    kl = compared["kl"]
    low, high = kl["ci95"]
    rows.append(
        {
            "name": "KL to the start, nats an answer",
            "value": f"{kl['value']:.2f}",
            "interval": f"{low:.2f} to {high:.2f}",
        }
    )
    return rows


def judge_facts(judge: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the judge said; empty where none was asked."""
    if not judge:
        return []
    share = percent(judge["win_rate"]) if judge["win_rate"] >= 0 else NOTHING
    return [
        ("Prefers the tuned policy", f"{share} (95 % CI {interval(judge['ci95'])}), ties a half"),
        ("Won, tied, lost", f"{judge['won']}, {judge['ties']}, {judge['lost']}"),
        ("Not judged", f"{judge['pairs'] - judge['judged']} of {judge['pairs']}"),
        (
            "Agreement of the two orders",
            f"Cohen's κ {judge['kappa']:.2f} over {judge['both_orders']} pairs with two verdicts",
        ),
    ]


def curves(log: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Reward and KL against the step, and reward against KL; those that the log has."""
    charts = []
    for held, seen, words in (("val_reward", "reward", "reward"), ("val_kl", "kl", "KL, nats")):
        traces = _traces(log, ("step", seen), ("step", held))
        charts.append(_chart(traces, ("training step", words)))
    charts.append(
        _chart(_traces(log, ("kl", "reward"), ("val_kl", "val_reward")), ("KL, nats", "reward"))
    )
    return [chart for chart in charts if chart]


def _traces(
    log: Sequence[Mapping[str, Any]], seen: tuple[str, str], held: tuple[str, str]
) -> list[Trace]:
    """Rollouts behind, evaluations before them; rollouts against KL are no line but a cloud."""
    found = []
    for (name, style), (x, y), front in ((SEEN, seen, False), (HELD, held, True)):
        points = tuple(
            (float(entry[x]), float(entry[y]))
            for entry in log
            if _known(entry.get(x)) and _known(entry.get(y))
        )
        every = max(1, math.ceil(len(points) / MOST_POINTS))
        if points:
            joined = front or x == "step"
            found.append(
                Trace(name=name, style=style, points=points[::every], joined=joined,
                      dots=front or not joined)
            )  # fmt: skip
    return found


def _chart(traces: Sequence[Trace], titles: tuple[str, str]) -> dict[str, Any] | None:
    if not any(len(trace.points) > 1 for trace in traces):
        return None
    name = "-".join((*titles[1].lower().split(), *titles[0].lower().split())).replace(",", "")
    draw = partial(_drawn, traces, titles, name)
    title = _capital(f"{titles[1]} against {titles[0]}")
    return {"title": title, "chart": both_widths(draw, wide=HALF)}


def _named(reference: str) -> str:
    """A model's reference; of a folder of the run (a supervised start) only its last part."""
    path = Path(reference)
    return f"local folder {path.name}" if path.is_absolute() else row_views.clip(reference, 120)


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _drawn(traces: Sequence[Trace], titles: tuple[str, str], name: str, width: float) -> Any:
    return trace_chart(traces, titles, width, name)


def samples(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Greedy answers before and after: the largest gain, the largest loss, and some by chance."""
    base, tuned = (of(rows, arm, "greedy") for arm in ARM_NAMES)
    pairs = list(zip(base, tuned, strict=True))
    ranked = sorted(pairs, key=lambda pair: pair[1]["reward"] - pair[0]["reward"])
    size = min(SHOWN, len(pairs))
    chance = random.Random(0).sample(pairs, size)  # noqa: S311
    groups = (
        ("Most reward gained", ranked[::-1][:size]),
        ("Most reward lost, or least gained", ranked[:size]),
        ("By chance", chance),
    )
    return [
        {"name": name, "rows": [_shown(*pair) for pair in found]} for name, found in groups if found
    ]


def _shown(base: Mapping[str, Any], tuned: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": row_views.clip(str(base["id"]), 80),
        "input": row_views.clip(base["input_text"]),
        "difference": signed(tuned["reward"] - base["reward"]),
        "answers": [
            {
                "name": name,
                "text": row_views.clip(row["output_text"]),
                "meta": f"reward {signed(row['reward'])} · {row['output_tokens']} tokens"
                + ("" if row["ended"] else " · cut off"),
            }
            for name, row in (("Before", base), ("After", tuned))
        ],
    }


def reward_card(reward: Mapping[str, Any]) -> dict[str, Any]:
    """The reward model: accuracy against length alone, calibration, length bias."""
    found = reward.get("evaluation") or {}
    trained = [
        ("Trained from", _named(str(reward.get("base_model", NOTHING)))),
        ("Pairs to train on", number(reward.get("train_pairs"))),
        ("Steps", f"{number(reward.get('steps'))}, best {number(reward.get('best_step'))}"),
        ("Identical after cutting, left out", number(reward.get("identical_pairs"))),
    ]
    if not found:
        return {"facts": trained, "accuracies": [], "chart": None, "against": ""}
    arms = (("", "This reward model"), ("longer_", "The longer answer"),
            ("length_model_", "Length alone, fitted"))  # fmt: skip
    word = statistics.verdict(tuple(found["difference_to_length_model_ci95"]))
    low, high = found["difference_to_length_model_ci95"]
    return {
        "facts": [
            *trained,
            ("Held-out pairs", number(found["pairs"])),
            ("Expected calibration error", percent(found["ece"])),
            ("Correlation of reward and length", signed(found["length_correlation"])),
            ("The same within pairs", signed(found["length_correlation_in_pairs"])),
            (
                "Right where the longer is preferred",
                f"{percent(found['accuracy_where_longer_is_preferred'])} of "
                f"{found['pairs_where_longer_is_preferred']}",
            ),
            (
                "Right where the shorter is preferred",
                f"{percent(found['accuracy_where_shorter_is_preferred'])} of "
                f"{found['pairs_where_shorter_is_preferred']}",
            ),
        ],
        "accuracies": [
            {
                "name": words,
                "value": percent(found[f"{key}accuracy"]),
                "interval": interval(found[f"{key}accuracy_ci95"]),
            }
            for key, words in arms
        ],
        "against": {
            "better": "It is better than length alone",
            "worse": "It is worse than length alone",
            "cannot_tell": "Nothing shows that it is better than length alone",
        }[word]
        + f": {signed(100 * found['difference_to_length_model'])} points "
        f"(95 % CI {signed(100 * low)} to {signed(100 * high)}).",
        "chart": _reliability(found["reliability"]),
    }


def _reliability(bins: Sequence[Mapping[str, Any]]) -> Any:
    titles = ("claimed probability", "share right")
    points = tuple((float(b["claimed"]), float(b["right"])) for b in bins)
    ideal = Trace(
        name="Perfect calibration", style="base", points=((0.5, 0.5), (1.0, 1.0)), dots=False
    )
    own = Trace(name="This reward model", style="dss", points=points, joined=len(points) > 1)
    return both_widths(partial(_drawn, [ideal, own], titles, "reliability"), wide=HALF)


def swapped_words(data: Mapping[str, Any]) -> str:
    """What became of the places of the two answers."""
    if "choice_0_share" not in data:
        return ""
    return (
        "The sides of half of the pairs were changed over, by a hash of their id: the first answer "
        f"is preferred in {percent(data['choice_0_share'])} of them, as read in "
        f"{percent(data['choice_0_share_before'])}. The longer answer is preferred in "
        f"{percent(data['preferred_longer_share'])}."
    )


def training_facts(training: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the policy's training reported."""
    names = {
        "objective": "Objective",
        "method": "Method",
        "steps": "Steps",
        "best_step": "Step that was kept",
        "kl_coeff": "KL coefficient at the end",
        "learning_rate": "Learning rate",
        "trained_parameters": "Trained parameters",
        "answer_tokens": "Answer tokens",
        "prompt_rows": "Prompts",
        "preference_rows": "Pairs",
        "seconds": "Seconds",
        "resumed_from_step": "Resumed from step",
    }
    return [
        (words, f"{v:,.4g}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else str(v))
        for key, words in names.items()
        if (v := training.get(key)) not in (None, "")
    ]


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
