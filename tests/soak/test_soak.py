"""The reliability suite itself: a little of each group, and that every group can fail."""

import json
import random
import sys
import types

import pytest

from benchmarks.soak import __main__ as soak
from benchmarks.soak import checkpoint, clock, data, doubled, hostile, kill, teacher
from benchmarks.soak.children import call
from benchmarks.soak.outcome import differences
from benchmarks.soak.served import short_waits
from benchmarks.soak.tally import Tally, table
from benchmarks.soak.tiny_pipelines import CONFIGURATIONS
from pipestill.errors import UserError
from pipestill.pipelines import PIPELINES

pytestmark = pytest.mark.slow


@pytest.fixture
def tally():
    return Tally("test")


@pytest.fixture
def dice():
    return random.Random(1)


def whole(tally):
    assert tally.whole, table([tally])
    assert tally.lost == tally.paid_twice == 0


def test_damaged_lines_and_files(tmp_path, dice, tally):
    data.fuzz_lines(tmp_path, dice, tally, 600)
    data.fuzz_files(tmp_path, dice, tally, 60)
    data.cut_shards(tmp_path, dice, tally)
    whole(tally)
    assert tally.injected > 400


def test_a_row_that_is_lost_or_in_the_wrong_place_is_seen(tmp_path, dice, tally):
    told = list(data.cases(dice, 300))
    path, out = tmp_path / "rows.jsonl", tmp_path / "out"
    path.write_bytes(b"\n".join(case.line for case in told))
    data.prepared(path, out)
    kept = (tmp_path / "out.train").read_text(encoding="utf-8").split("\n")
    (tmp_path / "out.train").write_text("\n".join(kept[1:]), encoding="utf-8")
    data.compare(told, path, out, tally)
    assert tally.lost == 1
    assert not tally.whole


def test_flipped_and_half_written_state(tmp_path, dice, tally):
    checkpoint.flipped_bits(tmp_path / "flips", dice, tally, 40)
    checkpoint.cut_journal(tmp_path / "journal", tally)
    checkpoint.cut_ledger(tmp_path / "ledger", tally)
    checkpoint.half_written_store(tmp_path / "store", dice, tally)
    whole(tally)


def test_a_bad_teacher(tmp_path, dice, tally):
    with short_waits():
        teacher.each_kind(tmp_path / "kinds", tally, ("deep", "twice", "drips for ever"))
        teacher.all_kinds(tmp_path / "mixed", dice, tally, 40)
    whole(tally)


def test_an_answer_at_the_wrong_row_is_seen(tmp_path, tally):
    out = tmp_path / "out.jsonl"
    rows = [{"id": "a0", "output_text": "a1"}, {"id": "a1", "output_text": "a1"}]
    out.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "out.jsonl.failed.jsonl").write_text("")
    assert teacher.results(out, 3) == (1, 1)


def test_the_same_step_twice(tmp_path, dice, tally):
    (tmp_path / "label").mkdir()
    with short_waits():
        doubled.labelling(tmp_path / "label", dice, tally, killed=False)
    doubled.ledgers(tmp_path / "ledgers", tally)
    whole(tally)


def test_a_wrong_clock(tmp_path, dice, tally):
    clock.journals(tmp_path / "journal", dice, tally, 2)
    clock.schedules(tmp_path / "ticks", dice, tally, 1)
    clock.logs(tmp_path / "requests", dice, tally, 1)
    whole(tally)


def test_hostile_texts_and_parameters(tmp_path, tally):
    hostile.texts(tmp_path / "texts", tally)
    hostile.parameters(tmp_path / "parameters", tally)
    whole(tally)


def test_a_page_that_could_run_something_is_seen():
    assert hostile.Page("<p>&lt;script&gt;</p><svg></svg>").bad == []
    assert len(hostile.Page("<script>1</script><img src=http://x onerror=y>").bad) == 3


def test_kills_in_a_whole_pipeline(tmp_path, dice, tally):
    kill.run(tmp_path, dice, tally, 5.0, ("batch_predict",))
    whole(tally)
    assert tally.facts["steps"] == "4 of 4 steps of 1 pipelines hit"
    assert "NOT COVERED" not in tally.facts["batch_predict"]
    calm, killed = (tmp_path / "batch_predict" / name for name in ("calm", "killed"))
    (changed, *_) = killed.glob("artifacts/*/collect-predictions/predictions")
    changed.write_text(changed.read_text(encoding="utf-8").replace("b1", "b9"), encoding="utf-8")
    assert any("predictions" in line for line in differences(calm, killed))


def test_every_pipeline_has_a_tiny_configuration():
    assert set(CONFIGURATIONS) == set(PIPELINES)


def test_what_a_child_did_is_told(tmp_path):
    def user():
        raise UserError("X", "found it")

    assert call(lambda: 3, tmp_path / "a.log").value == 3
    assert call(user, tmp_path / "b.log").clear
    assert call(lambda: 1 / 0, tmp_path / "c.log").told == "ZeroDivisionError: division by zero"
    hung = call(lambda: __import__("time").sleep(9), tmp_path / "d.log", 0.2)
    assert not hung.clear


def broken(*_):
    raise RuntimeError("the group broke")


@pytest.mark.parametrize(
    ("group", "code"),
    [
        (lambda f, d, tally, m: tally.fault("fine", True), 0),
        (lambda f, d, tally, m: tally.fault("not fine", False), 1),
        (lambda f, d, tally, m: tally.fault("a row lost", True, lost=1), 1),
        (lambda f, d, tally, m: tally.fault("paid twice", True, twice=1), 1),
        (lambda f, d, tally, m: tally.faults("many", 3, ["one of them"]), 1),
        (lambda f, d, tally, m: None, 1),
        (broken, 1),
    ],
)
def test_the_exit_code_follows_the_faults(tmp_path, monkeypatch, capsys, group, code):
    module = types.ModuleType("soak_test_group")
    module.run = group
    monkeypatch.setitem(sys.modules, "soak_test_group", module)
    monkeypatch.setitem(soak.GROUPS, "data", "soak_test_group")
    path = tmp_path / "soak.json"
    assert soak.main(["--only", "data", "--json", str(path)]) == code
    found = json.loads(path.read_text())
    assert found["whole"] is (code == 0)
    assert ("NOT SURVIVED" in capsys.readouterr().out) is bool(code)
