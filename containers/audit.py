"""Looks every version of the lock files up in the vulnerability service. What `make audit` runs.

Three outcomes: 0, every version was looked up and none has a known weakness; 1, some have, listed;
3, the service gave no answer, about all of them or about some. Without an answer pip-audit itself
says "No known vulnerabilities found" and exits with 0, so a version that everybody knows to be weak
is asked about first.

    python audit.py requirements-cpu.lock ... [-- further arguments of pip-audit]
"""

import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

KNOWN_WEAK = "jinja2==2.10"  # weaknesses published since 2019
FINE, WEAK, NO_ANSWER = 0, 1, 3
Answer = dict[str, dict[str, object]]


def ask(tool: Sequence[str], lines: str, *options: str) -> Answer:
    """Package and version → what the service says of it; empty where pip-audit itself failed."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "requirements.txt")
        wanted.write_text(lines, encoding="utf-8")
        done = subprocess.run(  # noqa: S603 (the tool that the Makefile names)
            [*tool, "--format", "json", "--progress-spinner", "off", "--disable-pip",
             *options, "--requirement", str(wanted)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        print((done.stderr.strip().splitlines() or ["no output"])[-1], file=sys.stderr)
        return {}
    return {f"{item['name']} {item.get('version', '')}".strip(): item for item in found}


def pinned(text: str) -> str:
    """A lock file's lines; of torch's CPU build the version that the service knows."""
    return re.sub(r"^(torch==[0-9.]*)\+cpu", r"\1", text, flags=re.MULTILINE)


def count(text: str) -> int:
    """How many packages a lock file pins."""
    return len(re.findall(r"^[\w.-]+==", text, flags=re.MULTILINE))


def audit(tool: Sequence[str], locks: Sequence[Path]) -> int:
    """Asks, prints what was found, and returns the outcome."""
    if not any(item.get("vulns") for item in ask(tool, f"{KNOWN_WEAK}\n", "--no-deps").values()):
        print(
            f"audit: no answer. The service does not even know that {KNOWN_WEAK} is weak; "
            f"nothing was learnt about {len(locks)} lock files. Try again where it can be reached."
        )
        return NO_ANSWER
    weak: dict[str, set[str]] = {}
    missing = 0
    for lock in locks:
        text = pinned(lock.read_text(encoding="utf-8"))
        found = ask(tool, text, "--require-hashes")
        answered = {name: item for name, item in found.items() if "vulns" in item}
        missing += max(0, count(text) - len(answered))
        print(f"{lock.name}: {len(answered)} of {count(text)} versions looked up")
        for name in sorted(found.keys() - answered.keys()):
            print(f"  no answer: {found[name].get('skip_reason', name)}")
        for name, item in answered.items():
            for known in item["vulns"]:
                mended = ", ".join(known.get("fix_versions") or []) or "none yet"
                weak.setdefault(f"{name}: {known['id']} (mended in {mended})", set()).add(lock.name)
    for line, where in sorted(weak.items()):
        print(f"  {line} in {', '.join(sorted(where))}")
    if weak:
        print(f"audit: {len(weak)} known weaknesses")
        return WEAK
    if missing:
        print(f"audit: no answer about {missing} versions; the others have no known weakness")
        return NO_ANSWER
    print("audit: no known weakness")
    return FINE


def main(arguments: list[str]) -> int:
    """The command."""
    tool, *rest = arguments
    more = rest[rest.index("--") + 1 :] if "--" in rest else []
    locks = rest[: rest.index("--")] if "--" in rest else rest
    try:
        return audit([*shlex.split(tool), *more], [Path(lock) for lock in locks])
    except FileNotFoundError as error:
        print(f"audit: {error.filename}: not found; pip install pip-audit", file=sys.stderr)
        return NO_ANSWER


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: audit.py PIP_AUDIT LOCK ... [-- further arguments of pip-audit]")
    sys.exit(main(sys.argv[1:]))
