"""One arm's curve: its rows, the search of its rate, and that nothing is trained twice."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipestill.config import CurveConfig, EvalConfig, TrainConfig
from pipestill.errors import UserError, WorkError
from pipestill.models.student import INFO_FILE, Student
from pipestill.records import Example, Labelled, Prediction, read_jsonl, write_jsonl
from pipestill.training import curve_students, loop, parts
from pipestill.training.curve import _best, train_curve
from pipestill.training.curve_rows import ARMS, grid_of, rows_of, share_of
from pipestill.training.objectives import OBJECTIVES
from pipestill.training.student import split
from tests.training.tiny import COLOURS, config, make_folder, make_rows

CURVE = CurveConfig(shares="0.25,1", seeds="0,1", learning_rates="0.001,0.003", search_seed=9)
EVAL = EvalConfig(eval_batch_size=8, max_output_tokens=8)


def taught_rows(count: int) -> list[Labelled]:
    """Rows after the teacher: a quarter of its answers are wrong, each row has its rationale."""
    return [
        dataclasses.replace(
            row,
            teacher_label=row.output_text if i % 4 else "violet",
            rationale=row.rationale or f"row {i} says so",
            rationale_status="kept",
        )
        for i, row in enumerate(make_rows(count, every=0))
    ]


def held_out(count: int = 6) -> list[Example]:
    return [
        Example(id=f"h{i}", input_text="a b " * (1 + i % 3), output_text=COLOURS[i % 3])
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_folder("t5_tied", tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(tmp_path, model):
    write_jsonl(tmp_path / "rows.jsonl", taught_rows(24))
    write_jsonl(tmp_path / "held_out.jsonl", held_out())

    def call(out="out", arm="dss", state="", curve=CURVE, **changes):
        target = tmp_path / out
        summary = train_curve(
            tmp_path / "rows.jsonl", tmp_path / "held_out.jsonl",
            target / "predictions.jsonl", target / "student",
            arm=arm, state_dir=str(tmp_path / state) if state else "", curve=curve,
            config=config(student_model_reference=model, train_steps=4, **changes),
            evaluation=EVAL, metric="exact",
        )  # fmt: skip
        return summary, (target / "predictions.jsonl").read_bytes()

    return call


def same(summary):
    """What a resumed run has to repeat: all but times and where a figure came from."""
    drop = {"seconds", "from_journal", "resumed_from_step"}
    points = [{k: v for k, v in point.items() if k not in drop} for point in summary["points"]]
    return points, summary["rate_search"], summary["learning_rate"], summary["curves"]


@pytest.fixture
def trained(monkeypatch):
    """Every training that is begun: (run, share of rows, rate)."""
    calls = []

    def note(rows_path, folder, original=curve_students.train_student, **named):
        ids = [row.id for row in read_jsonl(rows_path, Labelled)]
        calls.append((named["run"], ids, named["config"].learning_rate))
        return original(rows_path, folder, **named)

    monkeypatch.setattr(curve_students, "train_student", note)
    return calls


# --- rows


ROWS = [
    Labelled(id="agrees", input_text="a", output_text="red", label_source="gold",
             teacher_label="Red.", rationale="because red"),
    Labelled(id="differs", input_text="b", output_text="red", label_source="gold",
             teacher_label="blue", rationale="because blue"),
    Labelled(id="silent", input_text="c", output_text="green", label_source="gold"),
    Labelled(id="ungold", input_text="d", output_text="blue", label_source="teacher",
             teacher_label="blue", rationale="because it is"),
]  # fmt: skip
WANTED = {
    "finetune": ({"agrees": ["red"], "differs": ["red"], "silent": ["green"]}, 1),
    "distillation": ({"agrees": ["Red."], "differs": ["blue"], "ungold": ["blue"]}, 1),
    "dss": (
        {"agrees": ["red", "because red"], "differs": ["red"], "silent": ["green"]}, 1,
    ),
    "dss_teacher": (
        {"agrees": ["Red.", "because red"], "differs": ["blue", "because blue"],
         "ungold": ["blue", "because it is"]}, 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("arm", WANTED)
def test_an_arm_is_taught_its_own_labels_and_rationales(arm):
    rows, without = rows_of(arm, ROWS, "exact")
    targets = OBJECTIVES[ARMS[arm][1]](rows, 0)
    taught = {
        row.id: [target.label or target.rationale for target in found]
        for row, found in zip(rows, targets, strict=True)
    }
    assert (taught, without) == WANTED[arm]


def test_the_control_has_the_rationales_of_dss_and_none_at_its_own_row():
    rows, _ = rows_of("shuffled", taught_rows(24), "exact")
    assert rows == rows_of("dss", taught_rows(24), "exact")[0]
    own = {row.id: row.rationale for row in rows if row.rationale}
    assert 0 < len(own) < len(rows)
    given_now = {
        row.id: found[1].rationale
        for row, found in zip(rows, OBJECTIVES["shuffled"](rows, 0), strict=True)
        if len(found) > 1
    }
    assert sorted(given_now.values()) == sorted(own.values())
    assert all(own[name] != text for name, text in given_now.items())


@pytest.mark.parametrize("pair", [("finetune", "dss"), ("distillation", "dss_teacher")])
def test_with_and_without_rationales_the_rows_are_the_same(pair):
    first, second = (rows_of(arm, ROWS, "exact")[0] for arm in pair)
    assert first == second


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 90),
    st.floats(0.0, 0.6),
    st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)).map(sorted),
)
def test_smaller_shares_lie_inside_larger_ones(count, fraction, shares):
    rows = make_rows(count)
    small, large = (split(share_of(rows, share, fraction), fraction) for share in shares)
    whole = split(share_of(rows, 1.0, fraction), fraction)
    for part in (0, 1):  # training rows, validation rows
        ids = [{row.id for row in parts[part]} for parts in (small, large, whole)]
        assert ids[0] <= ids[1] <= ids[2]
    assert sum(map(len, whole)) == count
    assert sum(map(len, small)) == min(count, max(2, round(shares[0] * count)))


def test_a_share_keeps_the_order_of_rows_and_is_not_its_beginning():
    rows = make_rows(40)
    chosen = [row.id for row in share_of(rows, 0.5, 0.1)]
    assert chosen == [row.id for row in rows if row.id in set(chosen)]
    assert chosen != [row.id for row in rows[:20]]


def test_lists_are_read_with_and_without_brackets():
    grid = grid_of(CurveConfig(shares="[1, 0.5]", seeds="[2.0, 0]"), TrainConfig())
    assert (grid.shares, grid.seeds, grid.rates) == ([0.5, 1.0], [2, 0], [])


@pytest.mark.parametrize(
    "changes",
    [
        {"shares": ""}, {"shares": "0,1"}, {"shares": "1.5,1"}, {"shares": "half"},
        {"shares": "0.5"}, {"seeds": ""}, {"seeds": "-1"}, {"seeds": "0.5"},
        {"learning_rates": "-1"}, {"learning_rates": "fast"}, {"search_seed": 0},
        {"deploy_share": 0.3},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(UserError, match="CONFIG_VALUE"):
        grid_of(dataclasses.replace(CurveConfig(), **changes), TrainConfig())


def test_rates_cannot_be_compared_without_validation_rows():
    without = TrainConfig(validation_fraction=0.0)
    with pytest.raises(UserError, match="validation_fraction"):
        grid_of(CurveConfig(), without)
    assert grid_of(CurveConfig(learning_rates="0.01"), without).rates == [0.01]


# --- the search


def test_the_smallest_validation_loss_wins_and_of_equals_the_smaller_rate():
    def trials(*pairs):
        return [{"learning_rate": rate, "validation_loss": loss} for rate, loss in pairs]

    assert _best("dss", trials((1.0, 0.5), (2.0, 0.4), (3.0, 0.6))) == 2.0
    assert _best("dss", trials((3.0, 0.4), (1.0, 0.4), (2.0, 0.4))) == 1.0
    assert _best("dss", trials((1.0, None), (2.0, 9.0))) == 2.0
    with pytest.raises(WorkError, match="LOSS_NOT_FINITE"):
        _best("dss", trials((1.0, None)))


def test_no_held_out_row_has_a_part_in_the_search(run, tmp_path, trained, monkeypatch):
    first, answers = run(out="a")
    assert [ids for _, ids, _ in trained if any(name.startswith("h") for name in ids)] == []
    assert trained[0][0] == trained[1][0] == "dss:9"
    assert len(trained[0][1]) == 24
    # Other held-out rows with other answers: the same trials, the same rate.
    other = [dataclasses.replace(row, id=f"x{row.id}", output_text="zzz") for row in held_out()]
    write_jsonl(tmp_path / "held_out.jsonl", other)
    second, others = run(out="b")
    assert answers != others
    assert first["rate_search"] == second["rate_search"]
    assert first["learning_rate"] == second["learning_rate"]


def test_a_rate_that_diverges_does_not_count(run):
    grid = dataclasses.replace(CURVE, learning_rates="0.001,1e30", shares="1", seeds="0")
    summary, _ = run(curve=grid)
    assert summary["learning_rate"] == 0.001
    assert [item["validation_loss"] is None for item in summary["rate_search"]] == [False, True]


def test_without_rates_the_recommended_one_and_its_neighbours_are_tried(run):
    grid = dataclasses.replace(CURVE, learning_rates="", shares="1", seeds="0")
    summary, _ = run(curve=grid, learning_rate=0.006, learning_rate_multiplier=0.5)
    assert [item["learning_rate"] for item in summary["rate_search"]] == [0.001, 0.003, 0.009]


def test_a_single_rate_needs_no_trial(run, trained):
    summary, _ = run(curve=dataclasses.replace(CURVE, learning_rates="0.002", shares="1"))
    assert summary["rate_search"] == []
    assert summary["learning_rate"] == 0.002
    assert [(name, rate) for name, _, rate in trained] == [("dss:0", 0.002), ("dss:1", 0.002)]


# --- the curve


def test_the_summary_the_answers_and_the_student(run, tmp_path, trained, capsys):
    summary, _ = run(arm="shuffled")
    json.dumps(summary)
    points = summary["points"]
    assert [(p["share"], p["seed"], p["rows"]) for p in points] == [
        (0.25, 0, 6), (0.25, 1, 6), (1.0, 0, 24), (1.0, 1, 24)
    ]  # fmt: skip
    assert all(p["steps"] == 4 and p["validation_loss"] > 0 for p in points)
    assert points[2]["rationale_rows"] > points[0]["rationale_rows"]
    assert not any(p["from_journal"] for p in points)
    answers = list(read_jsonl(tmp_path / "out" / "predictions.jsonl", Prediction))
    assert [(a.arm, a.seed) for a in answers[::6]] == [
        ("shuffled:0.25", 0), ("shuffled:0.25", 1), ("shuffled:1", 0), ("shuffled:1", 1)
    ]  # fmt: skip
    assert [a.id for a in answers[:6]] == [f"h{i}" for i in range(6)]
    for at, point in enumerate(points):
        right = sum(a.correct for a in answers[6 * at : 6 * at + 6])
        assert point["accuracy"] == pytest.approx(right / 6)
    assert list(summary["curves"]) == [
        "shuffled:0.25:0", "shuffled:0.25:1", "shuffled:1:0", "shuffled:1:1"
    ]  # fmt: skip
    assert [entry[0] for entry in summary["curves"]["shuffled:1:0"]] == [1, 2, 3, 4]
    info = json.loads((tmp_path / "out" / "student" / INFO_FILE).read_text())
    assert (info["curve_arm"], info["curve_share"], info["seed"]) == ("shuffled", 1.0, 0)
    assert info["objective"] == "shuffled"
    found = Student.load(str(tmp_path / "out" / "student")).answer(
        [row.input_text for row in held_out()], batch_size=8, max_new_tokens=8
    )
    assert [item.text for item in found] == [a.output_text for a in answers[12:18]]
    assert summary["train_seconds"] == points[2]["seconds"]
    assert summary["all_seconds"] > sum(p["seconds"] for p in points)
    assert summary["bytes"] > 0
    assert summary["parameters"] > 0
    assert len(trained) == 6
    said = [x for x in capsys.readouterr().out.splitlines() if x.startswith("curve: ")]
    assert len(said) == 6
    assert said[2].startswith("curve: shuffled, share 0.25, seed 0: 3 of 6, ")


def test_an_arm_without_rows_says_why_and_kills_nothing(run, tmp_path, capsys):
    rows = [dataclasses.replace(row, label_source="teacher") for row in taught_rows(12)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    summary, predictions = run(arm="dss", out="none")
    assert summary["points"] == []
    assert "0 of 12 training rows have a gold label" in summary["error"]
    assert (summary["rows_available"], summary["rows_without_label"]) == (0, 12)
    assert predictions == b""
    assert list((tmp_path / "none" / "student").iterdir()) == []
    assert "not trained" in capsys.readouterr().out
    grid = dataclasses.replace(CURVE, shares="1", seeds="0", learning_rates="0.001")
    other, _ = run(arm="dss_teacher", out="some", curve=grid)
    assert "error" not in other
    assert other["rows_available"] == 12


def test_an_unknown_arm_is_refused(run):
    with pytest.raises(UserError, match=r"CONFIG_VALUE.*arm.*finetune"):
        run(arm="magic")


# --- going on


@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_killed_run_goes_on_at_the_next_student(run, tmp_path, trained, monkeypatch, after):
    whole, answers = run(out="whole")
    begun = len(trained)
    assert begun == 6
    counting = curve_students.train_student

    def kill(*args, **named):
        if len(trained) == begun + after:
            raise KeyboardInterrupt
        return counting(*args, **named)

    monkeypatch.setattr(curve_students, "train_student", kill)
    with pytest.raises(KeyboardInterrupt):
        run(out="again", state="state")
    monkeypatch.setattr(curve_students, "train_student", counting)
    summary, found = run(out="again", state="state")
    assert len(trained) == begun + 6
    second = [name for name, *_ in trained[begun:]]
    assert second == [name for name, *_ in trained[:begun]]
    assert found == answers
    assert same(summary) == same(whole)
    journal = [point["from_journal"] for point in summary["points"]]
    assert journal == [at < after - 2 for at in range(4)]


def test_a_student_that_was_trained_but_not_measured_is_not_trained_again(
    run, trained, monkeypatch
):
    original, calls = curve_students.answer_all, []

    def kill(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(curve_students, "answer_all", kill)
    with pytest.raises(KeyboardInterrupt):
        run(state="state")
    assert len(trained) == 4
    summary, found = run(state="state")
    assert len(trained) == 6
    assert found == run(out="whole")[1]
    assert [p["from_journal"] for p in summary["points"]] == [True, False, False, False]


def test_a_student_goes_on_from_its_checkpoint(run, monkeypatch):
    grid = dataclasses.replace(CURVE, learning_rates="0.002", shares="1", seeds="0")
    whole, answers = run(out="whole", curve=grid)

    def kill(job, rows, original=loop._one_step):
        if job.progress.step == 3:
            raise KeyboardInterrupt
        original(job, rows)

    monkeypatch.setattr(loop, "_one_step", kill)
    with pytest.raises(KeyboardInterrupt):
        run(out="again", state="state", curve=grid)
    monkeypatch.undo()
    summary, found = run(out="again", state="state", curve=grid)
    assert found == answers
    assert same(summary) == same(whole)
    assert summary["points"][0]["resumed_from_step"] == 2
    assert summary["restarts"] == {"dss:1:0": [2]}
    assert whole["restarts"] == {}


def test_a_finished_run_trains_nothing_and_still_hands_over_its_student(run, tmp_path, trained):
    _, answers = run(out="first", state="state")
    summary, found = run(out="second", state="state")
    assert len(trained) == 6
    assert found == answers
    assert all(point["from_journal"] for point in summary["points"])
    info = [
        json.loads((tmp_path / out / "student" / INFO_FILE).read_text())
        for out in ("first", "second")
    ]
    assert info[0] == info[1]
    Student.load(str(tmp_path / "second" / "student"))
    # No students lie about, but for the one that is handed over; no checkpoints either.
    kept = list((tmp_path / "state").rglob("*.safetensors"))
    assert len(kept) == 1


@pytest.mark.parametrize("what", ["document", "weights"])
def test_a_part_that_is_not_whole_is_made_again(run, tmp_path, trained, what):
    _, answers = run(state="state")
    (weights,) = (tmp_path / "state").rglob("*.safetensors")
    broken = weights if what == "weights" else Path(f"{weights.parent}.json")
    broken.write_bytes(broken.read_bytes()[:-9])
    _, found = run(state="state")
    assert found == answers
    assert [name for name, *_ in trained[6:]] == ["dss:0"]


def test_other_settings_rows_or_held_out_rows_are_not_taken_for_the_same(run, tmp_path, trained):
    grid = dataclasses.replace(CURVE, learning_rates="0.002", shares="1", seeds="0")
    run(state="state", curve=grid)
    run(state="state", curve=grid, alpha=0.25)
    write_jsonl(tmp_path / "held_out.jsonl", held_out(4))
    run(state="state", curve=grid)
    write_jsonl(tmp_path / "rows.jsonl", taught_rows(20))
    run(state="state", curve=grid)
    run(state="state", curve=grid, arm="shuffled")
    assert len(trained) == 5


# --- parts


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path):
    import fsspec

    yield str(tmp_path / "parts") if request.param == "disk" else "memory://bucket/state/parts"
    fsspec.filesystem("memory").store.clear()


def test_a_part_comes_back_with_its_files(place, tmp_path):
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "a.txt").write_text("a")
    (source / "deep" / "b.txt").write_text("b")
    assert parts.find(place, "x") is None
    parts.keep(place, "x", {"value": math.pi}, source)
    assert parts.find(place, "x", tmp_path / "back") == {"value": math.pi}
    found = {p.relative_to(tmp_path / "back") for p in (tmp_path / "back").rglob("*.txt")}
    assert {str(path) for path in found} == {"a.txt", "deep/b.txt"}
    parts.drop(place, "x")
    assert parts.find(place, "x", tmp_path / "back") is None


def test_a_part_s_files_stay_in_their_folder(tmp_path):
    parts.keep(str(tmp_path / "parts"), "x", {})
    (tmp_path / "secret").write_text("s")
    document = {"files": {"../../secret": "0"}, "value": {}}
    (tmp_path / "parts" / "x.json").write_text(json.dumps(document))
    assert parts.find(str(tmp_path / "parts"), "x", tmp_path / "a" / "b") is None
    assert not (tmp_path / "a" / "secret").exists()


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match="PART_NOT_KEPT"):
        parts.keep(str(tmp_path / "file" / "parts"), "x", {})
