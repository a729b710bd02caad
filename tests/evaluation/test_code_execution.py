"""Generated code runs in a process that can do nothing but compute."""

import gzip
import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from pipestill.evaluation.code_execution import assemble, run_program

PROMPT = 'import math\n\n\ndef area(r):\n    """The area of a circle."""\n'
TESTS = "assert abs(area(2) - 12.566) < 0.01\n"


@pytest.mark.parametrize(
    "answer",
    [
        "return math.pi * r * r",
        "    return math.pi * r * r",
        "x = r * r\n    return math.pi * x",
        "def area(r):\n    return math.pi * r * r",
        "Here it is:\n```python\nimport math\ndef area(r):\n    return math.pi * r * r\n```\nDone.",
        "return help(r)\n\ndef help(r):\n    return math.pi * r * r",
    ],
)
def test_right_answers_pass_however_they_are_written(answer):
    outcome = run_program(assemble(PROMPT, answer, TESTS))
    assert outcome.passed, outcome


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("return 3", "AssertionError"),
        ("return (", "SyntaxError"),
        ("", "TypeError"),  # the docstring alone is a body that gives None
        ("raise SystemExit(0)", "SystemExit"),
        ("return area(r)", "RecursionError"),
    ],
)
def test_wrong_answers_fail_with_the_reason(answer, error):
    outcome = run_program(assemble(PROMPT, answer, TESTS))
    assert (outcome.status, outcome.error) == ("failed", error)


@pytest.mark.parametrize(
    "code", ["while True: pass", "import time; time.sleep(60)", "input()\nwhile 1: 0"]
)
def test_what_does_not_end_is_killed(code):
    began = time.monotonic()
    outcome = run_program(code, timeout_s=1.0)
    assert outcome.status in ("timeout", "failed")
    assert time.monotonic() - began < 20
    if "input" not in code:
        assert outcome.status == "timeout"


@pytest.mark.parametrize(
    "code", ["x = bytearray(10**10)", "x = []\nwhile True: x.append(bytes(10**6))"]
)
def test_memory_is_bounded(code):
    outcome = run_program(code, timeout_s=20, memory_mb=256)
    assert (outcome.status, outcome.error) == ("failed", "MemoryError")


def test_leaving_early_is_no_pass():
    assert run_program("import os; os._exit(0)").status == "crashed"
    assert run_program("raise KeyboardInterrupt").status == "failed"


REFUSED = {
    "fork": "import os; os.fork()",
    "fork bomb": "import os\nwhile True: os.fork()",
    "shell": "import os; assert os.system('true') != 0; raise PermissionError",
    "process": "import subprocess; subprocess.run(['true'])",
    "other program": "import os; os.execv('/bin/true', ['true'])",
    "write": "open('{outside}/new', 'w')",
    "append": "open('{outside}/kept', 'a').write('x')",
    "low write": "import os; os.open('{outside}/new', os.O_CREAT | os.O_WRONLY)",
    "remove": "import os; os.remove('{outside}/kept')",
    "rename": "import os; os.rename('{outside}/kept', '{outside}/new')",
    "folder": "import os; os.mkdir('{outside}/new')",
    "read": "open('{outside}/kept').read()",
    "secrets": "import os; open('/proc/%d/environ' % os.getppid()).read()",
    "kill": "import os; os.kill(os.getppid(), 9)",
    "native code": "import ctypes; ctypes.CDLL(None)",
    "limits": "import resource; resource.setrlimit(0, (-1, -1)); raise PermissionError",
}


@pytest.mark.parametrize("name", REFUSED)
def test_nothing_outside_can_be_touched(name, tmp_path):
    (tmp_path / "kept").write_text("secret")
    outcome = run_program(REFUSED[name].replace("{outside}", str(tmp_path)), timeout_s=10)
    assert outcome.status == "failed"
    assert outcome.error in ("PermissionError", "OSError", "ValueError", "MemoryError")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_text() == "secret"


def test_no_network():
    """A listening server on this machine is not reached."""
    reached = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)

        def wait() -> None:
            try:
                server.accept()
                reached.set()
            except OSError:
                pass

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        port = server.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 3)"
        assert run_program(code).error == "PermissionError"
    assert not reached.is_set()


def test_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("API_KEY", "secret")
    assert run_program("import os; assert set(os.environ) <= {'LC_CTYPE'}").passed
    assert run_program("import os; assert os.listdir('.') == []").passed
    assert run_program("import sys; assert not any('site-packages' in p for p in sys.path)").passed


def test_output_goes_nowhere(capfd):
    assert run_program("import sys; print('x' * 10**6); print('y', file=sys.stderr)").passed
    assert capfd.readouterr() == ("", "")


def test_a_program_cannot_claim_to_have_passed():
    claim = (
        "import os\nfor n in range(3, 9):\n"
        '  try: os.write(n, b\'{"token": 1, "error": ""}\')\n  except OSError: pass\n'
        "os._exit(0)"
    )
    assert not run_program(claim).passed


@pytest.mark.skipif(
    not Path("/proc/self/seccomp").exists() and os.uname().sysname != "Linux", reason="Linux"
)
def test_the_system_call_filter_holds_without_python_s_own_refusals():
    """The filter alone: the audit hook is left out by running the sandbox's parts directly."""
    import subprocess
    import sys

    from pipestill.evaluation.code_execution import SANDBOX

    probe = (
        f"import sys; sys.path.insert(0, {str(SANDBOX.parent)!r}); import code_sandbox as s, os\n"
        "if not s.filter_calls(): print('none'); sys.exit()\n"
        "found = []\n"
        "for call in (os.fork, lambda: os.open('x', os.O_CREAT | os.O_RDWR),\n"
        "             lambda: os.mkdir('d'),\n"
        "             lambda: __import__('socket').socket(), lambda: os.kill(os.getppid(), 0),\n"
        "             lambda: os.execv('/bin/true', ['x'])):\n"
        "  try: call(); found.append('done')\n"
        "  except PermissionError: found.append('refused')\n"
        "print(*found)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", probe], capture_output=True, text=True, check=True
    )
    if done.stdout.strip() == "none":
        pytest.skip("this machine has no system-call filter")
    assert done.stdout.split() == ["refused"] * 6


@pytest.mark.slow
def test_humaneval_s_solutions_pass_and_broken_ones_fail(shared_data):
    path = shared_data / "humaneval" / "HumanEval.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as source:
        rows = [json.loads(line) for line in source]
    assert len(rows) == 164
    for row in rows[::4]:
        tests = f"{row['test']}\n\ncheck({row['entry_point']})\n"
        good = assemble(row["prompt"], row["canonical_solution"].strip(), tests)
        assert run_program(good, timeout_s=30).passed, row["task_id"]
        broken = assemble(row["prompt"], "return None", tests)
        assert not run_program(broken, timeout_s=30).passed, row["task_id"]
