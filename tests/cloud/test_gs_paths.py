"""``gs://`` wherever a path is taken: data, recorded answers, journal, checkpoints, models."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from pipestill.cloud import parts, retries
from pipestill.config import DataConfig, TeacherConfig
from pipestill.data.digest import content_digest
from pipestill.data.prepare import prepare
from pipestill.data.source import list_files
from pipestill.errors import PipestillError, UserError, WorkError
from pipestill.generation.ask import ask
from pipestill.generation.journal import Journal
from pipestill.generation.replay import recorded_texts
from pipestill.generation.teacher import Completion
from pipestill.models.loading import load, resolve_reference
from pipestill.models.render import renderer_for
from pipestill.serving.package import deploy
from pipestill.serving.server import local_copy
from pipestill.training.checkpoint import Checkpoint, latest, probe, remove, run_folder, save
from pipestill.training.loop import fit
from pipestill.training.student import make_job
from tests.cloud.fake_storage import FakeStorage, led_to
from tests.generation.helpers import rows, save_tiny, server, server_config
from tests.training.tiny import config, make_loaded, make_rows

STATE = "gs://box/state"
DONE = Completion(text="é\u2028x\n", prompt_tokens=3, output_tokens=2, cached_prompt_tokens=1)


@pytest.fixture
def store(monkeypatch):
    """An empty Cloud Storage with the bucket ``gs://box``."""
    with FakeStorage() as fake:
        yield led_to(fake, monkeypatch)


class Cut:
    """Every request after the first `after` ones finds the service gone: a kill, from outside.

    `first`: what happens to the first of them; with "lost" it is done and nobody hears of it.
    """

    def __init__(self, store, monkeypatch, after, first="busy"):
        self._store, self._patch = store, monkeypatch
        self.left, self._first = after, first

    def __enter__(self):
        self._patch.setattr(retries, "PATIENCE_S", 0.005)
        self._store.plan = self._next

    def __exit__(self, *_):
        self._store.heal()
        self._patch.setattr(retries, "PATIENCE_S", 20.0)

    def _next(self, verb, path):
        self.left -= 1
        if self.left >= 0:
            return ""
        return self._first if self.left == -1 else "busy"


# -- data ------------------------------------------------------------------------------------


def prepared(uri, evaluation, folder):
    folder.mkdir()
    summary = prepare(
        uri,
        evaluation,
        config=DataConfig(),
        tokenizer_reference="",
        train_path=str(folder / "train.jsonl"),
        evaluation_path=str(folder / "eval.jsonl"),
        rejects_path=str(folder / "rejects.jsonl"),
    )
    read = {path.name: path.read_bytes() for path in folder.iterdir() if "reject" not in path.name}
    return read, summary["rows_read"]


def test_a_data_set_in_a_bucket_is_prepared_as_one_on_disk(store, tmp_path):
    lines = [json.dumps({"input_text": f"question {n}", "output_text": f"label {n % 3}"})
             for n in range(90)]  # fmt: skip
    local = tmp_path / "data"
    local.mkdir()
    for number, name in enumerate(("part_10.jsonl", "part_2.jsonl.gz", "part_1.jsonl")):
        text = "\n".join(lines[number * 30 : number * 30 + 30]).encode()
        (local / name).write_bytes(gzip.compress(text, mtime=0) if name.endswith("gz") else text)
        store.put(f"box/data/{name}", (local / name).read_bytes())
    store.put("box/data/_SUCCESS", b"")
    store.fail(seed=2, rate=0.3)
    on_disk = prepared(str(local), str(local / "part_1.jsonl"), tmp_path / "a")
    assert on_disk[1] > 0
    for number, uri in enumerate(("gs://box/data", "gs://box/data/part_*")):
        evaluation = "gs://box/data/part_1.jsonl"
        assert prepared(uri, evaluation, tmp_path / f"b{number}") == on_disk


def test_the_digest_of_data_changes_with_the_generation_and_downloads_nothing(store):
    store.put("box/data/a.jsonl", b"one")
    before = content_digest("gs://box/data")
    assert content_digest("gs://box/data") == before
    store.put("box/data/a.jsonl", b"two")
    assert content_digest("gs://box/data") != before
    assert not [path for _, path in store.seen if "/download/" in path]


