"""Deployment, played from the first version to rollbacks, with the real client."""

import dataclasses
import json

import pytest
from kfp import dsl

from pipestill.cloud import client, ledger, smoke
from pipestill.cloud.deploy_options import DeployOptions
from pipestill.cloud.deploying import deploy
from pipestill.cloud.endpoint import shared
from pipestill.cloud.promotion import Order
from pipestill.errors import UserError, WorkError
from tests.cloud.fake_storage import FakeStorage, led_to
from tests.cloud.fake_vertex import Refusal

IMAGE = "eu-docker.pkg.dev/proj/pipestill/serve:1"
PARENT = "projects/proj/locations/us-central1"
MODEL, ENDPOINT = f"{PARENT}/models/1", f"{PARENT}/endpoints/1"
KEY = f"{PARENT}/keyRings/ring/cryptoKeys/key"
ACCOUNT = "server@proj.iam.gserviceaccount.com"
LEDGER = "gs://box/ledger/desk.jsonl"


@pytest.fixture
def box(vertex, monkeypatch):
    """A bucket for the model files and the ledger; predictions are the right kind of answer."""
    monkeypatch.setattr(smoke, "SMOKE_WAIT_S", 0.0)
    vertex.predictor = lambda deployed, instances: [
        {"output_text": f"from {deployed.model_version_id}", "output_tokens": 3} for _ in instances
    ]
    with FakeStorage() as storage:
        yield led_to(storage, monkeypatch)


@pytest.fixture
def story(vertex, box, tmp_path):
    return Story(vertex, box, tmp_path)


class Story:
    """Deploys folders, and looks at every change that the platform makes meanwhile."""

    def __init__(self, vertex, box, folder):
        self.vertex, self.box, self.folder = vertex, box, folder
        self.shares, self.aliases, self.said = [], [], []
        vertex.watch = self.look

    def look(self, rpc):
        """The alias names one version, which is deployed; the traffic is whole at every moment."""
        named = [
            item.version_id
            for item in self.vertex.models.get(MODEL, [])
            if "production" in item.version_aliases
        ]
        assert len(named) <= 1
        if ENDPOINT not in self.vertex.endpoints:
            return
        found = self.vertex.endpoints[ENDPOINT]
        versions = {item.id: item.model_version_id for item in found.deployed_models}
        assert set(named) <= set(versions.values()), (rpc, named, versions)
        assert sum(found.traffic_split.values()) in ({100} if versions else {0, 100})
        split = {versions[key]: share for key, share in found.traffic_split.items() if share}
        if not self.shares or self.shares[-1] != split:
            self.shares.append(split)
        if not self.aliases or self.aliases[-1] != named:
            self.aliases.append(named)

    def order(self, text, **changes):
        folder = self.folder / text
        folder.mkdir(exist_ok=True)
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_text(text)
        options = {
            name: changes.pop(name)
            for name in [field.name for field in dataclasses.fields(DeployOptions)]
            if name in changes
        }
        place = {"project": "proj", "location": "us-central1", "staging_bucket": "gs://box"}
        settings = client.Settings(**place, **changes.pop("place", {}))
        given = {"decision": "promote", "model_name": "desk", "endpoint_name": "desk"}
        given |= {"serving_image": IMAGE, "reason": "better", **changes}
        return Order(
            folder=str(folder), settings=settings, options=DeployOptions(**options), **given
        )

    def deploy(self, text, **changes):
        return deploy(self.order(text, **changes), say=self.said.append)

    def events(self):
        return [(entry["event"], entry["version"]) for entry in ledger.read(LEDGER)]

    def traffic(self):
        found = self.vertex.endpoints[ENDPOINT]
        versions = {item.id: item.model_version_id for item in found.deployed_models}
        return {versions[key]: share for key, share in found.traffic_split.items()}

    def production(self):
        (named,) = [
            item.version_id
            for item in self.vertex.models[MODEL]
            if "production" in item.version_aliases
        ]
        return named

    def bad(self, version):
        """This version answers nothing from now on."""
        self.vertex.predictor = lambda deployed, instances: [
            {"output_text": "", "output_tokens": int(deployed.model_version_id != version)}
            for _ in instances
        ]


