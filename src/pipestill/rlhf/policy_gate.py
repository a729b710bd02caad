"""The gate of a policy: which rules it has to pass. What the component `gate` calls."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipestill.errors import UserError
from pipestill.evaluation.gate import (
    Rule,
    decide,
    enough_rows,
    no_alarms,
    not_below,
    not_inferior,
    superior,
    within,
)
from pipestill.evaluation.gate_slices import not_fewer_right
from pipestill.evaluation.report_page import read_metrics
from pipestill.models.student import INFO_FILE
from pipestill.records import write_json
from pipestill.rlhf.alarms import alarms
from pipestill.rlhf.comparison import column, of, token_nll


def gate_policy(
    predictions_path: str,
    evaluation_metrics_path: str,
    model_path: str,
    decision_path: str,
    *,
    min_rows: int,
    min_gain: float,
    perplexity_margin: float,
    eos_margin: float,
    kl_bound: float,
    override: str = "",
) -> str:
    """Decides whether the tuned policy may take its start's place, and writes why.

    Args:
        predictions_path: rows of `pipestill.rlhf.evaluate.evaluate_policy`.
        evaluation_metrics_path: its metrics JSON.
        model_path: the policy's folder, its training log in it.
        decision_path: JSON, written; see `pipestill.evaluation.gate.decide`.
        min_rows: held-out prompts wanted.
        min_gain: normalised reward that the whole interval of the gain has to exceed.
        perplexity_margin: share by which the answers' perplexity under the start may rise.
        eos_margin: share of answers by which those that end may become fewer.
        kl_bound: nats an answer.
        override: a person's reason to promote anyway; empty = the rules decide.

    Returns:
        promote, keep or cannot_tell.

    Raises:
        UserError: ``CONFIG_VALUE``, ``METRICS_UNREADABLE``, ``ROW_UNREADABLE``.
    """
    _check(min_rows, perplexity_margin, eos_margin, kl_bound)
    rows = read_answers(predictions_path)
    rung = alarms_before(model_path, kl_bound)
    compared = read_metrics(evaluation_metrics_path)
    rules = policy_rules(
        rows,
        compared["comparisons"],
        compared.get("judge") or {},
        rung,
        min_rows=min_rows,
        min_gain=min_gain,
        perplexity_margin=perplexity_margin,
        eos_margin=eos_margin,
        kl_bound=kl_bound,
    )
    found = decide(rules, override)
    write_json(decision_path, found)
    print(f"gate: {found['sentence']}")
    for rule in rules:
        print(f"gate: {rule.outcome:4}  {rule.name.replace('_', ' ')}: {rule.text}")
    return str(found["decision"])


def policy_rules(
    rows: Sequence[Mapping[str, Any]],
    compared: Mapping[str, Any],
    judge: Mapping[str, Any],
    rung: Sequence[Mapping[str, Any]],
    *,
    min_rows: int,
    min_gain: float,
    perplexity_margin: float,
    eos_margin: float,
    kl_bound: float,
) -> list[Rule]:
    """The rules, on sampled answers: enough rows, more reward, as fluent, ending as often, near.

    Two may only veto: the reward at equal length, and the judge where there is one. Arguments as of
    `gate_policy`; `compared` and `judge` from the evaluation's metrics, `rung` the alarms.
    """
    base, tuned = (of(rows, arm, "sampled") for arm in ("base", "tuned"))
    controlled = compared["reward_length_controlled"]
    rules = [
        enough_rows(len(tuned), min_rows),
        superior("reward", column(tuned, "reward"), column(base, "reward"), least=min_gain),
        not_below("reward_at_equal_length", controlled["difference"], controlled["ci95"], 0.0),
        not_inferior(
            "fluency", -token_nll(tuned), -token_nll(base), margin=math.log1p(perplexity_margin)
        ),
        # By the score interval: resampling takes a few dozen answers that all end for proof.
        not_fewer_right(
            "answers_that_end", column(tuned, "ended"), column(base, "ended"), margin=eos_margin
        ),
        within("KL_to_the_start", column(tuned, "kl"), kl_bound),
        no_alarms(rung),
    ]
    if judge.get("ci95"):
        rules.append(not_below("judge", judge["win_rate"], judge["ci95"], 0.5))
    return rules


def alarms_before(model_path: str | Path, kl_bound: float) -> list[dict[str, Any]]:
    """The alarms of the training up to the checkpoint that was chosen."""
    best = json.loads((Path(model_path) / INFO_FILE).read_text(encoding="utf-8")).get(
        "best_step", 0
    )
    log = read_log(model_path)
    return alarms([entry for entry in log if entry["step"] <= best], kl_bound)


def read_log(model_path: str | Path) -> list[dict[str, Any]]:
    """The training log of a policy's folder; empty where it has none."""
    path = Path(model_path) / "train_log.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def read_answers(path: str | Path) -> list[dict[str, Any]]:
    """The rows that `evaluate_policy` wrote.

    Raises:
        UserError: ``ROW_UNREADABLE``.
    """
    found = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            found.append({**row, "id": str(row["id"]), "reward": float(row["reward"])})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                "ROW_UNREADABLE",
                f"{path}, line {number}: not an answer's row ({error})",
                "this file is written by evaluate_policy: run that step again",
            ) from error
    return found


def _check(min_rows: int, perplexity_margin: float, eos_margin: float, kl_bound: float) -> None:
    rules = {
        "gate_min_rows": (min_rows, min_rows >= 2, "2 or more"),
        "gate_perplexity_margin": (perplexity_margin, perplexity_margin > 0, "above 0"),
        "gate_eos_margin": (eos_margin, eos_margin > 0, "above 0"),
        "kl_bound": (kl_bound, kl_bound > 0, "above 0"),
    }
    for name, (found, fine, allowed) in rules.items():
        if not fine:
            raise UserError(
                "CONFIG_VALUE",
                f"{name}: found {found!r}, allowed: {allowed}",
                "correct the value in the configuration file or in --set",
            )
