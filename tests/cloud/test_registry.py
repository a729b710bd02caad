"""Versions and aliases of the model registry, and the ledger that says how they got there."""

import json
import os
import resource
import threading

import pytest

from pipestill.cloud import client, ledger, registry
from pipestill.errors import UserError
from tests.cloud.fake_storage import FakeStorage, led_to

IMAGE = "eu-docker.pkg.dev/proj/pipestill/serve:1"


@pytest.fixture
def settings(vertex):
    return client.init(client.Settings(project="proj", location="us-central1"))


def upload(settings, digest, parent=""):
    return registry.upload(
        settings,
        display_name="desk",
        parent=parent,
        artifact_uri=f"gs://box/models/{digest}",
        digest=digest,
        image=IMAGE,
        labels={"team": "words"},
    )


def test_versions_are_found_by_digest_and_alias(vertex, settings):
    assert registry.find_model("desk", settings) == ""
    assert registry.versions("", settings) == []
    first = upload(settings, "a" * 32)
    second = upload(settings, "b" * 32, first.model)
    assert registry.find_model("desk", settings) == first.model
    assert registry.find_model(first.model, settings) == first.model
    found = registry.versions(first.model, settings)
    assert [item.version_id for item in found] == ["1", "2"]
    assert [item.aliases for item in found] == [("default",), ()]  # an upload promotes nothing
    assert registry.with_digest(found, "b" * 32).version_id == "2"
    assert registry.with_digest(found, "c" * 32) is None
    assert registry.aliased(found, "production") is None
    registry.move_alias(first, "production", settings)
    registry.move_alias(second, "production", settings)
    found = registry.versions(first.model, settings)
    assert registry.aliased(found, "production").version_id == "2"
    assert found[0].aliases == ("default",)
    registry.remove_alias(second, "production", settings)
    assert registry.aliased(registry.versions(first.model, settings), "production") is None


def test_the_server_s_contract_is_in_the_upload(vertex, settings):
    upload(settings, "a" * 32)
    (sent,) = [seen.body for seen in vertex.requests if seen.rpc == "upload_model"]
    assert sent["model"]["containerSpec"] == {
        "imageUri": IMAGE,
        "predictRoute": "/predict",
        "healthRoute": "/health",
        "ports": [{"containerPort": 8080}],
    }
    assert sent["model"]["labels"] == {"team": "words"}
    assert sent["model"]["versionDescription"] == f"digest {'a' * 32}"


def test_two_models_of_one_name_are_refused(vertex, settings):
    upload(settings, "a" * 32)
    upload(settings, "b" * 32)
    with pytest.raises(UserError, match=r"DEPLOY_MODEL.*2 models are called desk.*models/1"):
        registry.find_model("desk", settings)


@pytest.mark.parametrize("alias", ["", "default", "Production", "a_b", "x-"])
def test_aliases_that_the_registry_refuses(alias):
    with pytest.raises(UserError, match="DEPLOY_ALIAS"):
        registry.check_alias(alias)


# the ledger, in a file and in a bucket


@pytest.fixture(params=["file", "gs"])
def place(request, tmp_path, monkeypatch):
    if request.param == "file":
        yield str(tmp_path / "deep" / "ledger.jsonl")
        return
    with FakeStorage() as storage:
        led_to(storage, monkeypatch)
        storage.put("box/other", b"x")
        yield "gs://box/ledger/desk.jsonl"


def text_of(place):
    if place.startswith("gs://"):
        from pipestill.cloud.objects import read_bytes

        return read_bytes(place)
    with open(place, "rb") as source:
        return source.read()


def test_entries_follow_each_other(place):
    assert ledger.read(place) == []
    for number in range(3):
        entry, added = ledger.append(place, {"event": "promoted", "version": f"é{number}"})
        assert added
        assert entry["number"] == number + 1
    found = ledger.read(place)
    assert [entry["version"] for entry in found] == ["é0", "é1", "é2"]
    assert found[0]["previous"] == ledger.FIRST
    again, added = ledger.append(place, {"event": "x"}, same=lambda entries: entries[1])
    assert (again["version"], added) == ("é1", False)
    assert len(ledger.read(place)) == 3


def test_two_writers_at_once_lose_nothing(place):
    def write(name):
        for number in range(4):
            ledger.append(place, {"who": name, "at": number})

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = ledger.read(place)
    assert [entry["number"] for entry in found] == list(range(1, 9))
    for name in "ab":
        assert [entry["at"] for entry in found if entry["who"] == name] == [0, 1, 2, 3]


@pytest.mark.parametrize("damage", ["changed", "removed", "torn"])
def test_a_ledger_that_was_changed_is_refused(tmp_path, damage):
    place = tmp_path / "ledger.jsonl"
    for number in range(3):
        ledger.append(str(place), {"version": number})
    rows = place.read_bytes().splitlines(keepends=True)
    if damage == "changed":
        rows[0] = rows[0].replace(b'"version": 0', b'"version": 9')
    elif damage == "removed":
        del rows[1]
    else:
        rows[2] = rows[2][:20]
    place.write_bytes(b"".join(rows))
    line = {"changed": 2, "removed": 2, "torn": 3}[damage]
    for act in (ledger.read, lambda name: ledger.append(name, {})):
        with pytest.raises(UserError, match=rf"LEDGER_BROKEN.*line {line}") as error:
            act(str(place))
        assert "\n" not in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.exists("/proc/1"), reason="needs /proc")
def test_a_place_that_cannot_be_written():
    with pytest.raises(UserError, match=r"LEDGER_PLACE.*gs://BUCKET"):
        ledger.append("/proc/none/ledger.jsonl", {})


def test_lines_are_plain_json(place):
    ledger.append(place, {"reason": "two\nlines"})
    (line,) = text_of(place).splitlines()
    assert json.loads(line)["reason"] == "two\nlines"


def test_a_full_disk_leaves_no_half_line(tmp_path):
    place = tmp_path / "ledger.jsonl"
    ledger.append(str(place), {"event": "first"})
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (place.stat().st_size + 40, limit[1]))
    try:
        with pytest.raises(UserError, match="LEDGER_PLACE"):
            ledger.append(str(place), {"event": "x" * 500})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [entry["event"] for entry in ledger.read(str(place))] == ["first"]
    ledger.append(str(place), {"event": "second"})
    assert len(ledger.read(str(place))) == 2
