"""`pipestill models`."""

import argparse
import json

import pytest

from pipestill.cli import models
from pipestill.errors import UserError
from pipestill.models.catalogue import load_catalogue


def run(*arguments):
    parser = argparse.ArgumentParser()
    models.configure(parser)
    return models.main(parser.parse_args(arguments))


@pytest.fixture(autouse=True)
def _no_override(monkeypatch):
    monkeypatch.delenv("PIPESTILL_MEMORY_GB", raising=False)


def test_the_table_has_every_model_and_column(capsys):
    assert run() == 0
    lines = capsys.readouterr().out.splitlines()
    for word in ("roles", "methods", "params", "context", "licence", "GB to tune", "answers on"):
        assert word in lines[0]
    for entry in load_catalogue():
        assert any(line.startswith(entry.reference + " ") for line in lines)
    xxl = next(line for line in lines if line.startswith("google/flan-t5-xxl "))
    assert "a100 tpu" in xxl
    assert "cpu" not in xxl


def test_role_and_profile_narrow_the_table(capsys):
    run("--role", "teacher", "--profile", "cpu-local", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found
    for entry in found:
        assert "teacher" in entry["roles"]
        assert entry["memory_method"] == "inference"
        need = entry["profiles"]["cpu-local"]
        assert need is None or need["fits"]
    assert "google/flan-t5-xxl" not in {entry["reference"] for entry in found}


def test_one_model_shows_its_arithmetic(capsys):
    assert run("flan_t5_base") == 0
    text = capsys.readouterr().out
    assert text.startswith("google/flan-t5-base\n")
    assert "247,577,856" in text
    assert "248 M parameters × (4 weights + 4 gradients + 8 optimiser bytes) = 4.0 GB" in text
    assert "✗ rlhf" in text
    assert "✓ dss" in text


def test_one_model_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="MODEL_TOO_BIG"):
        run("flan-t5-xxl", "--profile", "cpu-local")
    assert run("flan-t5-xxl", "--profile", "cpu-local", "--memory-gb", "512") == 0


def test_unknown_names_and_profiles_are_refused():
    with pytest.raises(UserError, match="MODEL_UNKNOWN"):
        run("gpt5")
    with pytest.raises(UserError, match="PROFILE_UNKNOWN"):
        run("--profile", "h100")
    with pytest.raises(UserError, match="MODEL_NONE"):
        run("--profile", "cpu-local", "--memory-gb", "0.001", "--role", "tunable")


def test_a_hub_name_outside_is_allowed(capsys):
    assert run("someone/some-model") == 0
    assert "nothing is checked" in capsys.readouterr().out
