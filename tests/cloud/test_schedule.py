"""`pipestill schedule` against servers that keep state, through the real clients."""

import json
import re
from datetime import UTC, datetime

import pytest

from pipestill.cli import main as cli
from pipestill.cloud import schedule
from pipestill.cloud.client import Settings
from pipestill.errors import WorkError
from tests.cloud.fake_kfp import FakeKfp, _known_keys
from tests.cloud.fake_vertex import Refusal

ACCOUNT = "runner@proj.iam.gserviceaccount.com"
NETWORK = "projects/12345/global/networks/vpc"
PLACE = ["--project", "proj", "--region", "us-central1"]
DATA = ["--set", "dataset_uri=gs://stage/logs", "--set", "retrain_dir=gs://stage/book"]
CREATE = ["create", "retrain", "--profile", "cpu-local", *PLACE, "--staging-bucket", "gs://stage",
          "--no-plan", *DATA, "--cron", "0 3 * * 1", "--time-zone", "Europe/Berlin"]  # fmt: skip


def run(*words):
    return cli.main(["schedule", *(str(word) for word in words)])


def test_labels_account_and_location_reach_every_run(vertex, capsys):
    code = run(*CREATE, "--name", "weekly", "--service-account", ACCOUNT, "--network", NETWORK,
               "--labels", "team=desk", "--set", "min_new_rows=10")  # fmt: skip
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "scheduled  weekly (1)" in printed
    assert printed.count("\ntick ") == 3
    (made,) = vertex.schedules.values()
    assert made.cron == "TZ=Europe/Berlin 0 3 * * 1"
    assert (made.max_concurrent_run_count, made.allow_queueing, made.catch_up) == (1, False, False)
    job = vertex.tick(made.name)
    assert job.name.startswith("projects/proj/locations/us-central1/pipelineJobs/")
    assert job.service_account == ACCOUNT
    assert job.network == NETWORK
    assert dict(job.labels)["team"] == "desk"
    assert dict(job.labels)["pipeline"] == "retrain"
    values = dict(job.runtime_config.parameter_values)
    assert values["tick_time"] == "scheduled"
    assert (values["cron"], values["time_zone"]) == ("0 3 * * 1", "Europe/Berlin")
    assert values["retrain_dir"] == "gs://stage/book"
    assert values["dataset_uri"] == "gs://stage/logs"
    body = next(seen.body for seen in vertex.requests if seen.rpc == "create_schedule")
    assert "{{$.pipeline_job_schedule_time_utc}}" in json.dumps(body)


def test_a_life(vertex, capsys):
    """Created, listed, paused, resumed without catch-up, deleted."""
    assert run(*CREATE, "--name", "weekly") == 0
    assert run("list", *PLACE) == 0
    assert re.search(r"^1 +active +weekly +TZ=Europe/Berlin 0 3 \* \* 1", capsys.readouterr().out,
                     re.M)  # fmt: skip
    assert run("pause", "weekly", *PLACE) == 0
    assert "weekly (1): paused" in capsys.readouterr().out
    assert run("resume", "weekly", *PLACE) == 0
    printed = capsys.readouterr().out
    assert "missed runs are left out" in printed
    assert "weekly (1): active" in printed
    resumed = [seen.request for seen in vertex.requests if seen.rpc == "resume_schedule"]
    assert [request.catch_up for request in resumed] == [False]
    assert run("resume", "1", *PLACE, "--catch-up") == 0
    last = [seen.request for seen in vertex.requests if seen.rpc == "resume_schedule"][-1]
    assert last.catch_up is True
    assert not vertex.jobs  # nothing was started by any of this
    assert run("delete", "weekly", *PLACE) == 0
    assert not vertex.schedules
    capsys.readouterr()
    assert run("list", *PLACE) == 0
    assert capsys.readouterr().out == "no schedules\n"


def test_a_second_schedule_of_one_name_is_refused(vertex, capsys):
    assert run(*CREATE) == 0
    assert run(*CREATE) == 2
    assert "SCHEDULE_EXISTS" in capsys.readouterr().err
    assert len(vertex.schedules) == 1


