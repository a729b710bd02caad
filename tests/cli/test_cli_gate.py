"""`pipestill gate`: decision, exit code, table, JSON, ledger, and one line for every mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipestill.cli.gate import TESTS
from pipestill.cli.main import main
from pipestill.cloud import ledger
from pipestill.evaluation import gate_pairs
from pipestill.records import Prediction, write_jsonl


def answer(at, arm, correct, seed=-1, **more):
    return Prediction(
        id=f"row-{at}", arm=arm, seed=seed, input_text=f"{'word ' * (at % 9)}{at}",
        gold=("yes", "no")[at % 2], output_text="", correct=correct, prompt_tokens=1,
        output_tokens=1, **more,
    )  # fmt: skip


@pytest.fixture
def answers(tmp_path):
    """Makes two files of answers: so many rows won, lost, and right in both."""

    def make(name, won, lost, both):
        files = []
        for arm in ("new", "old"):
            wrong = range(won, won + lost) if arm == "new" else range(won)
            rows = [answer(at, arm, at not in wrong) for at in range(won + lost + both)]
            files.append(tmp_path / f"{name}_{arm}.jsonl")
            write_jsonl(files[-1], rows)
        return [str(file) for file in files]

    return make


def gate(*words):
    return main(["gate", *words])


def rows_of(file):
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def pair(files):
    return ["--new", files[0], "--old", files[1]]


def test_a_better_model_is_promoted(answers, capsys):
    assert gate(*pair(answers("a", 60, 10, 500))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["task", "rows", "new", "old"]
    assert "+8.8 (+6.1 to +11.8)" in lines[1]
    assert lines[-1] == "Promote: all 3 rules pass."
    assert all(len(line) <= 120 for line in lines)


@pytest.mark.parametrize(
    ("won", "lost", "word"), [(10, 60, "Keep the old model"), (10, 10, "Cannot tell")]
)
def test_anything_else_ends_with_one(answers, capsys, won, lost, word):
    assert gate(*pair(answers("a", won, lost, 300))) == 1
    assert word in capsys.readouterr().out


def test_what_was_not_found_comes_with_the_power(answers, capsys):
    assert gate(*pair(answers("a", 5, 4, 65)), "--min-rows", "50") == 1
    out = capsys.readouterr().out
    assert "With 74 rows a gain of 3 points would be found in 11 % of runs" in out
    assert "80 % needs about 1,200 rows." in out


def test_several_tasks(answers, capsys):
    files = {"a": answers("a", 60, 10, 500), "b": answers("b", 10, 10, 2000)}
    words = [word for name, two in files.items() for word in ("--task", f"{name}={','.join(two)}")]
    assert gate(*words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["decision"] == "promote"
    a = found["tasks"]["a"]
    assert a["p_holm"] == pytest.approx(2 * a["p_better"])
    assert found["tasks"]["b"]["p_holm"] > 0.025
    assert len(found["files"]["a"]["new"]["sha256"]) == 64
    assert gate(*words, "--primary", "b") == 1
    assert gate(*words, "--primary", "b", "--require", "not_worse") == 0


@pytest.mark.parametrize("test", TESTS)
def test_every_test_sees_a_clear_gain(answers, test):
    assert gate(*pair(answers("a", 60, 10, 500)), "--test", test) == 0


def test_the_tests_are_the_librarys():
    assert TESTS == gate_pairs.TESTS


def test_slices_veto(answers, tmp_path, capsys):
    files = answers("a", 60, 12, 600)
    for file in files:
        rows = rows_of(file)
        for at, row in enumerate(rows):
            row["tongue"] = "fr" if 60 <= at < 100 else "en"
        write_jsonl(file, rows)
    assert gate(*pair(files)) == 0
    assert gate(*pair(files), "--slices", "label,length") == 0
    capsys.readouterr()
    assert gate(*pair(files), "--slices", "tongue") == 1
    assert "tongue fr: 0 won and 12 lost of 40 rows" in capsys.readouterr().out


def test_one_file_with_several_arms_and_seeds(tmp_path, capsys):
    rows = [answer(at, "base", at % 3 > 0) for at in range(300)]
    rows += [answer(at, "tuned", at % 10 > 0, seed=seed) for at in range(300) for seed in (0, 1)]
    file = str(tmp_path / "all.jsonl")
    write_jsonl(file, rows)
    assert gate("--new", f"{file}#tuned#1", "--old", f"{file}#base") == 0
    assert gate("--new", f"{file}#tuned", "--old", f"{file}#base") == 2
    assert "base#-1, tuned#0, tuned#1" in capsys.readouterr().err


def test_the_folder_of_a_run_will_do(answers, tmp_path):
    new, old = answers("a", 60, 10, 500)
    run = tmp_path / "run"
    for at, name in enumerate(("first", "second")):
        file = run / "artifacts" / f"evaluate-{name}" / "evaluate-models" / "predictions"
        write_jsonl(file, rows_of(old) + rows_of(new if at else old))
        os.utime(file, (at + 1, at + 1))
    assert gate("--new", f"{run}#new", "--old", f"{run}#old") == 0
    assert gate("--new", str(tmp_path), "--old", old) == 2  # a folder of nobody's run


def test_plain_rows_will_do(tmp_path):
    files = [tmp_path / "n.jsonl", tmp_path / "o.jsonl"]
    for side, file in enumerate(files):
        write_jsonl(file, [{"id": at, "correct": int(at % 5 > 2 * side)} for at in range(300)])
    assert gate(*pair([str(file) for file in files])) == 0


def test_an_override_promotes_and_is_recorded(answers, tmp_path, capsys):
    book = str(tmp_path / "book" / "gate.jsonl")
    words = [*pair(answers("a", 10, 60, 300)), "--ledger", book]
    assert gate(*words) == 1
    assert gate(*words, "--override", "  Ada has read\n all 70 answers ") == 0
    assert "entry 2" in capsys.readouterr().out
    first, second = ledger.read(book)
    assert (first["decision"], first["override"]) == ("keep", "")
    assert (second["decision"], second["by_rules"]) == ("promote", "keep")
    assert second["override"] == "Ada has read all 70 answers"
    assert second["who"]
    assert second["recorded"].endswith("Z")
    assert [rule["outcome"] for rule in second["rules"]] == ["fail", "pass", "fail"]
    assert second["files"] == first["files"]


def test_a_ledger_that_was_changed_stops_the_promotion(answers, tmp_path, capsys):
    book = tmp_path / "gate.jsonl"
    words = [*pair(answers("a", 60, 10, 500)), "--ledger", str(book)]
    assert gate(*words) == gate(*words) == 0
    book.write_text(book.read_text().replace("promote", "keep", 1))
    assert gate(*words) == 2
    assert "LEDGER_BROKEN" in capsys.readouterr().err


def one_line(capsys, code):
    err = capsys.readouterr().err
    assert err.startswith(f"error [{code}] ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], "GATE_TASKS"),
        (["--new", "NEW"], "GATE_TASKS"),
        (["--new", "NEW", "--old", "OLD", "--task", "a=NEW,OLD"], "GATE_TASKS"),
        (["--task", "NEW,OLD"], "GATE_TASKS"),
        (["--task", "a=NEW"], "GATE_TASKS"),
        (["--task", "a=NEW,OLD", "--task", "a=NEW,OLD"], "GATE_TASKS"),
        (["--new", "NEW", "--old", "OLD", "--override", "because"], "GATE_OVERRIDE"),
        (["--new", "NEW", "--old", "OLD", "--override", " ", "--ledger", "l"], "GATE_OVERRIDE"),
        (["--new", "NEW", "--old", "OLD", "--margin", "0"], "GATE_SETTING"),
        (["--new", "NEW", "--old", "OLD", "--margin", "nan"], "GATE_SETTING"),
        (["--new", "NEW", "--old", "OLD", "--min-rows", "0"], "GATE_SETTING"),
        (["--new", "NEW", "--old", "OLD", "--primary", "x"], "GATE_SETTING"),
        (["--new", "NEW", "--old", "OLD", "--slices", "colour"], "SLICE_UNKNOWN"),
        (["--new", "NEW", "--old", "nothing.jsonl"], "PREDICTIONS_FILE"),
        (["--new", "NEW#other", "--old", "OLD"], "PREDICTIONS_ARM"),
        (["--new", "NEW", "--old", "SHORT"], "ROWS_DIFFER"),
        (["--new", "NEW", "--old", "BAD"], "PREDICTIONS_ROW"),
        (["--new", "NEW", "--old", "TWICE"], "PREDICTIONS_TWICE"),
        (["--new", "NEW", "--old", "CHANGED"], "ROWS_DIFFER"),
        (["--new", "NEW", "--old", "EMPTY"], "PREDICTIONS_ARM"),
    ],
)
def test_mistakes_are_one_line_and_end_with_two(answers, tmp_path, capsys, words, code):
    new, old = answers("a", 10, 10, 100)
    rows = rows_of(old)
    made = {
        "SHORT": rows[:-1],
        "TWICE": [*rows, rows[0]],
        "CHANGED": [{**rows[0], "gold": "another"}, *rows[1:]],
        "BAD": [*rows, {"id": "x", "correct": "yes"}],
        "EMPTY": [],
    }
    names = {"NEW": new, "OLD": old}
    for name, found in made.items():
        names[name] = str(tmp_path / f"{name}.jsonl")
        write_jsonl(names[name], found)
    for short in sorted(names, key=len, reverse=True):
        words = [word.replace(short, names[short]) for word in words]
    assert gate(*words) == 2
    one_line(capsys, code)


def test_deep_json_is_a_bad_row_and_no_crash(answers, tmp_path, capsys):
    new, _ = answers("a", 10, 10, 100)
    deep = tmp_path / "deep.jsonl"
    deep.write_bytes(b"[" * 100_000 + b"\n\xff\n")
    assert gate("--new", new, "--old", str(deep)) == 2
    one_line(capsys, "PREDICTIONS_ROW")


def test_help_names_the_exit_codes():
    done = subprocess.run(
        [sys.executable, "-m", "pipestill.cli.main", "gate", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "0 promote, 1 keep or cannot tell, 2 wrong input" in " ".join(done.stdout.split())