# stories


def test_first_deployment(story):
    result = story.deploy("one", dedicated_endpoint=False)
    assert result == {
        "event": "promoted",
        "changed": True,
        "model": MODEL,
        "version": "1",
        "endpoint": ENDPOINT,
        "digest": result["digest"],
        "ledger_entry": 1,
    }
    assert (story.traffic(), story.production()) == ({"1": 100}, "1")
    assert story.aliases == [[], ["1"]]
    assert story.vertex.calls()["predict"] == 1
    (entry,) = ledger.read(LEDGER)
    facts = {"decision": "promote", "reason": "better", "replaces": "", "alias": "production"}
    assert {name: entry[name] for name in facts} == facts
    assert entry["who"]
    assert entry["recorded"].endswith("Z")
    assert entry["machine"] == "1 to 1 x n1-standard-4"
    assert entry["digest"] == result["digest"]
    place = story.vertex.models[MODEL][0].artifact_uri
    files = [name for name in story.box.names() if name.startswith("box/models/")]
    assert [f"gs://{name}" for name in files] == [
        f"{place}/{name}" for name in ("config.json", "model.safetensors")
    ]


def test_a_second_version_takes_over_in_stages(story):
    story.deploy("one", dedicated_endpoint=False)
    story.shares.clear()
    result = story.deploy("two", traffic_stages="10,50,100")
    assert (result["version"], result["changed"]) == ("2", True)
    assert story.shares == [{"1": 100}, {"1": 90, "2": 10}, {"1": 50, "2": 50}, {"2": 100}]
    assert (story.traffic(), story.production()) == ({"2": 100}, "2")
    assert story.aliases == [[], ["1"], ["2"]]
    assert story.events() == [("promoted", "1"), ("promoted", "2")]
    assert ledger.read(LEDGER)[1]["replaces"] == "1"
    assert list(story.vertex.endpoints) == [ENDPOINT]  # the rehearsal is gone
    (first,) = [i for i, seen in enumerate(story.vertex.requests) if "rehearsal" in str(seen.body)]
    shifts = [i for i, seen in enumerate(story.vertex.requests) if seen.rpc == "update_endpoint"]
    asked = [i for i, seen in enumerate(story.vertex.requests) if seen.rpc == "predict"]
    assert first < min(i for i in asked if i > first) < min(shifts)


def test_the_second_run_does_nothing(story):
    story.deploy("one", dedicated_endpoint=False)
    story.deploy("two")
    before = story.vertex.calls()
    text = story.box.data("box/ledger/desk.jsonl")
    result = story.deploy("two")
    assert (result["changed"], result["version"]) == (False, "2")
    new = story.vertex.calls() - before
    assert {rpc for rpc in new if not rpc.startswith(("list_", "get_"))} == set()
    assert story.box.data("box/ledger/desk.jsonl") == text


def test_a_card_makes_no_version_and_an_image_does(story):
    first = story.deploy("one", dedicated_endpoint=False)
    (story.folder / "one" / "README.md").write_text("made on another day")
    assert not story.deploy("one")["changed"]
    result = story.deploy("one", serving_image=IMAGE.replace(":1", ":2"))
    assert (first["version"], result["version"], result["changed"]) == ("1", "2", True)
    assert story.vertex.models[MODEL][1].container_spec.image_uri.endswith(":2")


def test_smoke_fails_before_any_traffic(story):
    story.deploy("one", dedicated_endpoint=False)
    story.shares.clear()
    story.bad("2")
    with pytest.raises(WorkError, match=r"DEPLOY_SMOKE.*desk-rehearsal.*holds no answer") as error:
        story.deploy("two")
    assert "\n" not in str(error.value)
    assert story.shares in ([], [{"1": 100}])
    assert (story.traffic(), story.production()) == ({"1": 100}, "1")
    assert list(story.vertex.endpoints) == [ENDPOINT]
    assert story.events() == [("promoted", "1"), ("rolled_back", "2")]
    assert "holds no answer" in ledger.read(LEDGER)[1]["reason"]

    story.vertex.predictor = lambda deployed, instances: [{"output_text": "", "output_tokens": 1}]
    result = story.deploy("two")  # repaired: the same version, not uploaded again
    assert result["version"] == "2"
    assert story.vertex.calls()["upload_model"] == 2
    assert story.events()[2:] == [("promoted", "2")]


