"""How near answers are to their references: scores of a set, of every row, and of arms compared.

All scores are shares from 0 to 1 (sacrebleu's figures divided by 100). They stand beside the yes or
no of `pipestill.evaluation.scoring`, which decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from pipestill.evaluation import statistics
from pipestill.evaluation.scoring import exact, normalise
from pipestill.evaluation.statistics import Scores
from pipestill.records import Prediction

Run: TypeAlias = tuple[str, int]  # arm and seed
# Score → what it is, as a page says it.
SCORES = {
    "exact": "Answers that equal the reference",
    "macro_f1": "Macro-F1 over the reference labels",
    "rouge1": "ROUGE-1, F-measure",
    "rouge2": "ROUGE-2, F-measure",
    "rougeL": "ROUGE-L, F-measure",
    "bleu": "BLEU of the whole set",
    "chrf": "chrF of the whole set",
}
ROUGE = ("rouge1", "rouge2", "rougeL")
# Score that arms are compared by → its words; rows are resampled, so chrF is not that of the set.
COMPARED = {"rougeL": "ROUGE-L", "chrf": "chrF, mean of the rows"}
IN_SUMMARY = ("score_comparisons", "score_signatures")  # what a summary copies beside the arms
MOST_LABELS = 100
ROWS_PER_LABEL = 5  # below that on average, answers are texts and no labels


def row_scores(answers: Sequence[str], golds: Sequence[str]) -> dict[str, Scores]:
    """Score → one value per row, which the paired bootstrap resamples.

    ROUGE-1, 2 and L are F-measures over lower-case words of a-z and 0-9, without stemming (Lin
    2004, ROUGE: a package for automatic evaluation of summaries): text in another script scores 0.
    ``bleu`` is BLEU of the single row with effective order (Chen and Cherry 2014), ``chrf`` chrF2
    (Popović 2015). An empty answer has 0 everywhere.

    Args:
        answers: what was said.
        golds: the references, in the same order.

    Returns:
        ``rouge1``, ``rouge2``, ``rougeL``, ``bleu``, ``chrf``: arrays of shape [rows].

    Raises:
        ValueError: where the two differ in length.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    pairs = list(zip(answers, golds, strict=True))
    found = {name: np.zeros(len(pairs)) for name in (*ROUGE, "bleu", "chrf")}
    bleu, chrf = BLEU(effective_order=True), CHRF()
    for at, (answer, gold) in enumerate(pairs):
        if not answer.strip():
            continue
        for name, value in _rouge(answer, gold).items():
            found[name][at] = value
        found["bleu"][at] = bleu.sentence_score(answer, [gold]).score / 100
        found["chrf"][at] = chrf.sentence_score(answer, [gold]).score / 100
    return found


def _rouge(answer: str, gold: str) -> dict[str, float]:
    from torchmetrics.functional.text import rouge_score

    scores = rouge_score(answer, gold, rouge_keys=ROUGE)
    return {name: float(scores[f"{name}_fmeasure"]) for name in ROUGE}


def corpus_scores(answers: Sequence[str], golds: Sequence[str]) -> dict[str, float]:
    """The scores of `SCORES` over a whole set; ``macro_f1`` only where `has_labels`.

    ROUGE is the mean of the rows. BLEU and chrF count n-grams over all rows before they divide
    (Papineni et al. 2002, section 2.1.1), which is not the mean of the rows.

    Raises:
        ValueError: for no rows, or where the two differ in length.
    """
    return _corpus(answers, golds, row_scores(answers, golds))


def _corpus(
    answers: Sequence[str], golds: Sequence[str], rows: Mapping[str, Scores]
) -> dict[str, float]:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    if not golds:
        raise ValueError("no rows to score")
    right = [exact(answer, gold) for answer, gold in zip(answers, golds, strict=True)]
    found = {"exact": sum(right) / len(right)}
    if has_labels(golds):
        found["macro_f1"] = macro_f1(answers, golds)
    found |= {name: float(rows[name].mean()) for name in ROUGE}
    for name, metric in {"bleu": BLEU(), "chrf": CHRF()}.items():
        found[name] = metric.corpus_score(list(answers), [list(golds)]).score / 100
    return found


def has_labels(golds: Sequence[str]) -> bool:
    """Whether the references are a few labels that come back, at most 100, and no free texts."""
    count = len({normalise(gold) for gold in golds})
    return 2 <= count <= MOST_LABELS and len(golds) >= ROWS_PER_LABEL * count


