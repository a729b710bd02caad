"""Batch prediction by the platform: the body, the rows and their order, with the real client."""

import json
import random
from pathlib import Path

import pytest

from pipestill.cloud import client, registry
from pipestill.cloud.batch_job import BatchOrder, predict_on_platform
from pipestill.cloud.deploy_options import DeployOptions
from pipestill.errors import UserError, WorkError
from pipestill.serving.batch import BatchConfig
from tests.cloud.fake_storage import FakeStorage, led_to

PLACE = {"project": "proj", "location": "us-central1", "staging_bucket": "gs://box"}
ACCOUNT = "server@proj.iam.gserviceaccount.com"


@pytest.fixture
def box(vertex, monkeypatch):
    """A model in production; the platform answers in any order and in several files."""
    with FakeStorage() as storage:
        led_to(storage, monkeypatch)
        settings = client.init(client.Settings(**PLACE))
        version = registry.upload(
            settings,
            display_name="desk",
            parent="",
            artifact_uri="gs://box/models/a",
            digest="a" * 32,
            image="eu-docker.pkg.dev/proj/pipestill/serve:1",
            labels={},
        )
        registry.move_alias(version, "production", settings)
        vertex.batch_run = lambda job: answer_all(storage, job)
        yield storage


def answer_all(storage, job, broken=(), doubled=False):
    (source,) = job.input_config.gcs_source.uris
    rows = storage.data(source.removeprefix("gs://")).splitlines()
    instances = [json.loads(row) for row in rows]
    random.Random(0).shuffle(instances)
    good, bad = [], []
    for item in instances:
        tokens = {"prompt_tokens": 4.0, "output_tokens": 2.0}
        text = item.get("input_text") or item["messages"][-1]["content"]
        if item["id"] in broken:
            error = {"code": 3, "message": "too long"}
            bad.append({"instance": item, "error": error})
        else:
            good.append({"instance": item, "prediction": {"output_text": text.upper(), **tokens}})
    good += good[:1] if doubled else []
    root = job.output_config.gcs_destination.output_uri_prefix + "/prediction-desk-1"
    key = root.removeprefix("gs://")
    for name, lines in (
        ("prediction.results-00000-of-00002", good[::2]),
        ("prediction.results-00001-of-00002", good[1::2]),
        ("prediction.errors_stats-00000-of-00001", bad),
    ):
        storage.put(f"{key}/{name}", "".join(json.dumps(line) + "\n" for line in lines).encode())
    return root


def asked(folder, count=7):
    path = folder / "in.jsonl"
    rows = [{"id": f"r{n}", "input_text": f"text {n}"} for n in range(count)]
    rows[2] = {"id": "r2", "messages": [{"role": "user", "content": "hi"}]}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(folder, **changes):
    place = changes.pop("place", {})
    options = changes.pop("options", DeployOptions(max_replicas=3))
    given = {"input_uri": asked(folder), "model": "desk", **changes}
    order = BatchOrder(settings=client.Settings(**PLACE, **place), options=options, **given)
    said = []
    summary = predict_on_platform(order, folder / "out.jsonl", folder / "bad.jsonl", said.append)
    return summary, said


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_come_back_in_order(vertex, box, tmp_path):
    vertex.batch_looks = 3
    summary, said = run(tmp_path, place={"service_account": ACCOUNT, "labels": {"team": "a"}})
    found = lines(tmp_path / "out.jsonl")
    assert [row["id"] for row in found] == [f"r{n}" for n in range(7)]
    assert [row["source_row"] for row in found] == list(range(7))
    assert found[2]["output_text"] == "HI"
    assert found[2]["messages"] == [{"role": "user", "content": "hi"}]
    assert (summary["rows_read"], summary["rows_answered"], summary["output_tokens"]) == (7, 7, 14)
    assert isinstance(found[0]["output_tokens"], int)
    assert said[1:] == ["batch job: running", "batch job: succeeded"]
    (sent,) = [seen.body for seen in vertex.requests if seen.rpc == "create_batch_prediction_job"]
    assert sent["model"] == "projects/proj/locations/us-central1/models/1@1"
    assert sent["modelParameters"] == {"max_output_tokens": 256, "explain": False}
    assert sent["manualBatchTuningParameters"] == {"batchSize": 32}
    assert sent["dedicatedResources"]["machineSpec"] == {"machineType": "n1-standard-4"}
    assert sent["dedicatedResources"]["maxReplicaCount"] == 3
    assert sent["serviceAccount"] == ACCOUNT
    assert sent["labels"]["team"] == "a"


