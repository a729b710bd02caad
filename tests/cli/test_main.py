"""The command's frame: fast, one line for every error, exit codes."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipestill import __version__
from pipestill.cli import main as cli
from pipestill.errors import UserError, WorkError


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "pipestill.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def test_help_is_fast_and_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from pipestill.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'kfp', 'transformers', 'yaml', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    times = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        times.append(time.perf_counter() - began)
        assert done.returncode == 0, done.stderr
    assert "run a pipeline on this machine" in done.stdout
    assert min(times) < 0.3


@pytest.mark.parametrize("command", ["run", "compile", "models", "doctor"])
def test_a_commands_help_imports_nothing_heavy(command):
    code = (
        "import sys\n"
        "from pipestill.cli.main import main\n"
        f"try: main(['{command}', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'kfp', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version(capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"pipestill {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["rn"], "did you mean run?"),
        (["run", "x", "--confg", "y"], "did you mean --config?"),
        (["compile", "--profil", "y"], "did you mean --profile?"),
        (["run", "x", "--out"], "expected one argument"),
        ([], "--help"),
    ],
)
def test_wrong_usage(arguments, hint, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(arguments)
    assert done.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: pipestill")
    assert error.startswith("error [USAGE]")
    assert hint in error


def command_that(action):
    class Module:
        configure = staticmethod(lambda parser: None)
        main = staticmethod(lambda args: action())

    return Module


def raiser(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("A_CODE", "what\nwas", "do this"), 2, "error [A_CODE] what was → do this\n"),
        (WorkError("B_CODE", "gone"), 1, "error [B_CODE] gone\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            PermissionError(13, "Permission denied", "/a/b"),
            2,
            "error [PLACE] /a/b: Permission denied → look at the path and its permissions, or name "
            "another\n",
        ),
    ],
)
def test_errors_are_one_line(error, code, text, monkeypatch, capsys):
    monkeypatch.setattr(cli.importlib, "import_module", lambda _: command_that(raiser(error)))
    assert cli.main(["doctor"]) == code
    assert capsys.readouterr().err == text


def test_an_unexpected_error_leaves_its_traceback_in_a_file(monkeypatch, capsys):
    monkeypatch.setattr(
        cli.importlib, "import_module", lambda _: command_that(raiser(ValueError("one\ntwo")))
    )
    assert cli.main(["doctor"]) == 1
    line = capsys.readouterr().err
    assert line.startswith("error [UNEXPECTED] ValueError: one → full log: ")
    log = Path(line.split("full log: ")[1].strip())
    assert "Traceback" in log.read_text()
    log.unlink()


def test_every_command_has_a_module():
    from importlib.util import find_spec

    missing = [name for name, (module, _) in cli.COMMANDS.items() if find_spec(module) is None]
    assert missing == []


def test_exit_code_reaches_the_shell():
    done = run("compile", "distill_step_by_step", "--profile", "none")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error [PROFILE_UNKNOWN]")
    assert done.stderr.count("\n") == 1