def test_smoke_fails_in_a_stage_and_the_old_one_has_everything_back(story):
    story.deploy("one", dedicated_endpoint=False)
    story.shares.clear()
    answers = story.vertex.predictor

    def failing_under_traffic(deployed, instances):
        there = story.vertex.endpoints[ENDPOINT].traffic_split.get(deployed.id, 0)
        if deployed.model_version_id == "2" and there >= 60:
            return []
        return answers(deployed, instances)

    story.vertex.predictor = failing_under_traffic
    with pytest.raises(WorkError, match=r"DEPLOY_SMOKE.*not one prediction"):
        story.deploy("two", traffic_stages="20,60,100")
    assert story.shares[-1] == {"1": 100}
    assert (story.traffic(), story.production()) == ({"1": 100}, "1")
    assert story.aliases == [[], ["1"]]
    assert story.events() == [("promoted", "1"), ("rolled_back", "2")]


def test_the_first_one_fails_and_nothing_is_left(story):
    story.bad("1")
    with pytest.raises(WorkError, match="DEPLOY_SMOKE"):
        story.deploy("one", dedicated_endpoint=False)
    assert not story.vertex.endpoints[ENDPOINT].deployed_models
    assert story.aliases == [[]]
    assert story.events() == [("rolled_back", "1")]


def test_an_alias_that_cannot_move_takes_the_promotion_back(story):
    story.deploy("one", dedicated_endpoint=False)
    story.vertex.refuse("merge_version_aliases", 403, "no aiplatform.models.update")
    with pytest.raises(UserError, match=r"CLOUD_PROJECT.*move alias production"):
        story.deploy("two")
    assert (story.traffic(), story.production()) == ({"1": 100}, "1")
    assert story.events() == [("promoted", "1"), ("promoted", "2"), ("rolled_back", "2")]


def test_what_the_gate_does_not_promote_is_recorded_once(story):
    for decision in ("keep", "cannot_tell", "keep", "keep"):
        result = story.deploy("one", decision=decision, reason="too few rows")
    assert (result["event"], result["changed"]) == ("not_promoted", False)
    assert story.vertex.requests_checked == 0
    found = [(entry["event"], entry["decision"]) for entry in ledger.read(LEDGER)]
    assert found == [("not_promoted", name) for name in ("keep", "cannot_tell", "keep")]
    story.deploy("one", reason="override by ada: launch", dedicated_endpoint=False)
    assert ledger.read(LEDGER)[-1]["reason"] == "override by ada: launch"


STOPS = ["upload_model", "deploy_model", "predict", "update_endpoint", "merge_version_aliases",
         "undeploy_model"]  # fmt: skip


@pytest.mark.parametrize("rpc", STOPS)
def test_a_run_that_dies_goes_on(story, rpc, monkeypatch):
    """From one call on nothing that it asks is done, as after SIGKILL; the next run ends the work.

    The rehearsal's endpoint that it may have left behind is removed as well.
    """
    from pipestill.cloud import deploying

    story.deploy("one", dedicated_endpoint=False)
    asked, dead = story.vertex.calls()[rpc], []

    def dies(name, path):
        if dead or (name == rpc and story.vertex.calls()[rpc] > asked):
            dead.append(name)
            raise Refusal(409, "dead")

    with monkeypatch.context() as patch:
        patch.setattr(story.vertex, "_maybe_refuse", dies)
        patch.setattr(deploying, "roll_back", lambda work, error: None)
        patch.setattr(smoke, "SMOKE_TRIES", 1)
        with pytest.raises((UserError, WorkError)):
            story.deploy("two", traffic_stages="30,100")
    assert dead
    story.deploy("two", traffic_stages="30,100")
    assert (story.traffic(), story.production()) == ({"2": 100}, "2")
    assert list(story.vertex.endpoints) == [ENDPOINT]
    assert story.events() == [("promoted", "1"), ("promoted", "2")]
    assert len(story.vertex.models[MODEL]) == 2


