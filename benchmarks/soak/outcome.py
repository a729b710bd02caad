"""What two runs of a pipeline have left, compared but for times and for who was asked when."""

import json
import re
from pathlib import Path
from typing import Any

# Names whose values are times, speeds, or tell how often a step was begun.
TIMES = re.compile(
    r"seconds|_ms|latency|per_second|flops|mfu|(^|_)(time|date|s)$|recorded|resumed|previous"
    r"|uri$|^made$|journal|calls_|cost|hours|usd|speed|memory|display_name|page|ledger"
    r"|^(steps|config|table|notes|claims)$|break_even|sentence"
)
USAGE = ("prompt_tokens", "output_tokens", "cached_prompt_tokens")  # of calls, which a repeat saves
RUN = re.compile(r"[a-z-]+-20\d\d-\d\d-\d\d-\d\d-\d\d-\d\d-\d+")
# A tick that is run again after its promotion finds it decided, and says so: its book is compared.
OF_A_TICK = ("promote", "report-tick", "should-train", "skip-training", "tick-time")
SKIPPED = ("executor_output.json", "README.md", "page", "report.html")


def artifacts(out: Path) -> dict[str, Path]:
    """What the steps have written, by its place within a run; the newest of each."""
    found = {}
    for run in sorted((out / "artifacts").iterdir(), key=_moment):
        for path in sorted(run.rglob("*")):
            name = path.relative_to(run)
            hidden = any(part.startswith(".") for part in name.parts)
            timed = path.name in SKIPPED or "tfevents" in path.name
            if path.is_file() and not hidden and not timed:
                found[str(name)] = path
    return found


def _moment(run: Path) -> str:
    return run.name[-26:]


def rows_of(out: Path) -> int:
    """Rows of all artifacts that are JSON lines."""
    return sum(len(_lines(path)) for path in artifacts(out).values() if _is_rows(path))


def differences(calm: Path, other: Path) -> list[str]:
    """How the second run's end differs from the first's; nothing where it does not."""
    first, second = artifacts(calm), artifacts(other)
    found = [f"{name} is missing" for name in sorted(first.keys() - second.keys())]
    found += [f"{name} is new" for name in sorted(second.keys() - first.keys())]
    for name in sorted(first.keys() & second.keys()):
        if told := _differ(first[name], second[name], calm, other):
            found.append(f"{name}: {told}")
    models = [{p.name: p.read_bytes() for p in (out / "model").glob("*.safetensors")}
              for out in (calm, other)]  # fmt: skip
    if models[0] != models[1]:
        found.append("the deployed weights differ")
    books = [out.with_name(f"{out.name}-book") for out in (calm, other)]
    if books[0].is_dir():
        return [item for item in found if not item.startswith(OF_A_TICK)] + _books(*books)
    told = _differ(calm / "summary.json", other / "summary.json", calm, other)
    return [*found, *([f"summary: {told}"] if told else [])]


def _books(one: Path, two: Path) -> list[str]:
    """How two books of retraining differ: their ledgers' lines, aliases and promoted weights."""
    found = []
    for name in ("ledger.jsonl", "production.json"):
        lines = [
            [{**_timeless(json.loads(text)), "model_digest": "", "champion": ""}
             for text in (book / name).read_text(encoding="utf-8").splitlines() if name[0] == "l"]
            or json.loads((book / name).read_text(encoding="utf-8"))["model"]
            for book in (one, two)
        ]  # fmt: skip
        if lines[0] != lines[1]:
            found.append(f"{name}: {_where(*lines)}")
    weights = [
        {str(path.relative_to(book)): path.read_bytes() for path in book.rglob("*.safetensors")}
        for book in (one, two)
    ]
    return [*found, *(["the promoted weights differ"] if weights[0] != weights[1] else [])]


def _differ(one: Path, two: Path, calm: Path, other: Path) -> str:
    data = one.read_bytes(), two.read_bytes()
    if data[0] == data[1]:
        return ""
    try:
        plain = _plain(data[0], calm), _plain(data[1], other)
    except ValueError:
        return "other bytes"
    if plain[0] == plain[1]:
        return ""
    return _where(*plain)


def _plain(data: bytes, out: Path) -> Any:
    """JSON, or JSON lines, without times and with places made equal."""
    text = RUN.sub("RUN", data.decode("utf-8")).replace(str(out), "OUT")
    try:
        return _timeless(json.loads(text))
    except ValueError:
        return [_timeless(json.loads(line)) for line in text.split("\n") if line]


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        usage = USAGE if "calls_made" in value else ()
        return {
            key: _timeless(item) for key, item in value.items()
            if not TIMES.search(key) and key not in usage
        }  # fmt: skip
    if isinstance(value, list):
        return [_timeless(item) for item in value]
    return value


def _where(one: Any, two: Any, path: str = "") -> str:
    """The first place at which two values differ."""
    if isinstance(one, dict) and isinstance(two, dict):
        for key in [*one, *two]:
            if one.get(key) != two.get(key):
                return _where(one.get(key), two.get(key), f"{path}.{key}")
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for at, (left, right) in enumerate(zip(one, two, strict=True)):
            if left != right:
                return _where(left, right, f"{path}[{at}]")
    return f"{path}: {str(one)[:80]} became {str(two)[:80]}"


def _is_rows(path: Path) -> bool:
    with path.open("rb") as source:
        head = source.read(1)
    return head == b"{" and path.suffix not in (".json",) and len(_lines(path)) > 0


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        found = [json.loads(line) for line in lines if line]
    except ValueError:
        return []
    return found if all(isinstance(item, dict) and "id" in item for item in found) else []
