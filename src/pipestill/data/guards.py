"""What stops data preparation, each as one sentence with what to do."""

from collections import Counter
from collections.abc import Sequence

from pipestill.config import DataConfig, parse_length
from pipestill.data.raw import BadRow, describe
from pipestill.data.rows import Row
from pipestill.data.text import excerpt
from pipestill.errors import UserError

LEAK_POLICIES = ("drop", "fail")


def check_settings(config: DataConfig, splits: bool) -> None:
    """Refuses settings that make no sense, before anything is read.

    Raises:
        UserError: ``DATA_SETTING``, ``LENGTH_UNREADABLE``.
    """
    parse_length(config.max_context_length)
    if config.data_format == "preference":
        raise _setting(
            "data_format", "preference", "a format with labels; preference rows rank answers"
        )
    if config.leak_policy not in LEAK_POLICIES:
        raise _setting("leak_policy", config.leak_policy, " or ".join(LEAK_POLICIES))
    if splits and not 0 < config.eval_fraction < 1:
        raise _setting("eval_fraction", config.eval_fraction, "more than 0 and less than 1")
    if not 0 <= config.max_rejected_fraction <= 1:
        raise _setting("max_rejected_fraction", config.max_rejected_fraction, "0 to 1")
    if config.max_rows < 0:
        raise _setting("max_rows", config.max_rows, "0 (all) or more")
    if config.max_output_tokens < 1:
        raise _setting("max_output_tokens", config.max_output_tokens, "1 or more")


def check_rejects(
    rejects: Sequence[BadRow], rows_read: int, config: DataConfig, rejects_path: str
) -> None:
    """Stops where no row is good, or more are set aside than allowed.

    Raises:
        UserError: ``DATA_NO_VALID_ROWS``, ``DATA_TOO_MANY_REJECTS``.
    """
    share = len(rejects) / max(rows_read, 1)
    if not rejects or (share <= config.max_rejected_fraction and share < 1):
        return
    code = "DATA_NO_VALID_ROWS" if share >= 1 else "DATA_TOO_MANY_REJECTS"
    reasons = Counter(f"{row.reason} in {row.field}" for row in rejects).most_common(3)
    raise UserError(
        code,
        f"{len(rejects)} of {rows_read} rows set aside ({share:.1%}, allowed "
        f"{config.max_rejected_fraction:.1%} by max_rejected_fraction): "
        f"{', '.join(f'{count} {reason}' for reason, count in reasons)}; "
        f"first: {describe(rejects[0])}",
        f"{_advice(rejects[0], reasons[0][0])}; all are listed in {rejects_path}",
    )


def _advice(first: BadRow, reason: str) -> str:
    if first.reason == "missing_field":
        return "set data_format to your rows' schema, or input_field and output_field to its names"
    if reason.startswith("conflicting_label"):
        return "correct the labels, or set dedupe to false to keep rows whose labels differ"
    if reason.startswith(("too_long", "output_too_long")):
        return "shorten the rows, or raise max_context_length or max_output_tokens"
    return "correct the rows or raise max_rejected_fraction"


def check_sides(rows_train: int, rows_eval: int, evaluation_data_uri: str) -> None:
    """Stops where one of the two sets is empty.

    Raises:
        UserError: ``DATA_NO_TRAIN_ROWS``, ``DATA_NO_EVAL_ROWS``.
    """
    if rows_eval == 0:
        hint = (
            f"give labels to the rows of {evaluation_data_uri}"
            if evaluation_data_uri
            else "add labelled rows, raise eval_fraction, or give evaluation_data_uri"
        )
        raise UserError("DATA_NO_EVAL_ROWS", "no row with a gold label is held out", hint)
    if rows_train == 0:
        raise UserError(
            "DATA_NO_TRAIN_ROWS",
            "no row is left to train on after deduplication, leak check and split",
            "add rows, lower eval_fraction, or see that the two files are not the same",
        )


def leak_error(leaks: Sequence[Row]) -> UserError:
    """The error of ``leak_policy: fail``."""
    first = leaks[0]
    return UserError(
        "DATA_LEAK",
        f"{len(leaks)} training rows have an input that is held out as well; first: "
        f"{first.file}:{first.line} {excerpt(first.fields['input_text'])}",
        "take them out of the training file, or set leak_policy to drop",
    )


def _setting(name: str, found: object, allowed: str) -> UserError:
    return UserError("DATA_SETTING", f"{name}: found {found!r}, allowed: {allowed}")
