"""From served requests to prompts and rows: consent, sample, dedupe, and nothing else."""

import dataclasses
import json
from datetime import UTC, datetime

import pytest
from fastapi.testclient import TestClient

from pipestill.config import TeacherConfig
from pipestill.data.read import read_records
from pipestill.errors import UserError
from pipestill.models.chat import Conversation
from pipestill.records import Example, Labelled, read_jsonl, write_jsonl
from pipestill.retrain.logs import (
    is_sampled,
    prompts_from_logs,
    read_log,
    rows_from_prompts,
)
from pipestill.retrain.settings import GateRule, TrainingRule
from pipestill.retrain.story import Run, play
from pipestill.serving.app import create_app
from pipestill.serving.request_log import LogSettings, RequestLog
from pipestill.serving.server import request_log
from pipestill.serving.settings import Settings, settings_from
from tests.retrain.scripted import Trainer, plot, write_rows


class Clock:
    def __init__(self):
        self.now = 1_767_600_000.0  # 2026-01-05T08:00:00Z

    def __call__(self):
        return self.now


class Said:
    """An instance of a request."""

    def __init__(self, text, consent=True):
        self._text, self.consent = text, consent

    def text(self):
        return self._text


def answers(count):
    return [{"output_text": f"answer {at}"} for at in range(count)]


def lines_of(folder):
    return [
        json.loads(line)
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


def test_only_consenting_instances_are_logged_and_nothing_else(tmp_path):
    log = RequestLog(LogSettings(folder=str(tmp_path)), "student-7")
    app = create_app(FakeEngine(), Settings(), log)
    with TestClient(app) as client:
        body = {
            "instances": [
                "no consent",
                {"input_text": "yes please", "consent": True, "customer": "4711"},
                {"input_text": "explicitly not", "consent": False},
            ],
            "key": "secret",
        }
        answer = client.post("/predict", json=body, headers={"Authorization": "Bearer secret"})
        assert answer.status_code == 200
        assert len(answer.json()["predictions"]) == 3
        wrong = {"instances": [{"input_text": "a", "consent": "yes"}]}
        assert client.post("/predict", json=wrong).status_code == 400
        assert not list(tmp_path.glob("*.jsonl"))  # hidden while it grows
    (line,) = lines_of(tmp_path)
    assert line.pop("time").startswith("20")
    assert line == {
        "consent": True,
        "input_text": "yes please",
        "output_text": "re: yes please",
        "model": "student-7",
    }


class FakeEngine:
    """The engine's face to the application, without a model."""

    problem = None
    draining = False
    waiting = 0

    def start(self):
        pass

    def stop(self, timeout=0.0):
        pass

    def submit(self, texts, **_):
        from concurrent.futures import Future

        future = Future()
        tokens = {"prompt_tokens": 2, "output_tokens": 3}
        future.set_result([{"output_text": f"re: {text}", **tokens} for text in texts])
        return future


def test_files_are_closed_when_full_or_old_and_named_by_that_moment(tmp_path):
    clock = Clock()
    log = RequestLog(LogSettings(folder=str(tmp_path), max_file_bytes=400), "m", clock)
    for at in range(4):
        log.add([Said(f"text {at}")], answers(1))
    closed = sorted(path.name for path in tmp_path.glob("requests-20260105T080000Z-*.jsonl"))
    assert len(closed) == 1
    clock.now += 3601
    log.add([Said("an hour later")], answers(1))
    assert len(list(tmp_path.glob("requests-20260105T090001Z-*.jsonl"))) == 1
    log.close()
    assert [line["input_text"] for line in lines_of(tmp_path)][-1] == "an hour later"
    assert len(lines_of(tmp_path)) == 5
    assert not list(tmp_path.glob(".*"))


def test_long_lines_and_a_full_disk_cost_no_answer(tmp_path):
    log = RequestLog(LogSettings(folder=str(tmp_path), max_line_bytes=200), "m")
    assert log.add([Said("x" * 500), Said("short")], answers(2)) == 1
    assert log.skipped == 1

    class Full:
        def write(self, _):
            raise OSError(28, "No space left on device")

        def flush(self):
            pass

    log._file = Full()
    assert log.add([Said("short")], answers(1)) == 0


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_a_share_must_make_sense(tmp_path, share):
    with pytest.raises(UserError, match="SERVE_LOG"):
        RequestLog(LogSettings(folder=str(tmp_path), share=share), "m")


def test_the_server_has_a_log_only_where_it_is_asked_for(tmp_path):
    assert request_log(Settings(), "gs://b/student/") is None
    log = request_log(settings_from({}, log_requests=str(tmp_path), log_share=0.5), "a/student/")
    assert log.add([Said(f"text {at}") for at in range(40)], answers(40)) in range(10, 31)
    log.close()
    assert {line["model"] for line in lines_of(tmp_path)} == {"student"}


def test_the_sample_is_by_hash_of_the_input():
    texts = [f"question {at}" for at in range(2000)]
    chosen = [text for text in texts if is_sampled(text, 0.3)]
    assert 0.25 < len(chosen) / len(texts) < 0.35
    assert chosen == [text for text in texts if is_sampled(f"  {text.upper()} ", 0.3)]
    assert set(chosen) <= {text for text in texts if is_sampled(text, 0.5)}


def write_log(path, rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows),
        encoding="utf-8",
    )


