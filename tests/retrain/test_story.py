"""Ten ticks under a simulated clock: better, worse and equal challengers, a late and a repeated."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest

from pipestill.data.split import input_key
from pipestill.errors import UserError, WorkError
from pipestill.retrain.ledger import Book
from pipestill.retrain.story import Run, play
from tests.retrain.scripted import START, WEEK, Trainer, fill, plot

COUNTS = (300, 300, 10, 300, 300, 300, 300, 0, 300, 300)
SKILLS = (0.85, 0.6, 0.85, 0.95, 0.95, 0.95, 0.99, 0.99)


def at(week):
    return START + week * WEEK


def ten_ticks(folder):
    """The fifth tick starts after the sixth, the eighth twice."""
    given, trainer = plot(folder), Trainer(*SKILLS)
    for week, count in enumerate(COUNTS):
        if count:
            fill(folder / "rows", week, count)
    late, again = at(5) + WEEK / 7, at(7) + WEEK / 7
    runs = [Run(tick=at(week)) for week in (0, 1, 2, 3, 5)]
    runs += [Run(tick=at(4), starts=late), Run(tick=at(6)), Run(tick=at(7))]
    runs += [Run(tick=at(7), starts=again), Run(tick=at(8)), Run(tick=at(9))]
    lines = []
    told = play(given, runs, train=trainer.train, compare=trainer.compare, say=lines.append)
    return given, trainer, told, lines


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    return ten_ticks(tmp_path_factory.mktemp("story"))


def test_every_tick_is_decided_once_and_rightly(story):
    _, trainer, told, lines = story
    assert [item["decision"] for item in told] == [
        "promote",  # 0.85 against 0.6: better
        "keep",  # 0.6 against 0.85: worse
        "not_trained",  # 10 new rows
        "cannot_tell",  # 0.85 again: equal
        "promote",  # the sixth tick comes before the fifth: 0.95
        "cannot_tell",  # the late fifth: 0.95 against what is in production by now
        "cannot_tell",
        "not_trained",  # nothing in the window
        "not_trained",  # the same tick once more
        "promote",  # 0.99
        "cannot_tell",
    ]
    assert trainer.skills == []
    assert len(lines) == 11
    assert "10 new rows, wanted 20" in told[2]["reason"]
    assert "decided already" in told[8]["reason"]


def test_a_late_tick_keeps_its_own_window(story):
    _, _, told, lines = story
    late = told[5]
    assert late["window"] == ["2026-01-26T03:00:00Z", "2026-02-02T03:00:00Z"]
    assert late["number"] == 6
    assert "started 2026-02-10T03:00:00Z" in lines[5]


def test_windows_join_without_gap_or_overlap(story):
    windows = sorted(tuple(item["window"]) for item in story[2])
    unique = sorted(set(windows))
    assert len(unique) == 10
    assert all(left[1] == right[0] for left, right in itertools.pairwise(unique))


def test_the_ledger_has_a_line_a_tick_and_the_alias_follows(story):
    book = Book.at(story[0].retrain_dir)
    entries = book.entries()
    assert [entry["number"] for entry in entries] == list(range(1, 11))
    assert len({entry["tick"] for entry in entries}) == 10
    promoted = [entry["tick"] for entry in entries if entry["decision"] == "promote"]
    alias = book.production()
    assert alias["tick"] == promoted[-1] == "20260302T030000Z"
    facts = json.loads((Path(book.root) / alias["model"] / "config.json").read_text())
    assert facts["skill"] == 0.99
    assert sorted(path.name for path in (Path(book.root) / "models").iterdir()) == promoted
    assert [entry["champion_tick"] for entry in entries[:2]] == ["", promoted[0]]


def test_judging_rows_are_never_trained_on(story):
    given, trainer, _, _ = story
    asked = {name for names in trainer.asked for name in names}
    trained = {row.id for rows in trainer.trained_on for row in rows}
    assert not {name.partition("/")[2] for name in asked} & trained
    frozen = Path(given.retrain_dir) / "regression.jsonl"
    keys = {
        input_key(json.loads(line)["input_text"])
        for line in frozen.read_text(encoding="utf-8").splitlines()
    }
    assert not keys & {input_key(row.input_text) for rows in trainer.trained_on for row in rows}
    assert len({sum(n.startswith("regression/") for n in names) for names in trainer.asked}) == 1


def test_rows_of_a_tick_that_did_not_train_come_with_the_next(story):
    _, trainer, _, _ = story
    third = trainer.trained_on[2]
    assert any(row.input_text.startswith("w2 ") for row in third)  # the ten of the skipped tick
    assert len(trainer.trained_on[1]) > len(trainer.trained_on[0])


@pytest.mark.slow
def test_the_story_is_the_same_every_time(story, tmp_path):
    again = ten_ticks(tmp_path)
    assert again[3] == story[3]
    one, other = (
        [
            {k: v for k, v in entry.items() if k not in ("champion", "manifest_digest", "previous")}
            for entry in Book.at(found[0].retrain_dir).entries()
        ]
        for found in (story, again)
    )
    assert one == other


def test_a_person_may_promote_and_it_is_recorded(tmp_path):
    given, trainer = plot(tmp_path), Trainer(0.6)
    fill(tmp_path / "rows", 0)
    (told,) = play(
        given,
        [Run(tick=at(0), reason="law changed, ticket 7")],
        train=trainer.train,
        compare=trainer.compare,
    )
    (entry,) = Book.at(given.retrain_dir).entries()
    assert told["decision"] == entry["decision"] == "promote"
    assert (entry["by_rules"], entry["override"]) == ("cannot_tell", "law changed, ticket 7")
    assert "the rules said: Cannot tell" in entry["sentence"]
    assert Book.at(given.retrain_dir).production()["tick"] == entry["tick"]


def test_a_champion_that_moved_meanwhile_is_not_replaced(tmp_path):
    """Two ticks at work at once: the second compared with a model that is gone."""
    given, trainer = plot(tmp_path), Trainer(0.85, 0.95, 0.95)
    for week in (0, 1):
        fill(tmp_path / "rows", week)

    def other_run(rows, folder):
        play(given, [Run(tick=at(0))], train=trainer.train, compare=trainer.compare)
        trainer.train(rows, folder)

    with pytest.raises(WorkError, match=r"CHAMPION_MOVED.*20260105T030000Z is in production"):
        play(given, [Run(tick=at(1))], train=other_run, compare=trainer.compare)
    book = Book.at(given.retrain_dir)
    assert [entry["tick"] for entry in book.entries()] == ["20260105T030000Z"]
    (told,) = play(given, [Run(tick=at(1))], train=trainer.train, compare=trainer.compare)
    assert told["decision"] == "promote"


def test_without_a_regression_set_the_first_tick_freezes_half_of_what_it_holds_out(tmp_path):
    given, trainer = plot(tmp_path), Trainer(0.85, 0.95)
    given = dataclasses.replace(given, evaluation_data_uri="")
    for week in (0, 1):
        fill(tmp_path / "rows", week, 900)
    told = play(
        given, [Run(tick=at(0)), Run(tick=at(1))], train=trainer.train, compare=trainer.compare
    )
    assert [item["decision"] for item in told] == ["promote", "promote"]
    first, second = trainer.asked
    frozen = [name for name in first if name.startswith("regression/")]
    assert 100 < len(frozen) < len(first) - 100
    assert frozen == [name for name in second if name.startswith("regression/")]


class Killed(Exception):
    pass


def test_a_run_that_dies_is_finished_by_its_repetition(tmp_path):
    given, trainer = plot(tmp_path), Trainer(0.85, 0.85)
    fill(tmp_path / "rows", 0)

    def dies(*_):
        raise Killed

    with pytest.raises(Killed):
        play(given, [Run(tick=at(0))], train=trainer.train, compare=dies)
    book = Book.at(given.retrain_dir)
    manifest = Path(book.tick("20260105T030000Z", "manifest.json")).read_bytes()
    fill(tmp_path / "rows", 0, 0).with_name("rows-2026-01-01.jsonl").write_text(
        '{"input_text": "too late", "output_text": "red"}\n'
    )
    fill(tmp_path / "rows", 0)  # as it was
    play(given, [Run(tick=at(0))], train=trainer.train, compare=trainer.compare)
    assert Path(book.tick("20260105T030000Z", "manifest.json")).read_bytes() == manifest
    assert not any(row.input_text == "too late" for row in trainer.trained_on[-1])
    assert book.production()["tick"] == "20260105T030000Z"


def test_a_death_between_ledger_and_alias_is_repaired(tmp_path):
    given, trainer = plot(tmp_path), Trainer(0.85)
    fill(tmp_path / "rows", 0)
    play(given, [Run(tick=at(0))], train=trainer.train, compare=trainer.compare)
    book = Book.at(given.retrain_dir)
    (Path(book.root) / "production.json").unlink()
    ledger = (Path(book.root) / "ledger.jsonl").read_bytes()
    (told,) = play(given, [Run(tick=at(0))], train=trainer.train, compare=trainer.compare)
    assert (told["decision"], told["trained"]) == ("promote", False)
    assert book.production()["number"] == 1
    assert (Path(book.root) / "ledger.jsonl").read_bytes() == ledger


def test_a_changed_window_is_refused(tmp_path):
    given, trainer = plot(tmp_path), Trainer(0.85)
    path = fill(tmp_path / "rows", 0)

    def changes(rows, folder):
        path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
        raise Killed

    with pytest.raises(Killed):
        play(given, [Run(tick=at(0))], train=changes, compare=trainer.compare)
    with pytest.raises(UserError, match=r"WINDOW_CHANGED.*rows-2025-12-31.jsonl"):
        play(given, [Run(tick=at(0))], train=trainer.train, compare=trainer.compare)


def test_not_worse_is_enough_where_that_is_asked(tmp_path):
    given, trainer = plot(tmp_path), Trainer(0.6)
    gate = dataclasses.replace(given.gate, gate_require="not_worse", gate_margin=0.06)
    fill(tmp_path / "rows", 0)
    (told,) = play(
        dataclasses.replace(given, gate=gate),
        [Run(tick=at(0))],
        train=trainer.train,
        compare=trainer.compare,
    )
    assert told["decision"] == "promote"
