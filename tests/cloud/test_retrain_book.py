"""Retraining with its folder and its rows in Cloud Storage: the whole story, and two writers."""

import json
from datetime import UTC, datetime

import pytest

from pipestill.errors import UserError
from pipestill.evaluation.gate import KEEP, PROMOTE
from pipestill.retrain import store
from pipestill.retrain.ledger import Book
from pipestill.retrain.story import Run, play
from tests.cloud.fake_storage import FakeStorage, led_to
from tests.retrain.scripted import START, WEEK, Trainer, fill, plot

NOW = datetime(2026, 1, 5, 3, tzinfo=UTC)


@pytest.fixture
def bucket(monkeypatch):
    """An empty Cloud Storage with the bucket ``gs://box``."""
    with FakeStorage() as fake:
        yield led_to(fake, monkeypatch)


def facts(tick, decision=KEEP):
    return {"tick": tick, "end": "2026-01-05T03:00:00Z", "decision": decision, "sentence": "s",
            "model": f"models/{tick}", "model_digest": "d"}  # fmt: skip


def test_the_story_leaves_the_same_ledger_in_a_bucket_as_in_a_folder(bucket, tmp_path):
    told = {}
    for place in ("gs://box/book", ""):
        folder = tmp_path / (place[-4:] or "local")
        words = {"retrain_dir": place, "work_dir": str(folder / "work")} if place else {}
        given, trainer = plot(folder, **words), Trainer(0.85, 0.6)
        for week in (0, 1):
            fill(folder / "rows", week)
        runs = [Run(tick=START), Run(tick=START + WEEK), Run(tick=START + WEEK)]

        def compare(challenger, champion, rows, predictions, trainer=trainer):
            local = champion.replace("/gcs/box/book", str(tmp_path / "mount"))
            trainer.compare(challenger, local, rows, predictions)

        for run in runs:
            found = play(given, [run], train=trainer.train, compare=compare)
            told.setdefault(place, []).extend(item["decision"] for item in found)
            for name in bucket.names():  # what the platform mounts
                path = tmp_path / "mount" / name.removeprefix("box/book/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(bucket.data(name))
    assert told["gs://box/book"] == told[""] == ["promote", "keep", "keep"]
    assert bucket.names() == [
        "box/book/ledger.jsonl",
        "box/book/models/20260105T030000Z/config.json",
        "box/book/production.json",
        "box/book/regression.jsonl",
        "box/book/ticks/20260105T030000Z/manifest.json",
        "box/book/ticks/20260105T030000Z/train.jsonl",
        "box/book/ticks/20260112T030000Z/manifest.json",
        "box/book/ticks/20260112T030000Z/train.jsonl",
    ]
    book = Book.at("gs://box/book")
    assert book.model_of(book.production()) == "/gcs/box/book/models/20260105T030000Z"


def test_of_two_writers_none_is_lost(bucket, monkeypatch):
    """Another run appends between our reading and our writing."""
    from pipestill.cloud import objects

    write, others = objects.write_bytes, [1]

    def slow(uri, data, generation=None):
        if others and uri.endswith("ledger.jsonl"):
            others.pop()
            Book.at("gs://box/book").append(facts("other"), NOW)
        return write(uri, data, generation)

    monkeypatch.setattr(objects, "write_bytes", slow)
    entry, new = Book.at("gs://box/book").append(facts("mine"), NOW)
    assert (new, entry["number"]) == (True, 2)
    assert [item["tick"] for item in Book.at("gs://box/book").entries()] == ["other", "mine"]


def test_the_same_tick_at_once_is_entered_once(bucket, monkeypatch):
    from pipestill.cloud import objects

    write, others = objects.write_bytes, [1]

    def slow(uri, data, generation=None):
        if others and uri.endswith("ledger.jsonl"):
            others.pop()
            Book.at("gs://box/book").append(facts("t1", PROMOTE), NOW)
        return write(uri, data, generation)

    monkeypatch.setattr(objects, "write_bytes", slow)
    entry, new = Book.at("gs://box/book").append(facts("t1"), NOW)
    assert (new, entry["decision"]) == (False, PROMOTE)


def test_the_alias_never_goes_back_though_two_move_it(bucket, monkeypatch):
    from pipestill.cloud import objects

    book = Book.at("gs://box/book")
    entries = [book.append(facts(f"t{n}", PROMOTE), NOW)[0] for n in (1, 2)]
    write, others = objects.write_bytes, [1]

    def slow(uri, data, generation=None):
        if others and uri.endswith("production.json"):
            others.pop()
            assert book.point(entries[1])
        return write(uri, data, generation)

    monkeypatch.setattr(objects, "write_bytes", slow)
    assert not book.point(entries[0])
    assert json.loads(store.read(book.uri("production.json")))["tick"] == "t2"


def test_creation_and_files(bucket, tmp_path):
    assert store.read("gs://box/x") is None
    assert store.create("gs://box/x", b"one")
    assert not store.create("gs://box/x", b"two")
    assert store.read("gs://box/x") == b"one"
    with store.local("gs://box/x") as path:
        assert path.read_bytes() == b"one"
    with store.local("gs://box/none") as path:
        assert path is None


def test_a_bucket_that_is_not_there_is_one_line(bucket):
    with pytest.raises(UserError, match=r"gs://other|other") as error:
        Book.at("gs://other/book").append(facts("t1"), NOW)
    assert "\n" not in str(error.value)
