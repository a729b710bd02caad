"""When each dependency in pyproject.toml was last released. What `make maintained` runs.

Asks the package index as pip does, a page for each name. Exit code 1 where the newest release is
older than two years, 3 where the index gave no answer or no dates (not every mirror has them).
`SETTLED` names packages that have been complete for years, each with its reason.

    python maintained.py
"""

import json
import os
import re
import sys
import tomllib
import urllib.request
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from pip._internal.models.index import PyPI  # the address that pip itself would ask

HERE = Path(__file__).resolve().parent
MOST_DAYS = 730
FINE, OLD, NO_ANSWER = 0, 1, 3
JSON = "application/vnd.pypi.simple.v1+json"
SETTLED: dict[str, str] = {}


def direct() -> list[str]:
    """The packages that pyproject.toml names, in its order."""
    data = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    project = data["project"]
    lines = [*data["build-system"]["requires"], *project["dependencies"]]
    lines += [line for group in project["optional-dependencies"].values() for line in group]
    names = [re.split(r"[^\w.-]", line)[0] for line in lines]
    plain = [re.sub(r"[-_.]+", "-", name).lower() for name in names]
    return [name for name in dict.fromkeys(plain) if name != project["name"]]


def released(index: str, name: str) -> tuple[str, datetime] | None:
    """The newest file that was not withdrawn, and when it was uploaded; None without an answer."""
    request = urllib.request.Request(f"{index.rstrip('/')}/{name}/", headers={"Accept": JSON})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            files = json.load(answer)["files"]
        dated = [
            (datetime.fromisoformat(file["upload-time"]), str(file["filename"]))
            for file in files
            if not file.get("yanked")
        ]
        when, newest = max(dated)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return newest, when


def report(index: str, names: Iterable[str], now: datetime) -> int:
    """Prints a table and returns the outcome."""
    old, silent = [], []
    print("| package | last release | days ago | file |\n| --- | --- | --- | --- |")
    for name in names:
        found = released(index, name)
        if found is None:
            silent.append(name)
            print(f"| `{name}` | no answer | | |")
            continue
        newest, when = found
        days = (now - when).days
        old += [name] if days > MOST_DAYS and name not in SETTLED else []
        print(f"| `{name}` | {when:%Y-%m-%d} | {days} | {newest} |")
    if old:
        print(f"maintained: no release for {MOST_DAYS} days: {', '.join(old)}")
        return OLD
    if silent:
        print(f"maintained: no answer about {', '.join(silent)}")
        return NO_ANSWER
    print(f"maintained: every dependency was released in the last {MOST_DAYS} days")
    return FINE


if __name__ == "__main__":
    address = os.environ.get("PIP_INDEX_URL") or PyPI.simple_url
    sys.exit(report(address, direct(), datetime.now(UTC)))
