"""What the preparation of preferences found: its log, what stops it, and its summary."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipestill.config import PreferenceConfig
from pipestill.data import lengths, pairs
from pipestill.data.convert_pairs import CANDIDATES
from pipestill.data.raw import BadRow, RowProblem, bad_row, describe
from pipestill.data.rows import Row
from pipestill.errors import UserError
from pipestill.records import Preference

Summary = dict[str, int | float | str]


@dataclass
class Log:
    """What was read, dropped and set aside. `bad` is by source: pairs, prompts, eval."""

    counts: Counter[str] = field(default_factory=Counter)
    bad: dict[str, list[BadRow]] = field(default_factory=dict)
    aside: list[BadRow] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)
    candidate_tokens: list[int] = field(default_factory=list)

    def set_aside(self, row: Row, name: str, reason: str) -> None:
        problem = RowProblem(name, reason, row.fields[name])
        self.aside.append(bad_row(row.file, row.line, problem, row.source_row))

    @property
    def rejects(self) -> list[BadRow]:
        return [*self.aside, *(row for rows in self.bad.values() for row in rows)]


@dataclass
class Sides:
    """Pairs and prompts, to train on and held out."""

    pairs: list[Row]
    held_pairs: list[Row]
    prompts: list[Row]
    held_prompts: list[Row]


def check_settings(config: PreferenceConfig, splits: bool) -> None:
    """Refuses settings that make no sense.

    Raises:
        UserError: ``DATA_SETTING``.
    """
    share, allowed = config.max_rejected_fraction, "1 or more"
    checks = {
        "eval_fraction": (not splits or 0 < config.eval_fraction < 1, "more than 0, less than 1"),
        "max_rejected_fraction": (0 <= share <= 1, "0 to 1"),
        "max_rows": (config.max_rows >= 0, "0 (all) or more"),
        "prompt_sequence_length": (config.prompt_sequence_length >= 1, allowed),
        "target_sequence_length": (config.target_sequence_length >= 1, allowed),
    }
    for name, (good, wanted) in checks.items():
        if not good:
            found = getattr(config, name)
            raise UserError("DATA_SETTING", f"{name}: found {found!r}, allowed: {wanted}")


def check_rows(log: Log, usable: int, config: PreferenceConfig, rejects_path: str) -> None:
    """Stops at a bad held-out row, at too many bad ones, and where no pair is left.

    Raises:
        UserError: ``DATA_EVAL_ROW``, ``DATA_TOO_MANY_REJECTS``, ``DATA_NO_VALID_ROWS``.
    """
    listed = f"all are listed in {rejects_path}"
    if held := log.bad.get("eval"):
        raise UserError(
            "DATA_EVAL_ROW",
            f"eval_dataset_uri: {len(held)} of {log.counts['eval_read']} rows are bad; first: "
            f"{describe(held[0])}",
            f"correct them or take them out (nothing is held out in their place); {listed}",
        )
    for source in ("pairs", "prompts"):
        bad, read = log.bad.get(source, []), log.counts[f"{source}_read"]
        if len(bad) > config.max_rejected_fraction * read:
            raise UserError(
                "DATA_TOO_MANY_REJECTS" if len(bad) < read else "DATA_NO_VALID_ROWS",
                f"{source}: {len(bad)} of {read} rows are bad ({len(bad) / read:.1%}, allowed "
                f"{config.max_rejected_fraction:.1%} by max_rejected_fraction): "
                f"{_reasons(bad)}; first: {describe(bad[0])}",
                f"correct the rows or raise max_rejected_fraction; {listed}",
            )
    if not usable:
        rows = log.rejects
        raise UserError(
            "DATA_NO_VALID_ROWS",
            f"pairs: none of {log.counts['pairs_read']} rows prefers one answer to another: "
            f"{_reasons(rows)}; first: {describe(rows[0])}",
            f"give rows with two different answers and choice 0 or 1; {listed}",
        )


def _reasons(rows: Sequence[BadRow]) -> str:
    reasons = Counter(f"{row.reason} in {row.field}" for row in rows).most_common(3)
    return ", ".join(f"{count} {reason}" for reason, count in reasons)


def check_sides(sides: Sides, eval_uri: str) -> None:
    """Stops where nothing is left of one of the four sets.

    Raises:
        UserError: ``DATA_NO_EVAL_ROWS``, ``DATA_NO_TRAIN_ROWS``.
    """
    for name, rows in vars(sides).items():
        what = name.removeprefix("held_")
        if rows:
            continue
        if name.startswith("held_"):
            hint = f"add {what}, raise eval_fraction, or give eval_dataset_uri"
            raise UserError("DATA_NO_EVAL_ROWS", f"no {what} are held out", hint)
        hint = "add rows or lower eval_fraction"
        raise UserError(
            "DATA_NO_TRAIN_ROWS",
            f"no {what} are left to train on after deduplication, leak check and split",
            f"see that {eval_uri} does not hold all prompts of the training rows"
            if eval_uri
            else hint,
        )


def summarise(
    sides: Sides, written: Sequence[Preference], log: Log, config: PreferenceConfig
) -> Summary:
    """Flat counts and shares; `written` are the pairs of both sides as they were written."""
    rows = [*sides.pairs, *sides.held_pairs]
    reasons = Counter(row.reason for row in log.aside)
    bad = Counter(row.reason for rows in log.bad.values() for row in rows)
    longer = sum(
        len(pairs.preferred(row.fields)) > len(row.fields[CANDIDATES[1 - row.fields["choice"]]])
        for row in rows
    )
    return {
        "pairs_read": log.counts["pairs_read"],
        "prompts_read": log.counts["prompts_read"],
        "eval_rows_read": log.counts["eval_read"],
        **{f"{name}_train": len(getattr(sides, name)) for name in ("pairs", "prompts")},
        **{f"{name}_eval": len(getattr(sides, f"held_{name}")) for name in ("pairs", "prompts")},
        "pairs_rejected": len(log.bad["pairs"]),
        "prompts_rejected": len(log.bad.get("prompts", [])),
        **{f"rejected_{reason}": count for reason, count in sorted(bad.items())},
        "pairs_set_aside": len(log.aside),
        **{f"set_aside_{reason}": reasons[reason] for reason in pairs.SET_ASIDE},
        "duplicates_dropped": log.counts["duplicates_dropped"],
        "leaks_dropped": log.counts["leaks_dropped"],
        "prompt_duplicates_dropped": log.counts["prompt_duplicates_dropped"],
        "prompt_leaks_dropped": log.counts["prompt_leaks_dropped"],
        "choice_0_share_before": sum(row.fields["choice"] == 0 for row in rows) / len(rows),
        "choice_0_share": sum(row.choice == 0 for row in written) / len(rows),
        "preferred_longer_share": longer / len(rows),
        "prompts_cut": sum(n > config.prompt_sequence_length for n in log.prompt_tokens),
        "candidates_cut": sum(n > config.target_sequence_length for n in log.candidate_tokens),
        **lengths.percentiles("prompt_tokens", log.prompt_tokens),
        **lengths.percentiles("candidate_tokens", log.candidate_tokens),
    }


def tell(s: Summary, rejects_path: str) -> None:
    """The summary in a few lines, for the log."""
    print(
        f"preferences: read {s['pairs_read']} pairs, {s['pairs_rejected']} bad, "
        f"{s['pairs_set_aside']} set aside ({rejects_path})"
    )
    print(
        f"preferences: dropped {s['duplicates_dropped']} duplicates and {s['leaks_dropped']} pairs "
        "whose prompt is held out"
    )
    print(
        f"preferences: {s['pairs_train']} pairs and {s['prompts_train']} prompts to train on, "
        f"{s['pairs_eval']} and {s['prompts_eval']} held out"
    )
    print(
        f"preferences: the first answer is preferred in {s['choice_0_share']:.1%} of the pairs "
        f"({s['choice_0_share_before']:.1%} as read), the longer one in "
        f"{s['preferred_longer_share']:.1%}"
    )
    print(
        f"preferences: {s['prompts_cut']} prompts and {s['candidates_cut']} answers are longer "
        "than the model will see"
    )
