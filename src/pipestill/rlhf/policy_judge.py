"""A judge compares the greedy answers of a policy and of its start, in both orders."""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipestill.config import TeacherConfig
from pipestill.evaluation.gate import mean_interval
from pipestill.generation.parse import parse
from pipestill.generation.prompts import Prompt, load_prompt
from pipestill.records import Example, Preference, read_jsonl, write_jsonl
from pipestill.rlhf.judge import label_pairs, set_aside_path, verdict


def judge_answers(
    rows: Sequence[Example],
    base: Sequence[Mapping[str, Any]],
    tuned: Sequence[Mapping[str, Any]],
    *,
    config: TeacherConfig,
    state_dir: str,
) -> dict[str, Any]:
    """Which answer of each pair a judge prefers; a pair whose verdict follows the place is a tie.

    Args:
        rows: the prompts.
        base, tuned: rows with ``id`` and ``output_text``, in one order of ids.
        config: the judge.
        state_dir: folder of its journal; empty for none that lasts.

    Returns:
        ``pairs``; ``judged`` (without failed and unparsable ones); ``won``, ``lost``, ``ties``;
        ``win_rate`` (a tie is a half; -1 where nothing was judged) with ``ci95``; ``kappa``,
        Cohen's between the two orders (0 where one of them never varies), over the ``both_orders``
        pairs with two verdicts; and what `pipestill.rlhf.judge.label_pairs` returns.

    Raises:
        UserError, WorkError: as `pipestill.rlhf.judge.label_pairs`.
    """
    asked = {row.id: row for row in rows}
    pairs = [
        {
            "id": old["id"],
            **_prompt(asked[old["id"]]),
            "candidate_0": _readable(old["output_text"]),
            "candidate_1": _readable(new["output_text"]),
        }
        for old, new in zip(base, tuned, strict=True)
    ]
    with tempfile.TemporaryDirectory(prefix="pipestill-") as folder:
        candidates, preferences = Path(folder) / "pairs.jsonl", Path(folder) / "preferences.jsonl"
        write_jsonl(candidates, pairs)
        counts = label_pairs(candidates, preferences, state_dir=state_dir, config=config)
        choices = [row.choice for row in read_jsonl(preferences, Preference)]
        left = set_aside_path(preferences).read_text(encoding="utf-8").splitlines()
    aside = [json.loads(line) for line in left]
    return {**told(choices, aside, load_prompt(config.prompt)), **counts}


def told(
    choices: Sequence[int], aside: Sequence[Mapping[str, Any]], prompt: Prompt
) -> dict[str, Any]:
    """Counts, win rate and κ from the agreed choices (1 = tuned) and the pairs set aside."""
    status = Counter(str(row["reason"]) for row in aside)
    ties = status["order_conflict"] + status["identical"]
    scores = np.array([float(choice) for choice in choices] + [0.5] * ties)
    # What the base-first and the tuned-first order each name, 1 = tuned.
    orders = [(choice, choice) for choice in choices]
    for row in aside:
        if row["reason"] == "order_conflict":
            raw = str(row["answers"][0])
            first = verdict(raw, parse(raw, prompt).label)
            orders.append((0, 1) if first == "A" else (1, 0))
    return {
        "judged": len(scores),
        "won": sum(choice == 1 for choice in choices),
        "lost": sum(choice == 0 for choice in choices),
        "ties": ties,
        "win_rate": float(scores.mean()) if len(scores) else -1.0,
        "ci95": list(mean_interval(scores)) if len(scores) else None,
        "both_orders": len(orders),
        "kappa": cohen_kappa(orders),
    }


def cohen_kappa(orders: Sequence[tuple[int, int]]) -> float:
    """Agreement of two raters beyond chance, (p_o − p_e)/(1 − p_e) (Cohen 1960); 0 if p_e is 1.

    Args:
        orders: the two verdicts on each pair, 0 or 1.
    """
    if not orders:
        return 0.0
    table = np.array(orders, dtype=np.float64)
    agreed = float((table[:, 0] == table[:, 1]).mean())
    first, second = table.mean(0)
    chance = first * second + (1 - first) * (1 - second)
    return float((agreed - chance) / (1 - chance)) if chance < 1 else 0.0


def _readable(answer: str) -> str:
    """The reader of rows refuses a NUL and an empty text, both of which a model may write."""
    return answer.replace("\0", "\N{REPLACEMENT CHARACTER}").strip() or "(nothing)"


def _prompt(row: Example) -> dict[str, Any]:
    return {"messages": row.messages} if row.messages else {"input_text": row.input_text}
