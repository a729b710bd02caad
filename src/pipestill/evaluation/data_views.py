"""What the page says about data, labelling and origin: funnel, rejects, yields, reproduction."""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pipestill import __version__
from pipestill.evaluation.row_views import clip
from pipestill.evaluation.wording import number, percent
from pipestill.records import Labelled, Reject

SHOWN_REJECTS = 10
# Stage of the funnel: the key of `data_prep`'s metrics, its words, and how the bar looks.
FUNNEL = (
    ("rows_read", "Read", ""),
    ("rows_rejected", "Set aside", "out"),
    ("duplicates_dropped", "Left out, duplicates", "out"),
    ("leaks_dropped", "Left out, also held out", "out"),
    ("rows_train", "To train on", "keep"),
    ("rows_eval", "Held out", "keep"),
)
OUTCOMES = {
    "kept": "kept, trained on",
    "not_asked": "not asked",
    "unanswered": "dropped: the call failed",
    "unparsed": "dropped: no label or no reasoning found in the answer",
    "disagrees": "dropped: leads to another answer than the row's label",
    "too_short": "dropped: too short",
    "too_long": "dropped: too long",
    "leak": "dropped: only restates the answer, or runs into a next example",
}
LIBRARIES = ("torch", "transformers", "kfp", "numpy")


def funnel(
    data: Mapping[str, Any], stages: Sequence[tuple[str, str, str]] = FUNNEL
) -> list[dict[str, Any]]:
    """The stages that the data step counted, with the width of their bar in percent."""
    known = [(data[key], words, style) for key, words, style in stages if _counts(data.get(key))]
    most = max((count for count, _, _ in known), default=0)
    return [
        {
            "name": words,
            "count": number(count),
            "style": style,
            "width": round(100 * count / most, 1),
        }
        for count, words, style in known
        if count or style == "keep"
    ]


def _counts(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def reject_rows(rejects: Sequence[Reject]) -> list[dict[str, Any]]:
    """The first rows set aside; the file's name without its folder."""
    return [
        {
            "file": clip(Path(row.file).name or row.file, 60),
            "line": row.line,
            "field": clip(row.field, 60),
            "reason": clip(row.reason, 200),
            "found": clip(row.found, 120),
        }
        for row in rejects[:SHOWN_REJECTS]
    ]


def labelling(labels: Mapping[str, Any], rows: Sequence[Labelled]) -> list[tuple[str, str]]:
    """Labels filled, the teacher's accuracy on gold rows, tokens, calls and cost."""
    filled = sum(row.label_source == "teacher" for row in rows)
    kept = sum(row.rationale is not None for row in rows)
    facts = [
        ("Training rows", number(len(rows))),
        ("Labels given by the teacher", number(filled)),
        ("Rationales kept", f"{number(kept)} ({percent(kept / len(rows)) if rows else '–'})"),
    ]
    audited = labels.get("audit_rows")
    if audited:
        right, unparsable = labels.get("audit_correct", 0), labels.get("audit_unparsable", 0)
        facts.append(
            (
                "Teacher's label accuracy",
                f"{percent(right / audited)} ({number(right)} of {number(audited)} rows with a gold"
                f" label, {number(unparsable)} answers unparsable)",
            )
        )
    if labels.get("rows_failed"):
        facts.append(("Rows left out for want of a label", number(labels["rows_failed"])))
    return facts + _usage(labels)


def _usage(labels: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "calls_made" not in labels:
        return []
    made, saved = labels["calls_made"], labels.get("calls_from_journal", 0)
    prompt, cached = labels.get("prompt_tokens", 0), labels.get("cached_prompt_tokens", 0)
    return [
        ("Calls", f"{number(made)} made, {number(saved)} answered from the journal"),
        ("Prompt tokens paid", f"{number(prompt)}, of these {number(cached)} from the cache"),
        ("Output tokens paid", number(labels.get("output_tokens", 0))),
        ("Tokens the journal saved", number(labels.get("journal_tokens", 0))),
        ("Cost", f"{labels.get('cost_usd', 0):.4f} USD"),
    ]


def yields(rows: Sequence[Labelled]) -> list[dict[str, str]]:
    """What became of the rationales: one line per outcome, most frequent first."""
    counts = Counter(row.rationale_status for row in rows)
    ranked = sorted(counts.items(), key=lambda item: (item[0] != "kept", -item[1], item[0]))
    return [
        {
            "name": OUTCOMES.get(status, clip(status, 60)),
            "count": number(count),
            "share": percent(count / len(rows)),
        }
        for status, count in ranked
    ]


def reproduction(
    evaluation: Mapping[str, Any], summary: Mapping[str, Any], files: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Versions, seeds, settings, digests of the inputs and the date."""
    seeds = {seed for entry in summary["arms"].values() for seed in entry["seeds"] if seed >= 0}
    facts = [
        ("Made", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"),
        ("Versions", f"pipestill {__version__}, Python {platform.python_version()}, {_versions()}"),
        ("Seeds", ", ".join(map(str, sorted(seeds))) or "none"),
        ("Metric", str(summary["metric"])),
    ]
    for name, settings in (evaluation.get("config") or {}).items():
        if isinstance(settings, Mapping):
            words = ", ".join(f"{key} {value}" for key, value in settings.items())
            facts.append((str(name).replace("_", " ").capitalize(), clip(words)))
        else:
            facts.append((str(name).replace("_", " ").capitalize(), clip(str(settings))))
    return facts + [(f"sha256 of {name}", digest_of(path)) for name, path in files.items()]


def _versions() -> str:
    found = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def digest_of(path: str) -> str:
    """The first 16 hex digits of a file's sha256."""
    with open(path, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()[:16]
