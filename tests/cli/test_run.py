"""`pipestill run`, on the toy pipeline."""

import pytest

from pipestill import pipelines
from pipestill.cli import main as cli
from pipestill.cli import run as command
from pipestill.cli.run import refuse_too_big
from pipestill.errors import UserError
from tests.pipelines import toy


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipelines, "build", lambda name: toy.build())
    monkeypatch.setattr(command, "closing", lambda summary, out: f"closing {out}")
    (tmp_path / "rows.jsonl").write_text('{"input_text": "a"}\n')
    (tmp_path / "demo.yaml").write_text("dataset_uri: rows.jsonl\nruns: [a:0]\n")
    return tmp_path


def test_runs_a_configuration(here, capsys):
    assert cli.main(["run", "toy", "-c", "demo.yaml"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("toy → runs/demo\n")
    assert "student: done in" in out
    assert out.endswith("closing runs/demo\n")
    assert (here / "runs" / "demo" / "summary.json").exists()


def test_set_out_and_fresh(here, capsys):
    first = ["run", "toy", "-c", "demo.yaml", "--out", "x", "--set", "runs=[b:1, c:2]"]
    assert cli.main(first) == 0
    assert "student b:1: done" in capsys.readouterr().out
    assert cli.main(first) == 0
    assert "student b:1: cached" in capsys.readouterr().out
    assert cli.main([*first, "--fresh"]) == 0
    assert "student b:1: done" in capsys.readouterr().out


def test_a_failed_step_is_one_line_and_exit_code_2(here, capsys):
    assert cli.main(["run", "toy", "-c", "demo.yaml", "--set", "fail=user:a:0"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error [ROW_BAD] student: line 3: no label → add it; full log: ")
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.out


def test_other_failures_have_exit_code_1(here, capsys):
    assert cli.main(["run", "toy", "-c", "demo.yaml", "--set", "fail=bug:a:0"]) == 1
    assert "ZeroDivisionError: one" in capsys.readouterr().err


def test_types_of_the_real_pipeline(monkeypatch):
    monkeypatch.undo()
    types = command.parameter_types(pipelines.build("distill_step_by_step"))
    assert types["dataset_uri"] is str
    assert types["train_steps"] is int
    assert types["alpha"] is float
    assert types["dedupe"] is bool
    assert types["runs"] is list


@pytest.mark.parametrize("name", ["student_model_reference", "teacher_model_reference"])
def test_a_model_that_this_machine_has_no_memory_for_is_refused(name, monkeypatch):
    monkeypatch.setenv("PIPESTILL_MEMORY_GB", "16")
    with pytest.raises(UserError, match=r"MODEL_TOO_BIG.*11\.1 B parameters ×.*16\.0 GB"):
        refuse_too_big({name: "google/flan-t5-xxl"})


def test_unknown_names_and_teachers_behind_a_server_are_not_measured(monkeypatch):
    monkeypatch.setenv("PIPESTILL_MEMORY_GB", "0.001")
    refuse_too_big({"student_model_reference": "someone/their-model"})
    refuse_too_big({"teacher_model_reference": "google/flan-t5-xxl", "teacher_backend": "openai"})
