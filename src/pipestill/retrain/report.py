"""The page about one tick, and the summary that the command line shows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipestill.errors import WorkError
from pipestill.records import write_bytes, write_json
from pipestill.retrain.ledger import Book, Entry

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #ccc;padding:.3rem .5rem;
text-align:left;vertical-align:top}.pass{color:#060}.fail{color:#a00}.open{color:#850}
@media(prefers-color-scheme:dark){body{background:#111;color:#eee}.pass{color:#7d7}
.fail{color:#f88}.open{color:#fc6}}
</style></head><body>
<h1>{{ title }}: {{ tick.tick }}</h1>
<p><strong>{{ decision }}</strong>. {{ sentence }}</p>
<p>Why trained or not: {{ tick.reason }}</p>
<p>Window [{{ tick.start }}, {{ tick.end }}), {{ tick.files }} files; rows since {{ tick.since }}
count as new. Champion: {{ tick.champion }}.</p>
{% if rules %}<h2>Rules</h2><table><tr><th>rule</th><th>outcome</th><th>what was found</th></tr>
{% for rule in rules %}<tr><td>{{ rule.name }}</td><td class="{{ rule.outcome }}">{{ rule.outcome }}
</td><td>{{ rule.text }}</td></tr>{% endfor %}</table>{% endif %}
<h2>Ledger</h2><table><tr><th>#</th><th>tick</th><th>decision</th><th>why</th></tr>
{% for entry in entries %}<tr><td>{{ entry.number }}</td><td>{{ entry.tick }}</td>
<td>{{ entry.decision }}</td><td>{{ entry.sentence }}</td></tr>{% endfor %}</table>
</body></html>
"""


def write_tick_report(
    tick_path: str,
    retrain_dir: str,
    decision: str,
    *,
    page_path: str,
    summary_path: str,
    title: str,
) -> str:
    """Writes page and summary of a tick that is in the ledger; returns the decision.

    Raises:
        WorkError: ``LEDGER_NO_ENTRY``.
    """
    import jinja2

    tick: Mapping[str, Any] = json.loads(Path(tick_path).read_text(encoding="utf-8"))
    entries = Book.at(retrain_dir).entries()
    own = next((entry for entry in entries if entry["tick"] == tick["tick"]), None)
    if own is None:
        raise WorkError("LEDGER_NO_ENTRY", f"{retrain_dir}: tick {tick['tick']} has no entry")
    rules = own["numbers"].get("rules", [])
    page = jinja2.Environment(autoescape=True).from_string(PAGE)
    text = page.render(
        title=title,
        tick=tick,
        decision=decision,
        sentence=own["sentence"],
        rules=rules,
        entries=reversed(entries),
    )
    write_bytes(page_path, text.encode("utf-8"))
    told = own["sentence"] if tick["path"] != "none" else tick["reason"]
    summary = {
        "tick": tick,
        "decision": decision,
        "entry": own,
        "table": lines(entries),
        "verdict_sentence": f"{tick['tick']}: {decision}. {told}",
    }
    write_json(summary_path, summary)
    return decision


def lines(entries: Sequence[Entry]) -> list[str]:
    """The ledger as lines for a person."""
    head = f"{'#':>4}  {'tick':<17} {'decision':<12} why"
    return [head] + [
        f"{entry['number']:>4}  {entry['tick']:<17} {entry['decision']:<12} {entry['sentence']}"
        for entry in entries
    ]
