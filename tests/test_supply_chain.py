"""The audit and the release dates: three outcomes each, and never a quiet "fine"."""

import functools
import http.server
import json
import runpy
import stat
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "containers"
AUDIT = runpy.run_path(str(FOLDER / "audit.py"))
MAINTAINED = runpy.run_path(str(FOLDER / "maintained.py"))
LOCK = "alpha==1.0 \\\n    --hash=sha256:00\ntorch==2.13.0+cpu \\\n    --hash=sha256:01\n"
TOOL = '''#!{python}
"""Answers as pip-audit does: what it was asked is in the file behind --requirement."""
import json, re, sys
lines = open(sys.argv[sys.argv.index("--requirement") + 1]).read()
known = {known!r}
found = []
for name, version in re.findall(r"^([\\w.-]+)==(\\S+)", lines, flags=re.M):
    item = {{"name": name, "version": version, "vulns": known.get(name, [])}}
    if name in {silent!r}:
        item = {{"name": name, "skip_reason": f"not found: {{name}}"}}
    found.append(item)
print(json.dumps({{"dependencies": found, "fixes": []}}))
'''
WEAK = [{"id": "CVE-1", "fix_versions": ["2.11"]}]


@pytest.fixture
def audit(tmp_path, capsys):
    """Runs the audit of one lock file against a service that knows and leaves out so much."""

    def run(known, silent=(), text=None):
        tool, lock = tmp_path / "tool", tmp_path / "requirements-x.lock"
        made = TOOL.format(python=sys.executable, known=known, silent=list(silent))
        tool.write_text(made if text is None else text)
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        lock.write_text(LOCK)
        return AUDIT["main"]([str(tool), str(lock)]), capsys.readouterr().out

    return run


def test_looked_up_and_fine(audit):
    code, out = audit({"jinja2": WEAK})
    assert code == 0
    assert "requirements-x.lock: 2 of 2 versions looked up" in out
    assert out.endswith("audit: no known weakness\n")


def test_a_weakness_is_named_with_its_lock_and_the_version_that_mends_it(audit):
    code, out = audit({"jinja2": WEAK, "torch": WEAK})
    assert code == 1
    assert "torch 2.13.0: CVE-1 (mended in 2.11) in requirements-x.lock" in out


def test_a_service_that_knows_nothing_has_not_answered(audit):
    for known, silent in (({}, ()), ({"jinja2": WEAK}, ["jinja2"])):
        code, out = audit(known, silent)
        assert code == 3
        assert out.startswith("audit: no answer.")
        assert "no known weakness" not in out


def test_one_version_without_an_answer_is_no_clean_audit(audit):
    code, out = audit({"jinja2": WEAK}, ["alpha"])
    assert code == 3
    assert "no answer: not found: alpha" in out
    assert "no answer about 1 versions" in out


@pytest.mark.parametrize("text", ["#!/bin/sh\nexit 1\n", "#!/bin/sh\necho '[]'\n"])
def test_a_tool_that_fails_is_no_answer(audit, text):
    assert audit({}, text=text)[0] == 3


def test_no_tool_is_no_answer(tmp_path, capsys):
    assert AUDIT["main"]([str(tmp_path / "pip-audit"), "x.lock"]) == 3
    assert "pip install pip-audit" in capsys.readouterr().err


def test_every_pin_of_the_real_locks_is_counted():
    for lock in FOLDER.glob("*.lock"):
        text = AUDIT["pinned"](lock.read_text())
        assert "+cpu" not in text
        assert AUDIT["count"](text) == text.count("==") - text.count("_version ==")


class Index(http.server.BaseHTTPRequestHandler):
    def __init__(self, pages, *rest):
        self.pages = pages
        super().__init__(*rest)

    def do_GET(self):
        page = self.pages.get(self.path.strip("/"))
        self.send_response(200 if page is not None else 404)
        self.end_headers()
        self.wfile.write(json.dumps(page).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def index():
    """Serves pages of an index: name → page."""
    servers = []

    def serve(pages):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Index, pages))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


NOW = datetime(2026, 11, 1, tzinfo=UTC)


def page(*days, yanked=False):
    files = [
        {
            "filename": f"x-{at}.whl",
            "upload-time": (NOW - timedelta(days=ago)).isoformat(),
            "yanked": yanked,
        }
        for at, ago in enumerate(days)
    ]
    return {"files": files}


def test_dates_of_the_newest_releases(index, capsys):
    address = index({"young": page(2000, 30), "old": page(2000, 731), "gone": page(3, yanked=True)})
    assert MAINTAINED["report"](address, ["young"], NOW) == 0
    assert "| `young` | 2026-10-02 | 30 | x-1.whl |" in capsys.readouterr().out
    assert MAINTAINED["report"](address, ["young", "old", "missing"], NOW) == 1
    assert "no release for 730 days: old" in capsys.readouterr().out
    for silent in ("missing", "gone"):
        assert MAINTAINED["report"](address, ["young", silent], NOW) == 3
        assert f"no answer about {silent}" in capsys.readouterr().out


def test_an_index_without_dates_has_not_answered(index):
    address = index({"plain": {"files": [{"filename": "x.whl"}]}, "odd": [1]})
    assert MAINTAINED["report"](address, ["plain"], NOW) == 3
    assert MAINTAINED["report"](address, ["odd"], NOW) == 3


def test_all_direct_dependencies_are_asked_about():
    names = MAINTAINED["direct"]()
    assert {"kfp", "torch", "google-cloud-quotas", "pytest", "setuptools"} <= set(names)
    assert "pipestill" not in names
    assert len(names) == len(set(names)) > 25