def said(text, consent=True):
    return {"input_text": text, "consent": consent, "output_text": "x"}


def test_prompts_have_consent_and_are_new(tmp_path):
    write_log(
        tmp_path / "requests-1.jsonl",
        [said("one"), said("two", False), said("One  "), "{broken", said("known"), said(" "),
         said("three", "true"), {"input_text": "four"}, "", said("mail me at a@b.org")],
    )  # fmt: skip
    known = tmp_path / "known.jsonl"
    write_jsonl(known, [Example(id="k", input_text="KNOWN", output_text="y")])

    def redact(text):
        return None if "@" in text else text

    counts = prompts_from_logs(
        str(tmp_path / "requests-*.jsonl"),
        str(tmp_path / "prompts.jsonl"),
        known_paths=[str(known)],
        redact=redact,
    )
    assert counts == {
        "lines": 9, "no_consent": 2, "unreadable": 3, "redacted": 1, "duplicates": 2, "prompts": 1,
    }  # fmt: skip
    (row,) = read_jsonl(tmp_path / "prompts.jsonl", Example)
    assert (row.input_text, row.output_text) == ("one", None)


def test_a_chat_keeps_its_turns(tmp_path):
    log = RequestLog(LogSettings(folder=str(tmp_path)), "m")
    turns = [{"role": "user", "content": "hi"}]
    log.add([Said(Conversation("hi", turns))], answers(1))
    log.close()
    (row,) = read_log(str(tmp_path), 1.0).rows
    assert row.fields["messages"] == turns


def test_the_log_is_a_data_file_like_any_other(tmp_path):
    log = RequestLog(LogSettings(folder=str(tmp_path)), "m")
    log.add([Said("a"), Said("b")], answers(2))
    log.close()
    assert len(list(read_records(str(tmp_path)))) == 2


def test_a_tick_learns_from_logs(tmp_path):
    """Logs of a window → prompts → the teacher's rows → a challenger, judged by what is frozen."""
    start = datetime(2026, 1, 5, 3, tzinfo=UTC)
    logs = tmp_path / "logs"
    logs.mkdir()
    rows = [said(f"question {at} of the week", consent=at % 2 == 0) for at in range(200)]
    rows += [json.loads(write_rows(tmp_path / "x.jsonl", "regression", 1).read_text())]
    rows[-1]["consent"] = True  # a question of the regression set
    write_log(logs / "requests-20260101T000000Z-1-1.jsonl", rows)
    given, trainer = plot(tmp_path), Trainer(0.85)
    given = dataclasses.replace(
        given,
        dataset_uri=str(logs),
        rows_from="logs",
        log_share=0.8,
        training=TrainingRule(min_new_rows=50, least_new_rows=10),
        gate=GateRule(gate_min_new=0),
    )

    def teach(unlabelled, labelled):
        found = list(read_jsonl(unlabelled, Example))
        assert all(row.output_text is None for row in found)
        write_jsonl(labelled, [dataclasses.replace(row, output_text="red") for row in found])

    (told,) = play(
        given, [Run(tick=start)], train=trainer.train, compare=trainer.compare, label=teach
    )
    assert told["decision"] == "promote"
    (taught,) = trainer.trained_on
    assert 65 <= len(taught) <= 95  # 80 % of the hundred with consent
    assert all(row.output_text == "red" and "of the week" in row.input_text for row in taught)
    (asked,) = trainer.asked
    assert all(name.startswith("regression/") for name in asked)


def test_the_teacher_makes_rows_of_prompts(tmp_path):
    """The replayed answers of a teacher, one a prompt in order."""
    prompts = [Example(id=f"p{at}", input_text=f"question {at}", source_row=at) for at in range(3)]
    write_jsonl(tmp_path / "prompts.jsonl", prompts)
    replay = tmp_path / "replay.jsonl"
    outputs = ["It is late. So the answer is refuse.", "So the answer is refund.", "no idea"]
    write_log(replay, [json.dumps(text) for text in outputs])
    config = TeacherConfig(backend="replay", replay_uri=str(replay), min_success=0.5)
    found = rows_from_prompts(
        str(tmp_path / "prompts.jsonl"),
        str(tmp_path / "rows.jsonl"),
        state_dir=str(tmp_path / "state"),
        config=config,
    )
    rows = list(read_jsonl(tmp_path / "rows.jsonl", Labelled))
    assert found["rows_missing"] == 3
    assert [(row.output_text, row.label_source) for row in rows] == [
        ("refuse", "teacher"),
        ("refund", "teacher"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        b'{"input_text": "half \\ud800", "consent": true}',
        b'{"input_text": "a\\u0000b", "consent": true}',
        b'{"input_text": "a", "consent": true, "messages": [{"role": "u", "content": "\\udfff"}]}',
        b'{"input_text": ' + b"[" * 100_000 + b"]" * 100_000 + b', "consent": true}',
    ],
)
def test_a_line_that_is_no_text_is_counted_and_passed_over(tmp_path, line):
    log = tmp_path / "requests.jsonl"
    log.write_bytes(line + b'\n{"input_text": "good", "consent": true}\n')
    counts = prompts_from_logs(str(log), str(tmp_path / "prompts.jsonl"))
    assert (counts["lines"], counts["unreadable"], counts["prompts"]) == (2, 1, 1)