def test_another_machine_for_the_same_version(story):
    story.deploy("one", dedicated_endpoint=False)
    machine = {"machine_type": "g2-standard-8", "serving_accelerator": "NVIDIA_L4"}
    machine |= {"accelerator_count": 1, "max_replicas": 2, "spot": True}
    result = story.deploy("one", **machine, place={"service_account": ACCOUNT})
    assert (result["version"], result["changed"]) == ("1", True)
    (deployed,) = story.vertex.endpoints[ENDPOINT].deployed_models
    resources = deployed.dedicated_resources
    assert resources.machine_spec.machine_type == "g2-standard-8"
    assert resources.machine_spec.accelerator_type.name == "NVIDIA_L4"
    assert (resources.min_replica_count, resources.max_replica_count) == (1, 2)
    assert resources.spot
    assert deployed.service_account == ACCOUNT
    assert ledger.read(LEDGER)[-1]["machine"] == "1 to 2 x g2-standard-8 + 1 NVIDIA_L4, spot"
    assert story.vertex.calls()["upload_model"] == 1


def test_key_labels_and_a_dedicated_endpoint(story, monkeypatch):
    from requests.adapters import HTTPAdapter

    send, own = HTTPAdapter.send, []

    def to_loopback(adapter, request, **options):
        name = "https://1.prediction.vertexai.goog"
        if request.url.startswith(name):
            own.append(request.url)
            request.url = story.vertex.url + request.url.removeprefix(name)
        return send(adapter, request, **options)

    monkeypatch.setattr(HTTPAdapter, "send", to_loopback)
    place = {"encryption_spec_key_name": KEY, "labels": {"team": "words"}}
    rows = story.folder / "smoke.jsonl"
    talk = [{"role": "user", "content": "hi"}]
    rows.write_text(f'{{"input_text": "a"}}\n{json.dumps({"messages": talk})}\n')
    story.deploy("one", place=place, smoke_uri=str(rows))
    made, model = story.vertex.endpoints[ENDPOINT], story.vertex.models[MODEL][0]
    assert made.dedicated_endpoint_enabled
    assert len(own) == story.vertex.calls()["predict"] == 2
    asked = [seen.body["instances"] for seen in story.vertex.requests if seen.rpc == "predict"]
    assert asked == [[{"input_text": "a"}], [{"messages": talk}]]
    for item in (made, model):
        assert item.encryption_spec.kms_key_name == KEY
        assert dict(item.labels) == {"team": "words", "pipestill-version": "0-1-0"}


def test_an_endpoint_by_its_id(story):
    story.deploy("one", dedicated_endpoint=False)
    for name in ("1", ENDPOINT):
        result = story.deploy("two", endpoint_name=name, ledger_uri=LEDGER, model_name=MODEL)
    assert (result["version"], result["changed"]) == ("2", False)


def test_the_component(story):
    from pipestill.components.deploy_endpoint import deploy_endpoint

    order = story.order("one")
    served = dsl.Model(name="served", uri=order.folder, metadata={})
    told = dsl.Metrics(name="told", uri=str(story.folder / "told.json"), metadata={})
    place = {"project": "proj", "location": "us-central1", "staging_bucket": "gs://box"}
    given = {**place, "serving_image": IMAGE, "endpoint": "desk", "dedicated_endpoint": False}
    event = deploy_endpoint.python_func(served, "promote", told, **given, labels="team=a,x=b")
    assert event == json.loads((story.folder / "told.json").read_text())["event"] == "promoted"
    assert dict(story.vertex.endpoints[ENDPOINT].labels)["x"] == "b"
    assert deploy_endpoint.python_func(served, "keep", told, **given) == "not_promoted"


# refusals


QUOTA = "Quota exceeded for custom_model_serving_nvidia_l4_gpus, limit: 0"
REFUSALS = [
    (("upload_model", 403, "no aiplatform.models.upload"), r"CLOUD_PROJECT.*upload a version"),
    (("create_endpoint", 403, "no aiplatform.endpoints.create"), r"CLOUD_PROJECT.*create endpoint"),
    (("create_endpoint", 429, QUOTA), r"CLOUD_QUOTA.*the quota is 0"),
    (("deploy_model", 403, "You do not have permission to act as service account"),
     r"CLOUD_ACCOUNT"),
    (("list_endpoints", 401, "invalid authentication credentials"), r"CLOUD_CREDENTIALS"),
]  # fmt: skip