def test_any_pipeline_can_be_scheduled(vertex, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"input_text": "a", "output_text": "b"}\n')
    words = ["create", "supervised_tuning", "--profile", "cpu-local", *PLACE, "--no-plan",
             "--staging-bucket", "gs://stage", "--cron", "0 3 1 * *"]  # fmt: skip
    assert run(*words, "--set", f"dataset_uri={rows}") == 0
    (made,) = vertex.schedules.values()
    values = dict(made.create_pipeline_job_request.pipeline_job.runtime_config.parameter_values)
    assert values["dataset_uri"].startswith("gs://stage/data/")
    assert "tick_time" not in values
    assert len(vertex.bucket.objects) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--cron", "every monday"], "CRON_SYNTAX.*found 2 fields"),
        (["--cron", "0 25 * * *"], "CRON_SYNTAX.*hour: found '25'"),
        (["--cron", "0 0 30 2 *"], "CRON_NEVER"),
        (["--time-zone", "Berlin"], "TIME_ZONE.*Europe/Berlin"),
        (["--start", "soon"], "SCHEDULE_SETTING.*--start: found 'soon'"),
        (["--at-once", "0"], "SCHEDULE_SETTING"),
        (["--set", "retrain_dir=book"], "SCHEDULE_LOCAL.*retrain_dir: found '.*book'"),
        (["--set", "dataset_uri=rows"], "SCHEDULE_LOCAL.*dataset_uri"),
        (["--set", "cron=0 4 * * *"], "SCHEDULE_PARAMETER.*cron: found '0 4"),
        (["--set", "tick_time=2026-01-05T03:00:00Z"], "SCHEDULE_PARAMETER.*tick_time"),
        (["--set", "min_rows=3"], "CONFIG_UNKNOWN"),
        (["--region", "mars-west1"], "CLOUD_REGION"),
        (["--project", ""], "CLOUD_PROJECT"),
        (["--staging-bucket", ""], "CLOUD_BUCKET"),
        (["--staging-bucket", "gs://other"], "CLOUD_BUCKET.*does not exist"),
        (["--labels", "Team=x"], "CLOUD_LABEL"),
        (["--service-account", "me"], "CLOUD_ACCOUNT"),
    ],
)
def test_bad_input_is_one_line_and_creates_nothing(vertex, capsys, changes, message):
    assert run(*CREATE, *changes) == 2
    printed = capsys.readouterr().err
    assert re.search(message, printed), printed
    assert len(printed.splitlines()) == 1
    assert not vertex.schedules


@pytest.mark.parametrize("action", ["pause", "resume", "delete"])
def test_an_unknown_schedule_is_one_line(vertex, capsys, action):
    assert run(*CREATE) == 0
    capsys.readouterr()
    assert run(action, "daily", *PLACE) == 2
    assert re.search("SCHEDULE_NOT_FOUND.*there are: retrain", capsys.readouterr().err)


def test_two_of_one_name_need_an_id(vertex, capsys):
    assert run(*CREATE) == 0
    (first,) = vertex.schedules.values()
    twin = type(first)(first)
    twin.name = first.name.replace("/1", "/2")
    vertex.schedules[twin.name] = twin
    assert run("pause", "retrain", *PLACE) == 2
    assert re.search("SCHEDULE_AMBIGUOUS.*give an id: ", capsys.readouterr().err)
    assert run("pause", "2", *PLACE) == 0


def test_a_refusal_of_the_platform_is_one_line(vertex, capsys):
    vertex.refuse("create_schedule", 403, "Permission 'aiplatform.schedules.create' denied")
    assert run(*CREATE) == 2
    printed = capsys.readouterr().err
    assert re.search("CLOUD_PROJECT.*schedule retrain: no permission", printed)
    assert len(printed.splitlines()) == 1


def test_a_platform_that_loses_the_account_is_found_out(vertex, monkeypatch, capsys):
    keep = type(vertex).create_schedule

    def forgetful(self, request):
        made = keep(self, request)
        made.create_pipeline_job_request.pipeline_job.service_account = ""
        return made

    monkeypatch.setattr(type(vertex), "create_schedule", forgetful)
    assert run(*CREATE, "--service-account", ACCOUNT) == 1
    assert re.search("SCHEDULE_LOST.*service account", capsys.readouterr().err)
    assert not vertex.schedules


def test_preview(capsys, vertex):
    assert run("preview", "--cron", "0 3 * * 1", "--time-zone", "Europe/Berlin", "-n", "4") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    pattern = r"tick +Mon \d{4}-\d\d-\d\d 03:00 CES?T +\d{4}-\d\d-\d\dT0[12]:00:00Z  \[.+Z, .+Z\)"
    assert all(re.match(pattern, line) for line in lines)
    assert run(*CREATE) == 0
    capsys.readouterr()
    assert run("preview", "--schedule", "retrain", *PLACE, "-n", "2") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "schedule   retrain (1), active"
    assert printed[1:] == lines[:2]
    assert run("preview") == 2
    assert run("preview", "--cron", "0 3 * * 1", "-n", "0") == 2


