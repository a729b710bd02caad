"""The cheap step in front: reasons, figures, windows and what is refused."""

import json
import os
from datetime import UTC, datetime

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipestill.config import DataConfig
from pipestill.data import source
from pipestill.errors import UserError
from pipestill.records import Example
from pipestill.retrain.decide import look, skip, worth_training
from pipestill.retrain.ledger import Book
from pipestill.retrain.rows import gather
from pipestill.retrain.settings import GateRule, TrainingRule, check
from pipestill.retrain.store import create
from pipestill.retrain.window import parse_time, read_manifest, time_of
from tests.retrain.scripted import START, fill, write_rows


def rows(count, word="w", label="a"):
    return [
        Example(id=f"{word}{at}", input_text=f"{word} {at % 7} x", output_text=label)
        for at in range(count)
    ]


RULE = TrainingRule(min_new_rows=100, least_new_rows=10, max_age_days=30)


@pytest.mark.parametrize(
    ("new", "old", "age", "train", "words"),
    [
        (9, 50, 99.0, False, "No: 9 new rows, wanted 10 at least."),
        (100, 50, 1.0, True, "Yes: 100 new rows, wanted 100."),
        (50, 0, None, True, "Yes: nothing was trained before."),
        (50, 50, 31.0, True, "Yes: the last training is 31.0 days old (limit 30)."),
        (50, 50, 2.0, False, "No: 50 new rows of 100; the last training is 2.0 days old (limit 30);"
         " no drift: length 0.000 bits"),
    ],
)  # fmt: skip
def test_reasons(new, old, age, train, words):
    found = worth_training(rows(new), rows(old), RULE, age_days=age)
    assert found.train is train
    assert found.reason.startswith(words)
    assert found.figures["new_rows"] == new


def test_drift_is_a_reason():
    found = worth_training(rows(60, "other", "b"), rows(80), RULE, age_days=1.0)
    assert found.train
    assert found.reason.startswith("Yes: drift: ")
    assert found.figures["drift"]["drifted"]
    quiet = TrainingRule(min_new_rows=100, least_new_rows=10, drift_level=0.0)
    assert not worth_training(rows(60, "other"), rows(80), quiet, age_days=1.0).train


def given(tmp_path, **changes):
    return {
        "retrain_dir": str(tmp_path / "book"),
        "dataset_uri": str(tmp_path / "rows"),
        "tick_time": "2026-01-05T03:00:00Z",
        "cron": "0 3 * * 1",
        "time_zone": "UTC",
        "champion": "pocket-base",
        "rule": TrainingRule(min_new_rows=100, least_new_rows=10),
        "data": DataConfig(),
        **changes,
    }


def test_a_tick_is_looked_at_once(tmp_path):
    fill(tmp_path / "rows", 0, 5)
    found = look(**given(tmp_path))
    assert (found["tick"], found["train"], found["path"]) == ("20260105T030000Z", False, "none")
    assert (found["start"], found["end"]) == ("2025-12-29T03:00:00Z", "2026-01-05T03:00:00Z")
    assert skip(str(tmp_path / "book"), found) == "not_trained"
    fill(tmp_path / "rows", 0, 500)  # too late for this tick
    again = look(**given(tmp_path, tick_time="20260105120000"))
    assert again["cache_key"] == found["cache_key"]
    assert again["decided"] == "not_trained"
    assert skip(str(tmp_path / "book"), again) == "not_trained"
    assert len(Book.at(tmp_path / "book").entries()) == 1


def test_the_clock_is_only_asked_without_a_time(tmp_path):
    fill(tmp_path / "rows", 0, 5)
    now = datetime(2026, 1, 7, 12, tzinfo=UTC)
    assert look(**given(tmp_path, tick_time="", now=now))["tick"] == "20260105T030000Z"


def test_a_folder_or_glob_without_files_is_an_empty_window_and_a_missing_one_an_error(tmp_path):
    (tmp_path / "rows").mkdir()
    assert look(**given(tmp_path))["files"] == 0
    glob = given(tmp_path, dataset_uri=str(tmp_path / "none" / "*.jsonl"), retrain_dir=str(
        tmp_path / "other"))  # fmt: skip
    assert look(**glob)["files"] == 0
    with pytest.raises(UserError, match="DATA_NOT_FOUND"):
        look(**given(tmp_path, dataset_uri=str(tmp_path / "x.jsonl"), retrain_dir=str(
            tmp_path / "third")))  # fmt: skip


