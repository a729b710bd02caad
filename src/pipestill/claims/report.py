"""Writes the summary and the page of the claims: the verdict first, then claim by claim."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipestill.claims.cost_views import (
    model_card,
    pays_context,
    size_context,
    teacher_name,
)
from pipestill.claims.evidence import (
    CANNOT_TELL,
    NOT_MEASURED,
    NOT_SHOWN,
    SHOWN,
    Evidence,
    gather,
)
from pipestill.claims.plan import against_plan, plan_rows, read_plan
from pipestill.claims.prompts import match_words
from pipestill.claims.reward_views import frontier_context
from pipestill.claims.rows import OWN, PLAIN
from pipestill.claims.samples import Kept, rationale_groups, slices
from pipestill.claims.summary import OUTCOME_WORDS, claims_summary
from pipestill.claims.tables import prompt_context, rows_context
from pipestill.claims.training import training_context
from pipestill.evaluation import data_views
from pipestill.evaluation.arms import at_share, label
from pipestill.evaluation.report_page import (
    data_context,
    finish,
    read_metrics,
    verdict_context,
)
from pipestill.evaluation.row_views import won_and_lost
from pipestill.evaluation.wording import number
from pipestill.records import Labelled, Prediction, read_jsonl

STYLES = {SHOWN: "good", NOT_SHOWN: "bad", CANNOT_TELL: "open", NOT_MEASURED: "open"}


def write_claims_report(
    *,
    curve_predictions_paths: Sequence[str],
    curve_metrics_paths: Sequence[str],
    prompt_predictions_path: str,
    prompt_metrics_path: str,
    frontier_metrics_path: str,
    training_rows_path: str,
    rejects_path: str,
    data_metrics_path: str,
    label_metrics_path: str,
    tune_metrics_path: str,
    page_path: str,
    summary_path: str,
    title: str,
    plan_uri: str = "",
) -> str:
    """Judges the five claims; writes summary JSON and HTML page, and prints the verdict.

    Args:
        curve_predictions_paths: JSONL of `Prediction` of every `train_curve`.
        curve_metrics_paths: their metrics JSON.
        prompt_predictions_path: JSONL of `Prediction` of `evaluate_prompts`, on the same rows.
        prompt_metrics_path: its metrics JSON.
        frontier_metrics_path: metrics JSON of `reward_frontier`.
        training_rows_path: JSONL of `Labelled`.
        rejects_path: JSONL of `Reject`.
        data_metrics_path: metrics JSON of `data_prep`.
        label_metrics_path: metrics JSON of `collect_rows`.
        tune_metrics_path: metrics JSON of `supervised_tune` of the large model.
        page_path: the page, written.
        summary_path: the summary, written (`pipestill.claims.summary.claims_summary`).
        title: heading of the page.
        plan_uri: what ``pipestill plan … --json`` wrote, to be compared with the run; may be "".

    Returns:
        The verdict: better (all that was measured is shown), worse (the opposite of some, and
        none, is shown) or cannot_tell.

    Raises:
        UserError: ``METRICS_UNREADABLE``, ``ROW_UNREADABLE``, ``PLAN_UNREADABLE``.
        WorkError: ``NO_PREDICTIONS``, ``ROWS_DIFFER``.
    """
    curves = [read_metrics(path) for path in curve_metrics_paths]
    prompts, data = read_metrics(prompt_metrics_path), read_metrics(data_metrics_path)
    pair = _compared(curves)
    kept = Kept(arms=frozenset(pair))
    evidence = gather(
        kept.watch(_stream([*curve_predictions_paths, prompt_predictions_path])),
        prompts=prompts,
        curves=curves,
        labels=read_metrics(label_metrics_path),
        tune=read_metrics(tune_metrics_path),
        frontier=read_metrics(frontier_metrics_path),
    )
    summary = claims_summary(evidence, data, against_plan(read_plan(plan_uri), evidence))
    rows = list(read_jsonl(training_rows_path, Labelled))
    files = {"predictions of prompts": prompt_predictions_path, "training rows": training_rows_path}
    context = {
        **verdict_context(summary, title),
        **_claims_context(summary),
        **data_context(data, rejects_path),
        **prompt_context(summary, prompts),
        "match": match_words(summary["shots_to_match"]),
        **rows_context(summary),
        **size_context(summary),
        **frontier_context(summary["frontier"]),
        **pays_context(summary["break_even"]),
        **training_context(curves, evidence.tune),
        **_samples_context(evidence, summary, kept, pair),
        "teacher_name": teacher_name(summary),
        "rationales": rationale_groups(rows, str(summary["metric"])),
        "labelling": data_views.labelling(summary["teacher"], rows),
        "yields": data_views.yields(rows),
        "training_total": number(len(rows)),
        "estimated": plan_rows(summary["estimate"]),
        "card": model_card(summary, prompts),
        "reproduction": data_views.reproduction(prompts, summary, files),
    }
    return finish(
        summary, context, template="claims.html.j2", page_path=page_path, summary_path=summary_path
    )


def _stream(paths: Sequence[str]) -> Iterator[Prediction]:
    """The predictions of all files, one at a time: together they may not fit into memory."""
    return itertools.chain.from_iterable(read_jsonl(path, Prediction) for path in paths)


def _compared(curves: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """DSS and fine-tuning on the largest share that both were trained on."""
    shares = [
        {point["share"] for item in curves if item.get("arm") == arm
         for point in item.get("points", [])}
        for arm in (OWN, PLAIN)
    ]  # fmt: skip
    largest = max(shares[0] & shares[1], default=1.0)
    return at_share(OWN, largest), at_share(PLAIN, largest)


def _claims_context(summary: Mapping[str, Any]) -> dict[str, Any]:
    claims = [
        {**item, "word": OUTCOME_WORDS[item["outcome"]], "style": STYLES[item["outcome"]]}
        for item in summary["claims"]
    ]
    shown = sum(item["outcome"] == SHOWN for item in claims)
    return {
        "verdict_word": f"{shown} of {len(claims)} shown",
        "claims": claims,
    }


def _samples_context(
    evidence: Evidence, summary: Mapping[str, Any], kept: Kept, pair: tuple[str, str]
) -> dict[str, Any]:
    """Rows that DSS won and lost on the most rows, and accuracy on slices."""
    present = [arm for arm in pair if arm in evidence.scores]
    won, lost = won_and_lost(kept.shown, pair) if len(present) == 2 else ([], [])
    teacher = summary["footprint"]["teacher"]
    arms = [*present, teacher] if teacher else present
    return {
        "won": won,
        "lost": lost,
        "pair_words": [label(arm.partition(":")[0]) for arm in pair],
        "slices": slices(evidence, kept.rows, arms) if len(present) == 2 else [],
    }