@pytest.mark.slow
def test_preview_tells_what_runs_cost(tmp_path, capsys):
    rows = tmp_path / "rows"
    rows.mkdir()
    lines = [json.dumps({"input_text": f"row {n}", "output_text": "a"}) for n in range(60)]
    (rows / "2026-01-01.jsonl").write_text("\n".join(lines))
    data = ["--set", f"dataset_uri={rows}", "--set", f"retrain_dir={tmp_path / 'book'}"]
    when = ["--cron", "0 3 * * 1", "-n", "1"]
    code = run("preview", "retrain", "--profile", "a100-80gb-x8", *when, *data)
    printed = capsys.readouterr().out
    assert code == 0, printed
    found = re.search(r"cost +([\d.,]+) USD a run that trains .*, ([45]) runs in 30 days", printed)
    assert found, printed
    assert float(found[1].replace(",", "")) > 1


class Recurring(FakeKfp):
    """The Kubeflow server with recurring runs."""

    def __init__(self):
        super().__init__()
        self.recurring = {}

    def _call(self, method, path, query, body):
        if "/recurringruns" not in path:
            return super()._call(method, path, query, body)
        import kfp_server_api

        if path.endswith("/recurringruns") and method == "POST":
            _known_keys(body, kfp_server_api.V2beta1RecurringRun)
            if len(body["trigger"]["cron_schedule"]["cron"].split()) != 6:
                raise Refusal(400, "Schedule cron is not supported")
            made = {**body, "recurring_run_id": f"rr{len(self.recurring)}", "status": "ENABLED"}
            self.recurring[made["recurring_run_id"]] = made
            return made
        if path.endswith("/recurringruns"):
            found = list(self.recurring.values())
            at = int((query.get("page_token") or ["0"])[0] or 0)
            token = str(at + 1) if at + 1 < len(found) else ""
            return {"recurringRuns": found[at : at + 1], "next_page_token": token}
        name, _, verb = path.rpartition("/")[2].partition(":")
        if name not in self.recurring:
            raise Refusal(404, f"{path} not found")
        if method == "DELETE":
            del self.recurring[name]
        else:
            self.recurring[name]["status"] = {"disable": "DISABLED", "enable": "ENABLED"}[verb]
        return {}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("KFP_TOKEN", raising=False)
    with Recurring() as fake:
        yield fake


KFP = ["create", "retrain", *DATA, "--cron", "30 2 * * 1-5,7"]


def test_recurring_runs_of_a_kubeflow_server(server, capsys):
    where = ["--kfp-endpoint", server.url]
    assert run(*KFP, *where, "--name", "weekly", "--service-account", "pipeline-runner") == 0
    assert run(*KFP, *where, "--name", "other") == 0
    made = server.recurring["rr0"]
    assert made["trigger"]["cron_schedule"]["cron"] == "0 30 2 * * 0,1,2,3,4,5"
    assert made["no_catchup"] is True
    assert made["max_concurrency"] == 1
    assert made["service_account"] == "pipeline-runner"
    values = made["runtime_config"]["parameters"]
    assert values["tick_time"] == "[[ScheduledTime]]"
    assert values["cron"] == "30 2 * * 1-5,7"
    assert run(*KFP, *where, "--name", "weekly") == 2
    assert "SCHEDULE_EXISTS" in capsys.readouterr().err
    assert run("pause", "weekly", *where) == 0
    assert server.recurring["rr0"]["status"] == "DISABLED"
    assert run("list", *where) == 0
    assert re.search(r"^rr0 +paused +weekly", capsys.readouterr().out, re.M)
    assert run("resume", "rr0", *where, "--catch-up") == 2
    assert run("resume", "rr0", *where) == 0
    assert server.recurring["rr0"]["status"] == "ENABLED"
    assert run("delete", "weekly", *where) == 0
    assert list(server.recurring) == ["rr1"]
    assert run("delete", "weekly", *where) == 2
    assert not server.runs


def test_a_kubeflow_server_takes_utc_alone(server, capsys):
    assert run(*KFP, "--kfp-endpoint", server.url, "--time-zone", "Europe/Berlin") == 2
    assert re.search("SCHEDULE_ZONE.*found Europe/Berlin", capsys.readouterr().err)


def test_the_platforms_form_of_a_schedule(vertex):
    run(*CREATE)
    (made,) = vertex.schedules.values()
    made.next_run_time = datetime(2026, 1, 5, 2, tzinfo=UTC)
    found = schedule.listed(made)
    assert (found.next_run, found.pipeline, found.state) == (
        "2026-01-05T02:00:00Z",
        "retrain",
        "active",
    )
    with pytest.raises(Exception, match="SCHEDULE_NOT_FOUND"):
        schedule.find("x", Settings(project="proj", location="us-central1"))
    assert issubclass(WorkError, Exception)
