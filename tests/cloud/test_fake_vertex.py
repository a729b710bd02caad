"""The fake Vertex AI itself: the real high-level client goes through it, wrong bodies do not."""

import pytest
import requests
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform

from pipestill.cloud import client

PARENT = "projects/proj/locations/us-central1"


@pytest.fixture
def settings(vertex):
    return client.init(client.Settings(project="proj", location="us-central1"))


def upload(**options):
    return aiplatform.Model.upload(
        display_name="student",
        artifact_uri="gs://stage/model",
        serving_container_image_uri="eu-docker.pkg.dev/proj/pipestill/serve:1",
        **options,
    )


def test_versions_aliases_traffic_and_predictions(vertex, settings):
    first = upload(version_aliases=["production"])
    second = upload(parent_model=first.resource_name, is_default_version=False)
    assert (first.version_id, second.version_id) == ("1", "2")
    registry = first.versioning_registry
    registry.add_version_aliases(["production"], "2")
    assert aiplatform.Model(f"{first.resource_name}@production").version_id == "2"
    assert aiplatform.Model(first.resource_name).version_id == "1"
    assert [version.version_id for version in registry.list_versions()] == ["1", "2"]

    endpoint = aiplatform.Endpoint.create(display_name="desk")
    first.deploy(endpoint, machine_type="n1-standard-4", traffic_percentage=100, sync=True)
    second.deploy(endpoint, machine_type="n1-standard-4", traffic_percentage=0, sync=True)
    assert endpoint.traffic_split["1"] == 100
    answer = endpoint.predict(instances=[{"input_text": "a"}])
    assert answer.predictions == [{"model": f"{first.resource_name}@1"}]
    endpoint.update(traffic_split={"1": 0, "2": 100})
    assert endpoint.predict(instances=[{}]).predictions[0]["model"].endswith("@2")
    endpoint.undeploy("1")
    assert [item.id for item in endpoint.list_models()] == ["2"]
    endpoint.undeploy_all()
    aiplatform.Endpoint.list()[0].delete()
    assert not vertex.endpoints


def test_schedules_keep_their_state(vertex, settings, tmp_path):
    from pipestill.pipelines.compile import COMPILED

    job = aiplatform.PipelineJob(
        display_name="tune",
        template_path=str(COMPILED / "supervised_tuning.cpu-local.yaml"),
        pipeline_root="gs://stage/root",
        parameter_values={"dataset_uri": "gs://stage/rows.jsonl"},
        labels={"team": "words"},
    )
    schedule = job.create_schedule(cron="TZ=Europe/Berlin 0 3 * * 1", display_name="weekly")
    schedule.pause()
    assert schedule.state.name == "PAUSED"
    schedule.resume(catch_up=False)
    assert schedule.state.name == "ACTIVE"
    assert [found.name for found in aiplatform.PipelineJobSchedule.list()] == [schedule.name]
    started = vertex.tick(schedule.resource_name)
    assert dict(started.labels) == {"team": "words"}
    schedule.delete()
    assert not vertex.schedules
    with pytest.raises(Exception, match="Invalid cron"):
        job.create_schedule(cron="every monday", display_name="weekly")


def test_batch_predictions(vertex, settings):
    job = upload().batch_predict(
        job_display_name="many",
        gcs_source="gs://stage/in.jsonl",
        gcs_destination_prefix="gs://stage/out",
        instances_format="jsonl",
        predictions_format="jsonl",
        machine_type="n1-standard-4",
        sync=False,
    )
    job.wait()
    assert job.state.name == "JOB_STATE_SUCCEEDED"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("pipelineJobs?pipelineJobId=a", {"displayName": "a", "colour": "red"}),
        ("pipelineJobs?pipelineJobId=a", {"displayName": 7}),
        ("pipelineJobs?colour=red", {"displayName": "a"}),
        ("pipelineJobs?pipelineJobId=a", {"displayName": "a", "pipelineSpec": {"colour": "red"}}),
        ("models:upload", {"model": {"displayName": "a", "colour": "red"}}),
        ("schedules", {"cron": "* * * * *", "colour": "red"}),
    ],
)
def test_a_wrong_body_is_refused(vertex, path, body):
    answer = requests.post(f"{vertex.url}/v1/{PARENT}/{path}", json=body, timeout=10)
    assert answer.status_code == 400, answer.text
    assert not vertex.jobs


def test_no_credentials_are_sent_to_a_loopback_server(settings):
    assert isinstance(settings.credentials, AnonymousCredentials)
    assert client.is_loopback("localhost:80")
    assert not client.is_loopback("us-central1-aiplatform.googleapis.com")
