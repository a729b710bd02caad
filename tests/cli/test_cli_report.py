"""`pipestill report` prints the table, the verdict and the page's path of a finished run."""

import argparse
import json

import pytest

from pipestill.cli import report
from pipestill.cli.run import closing
from pipestill.errors import UserError
from pipestill.evaluation.report import write_report
from tests.evaluation import synthetic


@pytest.fixture
def run(tmp_path):
    write_report(**synthetic.write_run(tmp_path, synthetic.predictions(rows=200)))
    return tmp_path


def _main(*words: str) -> int:
    parser = argparse.ArgumentParser()
    report.configure(parser)
    return report.main(parser.parse_args(words))


def test_a_folder_and_its_summary_print_the_same(run, capsys):
    capsys.readouterr()
    assert _main(str(run)) == 0
    folder = capsys.readouterr().out
    assert _main(str(run / "summary.json")) == 0
    assert capsys.readouterr().out == folder
    summary = json.loads((run / "summary.json").read_text())
    assert summary["verdict_sentence"] in folder
    assert f"report: {run / 'report.html'}" in folder
    assert "Teacher, 5 shots" in folder
    table = folder.split("\n\n")[0].splitlines()
    assert all(len(line) <= 100 for line in table)


OWN_TABLE = {"table": ["rows read    10", "rows written  9"], "notes": ["answers  a.jsonl"]}


@pytest.mark.parametrize("sentence", [None, "Six claims are shown."])
def test_a_summary_with_a_table_of_its_own_shows_that_one(tmp_path, capsys, sentence):
    """Batch answers and retraining have no arms; claims have arms, but tell them in lines."""
    told = {**OWN_TABLE, "verdict_sentence": sentence} if sentence else OWN_TABLE
    (tmp_path / "summary.json").write_text(json.dumps(told))
    assert _main(str(tmp_path)) == 0
    shown = [
        "rows read    10",
        "rows written  9",
        "",
        *filter(None, [sentence]),
        "answers  a.jsonl",
    ]
    assert capsys.readouterr().out.splitlines() == shown


@pytest.mark.parametrize("own", [{}, OWN_TABLE])
def test_the_end_of_a_run_shows_what_the_report_shows(run, own):
    summary = json.loads((run / "summary.json").read_text()) | own
    facts = {"steps": {"ran": 3, "cached": 1}, "seconds": 2.0, "config": {}}
    lines = closing({**summary, **facts}, run).splitlines()
    told = report.findings(summary)
    assert lines[1 : len(told) + 1] == told
    assert ("rows read    10" in told) == bool(own)
    assert lines[len(told) + 2] == "2 s, 3 steps run, 1 from the cache"


def test_open_hands_the_page_to_the_browser(run, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert _main(str(run), "--open") == 0
    assert opened == [(run / "report.html").as_uri()]


def test_without_a_page_the_table_is_still_printed(run, capsys):
    (run / "report.html").unlink()
    assert _main(str(run)) == 0
    assert "report:" not in capsys.readouterr().out
    with pytest.raises(UserError, match="REPORT_NOT_FOUND"):
        _main(str(run), "--open")


def test_mistakes_are_one_line_with_a_hint(tmp_path):
    with pytest.raises(UserError, match="RUN_NOT_FOUND"):
        _main(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="RUN_NOT_FOUND"):
        _main(str(tmp_path))
    for text in ("not json", "[]", '{"arms": {}}', '{"table": []}', '{"table": 1}'):
        (tmp_path / "summary.json").write_text(text)
        with pytest.raises(UserError, match="SUMMARY_UNREADABLE") as caught:
            _main(str(tmp_path))
        assert caught.value.hint
        assert "\n" not in str(caught.value)
