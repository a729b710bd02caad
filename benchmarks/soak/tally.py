"""What a group of faults came to: how many were injected, how many survived, what was lost."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

SHOWN = 160  # characters of a fault's line
MOST = 20  # failures of a group that the table lists


@dataclass
class Tally:
    """The count of one group.

    A fault is survived where the work ended as an undisturbed one does, or stopped with one clear
    line and its last good state whole, whichever the group asks for. `lost` are rows that should
    be in the end's result and are not; `paid_twice` are calls whose answer had been kept, made
    again.
    """

    name: str
    quiet: bool = False
    injected: int = 0
    survived: int = 0
    lost: int = 0
    paid_twice: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    facts: dict[str, Any] = field(default_factory=dict)  # further figures, shown below the table
    began: float = field(default_factory=time.monotonic)

    def fault(
        self, what: str, survived: bool, detail: str = "", *, lost: int = 0, twice: int = 0
    ) -> bool:
        """Counts one injected fault and prints its line; returns whether it was survived."""
        survived = bool(survived) and not lost and not twice
        self.injected += 1
        self.survived += survived
        self.lost += lost
        self.paid_twice += twice
        self.kinds[what.split(":")[0]] += 1
        told = " ".join(f"{what}: {detail}".split()) if detail else what
        if not survived:
            self.failures.append(told[:1000])
        if not self.quiet or not survived:
            word = "survived" if survived else "NOT SURVIVED"
            shown = told if not survived else told[:SHOWN]
            print(f"{time.monotonic() - self.began:6.1f} s  {self.name:<10} {word}: {shown}",
                  flush=True)  # fmt: skip
        return survived

    def faults(self, what: str, count: int, failed: list[str]) -> None:
        """Counts many faults of one kind under one line; `failed` says what was not survived."""
        self.injected += count
        self.survived += count - len(failed)
        self.kinds[what.split(":")[0]] += count
        self.failures += [f"{what}: {text}"[:1000] for text in failed]
        word = "survived" if not failed else f"NOT SURVIVED ({len(failed)})"
        print(f"{time.monotonic() - self.began:6.1f} s  {self.name:<10} {word}: {count} x {what}"
              + "".join(f"\n    {text[:300]}" for text in failed[:5]), flush=True)  # fmt: skip

    @property
    def whole(self) -> bool:
        """Whether everything was survived, and something was injected."""
        return self.injected > 0 and self.survived == self.injected and not self.failures

    def row(self) -> dict[str, Any]:
        """The group's line of the table, as plain JSON."""
        return {
            "group": self.name,
            "faults": self.injected,
            "survived": self.survived,
            "rows_lost": self.lost,
            "calls_paid_twice": self.paid_twice,
            "seconds": round(self.seconds, 1),
            "facts": self.facts,
            "kinds": dict(self.kinds),
            "failures": self.failures,
        }


def table(tallies: list[Tally]) -> str:
    """The table at the end."""
    head = f"{'group':<11}{'faults':>8}{'survived':>10}{'rows lost':>11}{'paid twice':>12}{'s':>7}"
    lines = [head, "-" * len(head)]
    rows = [item.row() for item in tallies]
    names = ("faults", "survived", "rows_lost", "calls_paid_twice", "seconds")
    rows.append({"group": "all", **{name: sum(row[name] for row in rows) for name in names}})
    for row in rows:
        lines.append(
            f"{row['group']:<11}{row['faults']:>8}{row['survived']:>10}{row['rows_lost']:>11}"
            f"{row['calls_paid_twice']:>12}{row['seconds']:>7.0f}"
        )
    for item in tallies:
        lines += [f"{item.name}: {key}: {value}" for key, value in item.facts.items()]
    for item in tallies:
        lines += [f"NOT SURVIVED  {item.name}: {text}" for text in item.failures[:MOST]]
        more = len(item.failures) - MOST
        lines += [f"NOT SURVIVED  {item.name}: and {more} more"] * (more > 0)
        lines += [f"NOT SURVIVED  {item.name}: nothing was injected"] * (item.injected == 0)
    return "\n".join(lines)
