"""The report of models side by side: which are better than the baseline, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipestill.evaluation import data_views, sections, statistics
from pipestill.evaluation.arms import label, ordered
from pipestill.evaluation.gate_power import paired_statement
from pipestill.evaluation.models_run import PAIR
from pipestill.evaluation.report_page import (
    arms_context,
    data_context,
    finish,
    read_metrics,
    verdict_context,
)
from pipestill.evaluation.summary import (
    MEASURED,
    NO_ACCURACY,
    ArmScores,
    accuracy_entry,
    collect_scores,
    json_safe,
)
from pipestill.evaluation.text_metrics import IN_SUMMARY
from pipestill.evaluation.wording import gap_words, listed, number
from pipestill.records import Prediction, read_jsonl

FUNNEL = (
    ("rows_read", "Read", ""),
    ("rows_rejected", "Set aside", "out"),
    ("duplicates_dropped", "Left out, duplicates", "out"),
    ("rows_without_gold", "Left out, no right answer", "out"),
    ("rows_left_out", "Left out by eval_rows", "out"),
    ("rows_asked", "Asked", "keep"),
)


def write_models_report(
    *,
    predictions_path: str,
    evaluation_metrics_path: str,
    rejects_path: str,
    data_metrics_path: str,
    page_path: str,
    summary_path: str,
    title: str,
) -> str:
    """Compares every arm with the baseline; writes summary JSON and HTML page.

    Args:
        predictions_path: JSONL of `Prediction` of all arms.
        evaluation_metrics_path: metrics JSON of `evaluate_models`.
        rejects_path: JSONL of `Reject`.
        data_metrics_path: metrics JSON of `data_prep`.
        page_path: the page, written.
        summary_path: the summary, written.
        title: heading of the page.

    Returns:
        The verdict: better, worse or cannot_tell.

    Raises:
        UserError: ``METRICS_UNREADABLE``, ``ROW_UNREADABLE``.
        WorkError: ``NO_PREDICTIONS``, ``ROWS_DIFFER``.
    """
    evaluation = read_metrics(evaluation_metrics_path)
    summary = models_summary(
        list(read_jsonl(predictions_path, Prediction)), evaluation, read_metrics(data_metrics_path)
    )
    context = {
        **verdict_context(summary, title),
        **arms_context(summary, evaluation),
        **data_context(summary["data"], rejects_path, FUNNEL),
        "baseline": label(summary["baseline"]),
        "comparisons": comparison_rows(summary),
        "other_scores": sections.other_scores(summary),
        "scatters": sections.scatters(summary, ("params", "p50_ms")),
        "reproduction": [
            *data_views.reproduction(evaluation, summary, {"predictions": predictions_path}),
            *sections.signature_facts(summary),
        ],
    }
    return finish(
        summary,
        context,
        template="models.html.j2",
        page_path=page_path,
        summary_path=summary_path,
    )


def models_summary(
    predictions: Sequence[Prediction], evaluation: Mapping[str, Any], data: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything the report says, as JSON-safe numbers; the keys are those of every summary.

    The p-values (paired bootstrap) are adjusted for the number of comparisons after Holm. The
    verdict is ``better`` where an arm beats the baseline, else ``worse`` where one falls behind.

    Args:
        predictions: of all arms, on the same rows.
        evaluation: metrics of `evaluate_models`.
        data: metrics of `data_prep`.

    Raises:
        WorkError: ``NO_PREDICTIONS`` or ``ROWS_DIFFER``.
    """
    scores = collect_scores(predictions)
    samples = statistics.bootstrap(scores)
    measured, baseline = evaluation.get("arms", {}), str(evaluation["baseline"])
    comparisons = _with_power(_comparisons(scores, samples, baseline), scores)
    arms: dict[str, Any] = {}
    for arm in ordered({*scores, *measured}):
        known = measured.get(arm, {})
        entry = accuracy_entry(scores[arm], samples[arm]) if arm in scores else dict(NO_ACCURACY)
        arms[arm] = entry | {name: known.get(name) for name in MEASURED}
        arms[arm] |= {name: known[name] for name in ("error", "scores") if known.get(name)}
    rows = len(next(iter(next(iter(scores.values())).values())))
    verdict = next(
        (word for word in ("better", "worse") if _names(comparisons, word)), "cannot_tell"
    )
    without_gold = int(evaluation.get("rows_without_gold", 0)) + int(data.get("leaks_dropped", 0))
    prepared = int(data.get("rows_train", 0)) + int(data.get("rows_eval", 0))
    labelled = prepared - int(evaluation.get("rows_without_gold", 0))
    summary = {
        "verdict": verdict,
        "verdict_sentence": _sentence(comparisons, baseline, arms, verdict, rows),
        "notes": _notes(comparisons, measured, verdict, without_gold),
        "rows": rows,
        "metric": evaluation.get("metric", "exact"),
        "baseline": baseline,
        "arms": arms,
        "comparisons": comparisons,
        **{name: evaluation.get(name, {}) for name in IN_SUMMARY},
        "data": {
            **data,
            "rows_without_gold": without_gold,
            "rows_left_out": max(0, labelled - rows),
            "rows_asked": rows,
        },
        "training": {},
    }
    safe: dict[str, Any] = json_safe(summary)
    return safe