@pytest.mark.parametrize(("refusal", "line"), REFUSALS)
def test_refusals_are_one_line(story, refusal, line):
    story.vertex.refuse(*refusal)
    with pytest.raises(UserError, match=line) as error:
        story.deploy("one")
    assert "\n" not in str(error.value)
    assert not any(item.deployed_models for item in story.vertex.endpoints.values())


def test_a_deployment_that_ends_for_lack_of_quota(story):
    story.deploy("one", dedicated_endpoint=False)
    story.vertex.deploy_errors = [(8, QUOTA)]
    with pytest.raises(UserError, match=r"CLOUD_QUOTA.*deploy version 2.*the quota is 0"):
        story.deploy("two")
    assert (story.traffic(), story.production()) == ({"1": 100}, "1")
    assert list(story.vertex.endpoints) == [ENDPOINT]
    assert story.events()[-1] == ("rolled_back", "2")


def test_a_model_that_the_machine_type_would_be_dropped_for(story):
    from google.cloud.aiplatform_v1 import types

    kinds = types.Model.DeploymentResourcesType
    done = story.vertex.done

    def without(parent, response):
        for versions in story.vertex.models.values():
            versions[-1].supported_deployment_resources_types = [kinds.AUTOMATIC_RESOURCES]
        return done(parent, response)

    story.vertex.done = without
    with pytest.raises(WorkError, match=r"DEPLOY_RESOURCES.*AUTOMATIC_RESOURCES"):
        story.deploy("one")


MISTAKES = [
    ({"traffic_stages": "50"}, "DEPLOY_OPTION.*traffic_stages"),
    ({"traffic_stages": "60,10,100"}, "DEPLOY_OPTION.*traffic_stages"),
    ({"min_replicas": 2}, "DEPLOY_OPTION.*min <= max"),
    ({"machine_type": ""}, "DEPLOY_OPTION.*machine_type"),
    ({"serving_accelerator": "NVIDIA_L4"}, "DEPLOY_OPTION.*both or neither"),
    ({"serving_accelerator": "L4", "accelerator_count": 1}, "DEPLOY_OPTION.*NVIDIA_L4"),
    ({"alias": "default"}, "DEPLOY_ALIAS"),
    ({"serving_image": "pipestill/serve:1"}, "DEPLOY_IMAGE.*Artifact Registry"),
    ({"endpoint_name": "77"}, "DEPLOY_ENDPOINT.*77 does not exist in project proj"),
    ({"endpoint_name": ""}, "DEPLOY_ENDPOINT"),
    ({"smoke_uri": "/no/rows.jsonl"}, "DATA_NOT_FOUND"),
    ({"place": {"service_account": "me"}}, "CLOUD_ACCOUNT"),
]


@pytest.mark.parametrize(("changes", "line"), MISTAKES)
def test_mistakes_change_nothing(story, changes, line):
    with pytest.raises(UserError, match=line) as error:
        story.deploy("one", **changes)
    assert "\n" not in str(error.value)
    assert not story.vertex.models
    assert not story.vertex.endpoints
    assert not story.box.names()


def test_an_endpoint_of_another_model_is_left_alone(story):
    story.deploy("one", dedicated_endpoint=False)
    with pytest.raises(UserError, match=r"DEPLOY_ENDPOINT.*serves another model: \S*models/1"):
        story.deploy("two", model_name="other")
    assert story.vertex.calls()["upload_model"] == 1


@pytest.mark.parametrize(
    ("before", "share", "after"),
    [
        ({"1": 100}, 10, {"1": 90, "9": 10}),
        ({"1": 50, "2": 50}, 33, {"1": 34, "2": 33, "9": 33}),
        ({"1": 100, "9": 0}, 100, {"1": 0, "9": 100}),
        ({}, 10, {"9": 100}),
    ],
)
def test_shares_always_make_a_hundred(before, share, after):
    assert shared(before, "9", share) == after
    assert sum(after.values()) == 100