def test_windows_are_half_open(tmp_path):
    folder = tmp_path / "rows"
    for name in ("a-20251229T025959Z", "b-20251229T030000Z", "c-20260105T025959Z",
                 "d-20260105T030000Z"):  # fmt: skip
        write_rows(folder / f"{name}.jsonl", name, 1)
    look(**given(tmp_path))
    manifest = json.loads(
        (tmp_path / "book/ticks/20260105T030000Z/manifest.json").read_text(encoding="utf-8")
    )
    assert [os.path.basename(item["uri"])[0] for item in manifest["files"]] == ["b", "c"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("requests-20260105T030000Z-17-1.jsonl", "2026-01-05T03:00:00"),
        ("2026-01-05.csv", "2026-01-05T00:00:00"),
        ("rows_2026-01-05_0730.jsonl", "2026-01-05T07:30:00"),
        ("rows-2026-01-05T07:30:15.jsonl", "2026-01-05T07:30:15"),
        ("part-00001.jsonl", "2026-01-01T00:00:00"),
        ("99999999.jsonl", "2026-01-01T00:00:00"),
    ],
)
def test_a_files_time_stands_in_its_name_or_is_its_last_change(tmp_path, name, expected):
    path = write_rows(tmp_path / name, "x", 1)
    stamp = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    os.utime(path, (stamp, stamp))
    (file,) = source.list_files(str(path))
    assert time_of(file).strftime("%Y-%m-%dT%H:%M:%S") == expected


@pytest.mark.parametrize("text", ["2026-01-05T03:00:00Z", "20260105030000",
                                  "2026-01-05T04:00:00+01:00", "2026-01-05T03:00:00.000000000Z",
                                  "2026-01-05T03:00:00"])  # fmt: skip
def test_times(text):
    assert parse_time(text) == START


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tick_time": "yesterday"}, "TICK_TIME.*'yesterday'"),
        ({"cron": "monday"}, "CRON_SYNTAX"),
        ({"time_zone": "Mars"}, "TIME_ZONE"),
        ({"retrain_dir": ""}, "RETRAIN_DIR"),
        ({"rows_from": "kafka"}, "rows_from: found 'kafka', allowed: rows or logs"),
        ({"rows_from": "logs", "log_share": 0.0}, "log_share"),
        ({"rule": TrainingRule(drift_level=1.0)}, "drift_level: found 1.0"),
        ({"rule": TrainingRule(min_new_rows=-1)}, "min_new_rows: found -1"),
    ],
)
def test_bad_input_is_one_line(tmp_path, changes, message):
    (tmp_path / "rows").mkdir()
    with pytest.raises(UserError, match=message) as error:
        look(**given(tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_gate_settings():
    with pytest.raises(UserError, match="gate_require: found 'best'"):
        check(gate=GateRule(gate_require="best"))
    check(gate=GateRule(), training=TrainingRule())


def test_rejected_and_conflicting_rows_are_counted_not_used(tmp_path):
    folder = tmp_path / "rows"
    path = write_rows(folder / "a-2026-01-01.jsonl", "a", 4)
    with path.open("a", encoding="utf-8") as out:
        out.write('{"input_text": ""}\n{"input_text": "q", "output_text": "red"}\n')
        out.write('{"input_text": "Q", "output_text": "blue"}\n')
    look(**given(tmp_path))
    manifest = read_manifest(str(tmp_path / "book/ticks/20260105T030000Z/manifest.json"))
    found = gather(manifest, DataConfig())
    assert (len(found.rows), found.rejected, found.conflicting) == (4, 1, 2)


class Bucket(MemoryFileSystem):
    """A bucket whose objects have generations."""

    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    generation = "7"

    def info(self, path, **kwargs):
        facts = super().info(path, **kwargs)
        return {**facts, "generation": self.generation, "updated": "2026-01-02T00:00:00Z"}


def test_objects_are_frozen_to_their_generation(tmp_path, monkeypatch):
    bucket = Bucket()
    lines = [json.dumps({"input_text": f"q {at}", "output_text": "a"}) for at in range(200)]
    bucket.pipe("/bucket/rows/part-1.jsonl", "\n".join(lines).encode())
    monkeypatch.setattr(source, "remote_filesystem", lambda uri, scheme: bucket)
    words = given(tmp_path, dataset_uri="gs://bucket/rows")
    found = look(**words)
    assert found["train"]
    manifest = read_manifest(str(tmp_path / "book/ticks/20260105T030000Z/manifest.json"))
    (file,) = manifest.files
    assert file.uri.startswith("gs://")
    assert file.generation == "7"
    monkeypatch.setattr(Bucket, "generation", "8")
    with pytest.raises(UserError, match=r"WINDOW_CHANGED.*part-1.jsonl"):
        look(**words)


def test_the_first_writer_of_a_manifest_wins(tmp_path):
    assert create(str(tmp_path / "a" / "manifest.json"), b"one")
    assert not create(str(tmp_path / "a" / "manifest.json"), b"two")
    assert (tmp_path / "a" / "manifest.json").read_text() == "one"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["manifest.json"]