def test_data_that_cannot_be_read_are_one_line_each(store, monkeypatch):
    store.buckets["closed"] = ()
    told = {
        "gs://absent/a.jsonl": r"\[STORAGE_BUCKET\] .*gs://absent does not exist",
        "gs://absent/*.jsonl": r"\[STORAGE_BUCKET\] .*gs://absent does not exist",
        "gs://closed/a.jsonl": r"\[STORAGE_DENIED\] gs://closed/a.jsonl: no permission",
        "gs://box/a.jsonl": r"\[DATA_NOT_FOUND\] gs://box/a.jsonl: no such file",
        "gs://box": r"\[DATA_NOT_FOUND\] gs://box: no data files",
        "gs://box/*.jsonl": r"\[DATA_NOT_FOUND\] .*no data files",
    }
    for uri, line in told.items():
        with pytest.raises(UserError, match=line) as error:
            list_files(uri)
        assert "\n" not in str(error.value)
    monkeypatch.setattr(retries, "PATIENCE_S", 0.02)
    store.fail(seed=1, rate=1.0, kinds=("reset",))
    with pytest.raises(WorkError, match=r"STORAGE_UNREACHABLE.*gs://box/a\.jsonl"):
        list_files("gs://box/a.jsonl")


def test_recorded_answers_in_a_bucket_are_replayed_in_order(store):
    for number in (10, 9):
        text = json.dumps([f"It is {number}. So the answer is yes.", "two\r\nlines"])
        store.put(f"box/answers/part_{number}.json", text.encode())
    store.put("box/answers/part_8.json", b'"line one"\r\n\n"line two"\n')
    texts = recorded_texts("gs://box/answers/part_*.json")
    assert [text[:8] for text in texts[:3]] == ["line one", "line two", "It is 9."]
    assert len(texts) == 6
    teacher = TeacherConfig(
        backend="replay", prompt="generic.v1", replay_uri="gs://box/answers/part_*.json"
    )
    for made in (6, 0):  # the second time the journal in the bucket knows them all
        answers = ask(rows(6), config=teacher, state_dir=STATE, samples=1, shots=2)
        assert [answer.raw for answer in answers] == texts
        assert sum(not answer.from_journal for answer in answers) == made
    store.put("box/answers/part_8.json", b"[1]")
    with pytest.raises(UserError, match=r"REPLAY_UNREADABLE.*gs://box/answers/part_8.json"):
        recorded_texts("gs://box/answers/part_8.json")


# -- the journal of paid calls ---------------------------------------------------------------


def found(count):
    with Journal(STATE) as journal:
        return set(journal.find([str(number) for number in range(count)]))


def test_the_journal_under_faults_loses_nothing_and_joins_its_parts(store, monkeypatch):
    monkeypatch.setattr(parts, "MOST_PARTS", 7)
    store.fail(seed=8, rate=0.3)
    with Journal(STATE) as journal:
        for number in range(40):
            journal.append([(str(number), "row", DONE)])
            journal.append([])
        assert journal.find(["3", "39", "x"]) == {"3": DONE, "39": DONE}
    assert found(50) == {str(number) for number in range(40)}
    assert len(store.names()) == 6  # five times seven, and the rest
    assert all(name.startswith("box/state/journal/segment-") for name in store.names())


@pytest.mark.parametrize("first", ["busy", "lost"])
def test_a_journal_that_is_killed_at_any_request_keeps_every_line_it_confirmed(
    store, monkeypatch, first
):
    monkeypatch.setattr(parts, "MOST_PARTS", 3)
    confirmed, codes, after = set(), set(), -1
    while len(confirmed) < 7:
        after += 1
        store.objects.clear()
        confirmed = set()
        with Cut(store, monkeypatch, after, first):
            try:
                with Journal(STATE) as journal:
                    for number in range(7):
                        journal.append([(str(number), "row", DONE)])
                        confirmed.add(str(number))
            except PipestillError as error:
                codes.add(error.code)
        kept = found(7)
        assert confirmed <= kept
        assert len(kept - confirmed) <= 1, "more than the open batch is in doubt"
    assert codes == {"STORAGE_UNREACHABLE"}
    assert after > 10


