"""`pipestill serve`: its options. The server itself is tested as a process beside the library."""

import argparse

import pytest

from pipestill.cli import serve
from pipestill.errors import UserError


def run(*arguments):
    parser = argparse.ArgumentParser()
    serve.configure(parser)
    return serve.main(parser.parse_args(arguments))


def test_a_model_is_needed(monkeypatch):
    monkeypatch.delenv("AIP_STORAGE_URI", raising=False)
    with pytest.raises(UserError, match="SERVE_NO_MODEL"):
        run()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--port", "99999"], "SERVE_PORT"),
        (["--max-batch", "0"], "SERVE_BATCH"),
        (["--host", "no.such.host.invalid"], "SERVE_ADDRESS"),
    ],
)
def test_wrong_options_are_refused(arguments, code, tmp_path):
    with pytest.raises(UserError) as caught:
        run(str(tmp_path), *arguments)
    assert caught.value.code == code


def test_options_of_the_wrong_type_end_with_usage(capsys, tmp_path):
    with pytest.raises(SystemExit) as caught:
        run(str(tmp_path), "--port", "http")
    assert caught.value.code == 2
    assert "invalid int value" in capsys.readouterr().err


def test_storage_that_cannot_be_read_is_told(monkeypatch):
    monkeypatch.setenv("AIP_STORAGE_URI", "file:///nowhere/at/all")
    with pytest.raises(UserError, match="SERVE_STORAGE"):
        run("--port", "0")
