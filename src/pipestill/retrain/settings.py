"""Settings of retraining: when to train, and what a new model has to show."""

from dataclasses import dataclass

from pipestill.errors import UserError

SOURCES = ("rows", "logs")
REQUIRE = ("better", "not_worse")


@dataclass(frozen=True, kw_only=True)
class TrainingRule:
    """When a tick trains. Component `should_train`."""

    min_new_rows: int = 500  # as many new rows are a reason of their own
    least_new_rows: int = 50  # with fewer, neither drift nor age is
    max_age_days: int = 30  # since the last training; 0 = age is no reason
    drift_level: float = 0.01  # family-wise error of the drift tests; 0 = drift is no reason
    drift_effect: float = 0.02  # bits of Jensen-Shannon divergence that count at all
    drift_seed: int = 0


@dataclass(frozen=True, kw_only=True)
class GateRule:
    """What promotes a challenger. Component `promote`."""

    gate_require: str = "better"  # better | not_worse, on the new evaluation rows
    gate_margin: float = 0.02  # share of right answers by which it may be worse where it may be
    gate_min_new: int = 100  # new evaluation rows wanted
    gate_min_regression: int = 100  # rows of the frozen regression set wanted
    gate_slice_rows: int = 20  # a slice counts from so many rows on
    gate_level: float = 0.05  # family-wise error of the slice tests
    gate_override: str = ""  # a person's reason to promote whatever the rules say


def check(training: TrainingRule | None = None, gate: GateRule | None = None) -> None:
    """Refuses settings that make no sense.

    Raises:
        UserError: ``RETRAIN_SETTING``.
    """
    shares: dict[str, float] = {}
    counts: dict[str, int] = {}
    if training:
        shares |= {"drift_level": training.drift_level, "drift_effect": training.drift_effect}
        counts |= {"min_new_rows": training.min_new_rows, "max_age_days": training.max_age_days}
        counts |= {"least_new_rows": training.least_new_rows}
    if gate:
        shares |= {"gate_margin": gate.gate_margin, "gate_level": gate.gate_level}
        counts |= {"gate_min_new": gate.gate_min_new, "gate_slice_rows": gate.gate_slice_rows}
        counts |= {"gate_min_regression": gate.gate_min_regression}
        if gate.gate_require not in REQUIRE:
            raise _wrong("gate_require", gate.gate_require, " or ".join(REQUIRE))
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise _wrong(name, share, "0 or more and less than 1")
    for name, count in counts.items():
        if count < 0:
            raise _wrong(name, count, "0 or more")


def _wrong(name: str, found: object, allowed: str) -> UserError:
    return UserError("RETRAIN_SETTING", f"{name}: found {found!r}, allowed: {allowed}")
