"""The price table: dated, sourced, and never a bare number.

The shipped `prices.yaml` is read first; a file of the user's replaces single entries of it.
"""

import datetime
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipestill.errors import UserError
from pipestill.yaml_text import read_yaml

PRICES_VARIABLE = "PIPESTILL_PRICES"
SHIPPED = Path(__file__).with_name("prices.yaml")
KINDS = ("on_demand", "spot", "fee")
UNITS = ("hour", "core-hour", "share", "run")
FEE, PIPELINE_RUN = "vertex-management-fee", "pipeline-run"
PLAIN_TASK = "e2-standard-4"  # stands for the machine of a pipeline task that names none
_FIELDS = ("name", "kind", "region", "unit", "low", "likely", "high", "date", "source", "inferred")
_OPTIONAL = {"region": "", "inferred": False}


@dataclass(frozen=True)
class Range:
    """An estimate: low, likely and high, of hours, seconds or dollars."""

    low: float = 0.0
    likely: float = 0.0
    high: float = 0.0

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def __mul__(self, other: "Range | float") -> "Range":
        """By a number, or low by low, likely by likely and high by high."""
        by = other if isinstance(other, Range) else Range(other, other, other)
        return Range(self.low * by.low, self.likely * by.likely, self.high * by.high)

    def under(self, amount: float) -> "Range":
        """`amount` divided by this: a speed makes a time, whose low is at the high speed."""
        return Range(amount / self.high, amount / self.likely, amount / self.low)

    def at_least(self, other: "Range") -> "Range":
        return Range(
            max(self.low, other.low), max(self.likely, other.likely), max(self.high, other.high)
        )

    def as_dict(self, digits: int = 4) -> dict[str, float]:
        return {
            "low": round(self.low, digits),
            "likely": round(self.likely, digits),
            "high": round(self.high, digits),
        }


NOTHING = Range()


@dataclass(frozen=True, kw_only=True)
class Price:
    """One entry, US dollars a `unit`."""

    name: str
    kind: str
    unit: str
    range: Range
    date: datetime.date
    source: str
    region: str = ""
    inferred: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        return self.name, self.kind, self.region


Prices = Mapping[tuple[str, str, str], Price]


def load_prices(path: str | Path | None = None) -> Prices:
    """The shipped table with the entries of a file in place of its own.

    Args:
        path: a file of the same form; None = ``PIPESTILL_PRICES`` where set, "" = none.

    Raises:
        UserError: ``PRICES_UNREADABLE`` or ``PRICES_INVALID``, naming file, entry and field.
    """
    own = os.environ.get(PRICES_VARIABLE, "") if path is None else str(path)
    prices = {price.key: price for price in read_prices(SHIPPED)}
    if own:
        prices |= {price.key: price for price in read_prices(Path(own))}
    return prices


def read_prices(path: Path) -> list[Price]:
    """The entries of one file.

    Raises:
        UserError: as `load_prices`.
    """
    try:
        entries = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            "PRICES_UNREADABLE", f"price file {path}: {reason}", "correct the file or its path"
        ) from error
    if not isinstance(entries, list):
        raise _invalid(path, 0, "the file", type(entries).__name__, "a list of entries")
    return [_entry(path, number, item) for number, item in enumerate(entries, 1)]


def _entry(path: Path, number: int, item: Any) -> Price:
    if not isinstance(item, dict):
        raise _invalid(path, number, "the entry", repr(item)[:60], f"fields {', '.join(_FIELDS)}")
    wrong = [name for name in item if name not in _FIELDS]
    wrong += [name for name in _FIELDS if name not in item and name not in _OPTIONAL]
    if wrong:
        allowed = f"exactly {', '.join(_FIELDS)} ({' and '.join(_OPTIONAL)} may be left out)"
        raise _invalid(path, number, str(wrong[0]), "missing or unknown", allowed)
    value = {**_OPTIONAL, **item}
    for name, choices in (("kind", KINDS), ("unit", UNITS)):
        if value[name] not in choices:
            raise _invalid(path, number, name, repr(value[name]), ", ".join(choices))
    for name in ("name", "source"):
        if not isinstance(value[name], str) or not value[name].strip():
            raise _invalid(path, number, name, repr(value[name]), "text")
    if type(value["date"]) is not datetime.date:
        raise _invalid(path, number, "date", repr(value["date"]), "a date such as 2026-02-12")
    return Price(
        name=value["name"],
        kind=value["kind"],
        unit=value["unit"],
        range=_range(path, number, value),
        date=value["date"],
        source=" ".join(value["source"].split()),
        region=str(value["region"]),
        inferred=bool(value["inferred"]),
    )


def _range(path: Path, number: int, value: Mapping[str, Any]) -> Range:
    figures = [value[name] for name in ("low", "likely", "high")]
    for name, figure in zip(("low", "likely", "high"), figures, strict=True):
        wrong = isinstance(figure, bool) or not isinstance(figure, int | float)
        if wrong or not math.isfinite(figure) or figure < 0 or (figure == 0 and name != "low"):
            raise _invalid(path, number, name, repr(figure), "a number above 0 (low: 0 or more)")
    if not figures[0] <= figures[1] <= figures[2]:
        raise _invalid(path, number, "low, likely, high", str(figures), "low <= likely <= high")
    return Range(*map(float, figures))


def _invalid(path: Path, number: int, field: str, found: str, allowed: str) -> UserError:
    return UserError(
        "PRICES_INVALID",
        f"price file {path}, entry {number}, {field}: found {found}, allowed: {allowed}",
        "correct the file; docs/plan.md shows the form",
    )


def find_price(prices: Prices, name: str, kind: str, region: str = "") -> Price | None:
    """The entry of a region, else the one for any region, else that of another region."""
    exact = prices.get((name, kind, region)) or prices.get((name, kind, ""))
    others = (price for price in prices.values() if (price.name, price.kind) == (name, kind))
    return exact or next(others, None)


def machine_hour(
    prices: Prices, machine_type: str, accelerator_type: str, count: int, region: str, kind: str
) -> tuple[Range, Price] | None:
    """Dollars an hour of a whole machine, and the entry used; None where the table has none.

    A TPU slice (``cloud-tpu``) is priced by its cores.
    """
    by_core = machine_type == "cloud-tpu"
    price = find_price(prices, accelerator_type if by_core else machine_type, kind, region)
    if price is None:
        return None
    return price.range * (float(count) if by_core else 1.0), price


def used(entries: Sequence[Price]) -> list[Price]:
    """Each entry once, in order."""
    return list({price.key: price for price in entries}.values())
