"""`pipestill data`: what is printed, what is written, which exit code."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipestill.cli import data as cli
from pipestill.data.convert import CONVERTERS
from pipestill.data.detect import PARSERS
from pipestill.data.raw import REASONS
from pipestill.errors import UserError


def call(*words: object) -> int:
    parser = argparse.ArgumentParser()
    cli.configure(parser)
    return cli.main(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    bad = ['{"input_text": 3}', "{", '{"output_text": "x"}']
    good = [json.dumps({"input_text": f"q{n}", "output_text": n}) for n in range(4)]
    path.write_text("\n".join([*good, *bad]) + "\n")
    return path


def test_check_names_every_bad_row(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check", mixed, "--rejects", mixed.with_name("bad.jsonl")) == 2
    out = capsys.readouterr().out
    assert f"{mixed}:5 input_text: has the wrong type" in out
    assert "(found 3)" in out
    assert f"{mixed}:6 (row): is not valid JSON" in out
    assert f"{mixed}:7 input_text: is missing (found" in out
    assert out.splitlines()[0].split() == ["rows", "7"]
    assert len(mixed.with_name("bad.jsonl").read_text().splitlines()) == 3


def test_max_show(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check", mixed, "--max-show", 1) == 2
    out = capsys.readouterr().out
    assert ":6" not in out
    assert "and 2 more" in out


def test_check_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("q,a\none,1\ntwo,\n")
    assert call("check", path, "--input-field", "q", "--output-field", "a") == 0
    assert capsys.readouterr().out.count("without a label  ") == 1


def test_convert(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = mixed.with_name("out.jsonl")
    assert call("convert", mixed, out) == 2
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows == [{"input_text": f"q{n}", "output_text": str(n)} for n in range(4)]
    rejects = mixed.with_name("out.rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in rejects] == [5, 6, 7]
    assert "4 rows written" in capsys.readouterr().out
    assert call("check", out) == 0


def test_convert_keeps_preference_rows(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    row = {"input_text": "p", "candidate_0": "a", "candidate_1": "b", "choice": 0}
    path.write_text(json.dumps(row))
    assert call("convert", path, tmp_path / "o.jsonl", "--format", "preference") == 0
    assert json.loads((tmp_path / "o.jsonl").read_text()) == row


def test_convert_refuses_its_own_input(mixed: Path) -> None:
    before = mixed.read_bytes()
    with pytest.raises(UserError, match="OUT_IS_INPUT"):
        call("convert", mixed, mixed.parent / "." / "rows.jsonl")
    assert mixed.read_bytes() == before


def test_unwritable_output(mixed: Path) -> None:
    with pytest.raises(UserError, match="OUT_UNWRITABLE"):
        call("convert", mixed, mixed / "below" / "out.jsonl")


def test_a_failed_conversion_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"input_text": "a"}, ')
    with pytest.raises(UserError, match="DATA_JSON_BROKEN"):
        call("convert", path, tmp_path / "out.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_help_names_every_format() -> None:
    assert cli.FORMATS.split(", ") == ["auto", *PARSERS, *CONVERTERS]


def test_help_imports_nothing_of_ours() -> None:
    code = (
        "import sys; before = set(sys.modules); import pipestill.cli.data;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "assert new <= set(sys.stdlib_module_names) | {'pipestill'}, new;"
        "assert 'pipestill.config' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_documentation_names_every_reason_and_format() -> None:
    text = (Path(__file__).parents[2] / "docs" / "data-formats.md").read_text(encoding="utf-8")
    assert [name for name in (*REASONS, *PARSERS, *CONVERTERS) if f"`{name}`" not in text] == []


def test_audit_shows_what_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.training.tiny import make_folder

    model = make_folder("llama", tmp_path / "model")
    path = tmp_path / "rows.jsonl"
    path.write_text('{"input_text": "red dog", "output_text": "blue"}\n{"input_text": "x"}\n')
    assert call("audit", path, "--model", model, "--max-output-tokens", 32) == 0
    out = capsys.readouterr().out
    assert "red dog\n⟦blue</s>⟧" in out
    assert "1 rows audited" in out
    long = {"input_text": "word " * 99, "output_text": "blue"}
    path.write_text(json.dumps(long))
    with pytest.raises(UserError, match=r"AUDIT_INPUT_CUT.*rows.jsonl:1"):
        call("audit", path, "--model", model, "--max-output-tokens", 32, "--max-context-length", 20)
