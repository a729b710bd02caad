"""`pipestill submit` against a Vertex AI that keeps state; every story through the real client."""

import json
import re
import shutil

import pytest

from pipestill.cli import main as cli
from pipestill.cloud import watch

PLACE = ["--project", "proj", "--staging-bucket", "gs://stage"]
CPU = ["supervised_tuning", "--profile", "cpu-local", "--region", "us-central1", *PLACE]
PARENT = "projects/proj/locations/us-central1"
KEY = "projects/proj/locations/us-central1/keyRings/ring/cryptoKeys/key"
ACCOUNT = "runner@proj.iam.gserviceaccount.com"
NETWORK = "projects/12345/global/networks/vpc"


@pytest.fixture
def rows(tmp_path):
    """A small data file."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"input_text": "a", "output_text": "b"}\n')
    return path


def run(*words, plan=False) -> int:
    without = [] if plan or "--watch" in words or "--resume" in words else ["--no-plan"]
    return cli.main(["submit", *(str(word) for word in words), *without])


def body_of(vertex, number=0):
    return [seen.body for seen in vertex.requests if seen.rpc == "create_pipeline_job"][number]


def job_name(text):
    return re.search(r"^submitted  (\S+)$", text, re.M).group(1)


def test_a_job_is_submitted_and_awaited(vertex, rows, capsys):
    vertex.steps_per_look = 1
    code = run(*CPU, "--set", f"dataset_uri={rows}", "--set", "train_steps=20", "--wait")
    printed = capsys.readouterr().out
    assert code == 0, printed
    name = job_name(printed)
    assert f"pipelines/runs/{name}?project=proj" in printed
    assert "parameter  train_steps = 20" in printed
    assert re.search(r"supervised-tune: running\n", printed)
    assert re.search(r"supervised-tune: done in 7s\n", printed)
    assert printed.endswith(f"job {name}: succeeded\n")
    sent = body_of(vertex)
    assert sent["displayName"] == "supervised_tuning"
    assert sent["labels"] == {
        "pipestill-version": "0-1-0",
        "pipeline": "supervised_tuning",
        "profile": "cpu-local",
    }
    runtime = sent["runtimeConfig"]
    assert runtime["gcsOutputDirectory"] == "gs://stage/pipeline_root"
    values = runtime["parameterValues"]
    assert values["train_steps"] == 20
    assert values["state_dir"] == "gs://stage/state/supervised_tuning"
    assert re.fullmatch(r"gs://stage/data/[0-9a-f]{32}/rows\.jsonl", values["dataset_uri"])
    images = re.findall(r'"image": ?"([^"]+)"', json.dumps(sent["pipelineSpec"]))
    assert set(images) == {"us-central1-docker.pkg.dev/proj/pipestill/cpu:0.1.0"}


def test_data_go_up_once(vertex, rows, tmp_path, capsys):
    again = tmp_path / "copy" / "rows.jsonl"
    again.parent.mkdir()
    shutil.copyfile(rows, again)
    for path in (rows, again):
        assert run(*CPU, "--set", f"dataset_uri={path}") == 0
    assert len(vertex.bucket.objects) == 1
    (stored,) = vertex.bucket.objects.values()
    assert (stored.data, stored.generation) == (rows.read_bytes(), 1)
    sent = [body_of(vertex, n)["runtimeConfig"]["parameterValues"] for n in (0, 1)]
    assert sent[0]["dataset_uri"] == sent[1]["dataset_uri"]


def test_two_people_at_once_do_not_overwrite_each_other(vertex, rows, capsys):
    assert run(*CPU, "--set", f"dataset_uri={rows}") == 0
    vertex.bucket.blind = 1
    assert run(*CPU, "--set", f"dataset_uri={rows}") == 0
    assert not vertex.bucket.blind
    assert [stored.generation for stored in vertex.bucket.objects.values()] == [1]
    assert vertex.calls()["create_pipeline_job"] == 2


def test_folders_and_globs_keep_their_files_names(vertex, rows, capsys):
    (rows.parent / "more.jsonl").write_text("{}\n")
    (rows.parent / ".hidden").write_text("x")
    for path in (rows.parent, rows.parent / "*.jsonl"):
        assert run(*CPU, "--set", f"dataset_uri={path}") == 0
    names = {name.rpartition("/")[2] for name in vertex.bucket.objects}
    assert names == {"rows.jsonl", "more.jsonl"}
    sent = [body_of(vertex, n)["runtimeConfig"]["parameterValues"] for n in (0, 1)]
    assert re.fullmatch(r"gs://stage/data/[0-9a-f]{32}", sent[0]["dataset_uri"])
    assert sent[0]["dataset_uri"] == sent[1]["dataset_uri"]


def test_changed_data_get_another_name(vertex, rows, capsys):
    assert run(*CPU, "--set", f"dataset_uri={rows}") == 0
    rows.write_text('{"input_text": "c", "output_text": "d"}\n')
    assert run(*CPU, "--set", f"dataset_uri={rows}") == 0
    assert len(vertex.bucket.objects) == 2


def test_a_local_model_folder_is_mounted(vertex, rows, tmp_path, capsys):
    model = tmp_path / "my-model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    options = ["--set", f"dataset_uri={rows}", "--set", f"student_model_reference={model}"]
    assert run("distill_step_by_step", *CPU[1:], *options) == 0
    value = body_of(vertex)["runtimeConfig"]["parameterValues"]["student_model_reference"]
    assert value.startswith("/gcs/stage/data/")
    assert f"{value.removeprefix('/gcs/')}/config.json" in vertex.bucket.objects


def test_account_network_key_labels_and_cache_reach_the_job_and_its_custom_jobs(
    vertex, rows, capsys
):
    place = ["supervised_tuning", "--profile", "a100-80gb-x8", *PLACE]
    options = ["--service-account", ACCOUNT, "--network", NETWORK, "--encryption-key", KEY]
    labels = ["--labels", "team=words,cost-center=7", "--no-cache"]
    assert run(*place, *options, *labels, "--set", f"dataset_uri={rows}") == 0
    sent = body_of(vertex)
    assert sent["serviceAccount"] == ACCOUNT
    assert sent["network"] == NETWORK
    assert sent["encryptionSpec"] == {"kmsKeyName": KEY}
    assert sent["labels"].items() >= {"team": "words", "cost-center": "7"}.items()
    assert sent["runtimeConfig"]["parameterValues"]["encryption_spec_key_name"] == KEY
    spec = sent["pipelineSpec"]
    heavy = spec["components"]["comp-supervised-tune"]["inputDefinitions"]["parameters"]
    assert heavy["service_account"]["defaultValue"] == ACCOUNT
    assert heavy["network"]["defaultValue"] == NETWORK
    assert heavy["labels"]["defaultValue"]["team"] == "words"
    assert heavy["location"]["defaultValue"] == "us-central1"
    options = re.findall(r'"enableCache": ?(\w+)', json.dumps(spec))
    assert "true" not in options


def test_an_experiment(vertex, rows, capsys):
    assert run(*CPU, "--set", f"dataset_uri={rows}", "--experiment", "first-try") == 0
    name = job_name(capsys.readouterr().out)
    store = f"{PARENT}/metadataStores/default/contexts"
    assert vertex.contexts[f"{store}/first-try"].schema_title == "system.Experiment"
    assert vertex.children == {f"{store}/first-try": [f"{store}/{name}"]}


def test_an_experiment_that_is_refused_stops_the_job_before_it_exists(vertex, capsys):
    vertex.refuse("get_metadata_store", 403, "no aiplatform.metadataStores.get", times=9)
    vertex.refuse("get_context", 403, "no aiplatform.contexts.get", times=9)
    assert run(*CPU, *DATA, "--experiment", "first-try") == 2
    assert re.match(r"error \[CLOUD_PROJECT\] create a job", capsys.readouterr().err)
    assert not vertex.jobs


def test_a_job_outside_of_its_experiment_still_counts(vertex, capsys):
    vertex.refuse("add_context_children", 403, "no aiplatform.contexts.addContextChildren")
    assert run(*CPU, *DATA, "--experiment", "first-try") == 0
    printed = capsys.readouterr().out
    assert "warning    the job runs, but outside of experiment first-try\n" in printed
    assert job_name(printed) in next(iter(vertex.jobs))


def test_a_failed_job_is_resumed_and_its_finished_steps_are_skipped(vertex, rows, capsys):
    vertex.failing["supervised-tune"] = "CUDA out of memory\nat step 3"
    options = ["--service-account", ACCOUNT, "--encryption-key", KEY, "--labels", "team=words"]
    assert run(*CPU, *options, "--set", f"dataset_uri={rows}", "--wait") == 1
    printed = capsys.readouterr().out
    assert "failed step supervised-tune: CUDA out of memory at step 3\n" in printed
    assert re.search(r"its log: https://console\.cloud\.google\.com/logs/query;\S+", printed)
    back = re.search(r"^go on      pipestill (submit .*)$", printed, re.M).group(1)
    first = job_name(printed)

    vertex.failing.clear()
    assert cli.main(back.split()) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^skipped    .*data-prep.* \(finished and cached\)$", printed, re.M)
    assert re.search(r"^runs       .*supervised-tune", printed, re.M)
    assert "data-prep: cached" in printed
    assert "supervised-tune: done" in printed
    old, new = body_of(vertex, 0), body_of(vertex, 1)
    assert new["runtimeConfig"] == old["runtimeConfig"]
    assert new["pipelineSpec"] == old["pipelineSpec"]
    assert (new["serviceAccount"], new["encryptionSpec"]) == (ACCOUNT, {"kmsKeyName": KEY})
    assert new["labels"] == old["labels"] | {"pipestill-resumed-from": first}


def test_only_a_failed_job_can_be_resumed(vertex, rows, capsys):
    assert run(*CPU, "--set", f"dataset_uri={rows}", "--wait") == 0
    name = job_name(capsys.readouterr().out)
    assert run("--resume", name, "--project", "proj", "--region", "us-central1") == 2
    assert "[SUBMIT_RESUME]" in capsys.readouterr().err
    assert vertex.calls()["create_pipeline_job"] == 1


def test_a_second_run_is_found_in_the_cache(vertex, rows, capsys):
    command = [*CPU, "--set", f"dataset_uri={rows}", "--wait"]
    assert run(*command) == 0
    assert "cached" not in capsys.readouterr().out
    assert run(*command) == 0
    printed = capsys.readouterr().out
    assert "supervised-tune: cached" in printed
    assert "data-digest: done" in printed  # caching rests on it, so it is never cached itself
    assert run(*command, "--no-cache") == 0
    assert "cached" not in capsys.readouterr().out


def test_ctrl_c_leaves_the_job_running(vertex, rows, capsys, monkeypatch):
    looks = []

    def interrupted(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", interrupted)
    assert run(*CPU, "--set", f"dataset_uri={rows}", "--wait") == 130
    printed = capsys.readouterr().out
    again = re.search(r"goes on; see it again with: pipestill (submit --watch .*)$", printed, re.M)
    assert vertex.calls()["cancel_pipeline_job"] == 0
    monkeypatch.undo()
    monkeypatch.setattr(watch, "POLL_S", 0.0)
    monkeypatch.setenv("PIPESTILL_API_ENDPOINT", vertex.url)
    assert cli.main(again.group(1).split()) == 0
    assert "succeeded" in capsys.readouterr().out


QUOTA = "The following quota metrics exceed quota limits: custom_model_training_a2_cpus"


def test_the_next_place_is_tried_where_quota_is_refused(vertex, rows, capsys):
    vertex.refuse("create_pipeline_job", 429, QUOTA, where="us-central1")
    command = ["supervised_tuning", "--profile", "a100-80gb-x8", *PLACE]
    fallback = ["--fallback", "us-east4/a100-80gb-x8, europe-west4/tpu-v3-64"]
    assert run(*command, *fallback, "--set", f"dataset_uri={rows}") == 0
    printed = capsys.readouterr().out
    assert "refused    us-central1/a100-80gb-x8: " in printed
    assert "next       us-east4/a100-80gb-x8\n" in printed
    assert "place      us-east4/a100-80gb-x8, project proj\n" in printed
    paths = [seen.path for seen in vertex.requests if seen.rpc == "create_pipeline_job"]
    assert [path.split("/")[5] for path in paths] == ["us-central1", "us-east4"]
    heavy = body_of(vertex, 1)["pipelineSpec"]["components"]["comp-supervised-tune"]
    assert heavy["inputDefinitions"]["parameters"]["location"]["defaultValue"] == "us-east4"
    assert len(vertex.bucket.objects) == 1


def test_a_job_that_ends_without_capacity_goes_to_the_next_place(vertex, rows, capsys):
    stockout = "RESOURCE_EXHAUSTED: Resources are insufficient in region: us-central1"
    vertex.failing["supervised-tune"] = stockout
    original = vertex.create_pipeline_job

    def create(request):
        if "us-east4" in request.parent:
            vertex.failing.clear()
        return original(request)

    vertex.create_pipeline_job = create
    command = ["supervised_tuning", "--profile", "a100-80gb-x8", *PLACE, "--wait"]
    code = run(*command, "--fallback", "us-east4/a100-80gb-x8", "--set", f"dataset_uri={rows}")
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "next       us-east4/a100-80gb-x8\n" in printed
    assert vertex.calls()["create_pipeline_job"] == 2


def test_a_dry_run_asks_nothing(vertex, rows, capsys):
    assert run(*CPU, "--set", f"dataset_uri={rows}", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "would upload" in printed
    assert "parameter  state_dir = gs://stage/state/supervised_tuning" in printed
    assert vertex.requests_checked == 0


def test_a_compiled_file(vertex, rows, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    assert cli.main(["compile", "supervised_tuning", "-o", str(file)]) == 0
    place = ["--region", "us-central1", *PLACE, "--set", f"dataset_uri={rows}"]
    assert run(file, *place) == 0
    assert body_of(vertex)["labels"]["pipeline"] == "supervised_tuning"
    assert run(file, *place, "--profile", "tpu-v3-64") == 2
    assert "compiled for cpu-local, --profile says tpu-v3-64" in capsys.readouterr().err


@pytest.mark.slow
def test_the_plan_comes_first_and_its_limit_becomes_the_time_limit(vertex, rows, capsys):
    rows.write_text("".join(f'{{"input_text": "{n}", "output_text": "b"}}\n' for n in range(40)))
    command = ["supervised_tuning", "--profile", "a100-80gb-x8", *PLACE]
    command += ["--set", f"dataset_uri={rows}", "--set", "train_steps=1"]
    assert run(*command, "--max-cost", "0.5", plan=True) == 2
    error = capsys.readouterr().err
    assert re.match(r"error \[PLAN_REFUSED\] us-central1/a100-80gb-x8: .* 1\. .*cost", error), error
    assert error.count("\n") == 1
    assert not vertex.jobs
    assert not vertex.bucket.objects

    assert run(*command, "--max-cost", "5000", plan=True) == 0
    assert re.search(
        r"^plan       us-central1/a100-80gb-x8: likely \S+ h and \S+ USD", capsys.readouterr().out
    )
    heavy = body_of(vertex)["pipelineSpec"]["components"]["comp-supervised-tune"]
    limit = heavy["inputDefinitions"]["parameters"]["timeout"]["defaultValue"]
    assert re.fullmatch(r"[1-9]\d*s", limit)
    assert limit != "604800s"


DATA = ["--set", "dataset_uri=gs://stage/rows.jsonl"]
SERVER = [
    # what the server is made to say, options, the line
    (("list_pipeline_jobs", 403, "Permission 'aiplatform.pipelineJobs.list' denied"), [],
     r"CLOUD_PROJECT.*no permission in project proj.*--project"),
    (("list_pipeline_jobs", 404, "Project proj was not found"), [], r"CLOUD_NOT_FOUND.*proj"),
    (("list_pipeline_jobs", 401, "invalid authentication credentials"), [],
     r"CLOUD_CREDENTIALS.*gcloud auth application-default login"),
    (("list_pipeline_jobs", 403, "Vertex AI API has not been used in project 1 before. "
      "SERVICE_DISABLED"), [], r"CLOUD_API_DISABLED.*gcloud services enable"),
    (None, ["--staging-bucket", "gs://absent"], r"CLOUD_BUCKET.*gs://absent does not.*create"),
    (None, ["--staging-bucket", "gs://closed"],
     r"CLOUD_BUCKET.*gs://closed: you lack storage.objects.create"),
    (("create_pipeline_job", 429, QUOTA + " limit: 0"), [],
     r"CLOUD_QUOTA.*refused for quota or capacity.*the quota is 0.*iam-admin/quotas"),
    (("create_pipeline_job", 403, "You do not have permission to act as service account"),
     ["--service-account", ACCOUNT], r"CLOUD_ACCOUNT.*runner@proj"),
    (("create_pipeline_job", 400, "pipeline_spec: bad"), [], r"CLOUD_REFUSED.*pipeline_spec: bad"),
]  # fmt: skip


@pytest.mark.parametrize(("refusal", "options", "line"), SERVER)
def test_refusals_of_the_platform_are_one_line(vertex, capsys, refusal, options, line):
    vertex.bucket.buckets["closed"] = ("storage.objects.get",)
    if refusal:
        vertex.refuse(*refusal)
    assert run(*CPU, *DATA, *options) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"error \[{line}.*\n", error), error
    assert not vertex.jobs


MISTAKES = [
    (["--region", "us-central7"], r"CLOUD_REGION.*us-central7.*us-central1"),
    (["--labels", "Team=x"], r"CLOUD_LABEL.*Team=x"),
    (["--labels", "team"], r"USAGE.*KEY=VALUE"),
    (["--encryption-key", KEY.replace("us-central1", "europe-west4")], r"CLOUD_KEY.*europe-west4"),
    (["--network", "vpc"], r"CLOUD_NETWORK"),
    (["--service-account", "me"], r"CLOUD_ACCOUNT"),
    (["--staging-bucket", "stage"], r"CLOUD_BUCKET.*gs://BUCKET"),
    (["--staging-bucket", ""], r"CLOUD_BUCKET.*--staging-bucket"),
    (["--project", ""], r"CLOUD_PROJECT.*--project"),
    (["--profile", "h100"], r"PROFILE_UNKNOWN.*a100-80gb-x8"),
    (["--profile", "tpu-v3-64"], r"HARDWARE_REGION.*us-central1.*europe-west4"),
    (["--set", "accelerator_type=TPU"], r"SUBMIT_PROFILE.*TPU.*compiled for CPU"),
    (["--set", "train_stps=3"], r"CONFIG_UNKNOWN.*train_steps"),
    (["--set", "title={{$}}"], r"SUBMIT_VALUE.*\{\{\$"),
    (["--set", "train_steps=9007199254740993"], r"SUBMIT_VALUE.*2\^53"),
    (["--set", "learning_rate=.nan"], r"SUBMIT_VALUE.*finite"),
    (["--set", "state_dir=/tmp/state"], r"SUBMIT_LOCAL.*state_dir"),
    (["--set", "dataset_uri=/no/such/file.jsonl"], r"DATA_NOT_FOUND.*/no/such/file"),
    (["--set", "tensorboard_resource_id=projects/1/locations/us-central1/tensorboards/2"],
     r"SUBMIT_TENSORBOARD.*--service-account"),
    (["--fallback", "us-east4"], r"USAGE.*REGION/PROFILE"),
    (["--display-name", "x" * 129], r"USAGE.*--display-name.*128"),
    (["--max-cost", "-1"], r"USAGE.*--max-cost"),
    (["--max-cost", "9", "--no-plan"], r"USAGE.*--max-cost needs the plan"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "line"), MISTAKES)
def test_mistakes_are_one_line_before_anything_is_created(vertex, capsys, options, line):
    assert run(*CPU, *DATA, *options) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"error \[{line}.*\n", error), error
    assert not vertex.jobs
    assert not vertex.bucket.objects


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["cpu-local", "a100-80gb-x8", "tpu-v3-64"])
@pytest.mark.parametrize("pipeline", ["distill_step_by_step", "distill", "supervised_tuning"])
def test_every_pipeline_is_accepted_for_every_profile(vertex, pipeline, profile, capsys):
    assert run(pipeline, "--profile", profile, *PLACE, *DATA, "--wait") == 0
    assert body_of(vertex)["labels"]["profile"] == profile


def test_a_missing_parameter(vertex, capsys):
    assert run(*CPU) == 2
    assert "[RUN_PARAMETER] parameters of supervised-tuning: missing:" in capsys.readouterr().err
    assert vertex.requests_checked == 0


def test_no_credentials(vertex, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PIPESTILL_API_ENDPOINT", "https://vertex.invalid")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    assert run(*CPU, *DATA) == 2
    error = capsys.readouterr().err
    assert re.match(r"error \[CLOUD_CREDENTIALS\] no valid Google credentials", error), error
    assert error.count("\n") == 1


def test_nobody_answers(vertex, capsys, monkeypatch):
    monkeypatch.setenv("PIPESTILL_API_ENDPOINT", "http://127.0.0.1:9")
    assert run(*CPU, *DATA) == 1
    assert "[CLOUD_UNREACHABLE]" in capsys.readouterr().err


def test_silence_while_waiting_is_not_the_end(vertex, capsys):
    vertex.refuse("get_pipeline_job", 504, "took too long", times=3)
    vertex.refuse("get_pipeline_job", 403, "quota exceeded: reads per minute")
    assert run(*CPU, *DATA, "--wait") == 0
    assert not any(vertex.refusals.values())


def test_job_of_another_region_by_its_full_name(vertex, capsys):
    assert run(*CPU, *DATA) == 0
    name = job_name(capsys.readouterr().out)
    assert (
        run("--watch", f"{PARENT}/pipelineJobs/{name}", "--project", "x", "--region", "us-east1")
        == 0
    )
    assert run("--watch", "absent", "--project", "proj") == 2
    assert "[CLOUD_NOT_FOUND]" in capsys.readouterr().err
