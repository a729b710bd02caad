"""Quota through the real client against a loopback service; and clear lines without it."""

import sys

import pytest

pytest.importorskip("google.cloud.cloudquotas_v1", reason="needs pip install google-cloud-quotas")

from google.auth.exceptions import DefaultCredentialsError

from pipestill.cloud import client, quota
from pipestill.cloud.client import Settings
from tests.cloud.fake_quotas import FakeQuotas
from tests.cloud.fake_quotas import quota as info

A100 = "custom_model_training_nvidia_a100_80gb_gpus"
QUOTAS = (
    info("custom_model_training_preemptible_nvidia_a100_80gb_gpus",
         "Custom model training preemptible Nvidia A100 80GB GPUs", {}, everywhere=99),
    info("custom_model_training_nvidia_a100_gpus",
         "Custom model training Nvidia A100 GPUs", {}, everywhere=77),
    info(A100, "Custom model training Nvidia A100 80GB GPUs",
         {"us-central1": 8, "europe-west4": 0}, everywhere=1),
    info("custom_model_training_a2_cpus", "Custom model training A2 CPUs",
         {"us-central1": 96}, everywhere=-1),
    info("restricted_image_training_nvidia_a100_80gb_gpus",
         "Restricted image training Nvidia A100 80GB GPUs", {"us-central1": 64}),
    info("custom_model_training_tpu_v3", "Custom model training TPU V3 cores", {}, everywhere=8),
    info("cmt_tpu3_slices", "Custom model training TPU V3 pod cores", {"europe-west4": 64}),
    info("restricted_image_training_tpu_v3_pod",
         "Restricted image training TPU V3 pod cores", {"europe-west4": 64}),
)  # fmt: skip
GPU = ("a2-ultragpu-8g", "NVIDIA_A100_80GB", 8)
TPU = ("cloud-tpu", "TPU_V3", 64)


@pytest.fixture
def quotas():
    with FakeQuotas(QUOTAS) as fake:
        yield fake
        assert fake.wrong == []


def asked(fake, machine, *, region="us-central1", jobs=1):
    needs = quota.needs_of(*machine, jobs=jobs, region=region)
    settings = Settings(project="shop", location=region, api_endpoint=fake.url)
    return {row.metric.split("/")[1]: row for row in quota.check_quota(needs, settings)}


def test_one_job_needs_eight_gpus_and_their_processors(quotas):
    rows = asked(quotas, GPU)
    assert (rows[A100].need, rows[A100].have, rows[A100].status) == (8, 8, "enough")
    cpus = rows["custom_model_training_a2_cpus"]
    assert (cpus.need, cpus.have, cpus.status) == (96, 96, "enough")
    assert [row.problem() for row in rows.values()] == [""] * len(rows)
    assert len(quotas.requests) == 4  # eight quotas, two a page
    assert "projects/shop/" in quotas.requests[0]


def test_jobs_at_one_time_add_up(quotas):
    rows = asked(quotas, GPU, jobs=3)
    assert (rows[A100].need, rows[A100].status) == (24, "short")
    text = rows[A100].problem()
    for part in ("need 24 (8 a job × 3", "have 8", A100, "us-central1", "run fewer", "https://"):
        assert part in text


def test_both_families_are_shown_and_ours_decides(quotas):
    rows = asked(quotas, GPU, jobs=100)
    other = rows["restricted_image_training_nvidia_a100_80gb_gpus"]
    assert (other.have, other.status, other.decides, other.problem()) == (64, "short", False, "")


@pytest.mark.parametrize(
    ("region", "gpus", "cpus"),
    [("us-central1", 8, 96), ("europe-west4", 0, -1), ("us-east4", 1, -1)],
)
def test_a_regions_own_limit_comes_before_the_general_one(quotas, region, gpus, cpus):
    rows = asked(quotas, GPU, region=region)
    assert rows[A100].have == gpus
    assert rows["custom_model_training_a2_cpus"].have == cpus
    if gpus == 0:
        assert "never granted" in rows[A100].problem()
    if cpus < 0:
        assert rows["custom_model_training_a2_cpus"].status == "unlimited"


def test_an_unknown_metric_is_found_by_its_display_name(quotas):
    rows = asked(quotas, TPU, region="europe-west4")
    assert (rows["cmt_tpu3_slices"].need, rows["cmt_tpu3_slices"].have) == (64, 64)
    assert rows["restricted_image_training_tpu_v3_pod"].have == 64
    assert "custom_model_training_tpu_v3" not in rows  # single hosts are another quota
    assert "cmt_tpu3_slices" in rows["cmt_tpu3_slices"].link


def test_a_display_name_with_another_word_is_another_quota():
    names = ("preemptible Nvidia A100 80GB GPUs", "Nvidia A100 GPUs", "Nvidia A100 80GB GPUs")
    listed = [info(f"m{i}", f"Custom model training {n}", {}, everywhere=i)
              for i, n in enumerate(names)]  # fmt: skip
    with FakeQuotas(listed) as fake:
        rows = asked(fake, GPU)
    assert (rows["m2"].have, rows["m2"].need) == (2, 8)
    assert not {"m0", "m1"} & set(rows)


def test_a_single_tpu_host_is_no_pod(quotas):
    rows = asked(quotas, ("cloud-tpu", "TPU_V3", 8))
    assert list(rows) == ["custom_model_training_tpu_v3"]


def test_what_is_not_listed_is_not_called_enough(quotas):
    row = asked(quotas, ("g2-standard-96", "NVIDIA_L4", 8))["custom_model_training_nvidia_l4_gpus"]
    assert (row.have, row.status, row.problem()) == (None, "not listed", "")


@pytest.mark.parametrize(
    ("code", "message"),
    [(403, "Permission denied on project shop"), (404, "no such project"), (503, "try later")],
)
def test_a_refusal_is_shown_with_a_command_and_stops_nothing(quotas, code, message):
    quotas.refusal = (code, message)
    row = asked(quotas, GPU)[A100]
    assert (row.status, row.have, row.problem()) == ("not checked", None, "")
    assert row.why
    assert row.command.startswith("gcloud beta quotas info list")
    assert "--project=shop" in row.command
    assert "location=us-central1" in row.link


def test_no_credentials_are_a_reason_not_a_traceback(monkeypatch):
    def none(**options):
        raise DefaultCredentialsError("no credentials")

    monkeypatch.delenv(client.API_ENDPOINT, raising=False)
    monkeypatch.setattr("google.auth.default", none)
    needs = quota.needs_of(*GPU, jobs=1, region="us-central1")
    row = quota.check_quota(needs, Settings(project="shop", location="us-central1"))[0]
    assert row.status == "not checked"
    assert "credentials" in row.why


def test_without_the_client_or_a_project_the_command_is_given(monkeypatch):
    needs = quota.needs_of(*GPU, jobs=1, region="us-central1")
    row = quota.check_quota(needs, None)[0]
    assert "--project" in row.why
    assert "--project=PROJECT" in row.command
    monkeypatch.setitem(sys.modules, "google.cloud.cloudquotas_v1", None)
    monkeypatch.delattr("google.cloud.cloudquotas_v1")
    row = quota.check_quota(needs, Settings(project="shop", location="us-central1"))[0]
    assert row.status == "not checked"
    assert "pip install google-cloud-quotas" in row.why


def test_machines_and_their_processors():
    assert quota.machine_cpus("a2-ultragpu-8g", 8) == 96
    assert quota.machine_cpus("a3-highgpu-8g", 8) == 208
    assert quota.machine_cpus("g2-standard-48", 4) == 48
    assert quota.machine_cpus("cloud-tpu", 64) == 0