def test_readers_see_all_lines_while_writers_join_them(store, monkeypatch):
    monkeypatch.setattr(parts, "MOST_PARTS", 2)
    done, wrong = [], []

    def write(name):
        with Journal(STATE) as journal:
            for number in range(25):
                journal.append([(f"{name}{number}", "row", DONE)])
                done.append(f"{name}{number}")

    def read():
        with Journal(STATE) as journal:
            while len(done) < 50:
                before = set(done)
                wrong.extend(before - set(journal.find(before)))

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    threads.append(threading.Thread(target=read))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    with Journal(STATE) as journal:
        assert len(journal.find(done)) == 50


def test_a_journal_in_a_bucket_that_refuses_is_one_line(store):
    store.buckets["closed"] = ("storage.objects.get", "storage.objects.list")
    line = r"STORAGE_DENIED\] gs://closed/state/journal"
    with Journal("gs://closed/state") as journal, pytest.raises(UserError, match=line):
        journal.append([("a", "row", DONE)])
    with Journal("gs://absent") as journal, pytest.raises(UserError, match="STORAGE_BUCKET"):
        journal.find(["a"])


KILLED = """
import sys
from tests.generation.helpers import Server, rows, server_config
from pipestill.generation.ask import ask
state = Server()
state.url = sys.argv[1]
ask(rows(40), config=server_config(state), state_dir="gs://box/state", samples=1, shots=2)
"""


def test_a_killed_step_pays_for_no_finished_call_twice(store):
    with server() as state:
        state.delay = 0.05
        root = str(Path(__file__).parents[2])
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, state.url],
            cwd=root,
            env=os.environ | {"PYTHONPATH": root},
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while state.answered < 15 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        state.delay = 0.0
        time.sleep(0.2)
        asked_before = len(state.prompts)
        again = ask(rows(40), config=server_config(state), state_dir=STATE, samples=1, shots=2)
        kept = sum(answer.from_journal for answer in again)
        assert 15 <= asked_before < 40
        assert kept >= 15 - 4 * 2  # the calls in flight, and those of the batch that was stored
        assert len(state.prompts) - asked_before == 40 - kept
        asked = len(state.prompts)
        ask(rows(40), config=server_config(state), state_dir=STATE, samples=1, shots=2)
        assert len(state.prompts) == asked


# -- checkpoints -----------------------------------------------------------------------------


def point(value):
    tensors = {name: {"w": torch.full((9,), value)} for name in ("model", "optimizer")}
    return Checkpoint({"value": value}, tensors)


def value_of(folder):
    read = latest(folder)
    if read is None:
        return None
    assert all((group["w"] == read.state["value"]).all() for group in read.tensors.values())
    return read.state["value"]


def test_checkpoints_under_faults_are_the_last_ones_written(store):
    folder = run_folder(STATE, "facts")
    store.fail(seed=6, rate=0.3)
    probe(folder)
    assert latest(folder) is None
    for step in range(1, 9):
        save(folder, step, point(float(step)))
        assert value_of(folder) == float(step)
    store.heal()
    assert {name.split("/")[-2] for name in store.names()} == {"step-000007", "step-000008"}
    remove(folder)
    assert store.names() == []


@pytest.mark.parametrize("first", ["busy", "lost"])
def test_saving_that_is_killed_at_any_request_leaves_a_whole_checkpoint(
    store, monkeypatch, capsys, first
):
    folder, outcomes, codes, after = run_folder(STATE, "facts"), [], set(), -1
    while 2.0 not in outcomes:
        after += 1
        store.objects.clear()
        save(folder, 1, point(1.0))
        with Cut(store, monkeypatch, after, first):
            try:
                save(folder, 2, point(2.0))
                outcomes.append(2.0)
            except WorkError as error:
                codes.add(error.code)
                outcomes.append(1.0)
        # A marker whose answer never came may have been stored: then the newer one is whole.
        allowed = {outcomes[-1]} | ({2.0} if first == "lost" else set())
        assert value_of(folder) in allowed
    assert codes == {"CHECKPOINT_NOT_WRITTEN"}
    assert len(outcomes) > 4


def test_a_damaged_or_torn_checkpoint_in_a_bucket_is_passed_over(store, capsys):
    folder = run_folder(STATE, "facts")
    for step in (1, 2, 3):
        save(folder, step, point(float(step)))
    (weights,) = [name for name in store.names() if name.endswith("000003/model.safetensors")]
    data = store.data(weights)
    store.put(weights, data[:-1] + bytes([data[-1] ^ 1]))
    assert value_of(folder) == 2.0
    assert "another content" in capsys.readouterr().err


