"""The ledger only grows, and says where it was touched; the alias moves in one piece."""

import json
import multiprocessing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipestill.errors import UserError
from pipestill.retrain.ledger import Book
from tests.retrain.scripted import make_model

NOW = datetime(2026, 1, 5, 3, tzinfo=UTC)


def facts(tick, decision="keep", **more):
    return {"tick": tick, "end": "2026-01-05T03:00:00Z", "decision": decision, "sentence": "s",
            "model": f"models/{tick}", "model_digest": "d", **more}  # fmt: skip


def promoted(book, tick):
    make_model(Path(book.root) / "models" / tick, 0.5)
    entry, _ = book.append(facts(tick, "promote"), NOW)
    return entry


def test_a_tick_has_one_entry(tmp_path):
    book = Book.at(tmp_path)
    assert book.entries() == []
    entry, new = book.append(facts("t1"), NOW)
    assert new
    assert (entry["number"], entry["recorded"]) == (1, "2026-01-05T03:00:00Z")
    again, new = book.append(facts("t1", "promote"), NOW)
    assert not new
    assert again == entry
    assert book.append(facts("t2"), NOW)[0]["number"] == 2
    assert book.entry("t2")["previous"] != entry["previous"]


@pytest.mark.parametrize("harm", ["change", "drop", "cut", "swap"])
def test_a_touched_ledger_shows(tmp_path, harm):
    book = Book.at(tmp_path)
    for tick in ("t1", "t2", "t3"):
        book.append(facts(tick), NOW)
    path = tmp_path / "ledger.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    harmed = {
        "change": [lines[0].replace("keep", "promote"), *lines[1:]],
        "drop": [lines[0], lines[2]],
        "cut": [*lines[:2], lines[2][:30]],
        "swap": [lines[1], lines[0], lines[2]],
    }[harm]
    path.write_text("".join(harmed), encoding="utf-8")
    with pytest.raises(UserError, match=r"LEDGER_BROKEN.*line"):
        book.entries()
    with pytest.raises(UserError, match="LEDGER_BROKEN"):
        book.append(facts("t4"), NOW)


def _append(folder, name):
    for at in range(10):
        Book.at(folder).append(facts(f"{name}-{at % 7}"), NOW)


def test_several_processes_write_whole_lines(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append, args=(tmp_path, f"p{n % 2}")) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    entries = Book.at(tmp_path).entries()
    assert [entry["number"] for entry in entries] == list(range(1, 15))
    assert len({entry["tick"] for entry in entries}) == 14


def test_the_alias_moves_only_on_promotion_and_only_forward(tmp_path):
    book = Book.at(tmp_path)
    kept, _ = book.append(facts("t0"), NOW)
    first, second = promoted(book, "t1"), promoted(book, "t2")
    assert not book.point(kept)
    assert book.production() is None
    assert book.point(second)
    assert not book.point(first)
    alias = book.production()
    assert (alias["tick"], alias["number"]) == ("t2", 3)
    assert book.model_of(alias) == str(tmp_path / "models/t2")


def test_a_broken_alias_is_one_line(tmp_path):
    book = Book.at(tmp_path)
    (tmp_path / "production.json").write_text(
        json.dumps({"model": "models/gone", "tick": "t1", "number": 1})
    )
    with pytest.raises(UserError, match=r"ALIAS.*models/gone is no model's folder"):
        book.production()
    (tmp_path / "production.json").write_text("{")
    with pytest.raises(UserError, match=r"ALIAS.*no alias"):
        book.production()


def test_a_book_needs_a_place(tmp_path):
    with pytest.raises(UserError, match=r"RETRAIN_DIR.*none given"):
        Book.at("")
    assert Book.at("gs://bucket/retrain/").uri("a") == "gs://bucket/retrain/a"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        Book.at(tmp_path / "file" / "x")


def test_the_last_training_is_the_one_before_the_tick(tmp_path):
    book = Book.at(tmp_path)
    book.append(facts("t1"), NOW)
    book.append(facts("t3", "promote"), NOW)
    book.append(facts("t2", "not_trained"), NOW)
    assert book.last_trained("t3")["tick"] == "t1"
    assert book.last_trained("t4")["tick"] == "t3"
    assert book.last_trained("t1") is None
