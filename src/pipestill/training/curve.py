"""One way of training, measured against the number of rows. What `train_curve` calls.

Hsieh et al. 2023 (arXiv 2305.02301, section 4) compare standard fine-tuning, standard distillation
and distilling step-by-step at shares of the training rows. Here every arm first has a learning rate
of its own searched on validation rows, and every share is trained with several seeds.
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipestill.config import CurveConfig, EvalConfig, TrainConfig
from pipestill.errors import WorkError
from pipestill.evaluation.run import held_out_rows
from pipestill.models.loading import load
from pipestill.records import Labelled, Prediction, read_jsonl, write_jsonl
from pipestill.training.curve_rows import ARMS, LEAST_ROWS, Grid, grid_of, rows_of, share_of
from pipestill.training.curve_students import Member, Setting, student, trial
from pipestill.training.learning_rate import recommended
from pipestill.training.student import use_threads

TRIED = (1 / 3, 1.0, 3.0)  # times the recommended rate


@dataclass
class Teller:
    """A line for every student: which of how many, what came out, how long it took."""

    arm: str
    total: int
    done: int = 0

    def tell(self, what: str, outcome: str, begun: float) -> None:
        self.done += 1
        spent = time.perf_counter() - begun
        line = f"curve: {self.arm}, {what}: {self.done} of {self.total}, {outcome} ({spent:.1f} s)"
        print(line, flush=True)


def train_curve(
    training_rows_path: str | Path,
    evaluation_path: str | Path,
    predictions_path: str | Path,
    student_path: str | Path,
    *,
    arm: str,
    state_dir: str,
    config: TrainConfig,
    curve: CurveConfig,
    evaluation: EvalConfig,
    metric: str,
) -> dict[str, Any]:
    """Searches the arm's learning rate, trains its students and has each answer the held-out rows.

    The rate is the one with the smallest validation label loss of a student of all rows with
    ``curve.search_seed``; of equal losses the smaller rate. The held-out rows have no part in it. A
    trial whose loss is not finite does not count. A single rate needs no trial.

    Every finished trial and student is kept in `state_dir`, so a killed run goes on at the next
    one, and within it from its checkpoint.

    Args:
        training_rows_path: JSONL of `Labelled` with `teacher_label`.
        evaluation_path: JSONL of `Example`, held out, with gold labels.
        predictions_path: JSONL of `Prediction`, written: arm ``<arm>:<share>``, every seed.
        student_path: folder to write: the student of ``curve.deploy_share`` and the first seed; its
            `pipestill.json` has the arm as ``curve_arm`` and the share as ``curve_share``. An empty
            folder where the arm has no rows.
        arm: one of `pipestill.training.curve_rows.ARMS`.
        state_dir: folder that outlives the run; empty for none.
        config: the settings of every student. ``learning_rate`` (0 = the recommended one) is the
            middle of the rates that are tried where ``curve`` gives none;
            ``learning_rate_multiplier`` counts for all of them.
        curve: shares, seeds and rates.
        evaluation: rows and sizes of the answers.
        metric: of `pipestill.evaluation.scoring.METRICS`.

    Returns:
        ``arm``, ``rows_available``, ``rows_without_label``, ``learning_rate``, ``rate_search``
        (``learning_rate``, ``seed``, ``validation_loss`` (None: not finite),
        ``validation_accuracy``, ``steps``; empty for a single rate), ``points`` (``share``,
        ``rows``, ``rationale_rows`` trained on, ``seed``, ``accuracy``, ``validation_loss``,
        ``steps``, ``seconds`` of training, ``resumed_from_step``, ``from_journal``), ``curves``
        (``arm:share:seed`` → [step, label loss, validation label loss]), ``restarts`` (the same →
        steps), ``train_seconds`` (of the deployed student), ``all_seconds`` (training of all
        students and trials), ``parameters``, ``bytes``, ``base_model``, and ``error`` where the arm
        has no rows.

    Raises:
        UserError: ``CONFIG_VALUE``, ``METRIC_UNKNOWN``, ``NO_EVALUATION_ROWS``, and what
            `pipestill.training.student.train_student` raises.
        WorkError: ``LOSS_NOT_FINITE``, ``PART_NOT_KEPT``.
    """
    grid = grid_of(curve, config)
    use_threads()
    rows, without = rows_of(arm, read_jsonl(training_rows_path, Labelled), metric)
    facts = {"arm": arm, "rows_available": len(rows), "rows_without_label": without}
    if len(rows) < LEAST_ROWS:
        return _nothing(facts, predictions_path, Path(student_path), config)
    held_out = held_out_rows(str(evaluation_path), evaluation.eval_rows)
    loaded = load(config.student_model_reference, precision="fp32")
    base, parameters = loaded.fingerprint, loaded.parameters
    del loaded  # every student loads its own, and memory is for them
    setting = Setting(arm, held_out, evaluation, metric, base, state_dir)
    rates = _rates(grid, config, parameters)
    trials = len(rates) if len(rates) > 1 else 0
    teller = Teller(arm, trials + len(grid.shares) * len(grid.seeds))
    searching = [_member(rows, 1.0, curve.search_seed, rate, config) for rate in rates[:trials]]
    searched = _searched(setting, searching, teller)
    rate = _best(arm, searched) if searched else rates[0]
    found: dict[str, Any] = {}
    predictions: list[Prediction] = []
    chosen = f"{arm}:{curve.deploy_share:g}:{grid.seeds[0]}"
    for share in grid.shares:
        for seed in grid.seeds:
            begun, name = time.perf_counter(), f"{arm}:{share:g}:{seed}"
            member = _member(rows, share, seed, rate, config)
            deployed = Path(student_path) if name == chosen else None
            found[name], answers = student(setting, member, deployed)
            predictions += answers
            right = f"{100 * found[name]['point']['accuracy']:.1f} %"
            teller.tell(f"share {share:g}, seed {seed}", right, begun)
    write_jsonl(predictions_path, predictions)
    seconds = [item["seconds"] for item in searched]
    seconds += [item["point"]["seconds"] for item in found.values()]
    return {
        **facts,
        "learning_rate": rate,
        "rate_search": [{k: v for k, v in item.items() if k != "seconds"} for item in searched],
        "points": [item["point"] for item in found.values()],
        "curves": {name: item["curve"] for name, item in found.items()},
        "restarts": {name: item["restarts"] for name, item in found.items() if item["restarts"]},
        "train_seconds": found[chosen]["point"]["seconds"],
        "all_seconds": round(sum(seconds), 3),
        "parameters": parameters,
        "bytes": found[chosen]["bytes"],
        "base_model": config.student_model_reference,
    }


def _rates(grid: Grid, config: TrainConfig, parameters: int) -> list[float]:
    """The peak rates that are tried, smallest first."""
    middle = config.learning_rate or recommended(parameters, config.batch_size)
    rates = grid.rates or [middle * factor for factor in TRIED]
    return [float(f"{rate * config.learning_rate_multiplier:.3g}") for rate in rates]


def _member(
    rows: Sequence[Labelled], share: float, seed: int, rate: float, config: TrainConfig
) -> Member:
    settled = dataclasses.replace(config, learning_rate=rate, learning_rate_multiplier=1.0)
    return Member(share, share_of(rows, share, config.validation_fraction), seed, settled)


def _searched(setting: Setting, members: Sequence[Member], teller: Teller) -> list[dict[str, Any]]:
    found = []
    for member in members:
        begun = time.perf_counter()
        found.append(trial(setting, member))
        loss = found[-1]["validation_loss"]
        outcome = "loss not finite" if loss is None else f"validation loss {loss:.4f}"
        teller.tell(f"trial of rate {member.config.learning_rate:g}", outcome, begun)
    return found


def _best(arm: str, trials: Sequence[dict[str, Any]]) -> float:
    sound = [item for item in trials if item["validation_loss"] is not None]
    if not sound:
        raise WorkError(
            "LOSS_NOT_FINITE",
            f"{arm}: no rate of {', '.join(str(item['learning_rate']) for item in trials)} gave a "
            "finite loss",
            "give smaller learning_rates, or set precision to fp32",
        )
    best = min(sound, key=lambda item: (item["validation_loss"], item["learning_rate"]))
    return float(best["learning_rate"])


def _nothing(
    facts: dict[str, Any], predictions_path: str | Path, student_path: Path, config: TrainConfig
) -> dict[str, Any]:
    """The summary of an arm that has no rows: a reason, and no points."""
    source = ARMS[facts["arm"]][0]
    missing = "a gold label" if source == "gold" else "a label of the teacher's"
    total = facts["rows_available"] + facts["rows_without_label"]
    error = f"{facts['rows_available']} of {total} training rows have {missing}"
    print(f"curve: {facts['arm']}: not trained: {error}", flush=True)
    write_jsonl(predictions_path, [])
    student_path.mkdir(parents=True, exist_ok=True)
    zeros = dict.fromkeys(("train_seconds", "all_seconds", "parameters", "bytes"), 0)
    return {
        **facts,
        "learning_rate": 0.0,
        "rate_search": [],
        "points": [],
        "curves": {},
        "restarts": {},
        **zeros,
        "base_model": config.student_model_reference,
        "error": error,
    }