def test_a_bucket_that_refuses_checkpoints_is_told_before_the_first_step(store):
    store.buckets["closed"] = ()
    for uri, line in (("gs://closed/s", "no permission"), ("gs://absent/s", "does not exist")):
        with pytest.raises(UserError, match=rf"STATE_DIR_UNWRITABLE.*{line}") as error:
            probe(run_folder(uri, "facts"))
        assert "\n" not in str(error.value)


def make():
    loaded = make_loaded("gpt2")
    settings = config(train_steps=8, checkpoint_interval=2)
    texts = make_rows(24)
    renderer = renderer_for(loaded, 128, 64)
    return make_job(loaded, renderer, texts[:20], texts[20:], "dss", 1, settings)


def test_a_run_that_goes_on_from_a_bucket_ends_as_an_uninterrupted_one(store):
    whole, again = make(), make()
    fit(whole, None)
    store.fail(seed=7, rate=0.15)
    folder = run_folder(STATE, "facts")

    def stop(progress):
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(make(), folder, stop)
    assert fit(again, folder)[1] == 4
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in again.model.state_dict().items())


# -- models ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return Path(save_tiny(tmp_path_factory.mktemp("model"), "llama"))


@pytest.fixture
def stored_model(store, model_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("PIPESTILL_CACHE", str(tmp_path / "cache"))
    for path in model_folder.iterdir():
        store.put(f"box/model/{path.name}", path.read_bytes())
    store.put("box/model/training_args.bin", b"a pickle")
    store.put("box/model/modeling_evil.py", b"raise SystemExit")
    return "gs://box/model"


def test_a_model_in_a_bucket_is_loaded_and_downloaded_once(store, stored_model, model_folder):
    store.fail(seed=3, rate=0.3)
    there, here = load(stored_model, precision="fp32"), load(str(model_folder), precision="fp32")
    assert there.fingerprint == here.fingerprint
    expected = here.model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in there.model.state_dict().items())
    names = {path.name for path in Path(resolve_reference(stored_model)).iterdir()}
    assert not names & {"training_args.bin", "modeling_evil.py"}
    store.heal()
    before = len([path for _, path in store.seen if "/download/" in path])
    load(stored_model, precision="fp32")
    assert len([path for _, path in store.seen if "/download/" in path]) == before
    config_file = json.loads(store.data("box/model/config.json"))
    store.put("box/model/config.json", json.dumps({**config_file, "new": 1}).encode())
    assert json.loads((Path(resolve_reference(stored_model)) / "config.json").read_text())["new"]


def test_a_model_in_a_bucket_that_cannot_be_had_is_one_line(store, stored_model):
    store.buckets["closed"] = ()
    store.put("box/pickled/config.json", b"{}")
    store.put("box/pickled/pytorch_model.bin", b"")
    told = {"gs://box/none": "STORAGE_NOT_FOUND", "gs://absent/m": "STORAGE_BUCKET",
            "gs://closed/m": "STORAGE_DENIED", "gs://box/pickled": "MODEL_INCOMPLETE"}  # fmt: skip
    for uri, code in told.items():
        with pytest.raises(UserError) as error:
            load(uri)
        assert error.value.code == code
        assert "\n" not in str(error.value)
    store.put("box/model/tokenizer.json", b"{")
    with pytest.raises(UserError, match="MODEL_UNREADABLE") as error:
        load(stored_model)
    assert "\n" not in str(error.value)


def test_a_model_deployed_to_a_bucket_is_served_whole(store, model_folder, tmp_path, monkeypatch):
    store.fail(seed=5, rate=0.2)
    place = "gs://box/served"
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    first = deploy(folder, place)
    (folder / "README.md").write_text("the second")
    second = deploy(folder, place)
    assert first != second
    with local_copy(place) as copied:
        assert (Path(copied) / "README.md").read_text() == "the second"
        assert {path.name for path in Path(copied).iterdir()} == {
            path.name for path in folder.iterdir()
        }
    assert not Path(copied).exists()
    with local_copy(str(first)) as copied:
        assert not (Path(copied) / "README.md").exists()
    with pytest.raises(UserError, match="STORAGE_NOT_FOUND"), local_copy("gs://box/none"):
        pass
