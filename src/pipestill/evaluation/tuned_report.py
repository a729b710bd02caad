"""The report of a tuning run: what tuning changed on held-out rows, and what was trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipestill.evaluation import data_views, row_views, sections, statistics
from pipestill.evaluation.report_page import (
    arms_context,
    data_context,
    finish,
    read_metrics,
    verdict_context,
)
from pipestill.evaluation.summary import MEASURED, accuracy_entry, collect_scores, json_safe
from pipestill.evaluation.text_metrics import IN_SUMMARY, SCORES
from pipestill.evaluation.wording import number, percent, signed_points
from pipestill.records import Prediction, read_jsonl
from pipestill.training.supervised import OBJECTIVE

SHOWN_ROWS, SHOWN_SAMPLES = 5, 5
LONGEST_SEGMENT = 1500  # characters of one audited segment on the page
METRIC_WORDS = {
    "exact": "answers that equal the row's",
    "verbatim": "answers that equal the row's, case included",
    "pass@1": "programs that pass their tests",
}
MORE = (
    "exact", "nll", "perplexity", "token_accuracy", "template_accuracy", "pass_at_1", "pass_at_k",
    "scores",
)  # fmt: skip
TEXT_SCORES = ("rougeL", "chrf", "bleu", "macro_f1")
NO_SHARES = ("nll", "perplexity")


def write_tuned_report(
    *,
    predictions_path: str,
    evaluation_metrics_path: str,
    rejects_path: str,
    data_metrics_path: str,
    train_metrics_path: str,
    model_path: str,
    page_path: str,
    summary_path: str,
    title: str,
) -> str:
    """Compares the tuned model with its base; writes summary JSON and HTML page.

    Args:
        predictions_path: JSONL of `Prediction` of both arms.
        evaluation_metrics_path: metrics JSON of `evaluate_tuned`.
        rejects_path: JSONL of `Reject`.
        data_metrics_path: metrics JSON of `data_prep`.
        train_metrics_path: metrics JSON of `supervised_tune`.
        model_path: the tuned model; the audited sample beside it is shown.
        page_path: the page, written.
        summary_path: the summary, written.
        title: heading of the page.

    Returns:
        The verdict: better, worse or cannot_tell.

    Raises:
        UserError: ``METRICS_UNREADABLE``, ``ROW_UNREADABLE``.
        WorkError: ``NO_PREDICTIONS``, ``ROWS_DIFFER``.
    """
    predictions = list(read_jsonl(predictions_path, Prediction))
    evaluation, training = read_metrics(evaluation_metrics_path), read_metrics(train_metrics_path)
    summary = tuned_summary(predictions, evaluation, read_metrics(data_metrics_path), training)
    improved, worsened = changed_rows(predictions)
    context = {
        **verdict_context(summary, title),
        **arms_context(summary, evaluation),
        **data_context(summary["data"], rejects_path),
        "metric": METRIC_WORDS.get(summary["metric"], summary["metric"]),
        "scores": score_rows(summary),
        "score_gaps": sections.score_gaps(summary),
        "audit": audited(model_path),
        "improved": improved,
        "worsened": worsened,
        "reproduction": [
            *data_views.reproduction(evaluation, summary, {"predictions": predictions_path}),
            *sections.signature_facts(summary),
        ],
    }
    return finish(
        summary,
        context,
        template="tuned.html.j2",
        page_path=page_path,
        summary_path=summary_path,
    )


def tuned_summary(
    predictions: Sequence[Prediction],
    evaluation: Mapping[str, Any],
    data: Mapping[str, Any],
    training: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything the report says, as JSON-safe numbers; the keys are those of every summary."""
    scores = collect_scores(predictions)
    samples = statistics.bootstrap(scores)
    arms: dict[str, Any] = {}
    for arm, by_seed in scores.items():
        known = evaluation.get("arms", {}).get(arm, {})
        arms[arm] = {
            **accuracy_entry(by_seed, samples[arm]),
            **{name: known.get(name) for name in (*MEASURED, *MORE) if name in known},
        }
        for name in MEASURED:
            arms[arm].setdefault(name, None)
    gap = statistics.compare(scores[OBJECTIVE], scores["base"], samples[OBJECTIVE], samples["base"])
    rows = len(next(iter(scores[OBJECTIVE].values())))
    summary = {
        "verdict": statistics.verdict(gap.ci95),
        "verdict_sentence": verdict_sentence(gap, arms, rows, str(evaluation.get("metric"))),
        "rows": rows,
        "metric": evaluation.get("metric", "exact"),
        "task": evaluation.get("task", "text"),
        "arms": arms,
        "comparisons": {f"{OBJECTIVE}_vs_base": dataclasses.asdict(gap)},
        **{name: evaluation.get(name, {}) for name in IN_SUMMARY},
        "data": dict(data),
        "training": {str(training.get("run", OBJECTIVE)): dict(training)},
    }
    safe: dict[str, Any] = json_safe(summary)
    return safe