def test_a_second_run_pays_for_no_second_job(vertex, box, tmp_path):
    first, _ = run(tmp_path)
    text = (tmp_path / "out.jsonl").read_bytes()
    again, _ = run(tmp_path)
    assert again["job"] == first["job"]
    assert (tmp_path / "out.jsonl").read_bytes() == text
    run(tmp_path, config=BatchConfig(max_output_tokens=9))
    assert vertex.calls()["create_batch_prediction_job"] == 2


def test_rows_that_the_platform_did_not_answer_are_rejects(vertex, box, tmp_path):
    vertex.batch_run = lambda job: answer_all(box, job, broken={"r3"})
    summary, _ = run(tmp_path, config=BatchConfig(max_rejected_fraction=0.2))
    (reject,) = lines(tmp_path / "bad.jsonl")
    assert (reject["source_row"], reject["reason"], reject["line"]) == (3, "not_answered", 4)
    assert "too long" in reject["detail"]
    assert summary["rows_answered"] == 6
    with pytest.raises(UserError, match=r"BATCH_REJECTED.*1 of 7 rows.*in.jsonl:4.*too long"):
        run(tmp_path)


def test_a_row_that_comes_twice(vertex, box, tmp_path):
    vertex.batch_run = lambda job: answer_all(box, job, doubled=True)
    with pytest.raises(WorkError, match=r"BATCH_INCOMPLETE.*twice"):
        run(tmp_path)


def test_a_failed_job_is_one_line_and_the_next_run_makes_a_new_one(vertex, box, tmp_path):
    create = vertex.create_batch_prediction_job

    def failing(request):
        job = create(request)
        job.error.code, job.error.message = 8, "out of\nresources"
        return job

    vertex.create_batch_prediction_job = failing
    with pytest.raises(WorkError, match=r"BATCH_JOB.*JOB_STATE_FAILED: out of resources") as error:
        run(tmp_path)
    assert "\n" not in str(error.value)
    vertex.create_batch_prediction_job = create
    assert run(tmp_path)[0]["rows_answered"] == 7


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model": "absent"}, "DEPLOY_MODEL.*no version has the alias production"),
        ({"options": DeployOptions(alias="canary")}, "DEPLOY_MODEL.*alias canary"),
        ({"config": BatchConfig(batch_size=200)}, "BATCH_SETTING.*at most 128"),
        ({"input_uri": "/no/rows.jsonl"}, "DATA_NOT_FOUND"),
    ],
)
def test_mistakes_pay_for_nothing(vertex, box, tmp_path, changes, line):
    with pytest.raises(UserError, match=line):
        run(tmp_path, **changes)
    assert not vertex.batches


def test_no_permission(vertex, box, tmp_path):
    vertex.refuse("create_batch_prediction_job", 403, "no aiplatform.batchPredictionJobs.create")
    with pytest.raises(UserError, match=r"CLOUD_PROJECT.*create a batch prediction job"):
        run(tmp_path)


def test_a_model_rows_and_journal_in_a_bucket(box, tmp_path, monkeypatch):
    """The batch of our own machines: everything under gs://, and a second run answers nothing."""
    from pipestill.serving.batch import model_digest, predict_shard
    from tests.training.tiny import make_folder

    monkeypatch.setenv("PIPESTILL_CACHE", str(tmp_path / "cache"))
    for path in Path(make_folder("t5_tied", tmp_path / "model")).iterdir():
        box.put(f"box/model/{path.name}", path.read_bytes())
    rows = [{"id": f"r{n}", "input_text": f"a b {n}"} for n in range(6)]
    box.put("box/in.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    given = {"model_reference": "gs://box/model", "state_dir": "gs://box/state", "shard": "0/1"}
    given |= {"batch_size": 1, "max_output_tokens": 3}
    resumed = []
    for name in ("first", "second"):
        out = str(tmp_path / name)
        summary = predict_shard("gs://box/in.jsonl", out, f"{out}.bad", **given)
        resumed.append(summary["rows_resumed"])
    assert resumed == [0, 6]
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    before = model_digest("gs://box/model")
    box.put("box/model/config.json", box.data("box/model/config.json"))
    assert model_digest("gs://box/model") != before
