"""`pipestill plan`: steps from the definition, real rows, ranges, reasons, exit codes."""

import json
import math
import re

import pytest

from pipestill.cli.main import main
from pipestill.cloud import plan as planning
from pipestill.cloud.client import Settings
from pipestill.cloud.estimate import ESTIMATORS
from pipestill.cloud.finished import finished_steps
from pipestill.cloud.machines import cpu_machine, machine_of
from pipestill.cloud.pipeline_steps import read_steps, spec_of
from pipestill.cloud.plan import plan
from pipestill.cloud.prices import PRICES_VARIABLE, Range
from pipestill.cloud.workload import Workload, model_of
from pipestill.data.digest import CODE_VERSION_ENV, run_digest
from pipestill.errors import UserError
from pipestill.models.counting import count_parameters, local_folder
from pipestill.pipelines import PIPELINES, build
from pipestill.pipelines.hardware import PROFILES

DSS = "distill_step_by_step"
PAID = {
    "teacher_backend": "openai",
    "teacher_model_reference": "some/teacher",
    "teacher_base_url": "http://127.0.0.1:9",
    "teacher_usd_per_million_input": 2.0,
    "teacher_usd_per_million_output": 10.0,
}


@pytest.fixture(autouse=True)
def own_settings(monkeypatch):
    """No prices and no project of the person who runs the tests."""
    for name in (PRICES_VARIABLE, "GOOGLE_CLOUD_PROJECT", "PIPESTILL_API_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def specs():
    """DSS on every profile."""
    return {name: spec_of(build(DSS, profile)) for name, profile in PROFILES.items()}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """240 labelled rows and 60 without a label, as a file."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = []
    for number in range(300):
        label = {"output_text": "yes" if number % 3 else "no"} if number < 240 else {}
        text = f"order {number}: is it {number % 7} days late and over {number % 11} pounds"
        lines.append(json.dumps({"input_text": text, **label}))
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def made(specs, rows, profile="a100-80gb-x8", change=None, **options):
    parameters = {"dataset_uri": rows, "runs": ["dss:0", "label_only:0"]} | (change or {})
    return plan(specs[profile], parameters, PROFILES[profile], offline=True, **options)


def by_name(found):
    return {step.name: step for step in found.steps}


# ---- the steps of a definition


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("profile", PROFILES)
def test_every_shipped_pipeline_is_read_and_its_heavy_steps_are_known(name, profile):
    spec = spec_of(build(name, PROFILES[profile]))
    inputs = spec["root"]["inputDefinitions"]["parameters"]
    needed = {
        key: "rows.jsonl"
        for key, item in inputs.items()
        if not item.get("isOptional") and "defaultValue" not in item
    }
    steps = read_steps(spec, needed)
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    for number, step in enumerate(steps):
        assert set(step.needs) <= set(names[:number])
        if step.is_job:
            assert step.component in ESTIMATORS
            assert step.location == PROFILES[profile].location
    assert any(step.is_job for step in steps) == bool(PROFILES[profile].machine_type)


def test_loops_are_taken_apart_and_conditions_decided(specs):
    given = {"dataset_uri": "x", "runs": ["dss:0", "shuffled:4"], "shards": ["0/2", "1/2"]}
    waiting = [
        s for s in read_steps(specs["a100-80gb-x8"], given) if s.component == "student_train"
    ]
    assert waiting[0].name in waiting[1].needs  # one machine: one after the other
    assert {step.accelerator_count for step in waiting} == {8}
    steps = read_steps(specs["cpu-local"], given)
    students = [step for step in steps if step.component == "student_train"]
    assert [step.arguments["run"] for step in students] == given["runs"]
    assert students[0].arguments["train_steps"] == 300
    assert isinstance(students[0].arguments["train_steps"], int)
    explained = {step.name: step.needs for step in steps if step.component == "rationale_extract"}
    assert "teacher-label/1" in explained["rationale-extract/1"]
    assert "teacher-label/0" not in explained["rationale-extract/1"]
    assert steps[-1].component == "deploy"
    assert read_steps(specs["cpu-local"], given | {"deploy_model": False})[-1].component == "report"


def test_a_limited_loop_runs_in_waves():
    from kfp import dsl

    @dsl.component
    def one(item: str):
        pass

    @dsl.pipeline(name="waves")
    def waves(items: list):
        with dsl.ParallelFor(items, parallelism=2) as item:
            one(item=item)

    steps = read_steps(spec_of(waves), {"items": ["a", "b", "c"]})
    assert [step.needs for step in steps] == [(), (), ("one/0",)]


@pytest.mark.parametrize("given", [{}, {"dataset_uri": "x", "colour": 1}])
def test_missing_and_unknown_parameters_are_named(specs, given):
    with pytest.raises(UserError, match=r"PLAN_PARAMETER.*(dataset_uri|colour)"):
        read_steps(specs["cpu-local"], given)


# ---- rows, tokens, computing


def test_rows_and_steps_are_those_of_the_run(specs, rows):
    found = made(specs, rows, change={"batch_size": 16, "train_steps": 50})
    data = found.rows
    assert data.read == 300
    assert data.train + data.held_out == 300
    assert data.unlabelled == 60
    steps = by_name(found)
    assert steps["teacher-label/0"].estimate.calls == 60 + 200
    assert steps["evaluate"].estimate.rows == data.held_out
    model = model_of("pocket-base")
    work = Workload(parameters={}, offline=True)
    source = work.mean_tokens("pocket-base", _inputs(rows))
    labels = steps["student-train/1"].estimate
    assert labels.tokens_in == pytest.approx(800 * (source + 3), rel=0.05)
    # the encoder's weights alone are a lower bound, 6·N·D an upper one
    assert labels.flops > 800 * model.encoder * source
    assert labels.flops < 800 * 6.0 * model.parameters * (source + 10)
    assert 1.8 < steps["student-train/0"].estimate.tokens_in / labels.tokens_in < 2.2


def _inputs(path):
    with open(path, encoding="utf-8") as source:
        return [json.loads(line)["input_text"] for line in source]


def test_a_models_cost_is_its_own_where_it_lies_here_and_by_size_elsewhere():
    pocket = model_of("pocket-base")
    assert pocket.parameters == count_parameters(local_folder("pocket-base"))
    weights = pocket.encoder + pocket.decoder + pocket.head
    assert weights == pytest.approx(6 * pocket.parameters, rel=0.5)
    known = model_of("google/t5-v1_1-base")
    assert known.encoder + known.decoder == pytest.approx(6 * 247577856)
    assert known.two_stacks
    decoder = model_of("meta-llama/Llama-3.1-8B")
    assert (decoder.encoder, decoder.decoder) == (0, 6.0 * 8030261248)
    assert "not known" in model_of("nobody/unheard-of").note


def test_more_work_takes_more(specs, rows):
    few = made(specs, rows, change={"train_steps": 5_000})
    many = made(specs, rows, change={"train_steps": 10_000})
    assert many.cost.likely > few.cost.likely
    step, other = (by_name(item)["student-train/0"] for item in (few, many))
    assert other.estimate.flops == pytest.approx(2 * step.estimate.flops, rel=0.1)


def test_large_weights_take_their_time_to_arrive(specs, rows):
    small, large = (
        by_name(made(specs, rows, change={"student_model_reference": f"google/t5-v1_1-{size}"}))
        for size in ("base", "xl")
    )
    more = large["student-train/1"].hours.likely - small["student-train/1"].hours.likely
    assert more * 3600 > 4 * (2849757184 - 247577856) / 0.25e9 * 0.99
    assert large["report"].hours == small["report"].hours


def test_every_range_is_in_order(specs, rows):
    for profile in PROFILES:
        found = made(specs, rows, profile)
        for item in (found.hours, found.cost, *(step.hours for step in found.steps)):
            assert 0 <= item.low <= item.likely <= item.high
            assert math.isfinite(item.high)


def test_words_stand_in_for_an_unreachable_tokenizer(specs, rows):
    found = made(specs, rows, change={"student_model_reference": "google/t5-v1_1-base"})
    assert any("tokens are words" in note for note in found.notes)
    assert any("248 M parameters from the catalogue" in note for note in found.notes)
    assert found.ok


def test_large_data_is_counted_and_its_beginning_prepared(specs, rows, monkeypatch):
    monkeypatch.setattr("pipestill.cloud.workload.MOST_ROWS", 100)
    found = made(specs, rows)
    assert (found.rows.read, found.rows.scale) == (300, 3)
    assert any("stand for all 300" in note for note in found.notes)
    assert found.to_dict()["rows"]["exact"] is False
    assert "about 300 rows" in found.text()


def test_speeds_come_from_peaks_and_shares(specs):
    steps = read_steps(specs["a100-80gb-x8"], {"dataset_uri": "x"})
    machine = machine_of(next(step for step in steps if step.is_job), local=False)
    assert machine.train_peak == 8 * 312e12
    hour = machine.training(machine.train_peak * 3600 * machine.share.likely, 1, two_stacks=False)
    assert hour.likely == pytest.approx(3600)
    assert machine.training(1.0, 1000, two_stacks=False) == machine.step * 1000
    slow = cpu_machine(2, Range()).generating(0, 0, 1e9, tokens=1000, batch=1)
    assert slow.low == pytest.approx(1000 * 4e9 / 16e9 / 0.6)


def test_a_local_teacher_answers_on_all_gpus_unless_a_budget_holds_it(specs, rows):
    change = {"teacher_audit_rows": 0, "teacher_batch_size": 4}  # 60 calls: 15 batches

    def label_seconds(profile="a100-80gb-x8", **more):
        found = made(specs, rows, profile, change=change | more)
        return by_name(found)["teacher-label/0"].estimate.seconds.likely

    alone = label_seconds(teacher_budget_tokens=10**6)
    assert label_seconds() == pytest.approx(alone / 8)
    assert label_seconds(teacher_batch_size=32) == pytest.approx(
        label_seconds(teacher_batch_size=32, teacher_budget_usd=9.0) / 2  # two batches of 32
    )
    assert label_seconds("tpu-v3-64") == label_seconds("tpu-v3-64", teacher_budget_tokens=10**6)


# ---- money


def test_the_teachers_tokens_are_paid_once(specs, rows):
    change = PAID | {"teacher_audit_rows": 0, "eval_shots": ""}
    found = made(specs, rows, change=change)
    steps = by_name(found)
    asked = steps["teacher-label/0"].estimate
    api = (asked.tokens_in * 2.0 + asked.tokens_out * 10.0) / 1e6
    assert asked.calls == 60
    assert asked.api.likely == pytest.approx(api, rel=0.01)
    # the labelling step's answers are in the journal: the next step asks about the others only
    assert steps["rationale-extract/0"].estimate.calls == pytest.approx(found.rows.train - 60)
    assert steps["evaluate"].estimate.api.likely == 0
    shots = by_name(made(specs, rows, change=change | {"eval_shots": "0,5"}))["evaluate"].estimate
    assert shots.calls == 2 * found.rows.held_out


def test_a_machine_is_paid_by_the_hour_with_the_fee(specs, rows):
    step = by_name(made(specs, rows))["student-train/0"]
    assert step.cost.likely == pytest.approx(step.hours.likely * 40.55 * 1.15, rel=1e-3)
    assert step.cost.high == pytest.approx(step.hours.high * 80.29 * 1.20, rel=1e-3)
    assert step.spot.likely < step.cost.likely
    assert made(specs, rows, "tpu-v3-64").spot is None
    tpu = by_name(made(specs, rows, "tpu-v3-64"))["student-train/0"]
    assert tpu.cost.likely == pytest.approx(tpu.hours.likely * 64 * 1.15, rel=1e-3)


def test_a_local_run_costs_nothing_and_takes_its_steps_in_turn(specs, rows):
    found = made(specs, rows, "cpu-local")
    assert found.cost == Range()
    assert found.hours.likely == pytest.approx(sum(step.hours.likely for step in found.steps))
    assert found.quota == ()
    assert made(specs, rows, "cpu-local", project="shop").cost.likely > 0


def test_students_take_turns_on_the_platform(specs, rows):
    one = made(specs, rows, change={"runs": ["dss:0"]})
    nine = made(specs, rows, change={"runs": [f"dss:{seed}" for seed in range(9)]})
    assert (one.at_once, nine.at_once) == (1, 1)
    assert nine.hours.likely > one.hours.likely * 2
    assert nine.cost.likely > one.cost.likely * 2


def test_a_budget_refuses_and_becomes_the_time_limit(specs, rows):
    free = made(specs, rows)
    assert free.timeout_s == 0
    refused = made(specs, rows, max_cost=free.cost.likely * 0.9)
    assert not refused.ok
    assert "--max-cost" in refused.reasons[0]
    allowed = made(specs, rows, max_cost=free.cost.high)
    assert allowed.ok
    jobs = [step for step in allowed.steps if step.is_job]
    longest = max(step.hours.high for step in jobs)
    assert allowed.timeout_s >= longest * 3600 * 0.99
    tight = made(specs, rows, max_cost=free.cost.likely * 1.1)
    assert 60 <= tight.timeout_s < allowed.timeout_s
    spent = sum(step.hourly * min(tight.timeout_s / 3600, step.hours.high) for step in jobs)
    small = free.cost.likely - sum(step.hourly * step.hours.likely for step in jobs)
    assert spent + small == pytest.approx(free.cost.likely * 1.1, rel=0.01)
    assert any("time limit of its jobs" in note for note in tight.notes)
    assert made(specs, rows, max_cost=1e9).timeout_s == 7 * 24 * 3600


# ---- reasons


def test_reasons_are_numbered_and_all_given(specs, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"input_text": ""}\n{"text": "x"}\n', encoding="utf-8")
    change = {
        "student_model_reference": "google/t5-v1_1-xxl",
        "teacher_model_reference": "mistralai/Mixtral-8x22B-v0.1",
    }
    found = made(specs, str(bad), "cpu-local", change=change, problems=["no such place"])
    text = "\n".join(found.reasons)
    assert found.reasons[0] == "no such place"
    assert "DATA_NO_VALID_ROWS" in text
    assert "rejects.jsonl" not in text
    assert "MODEL_TOO_BIG" in text
    assert "  1. no such place\n  2. " in found.text()
    assert "cannot start" in found.text()


def test_no_rows_and_no_file_are_reasons(specs, tmp_path):
    assert "DATA_NOT_FOUND" in made(specs, str(tmp_path / "none.jsonl")).reasons[0]
    one = tmp_path / "one.jsonl"
    one.write_text('{"input_text": "a", "output_text": "b"}\n', encoding="utf-8")
    assert "DATA_NO_" in made(specs, str(one)).reasons[0]


def test_a_teacher_that_no_single_gpu_holds_is_refused(specs, rows):
    large = {"teacher_model_reference": "meta-llama/Llama-3.1-70B-Instruct"}
    found = made(specs, rows, change=large)
    assert any("one GPU of 80.0 GB" in reason for reason in found.reasons)
    assert made(specs, rows, change=PAID | large).ok


def test_a_teachers_budget_that_would_stop_the_run_is_a_reason(specs, rows):
    found = made(specs, rows, change=PAID | {"teacher_budget_usd": 0.0001})
    assert any("teacher_budget_usd" in reason for reason in found.reasons)
    found = made(specs, rows, change=PAID | {"teacher_budget_tokens": 10})
    assert any("teacher_budget_tokens" in reason for reason in found.reasons)


def test_more_shots_than_the_prompt_has_are_a_reason(specs, rows):
    found = made(specs, rows, change={"teacher_shots": 99})
    assert any("PROMPT_SHOTS" in reason for reason in found.reasons)
    found = made(specs, rows, change={"teacher_prompt": "none.v9"})
    assert any("PROMPT_NOT_FOUND" in reason for reason in found.reasons)


def test_an_unknown_model_is_not_counted_as_nothing(specs, rows):
    found = made(specs, rows, change={"student_model_reference": "nobody/unheard-of"})
    assert not by_name(found)["student-train/0"].estimate.counted
    assert "not known" in found.text()


# ---- quota


@pytest.fixture
def fake_quotas():
    pytest.importorskip("google.cloud.cloudquotas_v1", reason="needs google-cloud-quotas")
    from tests.cloud.fake_quotas import FakeQuotas, quota

    gpus = quota(
        "custom_model_training_nvidia_a100_80gb_gpus",
        "Custom model training Nvidia A100 80GB GPUs",
        {"us-central1": 16},
    )
    cpus = quota(
        "custom_model_training_a2_cpus", "Custom model training A2 CPUs", {}, everywhere=-1
    )
    with FakeQuotas([gpus, cpus]) as fake:
        yield fake
        assert fake.wrong == []


def test_quota_is_needed_for_all_that_runs_at_one_time(specs, rows, fake_quotas):
    def asked(**options):
        settings = Settings(project="shop", location="us-central1", api_endpoint=fake_quotas.url)
        parameters = {"dataset_uri": rows, "runs": ["dss:0", "label_only:0"]}
        profile = PROFILES["a100-80gb-x8"]
        return plan(
            specs[profile.name], parameters, profile, project="shop", settings=settings, **options
        )

    found = asked()
    assert found.ok
    assert [(row.each, row.need, row.have) for row in found.quota[:1]] == [(8, 8, 16)]
    thrice = asked(concurrent=3)
    assert (thrice.quota[0].need, thrice.quota[0].status) == (24, "short")
    assert "need 24" in thrice.reasons[0]
    assert "Quota for 3 runs at one time (3 jobs)" in thrice.text()
    assert not fake_quotas.wrong


# ---- the cache


def test_finished_steps_of_a_folder_are_found(specs, rows, tmp_path, monkeypatch):
    monkeypatch.setenv(CODE_VERSION_ENV, "one")
    spec, given = specs["cpu-local"], {"dataset_uri": rows, "runs": ["dss:0"]}
    assert finished_steps(spec, given, tmp_path) == {}
    digest = tmp_path / "artifacts" / "run-1" / "data-digest"
    digest.mkdir(parents=True)
    value = {"parameterValues": {"Output": run_digest(dataset_uri=rows)}}
    (digest / "executor_output.json").write_text(json.dumps(value))
    config = {**given, "state_dir": str(tmp_path / "state")}
    (tmp_path / "summary.json").write_text(json.dumps({"config": config}))
    same = finished_steps(spec, given, tmp_path)
    assert [name for name, done in same.items() if not done] == ["data-digest"]
    longer = finished_steps(spec, given | {"train_steps": 301}, tmp_path)
    assert [name for name, done in longer.items() if done] == [
        "data-prep", "teacher-label/0", "rationale-extract/0", "collect-rows",
    ]  # fmt: skip
    found = made(specs, rows, "cpu-local", change={"runs": ["dss:0"]}, cached=same)
    assert "10 of" not in found.cache
    assert found.cache.startswith(f"{len(same) - 1} of {len(same)} steps")
    assert found.hours.likely == pytest.approx(found.steps[0].hours.likely)
    monkeypatch.setenv(CODE_VERSION_ENV, "two")
    assert not any(finished_steps(spec, given, tmp_path).values())


def test_finished_steps_of_a_job_are_found(rows, vertex, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place = ["--profile", "a100-80gb-x8", "--project", "proj", "--set", f"dataset_uri={rows}"]
    bucket = ["--staging-bucket", "gs://stage", "--wait", "--no-plan"]
    assert main(["submit", "supervised_tuning", *place, *bucket]) == 0
    job = next(iter(vertex.jobs))
    capsys.readouterr()

    def asked(*options):
        assert (
            main(["plan", "supervised_tuning", *place, "--previous", job, "--json", *options]) == 0
        )
        found = json.loads(capsys.readouterr().out)
        assert any(job.rpartition("/")[2] in note for note in found["notes"])
        return {step["component"]: step["cached"] for step in found["steps"]}, found

    same, plan_of_same = asked()
    assert same["supervised_tune"] is True
    assert same["data_digest"] is False
    assert plan_of_same["jobs_at_once"] == 0
    other, plan_of_other = asked("--set", "train_steps=7")
    assert (other["data_prep"], other["supervised_tune"]) == (True, False)
    assert other["evaluate_tuned"] is False
    assert plan_of_other["cost_usd"]["likely"] > 5 * plan_of_same["cost_usd"]["likely"]
    assert main(["plan", DSS, *place[4:], "--previous", "job-1"]) == 2
    assert "[USAGE] --previous" in capsys.readouterr().err


# ---- the command


def test_the_command_prints_and_exits(rows, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    common = ["plan", DSS, "--set", f"dataset_uri={rows}", "--profile", "a100-80gb-x8", "--offline"]
    assert main(common) == 0
    text = capsys.readouterr().out
    for part in ("student_train dss × 3", "USD on demand", "Spot", "Quota", "need 8 ", "gcloud"):
        assert part in text
    assert "Nothing stands against this run." in text
    assert main([*common, "--max-cost", "1", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["can_run"] is False
    assert len(found["reasons"]) == 1
    assert found["rows"]["read"] == 300
    assert all(price["source"] and price["date"] for price in found["prices"])


def test_a_region_without_the_hardware_is_a_reason(rows, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    common = ["plan", DSS, "--set", f"dataset_uri={rows}", "--offline", "--profile"]
    assert main([*common, "tpu-v3-64", "--region", "us-central1"]) == 2
    assert "1. [HARDWARE_REGION]" in capsys.readouterr().out
    assert main([*common, "a100-80gb-x8", "--region", "europe-west4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["region"] for row in found["quota"]} == {found["region"]} == {"europe-west4"}
    assert "europe-west4" in {price["region"] for price in found["prices"]}
    assert main([*common, "cpu-local", "--region", "europe-west44"]) == 2
    assert re.search(r"1\. \[CLOUD_REGION\].*europe-west4", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--concurrent", "0"], "USAGE"),
        (["--max-cost", "-1"], "USAGE"),
        (["--profile", "moon"], "PROFILE_UNKNOWN"),
        (["--prices", "none.yaml"], "PRICES_UNREADABLE"),
        (["--set", "colour=red"], "CONFIG_UNKNOWN"),
    ],
)
def test_wrong_options_are_one_line(rows, capsys, monkeypatch, options, code):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["plan", DSS, "--set", f"dataset_uri={rows}", "--offline", *options]) == 2
    error = capsys.readouterr().err
    assert f"[{code}]" in error
    assert len(error.splitlines()) == 1


def test_the_paper_data_is_planned_as_it_will_run(specs, shared_data):
    folder = shared_data / "dss_cqa"
    given = {
        "dataset_uri": str(folder / "cqa_train.json"),
        "data_format": "dss_cqa",
        "dedupe": False,
        "teacher_backend": "replay",
        "teacher_replay_uri": str(folder / "llm" / "train_CoT_*.json"),
        "teacher_prompt": "cqa.v1",
        "teacher_audit_rows": -1,
        "student_model_reference": "google/t5-v1_1-base",
        "runs": ["dss:0", "label_only:0", "shuffled:0"],
    }
    found = plan(specs["a100-80gb-x8"], given, "a100-80gb-x8", offline=True)
    assert found.ok
    assert found.rows.read == 9741
    assert by_name(found)["teacher-label/0"].estimate.calls == 9741
    assert {row.need for row in found.quota} == {8, 96}
    assert found.region == planning.DEFAULT_REGION


def test_claims_train_many_students_and_ask_by_every_prompt(rows):
    spec = spec_of(build("claims", PROFILES["a100-80gb-x8"]))
    given = {
        "dataset_uri": rows, "arms": ["finetune", "dss"], "shares": "0.5,1", "seeds": "0,1",
        "learning_rates": "0.001", "train_steps": 10, "eval_shots": "0,2",
    }  # fmt: skip
    found = plan(spec, given, PROFILES["a100-80gb-x8"])
    steps = by_name(found)
    assert all(step.estimate.counted for step in steps.values())
    assert {"train-curve/1", "supervised-tune", "evaluate-prompts"} <= set(steps)
    assert found.at_once == 1
    plain, explained = steps["train-curve/0"].estimate, steps["train-curve/1"].estimate
    assert explained.flops > 1.5 * plain.flops
    assert steps["reward-frontier"].estimate.seconds.likely == 0  # no preferences, no policies
    twice = plan(spec, {**given, "seeds": "0,1,2,3"}, PROFILES["a100-80gb-x8"])
    more = by_name(twice)["train-curve/0"].estimate.flops
    assert more / plain.flops == pytest.approx(9 / 5, rel=0.1)  # 8 students and a trial for 4 and 1
    asked = by_name(plan(spec, {**given, "eval_shots": "0"}, PROFILES["a100-80gb-x8"]))
    assert asked["evaluate-prompts"].estimate.flops < steps["evaluate-prompts"].estimate.flops
    policies = {"preference_dataset": "pocket:preferences", "kl_coeffs": "0.1,0.2"}
    two = by_name(plan(spec, given | policies, PROFILES["a100-80gb-x8"]))["reward-frontier"]
    one = by_name(plan(spec, given | policies | {"kl_coeffs": "0.1"}, PROFILES["a100-80gb-x8"]))
    assert two.estimate.flops > 1.3 * one["reward-frontier"].estimate.flops