def verdict_sentence(
    gap: statistics.Comparison, arms: Mapping[str, Any], rows: int, metric: str
) -> str:
    """One plain sentence with the numbers that it rests on."""
    tuned, base = arms[OBJECTIVE], arms["base"]
    low, high = (signed_points(bound) for bound in gap.ci95)
    before, after = percent(base["accuracy"]), percent(tuned["accuracy"])
    word = {"better": "raises", "worse": "lowers", "cannot_tell": "may or may not change"}
    sentence = (
        f"Tuning {word[statistics.verdict(gap.ci95)]} the share of right answers ({metric}) from "
        f"{before} to {after}: {signed_points(gap.difference)} points (95 % CI {low} to {high}) on "
        f"{rows} held-out rows"
    )
    if tuned.get("perplexity") is not None and base.get("perplexity") is not None:
        sentence += (
            f"; perplexity of the right answers {number(base['perplexity'])} → "
            f"{number(tuned['perplexity'])}"
        )
    return sentence + "."


def score_rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """Every further score of both arms, those that were measured."""
    arms = {arm: _flat(summary["arms"][arm]) for arm in (OBJECTIVE, "base")}
    sampled = summary["arms"][OBJECTIVE].get("pass_at_k", {})
    names = {
        "exact": "Answers that equal the row's",
        "template_accuracy": "Commands of the same template",
        "pass_at_1": "Programs that pass their tests (pass@1)",
        **{f"pass@{k}": f"pass@{k} of sampled programs" for k in sampled},
        **{name: SCORES[name] for name in TEXT_SCORES},
        "token_accuracy": "Answer tokens right",
        "nll": "Mean negative log-likelihood, nats",
        "perplexity": "Perplexity of the right answers",
    }
    return [
        {"name": words, **{arm: _figure(key, found.get(key)) for arm, found in arms.items()}}
        for key, words in names.items()
        if arms[OBJECTIVE].get(key) is not None
    ]


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An arm's figures with `TEXT_SCORES` and ``pass@1``, ``pass@5``, … beside the others."""
    scores = entry.get("scores", {})
    return {
        **entry,
        **{name: scores.get(name) for name in TEXT_SCORES},
        **{f"pass@{k}": share for k, share in entry.get("pass_at_k", {}).items()},
    }


def _figure(name: str, value: float | None) -> str:
    return f"{value:.4g}" if value is not None and name in NO_SHARES else percent(value)


def audited(model_path: str) -> list[dict[str, Any]]:
    """The first audited sequences, as the audit wrote them beside the model."""
    path = Path(f"{model_path}.audit.json")
    if not path.is_file():
        return []
    samples = json.loads(path.read_text(encoding="utf-8"))["samples"][:SHOWN_SAMPLES]
    return [
        {
            "row": row_views.clip(item["row"], 80),
            "words": f"{item['loss_tokens']} of {item['tokens']} tokens carry loss",
            "segments": [
                {"text": row_views.clip(text, LONGEST_SEGMENT), "loss": loss}
                for text, loss in item["segments"]
            ],
        }
        for item in samples
    ]


def changed_rows(
    predictions: Sequence[Prediction],
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows that only the tuned model answers right, and rows that only the base does."""
    runs = row_views.by_run(predictions)
    tuned = row_views.runs_of(runs, OBJECTIVE)[0]
    base = row_views.runs_of(runs, "base")[0]

    def shown(first: dict[str, Prediction], second: dict[str, Prediction]) -> list[dict[str, str]]:
        ids = [row for row in first if first[row].correct and not second[row].correct]
        return [
            {
                "id": row_views.clip(row, 80),
                "input": row_views.clip(tuned[row].input_text),
                "gold": row_views.clip(tuned[row].gold, 300),
                "tuned": row_views.clip(tuned[row].output_text, 300),
                "base": row_views.clip(base[row].output_text, 300),
            }
            for row in ids[:SHOWN_ROWS]
        ]

    return shown(tuned, base), shown(base, tuned)
