"""Objects and folders of Cloud Storage: nothing lost, nothing half-written taken for whole."""

import importlib.util
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time

import pytest

from pipestill.cloud import objects, retries, storage
from pipestill.cloud.filesystem import CloudFiles, open_url
from pipestill.cloud.retries import Conflict
from pipestill.errors import PipestillError, UserError, WorkError
from tests.cloud.fake_storage import ALL, FAULTS, FakeStorage, led_to

MIB = 1 << 20


@pytest.fixture
def store(monkeypatch):
    """An empty Cloud Storage with the bucket ``gs://box``."""
    with FakeStorage() as fake:
        yield led_to(fake, monkeypatch)


@pytest.fixture
def small_pieces(monkeypatch):
    """Uploads above 1,000 bytes are resumable, in pieces of 256 KiB."""
    monkeypatch.setattr(objects, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(objects, "CHUNK_BYTES", MIB // 4)


def down(fake, after=0, where="", method=""):
    """Every matching request but the first `after` ones finds the service gone."""
    count = iter(range(10**9))

    def plan(verb, path):
        matches = where in path and method in ("", verb)
        return "busy" if matches and next(count) >= after else ""

    fake.plan = plan


def once(fake, fault, *, method=""):
    """The first matching request fails, the others do not."""
    left = [fault]

    def plan(verb, path):
        return left.pop() if left and method in ("", verb) else ""

    fake.plan = plan


# -- objects ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 999, 1001, MIB // 4, MIB + 1])
def test_what_is_written_is_read(store, small_pieces, tmp_path, size):
    data = random.Random(size).randbytes(size)
    generation = objects.write_bytes("gs://box/a b/ü?#.bin", data, if_generation=0)
    assert objects.read_bytes("gs://box/a b/ü?#.bin") == data == store.data("box/a b/ü?#.bin")
    found = objects.download_file("gs://box/a b/ü?#.bin", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    assert (found.generation, found.size) == (generation, size)
    again = objects.upload_file(tmp_path / "copy", "gs://box/a b/ü?#.bin", generation)
    assert again.generation > generation
    assert objects.stat("gs://box/absent") is None
    with pytest.raises(FileNotFoundError, match="no such object"):
        objects.read_bytes("gs://box/absent")


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone_is_survived(store, small_pieces, fault):
    store.put("box/x", b"the old")
    store.fail(seed=3, rate=0.4, kinds=(fault,))
    for round_number in range(8):
        data = random.Random(round_number).randbytes(3000 * (round_number % 2) + 500)
        objects.write_bytes("gs://box/x", data)
        assert objects.read_bytes("gs://box/x") == data
    big = random.Random(1).randbytes(MIB)
    objects.write_bytes("gs://box/big", big, if_generation=0)
    assert store.data("box/big") == big == objects.read_bytes("gs://box/big")
    assert store.faulted[fault] > 3


def test_hundreds_of_operations_under_all_faults_leave_exactly_what_they_say(store):
    draw, model = random.Random(11), {}
    store.fail(seed=12, rate=0.3)
    for number in range(500):
        uri = f"gs://box/{draw.choice('ab')}/{draw.randrange(6)}"
        data = draw.randbytes(draw.choice((0, 40, 5000)))
        operation = draw.choice(("write", "create", "replace", "read", "read", "delete", "list"))
        generation, held = model.get(uri, (0, None))
        if operation == "write":
            model[uri] = (objects.write_bytes(uri, data), data)
        elif operation == "create" and held is not None:
            with pytest.raises(Conflict):
                objects.write_bytes(uri, data, if_generation=0)
        elif operation in ("create", "replace"):
            model[uri] = (objects.write_bytes(uri, data, if_generation=generation), data)
        elif operation == "delete":
            objects.delete(uri)
            model.pop(uri, None)
        elif operation == "list":
            files, _ = objects.list_folder("gs://box", deep=True)
            assert {item.uri: item.generation for item in files} == {
                key: value[0] for key, value in model.items()
            }
        elif held is None:
            assert objects.stat(uri) is None, number
        else:
            assert objects.read_bytes(uri) == held, number
    assert store.names() == sorted(uri.removeprefix("gs://") for uri in model)
    assert all(store.data(uri.removeprefix("gs://")) == held for uri, (_, held) in model.items())
    assert set(FAULTS) <= set(store.faulted), store.faulted


def test_a_write_whose_answer_was_lost_is_known_as_one_s_own(store):
    for fault in ("lost", "late"):
        once(store, fault, method="POST")
        generation = objects.write_bytes(f"gs://box/{fault}", b"mine", if_generation=0)
        assert [item.generation for item in store.objects[f"box/{fault}"]] == [generation]


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_of_two_writers_exactly_one_wins(store, rate):
    store.fail(seed=5, rate=rate)
    for number in range(12):
        uri, gate, outcome = f"gs://box/race{number}", threading.Barrier(2), {}

        def write(name, uri=uri, gate=gate, outcome=outcome):
            gate.wait()
            try:
                objects.write_bytes(uri, name.encode(), if_generation=0)
                outcome[name] = "won"
            except PipestillError as error:
                outcome[name] = str(error)

        threads = [threading.Thread(target=write, args=(name,)) for name in ("one", "two")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winner = store.data(f"box/race{number}").decode()
        (loser,) = {"one", "two"} - {winner}
        assert outcome[winner] == "won"
        assert outcome[loser].startswith(f"[STORAGE_CONFLICT] {uri}: another writer was here first")
        assert len(store.objects[f"box/race{number}"]) == 1


def test_an_upload_that_is_cut_off_leaves_nothing(store, small_pieces, monkeypatch):
    monkeypatch.setattr(retries, "PATIENCE_S", 0.05)
    store.put("box/x", b"before")
    for after in range(5):  # the first request opens the session, each other carries a piece
        down(store, after=after, where="/upload/")
        with pytest.raises(WorkError, match=r"STORAGE_UNREACHABLE.*gs://box/x"):
            objects.write_bytes("gs://box/x", random.Random(1).randbytes(MIB))
        store.heal()
        assert objects.read_bytes("gs://box/x") == b"before"


def test_a_download_that_is_cut_off_leaves_what_stood_there(store, tmp_path, monkeypatch):
    monkeypatch.setattr(retries, "PATIENCE_S", 0.05)
    store.put("box/x", b"new" * 1000)
    (tmp_path / "x").write_bytes(b"old")
    for fault in ("busy", "reset", "truncated", "short", "flipped"):
        store.plan = lambda verb, path, fault=fault: fault if "/download/" in path else ""
        with pytest.raises(WorkError, match="STORAGE_UNREACHABLE") as error:
            objects.download_file("gs://box/x", tmp_path / "x")
        assert "\n" not in str(error.value)
        assert [path.name for path in tmp_path.iterdir()] == ["x"]
        assert (tmp_path / "x").read_bytes() == b"old"


def test_a_damaged_piece_of_a_resumed_download_is_found(store, monkeypatch):
    """The client itself checks no checksum of a download that was resumed."""
    data = random.Random(1).randbytes(3 * MIB)
    store.put("box/x", data)
    faults = iter(["truncated", "flipped"])
    store.plan = lambda verb, path: next(faults, "") if "/download/" in path else ""
    assert objects.read_bytes("gs://box/x") == data
    assert store.faulted["truncated"] == store.faulted["flipped"] == 1


def test_stale_facts_give_no_mixture(store):
    store.put("box/x", b"old" * 100)
    store.put("box/x", b"newer" * 100)
    left = ["stale_facts"]
    store.plan = lambda verb, path: left.pop() if left else ""
    assert objects.read_bytes("gs://box/x") == b"newer" * 100
    before = objects.stat("gs://box/x").generation
    store.put("box/x", b"newest")
    with pytest.raises(Conflict):
        objects.write_bytes("gs://box/x", b"from what was read before", before)
    assert store.data("box/x") == b"newest"


def test_the_service_is_given_the_time_it_asks_for(store, monkeypatch):
    monkeypatch.setattr(retries, "LONGEST_WAIT_S", 0.5)
    store.retry_after = "0.3"
    once(store, "told", method="POST")
    begun = time.monotonic()
    objects.write_bytes("gs://box/x", b"")
    assert time.monotonic() - begun >= 0.3


def test_a_list_of_many_pages_is_whole(store):
    for number in range(11):
        store.put(f"box/in/{number:02}", b"")
        store.put(f"box/in/sub{number % 3}/x", b"")
    store.put("box/in/", b"")
    store.put("box/inner", b"")
    files, folders = objects.list_folder("gs://box/in/")
    assert [item.uri for item in files] == [f"gs://box/in/{number:02}" for number in range(11)]
    assert folders == [f"gs://box/in/sub{number}" for number in range(3)]
    assert len(objects.list_folder("gs://box", deep=True)[0]) == 15


def test_what_the_service_refuses_is_one_line(store, monkeypatch):
    store.buckets["closed"] = ()
    told = {
        "gs://absent/x": r"\[STORAGE_BUCKET\] .*bucket gs://absent does not exist.*buckets create",
        "gs://closed/x": r"\[STORAGE_DENIED\] gs://closed/x: no permission .*roles/storage",
        "gs://": r"\[STORAGE_ADDRESS\]",
        "/tmp/x": r"\[STORAGE_ADDRESS\]",
    }
    calls = (objects.stat, objects.read_bytes, objects.delete, objects.list_folder,
             lambda uri: objects.write_bytes(uri, b""))  # fmt: skip
    for uri, line in told.items():
        for call in calls:
            with pytest.raises(UserError, match=line) as error:
                call(uri)
            assert "\n" not in str(error.value)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/key.json")
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    with pytest.raises(UserError, match="CLOUD_CREDENTIALS") as error:
        objects.stat("gs://box/x")
    assert "\n" not in str(error.value)


def test_without_the_client_the_line_says_how_to_install_it(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.cloud", None)
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    objects._client_of.cache_clear()
    for call in (objects.stat, lambda uri: objects.write_bytes(uri, b"")):
        with pytest.raises(UserError, match=r"EXTRA_MISSING.*pip install 'pipestill\[gcp\]'"):
            call("gs://box/x")
    objects._client_of.cache_clear()


# -- the file system -------------------------------------------------------------------------


def test_the_file_system_lists_globs_and_removes(store):
    for name in ("a/p10.jsonl", "a/p2.jsonl", "a/b/p1.jsonl", "c.txt"):
        store.put(f"box/{name}", name.encode())
    files, root = open_url("gs://box/a/")
    assert (root, files.ls(root, detail=False)) == (
        "box/a", ["box/a/p10.jsonl", "box/a/p2.jsonl", "box/a/b"]
    )  # fmt: skip
    assert files.glob("box/a/**/*.jsonl") == [
        f"box/a/{name}" for name in ("b/p1.jsonl", "p10.jsonl", "p2.jsonl")
    ]
    assert files.info("box/c.txt")["type"] == "file"
    assert files.info("box")["type"] == files.info("box/a/b")["type"] == "directory"
    assert files.cat_file("box/c.txt", start=1, end=3) == b".t"
    files.rm("box/a", recursive=True)
    assert store.names() == ["box/c.txt"]
    assert not files.exists("box/a")
    files.pipe_file("box/d", b"1", mode="create")
    with pytest.raises(Conflict):
        files.pipe_file("box/d", b"2", mode="create")


def test_an_object_has_no_handle_for_writing_that_could_store_half(store):
    with pytest.raises(NotImplementedError, match="written whole"):
        CloudFiles().open("gs://box/x", "wb")


def test_a_service_that_is_down_is_no_absent_object(store, monkeypatch):
    monkeypatch.setattr(retries, "PATIENCE_S", 0.03)
    down(store)
    with pytest.raises(WorkError, match="STORAGE_UNREACHABLE"):
        CloudFiles().exists("box/x")


# -- folders ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A function that makes a folder of two files and a subfolder."""
    monkeypatch.setenv("PIPESTILL_CACHE", str(tmp_path / "cache"))

    def make(text):
        made = tmp_path / "made"
        (made / "sub").mkdir(parents=True, exist_ok=True)
        for name in ("a.txt", "b.txt", "sub/c.txt"):
            (made / name).write_text(f"{text} {name}")
        (made / ".hidden").write_text("x")
        return made

    return make


def read(uri):
    return {path.name: path.read_text() for path in storage.download_folder(uri).iterdir()}


def whole(text):
    return {name: f"{text} {path}" for name, path in
            (("a.txt", "a.txt"), ("b.txt", "b.txt"), ("c.txt", "sub/c.txt"))}  # fmt: skip


def test_a_published_folder_is_read_and_the_one_before_it_stays(store, folder):
    store.fail(seed=4, rate=0.3)
    first = storage.upload_folder(folder("one"), "gs://box/model/")
    assert read("gs://box/model") == whole("one")
    second = storage.upload_folder(folder("two"), "gs://box/model")
    assert read("gs://box/model") == whole("two")
    assert first != second
    assert storage.upload_folder(folder("two"), "gs://box/model") == second
    pointer = json.loads(store.data("box/model/current.json"))
    assert pointer["previous"] == first.rpartition("/")[2]
    assert read(first) == {"a.txt": "one a.txt", "b.txt": "one b.txt"}


def test_publishing_that_is_killed_at_any_request_leaves_the_old_folder(store, folder, monkeypatch):
    storage.upload_folder(folder("one"), "gs://box/model")
    made, outcomes = folder("two"), []
    for after in range(100):
        monkeypatch.setattr(retries, "PATIENCE_S", 0.005)
        down(store, after=after)
        try:
            storage.upload_folder(made, "gs://box/model")
            outcomes.append("two")
        except WorkError:
            outcomes.append("one")
        store.heal()
        monkeypatch.setattr(retries, "PATIENCE_S", 20.0)
        assert read("gs://box/model") == whole(outcomes[-1])
        if outcomes[-1] == "two":
            break
    assert outcomes.count("one") >= 5


def test_a_published_folder_that_lost_a_file_is_not_taken_for_whole(store, folder):
    first = storage.upload_folder(folder("one"), "gs://box/model")
    objects.delete(f"{first}/a.txt")
    with pytest.raises(WorkError, match=r"STORAGE_DAMAGED.*a\.txt"):
        storage.download_folder("gs://box/model")
    with pytest.raises(UserError, match="STORAGE_NOT_FOUND"):
        storage.download_folder("gs://box/nothing")
    for text in (b"{", b"[]", b'{"folder": "../x", "files": {}}'):
        store.put("box/model/current.json", text)
        with pytest.raises(UserError, match=r"DEPLOY_DIR.*current\.json"):
            storage.download_folder("gs://box/model")


def test_two_who_publish_at_once_are_told_apart(store, folder, monkeypatch):
    place = "gs://box/model"
    storage.upload_folder(folder("one"), place)
    stored = storage._stored

    def slow(file, uri):
        if not store.seen[-1][1].endswith("rival"):
            monkeypatch.setattr(storage, "_stored", stored)
            storage.upload_folder(folder("rival"), place)
        return stored(file, uri)

    made = folder("two")
    monkeypatch.setattr(storage, "_stored", slow)
    with pytest.raises(Conflict, match="another writer was here first"):
        storage.upload_folder(made, place)
    assert read(place) == whole("rival")


def test_a_folder_of_others_is_not_published_over(store, folder):
    store.put("box/mine/notes.txt", b"")
    with pytest.raises(UserError, match=r"DEPLOY_DIR.*gs://box/mine/notes\.txt"):
        storage.upload_folder(folder("one"), "gs://box/mine")


def test_a_folder_is_downloaded_once(store, folder, tmp_path):
    storage.upload_folder(folder("one"), "gs://box/model")
    found, threads = [], []
    for _ in range(4):
        threads.append(threading.Thread(target=lambda: found.append(read("gs://box/model"))))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert found == [whole("one")] * 4
    media = [path for _, path in store.seen if "/download/" in path and "current" not in path]
    assert len(media) == 3


def test_a_copy_that_was_cut_off_is_not_used(store, folder, tmp_path, monkeypatch):
    storage.upload_folder(folder("one"), "gs://box/model")
    monkeypatch.setattr(retries, "PATIENCE_S", 0.02)
    down(store, where="b.txt")
    with pytest.raises(WorkError):
        storage.download_folder("gs://box/model")
    assert not [path for path in (tmp_path / "cache/folders").iterdir() if path.is_dir()]
    store.heal()
    assert read("gs://box/model") == whole("one")
    monkeypatch.setenv("PIPESTILL_CACHE", str(tmp_path / "made" / "a.txt"))
    with pytest.raises(UserError, match=r"STORAGE_LOCAL.*PIPESTILL_CACHE"):
        storage.download_folder("gs://box/model")


def test_the_same_contents_go_up_once_whoever_is_first(store, folder):
    made = folder("one")
    store.fail(seed=9, rate=0.3)
    uri = storage.upload_once(str(made), "gs://box/data")
    names = store.names()
    assert names == [f"{uri.removeprefix('gs://')}/{name}"
                     for name in ("a.txt", "b.txt", "sub/c.txt")]  # fmt: skip
    assert storage.upload_once(str(made), "gs://box/data") == uri
    assert all(len(versions) == 1 for versions in store.objects.values())


def test_somebody_who_uploads_the_same_at_the_same_moment_is_no_error(store, folder, monkeypatch):
    made = str(folder("one") / "a.txt")
    uri = storage.upload_once(made, "gs://box/data")
    monkeypatch.setattr(objects, "stat", lambda *_: None)  # it was not there a moment ago
    assert storage.upload_once(made, "gs://box/data") == uri
    assert len(store.objects[uri.removeprefix("gs://")]) == 1


# -- a server that is not ours ---------------------------------------------------------------


@pytest.mark.skipif(
    importlib.util.find_spec("gcp_storage_emulator") is None,
    reason="gcp-storage-emulator is not installed",
)
def test_against_the_emulator_of_others(monkeypatch, tmp_path):
    """It enforces no generation preconditions, so only contents are looked at."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", f"--port={port}",
               "--host=127.0.0.1", "--in-memory", "--default-bucket=box"]  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.1)
        for size in (0, 5000, 9 * MIB):
            data = os.urandom(size)
            objects.write_bytes(f"gs://box/in/{size}", data)
            assert objects.read_bytes(f"gs://box/in/{size}") == data
        assert [item.size for item in objects.list_folder("gs://box/in")[0]] == [0, 5000, 9 * MIB]
        objects.delete("gs://box/in/0")
        assert objects.stat("gs://box/in/0") is None
    finally:
        server.terminate()
        server.wait(10)


def test_permissions_of_the_fake_are_those_that_submit_asks_for():
    assert {"storage.objects.create", "storage.objects.get", "storage.objects.list"} <= set(ALL)
