"""What 1,000 requests cost: a machine's time, or the tokens of a paid interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipestill.cloud.prices import FEE, Range, find_price, load_prices
from pipestill.config import CostConfig, TeacherConfig
from pipestill.errors import UserError
from pipestill.generation.budget import price

REQUESTS = 1000
MS_PER_HOUR = 3_600_000


def serving_machine(config: CostConfig) -> dict[str, Any]:
    """The machine that answers, and US dollars an hour, management fee included.

    Args:
        config: a machine of the price table (`pipestill.cloud.prices.load_prices`), or a price of
            one's own, which then is the whole price.

    Returns:
        ``name``, ``usd_per_hour`` (low, likely, high), ``region``, ``source``, ``date``.

    Raises:
        UserError: ``MACHINE_UNPRICED``; ``CONFIG_VALUE`` for a price below 0; what reading a price
            table raises.
    """
    given = config.machine_usd_per_hour
    if not 0 <= given < float("inf"):
        raise UserError(
            "CONFIG_VALUE",
            f"machine_usd_per_hour: found {given}, allowed: 0 or more",
            "0 takes the price from the table",
        )
    named = {"name": config.serving_machine, "region": "", "date": ""}
    if given > 0:
        hour = Range(given, given, given)
        return {**named, "usd_per_hour": hour.as_dict(), "source": "machine_usd_per_hour, as given"}
    table = load_prices()
    found = find_price(table, config.serving_machine, "on_demand")
    if found is None or found.unit != "hour":
        known = {entry.name for entry in table.values() if entry.unit == "hour"}
        raise UserError(
            "MACHINE_UNPRICED",
            f"serving_machine: found {config.serving_machine!r}, allowed: "
            f"{', '.join(sorted(known))} (of the price table)",
            "name one of these, or give machine_usd_per_hour",
        )
    fee = find_price(table, FEE, "fee")
    hour = found.range * (Range(1, 1, 1) + fee.range if fee else 1.0)
    source = found.source + (f"; with the management fee: {fee.source}" if fee else "")
    return {
        **named,
        "region": found.region,
        "usd_per_hour": hour.as_dict(),
        "source": source,
        "date": found.date.isoformat(),
    }


def machine_cost(p50_ms: float, machine: Mapping[str, Any]) -> dict[str, Any]:
    """Cost of 1,000 requests that are answered one after another on a machine of their own.

    An upper bound: a server that answers several at once, or that others share, costs less a
    request. The latency is that of the machine this runs on, not of the one that is priced.

    Args:
        p50_ms: median milliseconds a request at batch size 1.
        machine: from `serving_machine`.

    Returns:
        ``usd_per_1000`` (likely), ``usd_per_1000_range`` (low, likely, high), ``usd_how``.
    """
    hours = REQUESTS * p50_ms / MS_PER_HOUR
    dollars = {name: value * hours for name, value in machine["usd_per_hour"].items()}
    return _cost(dollars, "machine")


def token_cost(
    prompt_tokens: float, output_tokens: float, teacher: TeacherConfig
) -> dict[str, Any]:
    """Cost of 1,000 requests that are paid by the token; nothing where no price is set.

    Args:
        prompt_tokens: mean a request; cached ones count in full.
        output_tokens: mean a request.
        teacher: its prices in US dollars per million tokens.

    Returns:
        As `machine_cost`, or {}.
    """
    if not (teacher.usd_per_million_input > 0 or teacher.usd_per_million_output > 0):
        return {}
    million = 1_000_000  # whole numbers of tokens for the shared formula
    asked, said = round(prompt_tokens * million), round(output_tokens * million)
    dollars = price(teacher, asked, said) / million * REQUESTS
    return _cost({"low": dollars, "likely": dollars, "high": dollars}, "tokens")


def _cost(dollars: Mapping[str, float], how: str) -> dict[str, Any]:
    return {
        "usd_per_1000": dollars["likely"],
        "usd_per_1000_range": dict(dollars),
        "usd_how": how,
    }
