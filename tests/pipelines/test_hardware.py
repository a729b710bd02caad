import dataclasses

import pytest

from pipestill.errors import UserError
from pipestill.models import memory
from pipestill.pipelines.hardware import OFFERS, PROFILES, find_profile, validate

GPU, TPU = PROFILES["a100-80gb-x8"], PROFILES["tpu-v3-64"]


def test_the_catalogue_knows_the_same_profiles():
    """The library may not import pipelines, so `pipestill models` has a table of its own."""
    assert list(memory.PROFILES) == list(PROFILES)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_shipped_profiles_exist_on_the_platform(profile):
    assert validate(profile) is profile


def test_the_two_asked_for():
    assert (GPU.machine_type, GPU.accelerator_type, GPU.accelerator_count, GPU.location) == (
        "a2-ultragpu-8g",
        "NVIDIA_A100_80GB",
        8,
        "us-central1",
    )
    assert (TPU.machine_type, TPU.accelerator_type, TPU.accelerator_count, TPU.location) == (
        "cloud-tpu",
        "TPU_V3",
        64,
        "europe-west4",
    )


@pytest.mark.parametrize(
    ("profile", "changes", "code", "listed"),
    [
        (GPU, {"machine_type": "a9-giga"}, "HARDWARE_MACHINE", "a2-ultragpu-8g"),
        (GPU, {"accelerator_type": "NVIDIA_H100_80GB"}, "HARDWARE_ACCELERATOR", "NVIDIA_A100_80GB"),
        (GPU, {"accelerator_type": ""}, "HARDWARE_ACCELERATOR", "NVIDIA_A100_80GB"),
        (GPU, {"accelerator_count": 3}, "HARDWARE_COUNT", "8"),
        (GPU, {"location": "europe-north1"}, "HARDWARE_REGION", "us-central1"),
        (TPU, {"accelerator_count": 48}, "HARDWARE_COUNT", "32, 64, 128"),
        (TPU, {"location": "us-central1"}, "HARDWARE_REGION", "europe-west4"),
        (TPU, {"location": ""}, "HARDWARE_REGION", "europe-west4"),
        (GPU, {"machine_type": ""}, "HARDWARE_MACHINE", "cloud-tpu"),
    ],
)
def test_refused_with_the_list(profile, changes, code, listed):
    with pytest.raises(UserError) as refused:
        validate(dataclasses.replace(profile, **changes))
    assert refused.value.code == code
    assert listed in refused.value.message


@pytest.mark.parametrize("offer", OFFERS, ids=lambda o: f"{o.machine_type}-{o.accelerator_type}")
def test_every_offer_is_accepted(offer):
    for count in offer.counts:
        for region in offer.regions:
            validate(
                dataclasses.replace(
                    GPU,
                    machine_type=offer.machine_type,
                    accelerator_type=offer.accelerator_type,
                    accelerator_count=count,
                    location=region,
                )
            )


def test_unknown_profile():
    with pytest.raises(UserError, match=r"PROFILE_UNKNOWN.*cpu-local"):
        find_profile("h100")