def macro_f1(answers: Sequence[str], golds: Sequence[str]) -> float:
    """The mean over the reference labels of F1; an answer that is no label counts against its row.

    Labels are compared after `pipestill.evaluation.scoring.normalise`. The mean is over labels of
    the references alone, so it does not depend on what a model invents.
    """
    import torch
    from torchmetrics.functional.classification import multiclass_f1_score

    labels = {label: at for at, label in enumerate(sorted({normalise(gold) for gold in golds}))}
    other = len(labels)
    said = torch.tensor([labels.get(normalise(answer), other) for answer in answers])
    wanted = torch.tensor([labels[normalise(gold)] for gold in golds])
    f1 = multiclass_f1_score(said, wanted, num_classes=other + 1, average="none")
    return float(f1[:other].mean())


def signatures() -> dict[str, str]:
    """How the scores were computed, to be quoted with them: sacrebleu's own words and versions."""
    from importlib.metadata import version

    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    found = {}
    for name, metric in {"bleu": BLEU(), "chrf": CHRF()}.items():
        metric.corpus_score(["a"], [["a"]])  # the number of references enters with the first use
        found[name] = str(metric.get_signature())
    told = f"torchmetrics:{version('torchmetrics')}"
    return {
        **found,
        "rouge": f"{told}|F-measure|stemmer:no|words:a-z0-9|case:lower",
        "macro_f1": f"{told}|labels:of the references|case:lower",
    }


def score_arms(predictions: Sequence[Prediction], baseline: str) -> dict[str, Any]:
    """The scores of every arm, and every arm against the baseline.

    The comparison is the paired bootstrap over rows and seeds on the scores of the rows: its
    differences are those of means of the rows, for chrF too. p-values are adjusted within each
    score after Holm.

    Args:
        predictions: of all arms; one that did not answer the baseline's rows is not compared.
        baseline: the arm that the others are compared with.

    Returns:
        ``scores``: arm → `corpus_scores`, the mean over seeds; ``score_comparisons``: score of
        `COMPARED` → arm → ``difference``, ``ci95``, ``rows_won``, ``rows_lost``, ``p``,
        ``p_holm``; ``score_signatures``.
    """
    runs = _runs(predictions)
    rows: dict[Run, dict[str, Scores]] = {}
    by_arm: dict[str, list[dict[str, float]]] = {}
    for run, items in runs.items():
        answers, golds = [item.output_text for item in items], [item.gold for item in items]
        rows[run] = row_scores(answers, golds)
        by_arm.setdefault(run[0], []).append(_corpus(answers, golds, rows[run]))
    asked = {run: [item.id for item in items] for run, items in runs.items()}
    wanted = next((ids for (arm, _), ids in asked.items() if arm == baseline), None)
    shared = {run: rows[run] for run, ids in asked.items() if ids == wanted}
    return {
        "scores": {
            arm: {name: sum(scores[name] for scores in every) / len(every) for name in every[0]}
            for arm, every in by_arm.items()
        },
        "score_comparisons": {name: _compared(shared, name, baseline) for name in COMPARED},
        "score_signatures": signatures(),
    }


def _compared(
    rows: Mapping[Run, Mapping[str, Scores]], name: str, baseline: str
) -> dict[str, dict[str, Any]]:
    values: dict[str, dict[int, Scores]] = {}
    for (arm, seed), scores in rows.items():
        values.setdefault(arm, {})[seed] = scores[name]
    others = [arm for arm in values if arm != baseline]
    if not others:
        return {}
    samples = statistics.bootstrap(values)
    p_values = {arm: statistics.bootstrap_p(samples[arm], samples[baseline]) for arm in others}
    adjusted = statistics.holm(p_values)
    found: dict[str, dict[str, Any]] = {}
    for arm in others:
        gap = dataclasses.asdict(
            statistics.compare(values[arm], values[baseline], samples[arm], samples[baseline])
        )
        del gap["p_mcnemar"]  # a test of yes and no
        found[arm] = {**gap, "p": p_values[arm], "p_holm": adjusted[arm]}
    return found


def _runs(predictions: Sequence[Prediction]) -> dict[Run, list[Prediction]]:
    """(arm, seed) → its predictions in the order of row ids."""
    found: dict[Run, list[Prediction]] = {}
    for item in sorted(predictions, key=lambda item: item.id):
        found.setdefault((item.arm, item.seed), []).append(item)
    return found