def _comparisons(scores: ArmScores, samples: Mapping[str, Any], baseline: str) -> dict[str, Any]:
    """Every arm that has answers against the baseline; none where the baseline has none."""
    others = [arm for arm in ordered(scores) if arm != baseline and baseline in scores]
    return statistics.compare_all(scores, samples, [(arm, baseline) for arm in others])


def _with_power(comparisons: Mapping[str, Any], scores: ArmScores) -> dict[str, Any]:
    """Each comparison with what its rows could have shown, at Bonferroni's share of the level."""
    rows = len(next(iter(next(iter(scores.values())).values())))
    level = statistics.ALPHA / max(1, len(comparisons))
    return {
        name: {
            **item,
            "power": paired_statement(rows, item["rows_won"], item["rows_lost"], level=level),
        }
        for name, item in comparisons.items()
    }


def _names(comparisons: Mapping[str, Any], word: str) -> list[str]:
    """The comparisons that read `word`: better, worse or cannot_tell."""
    return [name for name, item in comparisons.items() if statistics.surely(item) == word]


def _sentence(
    comparisons: Mapping[str, Any], baseline: str, arms: Mapping[str, Any], verdict: str, rows: int
) -> str:
    """One plain sentence with the numbers that it rests on."""
    if arms[baseline]["accuracy"] is None:
        return f"Cannot tell: the baseline, {label(baseline)}, has no result."
    if not comparisons:
        return f"Nothing to compare: {label(baseline)} is the only arm with a result."
    told = [_told(name, comparisons) for name in _names(comparisons, verdict)]
    names = listed(told)
    basis = f"{rows} held-out rows, {len(comparisons)} compared, p-values adjusted after Holm"
    if verdict == "cannot_tell":
        # Of several, the one that disagrees least with the baseline needs the fewest rows.
        power = max((item["power"] for item in comparisons.values()), key=lambda it: it["power"])
        words = power["sentence"]
        found = f"{words[:1].upper()}{words[1:]}"
        return f"Cannot tell {names} from {label(baseline)}: {basis}. {found}."
    verb = {"better": "beat", "worse": "fall"}[verdict] + "s" * (len(told) == 1)
    return f"{names} {verb} {'behind ' * (verdict == 'worse')}{label(baseline)}: {basis}."


def _told(name: str, comparisons: Mapping[str, Any]) -> str:
    gap = gap_words(comparisons[name]).replace(" (", ", ").removesuffix(")")
    return f"{label(name.partition(PAIR)[0])} ({gap})"


def _notes(
    comparisons: Mapping[str, Any], measured: Mapping[str, Any], verdict: str, without_gold: int
) -> list[str]:
    """What the verdict's sentence leaves out, and how far it carries."""
    notes = [
        f"{_told(name, comparisons)}: {'falls behind' if word == 'worse' else 'cannot tell'}."
        for word in ("worse", "cannot_tell")
        for name in _names(comparisons, word)
        if word != verdict
    ]
    for arm, facts in measured.items():
        if cut := facts.get("truncated_inputs"):
            notes.append(f"Rows that {label(arm)} read cut to its limit: {number(cut)}.")
    if without_gold:
        notes.append(f"Rows without a right answer, which were not asked: {number(without_gold)}.")
    return notes


def comparison_rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """The paired comparisons, p-values adjusted."""
    return [
        sections.adjusted_row(item, label(name.partition(PAIR)[0]))
        for name, item in summary["comparisons"].items()
    ]
