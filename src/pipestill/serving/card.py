"""The model card that travels with a served student."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_LIMITS = """\
- It knows the task of its training rows and nothing else. On other input it answers with the same \
confidence, and wrongly.
- Its rationales are text that it learned to write. They need not be the reason for its answer.
- It repeats mistakes and biases of its teacher and of its training data.
- Input longer than {max_input_tokens} tokens is refused."""

POLICIES = ("ppo", "rloo", "grpo", "dpo", "cdpo", "ipo")

_USE = """\
## How to serve

```
pipestill serve FOLDER
curl -s http://127.0.0.1:8080/predict -H 'Content-Type: application/json' \\
  -d '{"instances": ["your text"], "parameters": {"explain": true}}'
```

In Python: `pipestill.models.student.Student.load("FOLDER").answer(["your text"], batch_size=1, \
max_new_tokens=64)`.
"""


def model_card(
    facts: Mapping[str, Any], info: Mapping[str, Any], summary: Mapping[str, Any]
) -> str:
    """Markdown from what is known; what is not known is left out or said to be unknown.

    Args:
        facts: as `pipestill.serving.package.package_student` returns them.
        info: the student's `pipestill.json`.
        summary: the report's summary: arms, verdict sentence, data counts.
    """
    base = str(facts["base_model"])
    base = Path(base).name if Path(base).is_absolute() else base  # a folder of the run says nothing
    rows = {
        "Base model": base,
        "Licence of the base model": _licence(base),
        "Objective": facts["objective"],
        "Seed": facts["seed"],
        "Validation accuracy (chose this seed)": _percent(facts["val_label_accuracy"]),
        "Validation loss": _plain(facts["val_label_loss"]),
        "Weights": f"{facts['bytes']:,} bytes, sha256 `{facts['sha256']}`",
    }
    parts = [
        f"# {_line(facts['display_name'])}",
        _kind(info),
        _table(rows.items()),
        "## Held-out results",
        _accuracy(facts["objective"], summary),
        "## Data",
        _table((key, value) for key, value in _data(info, summary)),
        "## Intended use",
        "Input and output of the kind that the training rows have, with a person or a check behind "
        "it wherever a wrong answer costs something.",
        "## Limits",
        _LIMITS.format(max_input_tokens=info.get("max_input_tokens", 1024)),
        _USE,
    ]
    return "\n\n".join(part for part in parts if part)


def _kind(info: Mapping[str, Any]) -> str:
    if info.get("objective") in POLICIES:
        return "A policy trained by pipestill on preferences or their rewards."
    return "A model tuned by pipestill." if "task" in info else "A student distilled by pipestill."


def _licence(base: str) -> str:
    from pipestill.models.catalogue import find

    entry = find(base)
    return entry.licence if entry else "not known, see the base model"


def _accuracy(objective: str, summary: Mapping[str, Any]) -> str:
    arm = (summary.get("arms") or {}).get(objective) or {}
    sentence = summary.get("verdict_sentence") or summary.get("verdict")
    if arm.get("accuracy") is None:
        told = _line(f"Verdict of the run: {sentence}") if sentence else ""
        return told or "Not measured in this run."
    text = f"{_percent(arm['accuracy'])}"
    if arm.get("ci95"):
        low, high = arm["ci95"]
        text += f" (95 % interval {_percent(low)} to {_percent(high)})"
    seeds = arm.get("seeds") or []
    if len(seeds) > 1:
        text += f", the mean over {len(seeds)} seeds of this objective"
    if summary.get("rows"):
        text += f", on {summary['rows']} rows"
    return f"{text}. None of these rows chose the seed.\n\n" + _line(f"Verdict: {sentence or '-'}")


def _data(info: Mapping[str, Any], summary: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Counts of the data step, and the digests of data and model that the student carries."""
    for key, value in (summary.get("data") or {}).items():
        if key.startswith("rows_") or key.endswith(("_digest", "_dropped")):
            yield key.replace("_", " "), value
    for key, value in info.items():
        if key.endswith(("digest", "rows", "fingerprint")) and isinstance(value, int | str):
            yield key.replace("_", " "), value


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    lines = [f"| {_cell(key)} | {_cell(value)} |" for key, value in rows]
    return "\n".join(["| | |", "| --- | --- |", *lines]) if lines else ""


def _cell(value: Any) -> str:
    return _line(value).replace("|", "\\|")


def _line(value: Any) -> str:
    """One line of text that Markdown viewers cannot take for HTML."""
    return " ".join(str(value).split()).replace("<", "&lt;")


def _percent(share: Any) -> str:
    return f"{100 * share:.1f} %" if isinstance(share, int | float) else "not measured"


def _plain(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "not measured"
