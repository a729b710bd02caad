"""Hardware profiles, and what the platform has: a profile that asks for more is refused here.

The pipeline compiler checks no accelerator type and accepts any count, and the error then comes
hours later from the cloud. So every profile is checked against `OFFERS` before anything is
compiled. The table follows the public pages "Configure compute resources for custom training" and
"Vertex AI locations" as they stood in 2025; the platform grows, so a missing row is added here.
"""

from dataclasses import dataclass

from pipestill.errors import UserError


@dataclass(frozen=True)
class Offer:
    """One combination that exists: a machine with so many accelerators, in these regions."""

    machine_type: str
    accelerator_type: str
    counts: tuple[int, ...]
    regions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Where the heavy steps run. `machine_type` empty = plain tasks without a CustomJob.

    `cpu` and `memory` are what a plain task asks for (Vertex stops at 96 vCPU and 624 GB);
    `retries` is how often a failed heavy step is repeated, from its journal or checkpoint on.
    `parallelism` is how many iterations of a loop (students, shards) run at one time, each with a
    machine and its quota of its own; 0 = all of them.
    """

    name: str
    kind: str  # CPU | GPU | TPU: the value of the pipeline's `accelerator_type`
    image: str  # cpu | gpu | tpu: which target of containers/Dockerfile
    location: str = ""
    machine_type: str = ""
    accelerator_type: str = ""
    accelerator_count: int = 0
    boot_disk_gb: int = 100
    cpu: str = "4"
    memory: str = "16G"
    retries: int = 3
    parallelism: int = 0


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(name="cpu-local", kind="CPU", image="cpu"),
        Profile(
            name="a100-80gb-x8",  # 96 vCPU, 1,360 GB memory
            kind="GPU",
            image="gpu",
            location="us-central1",
            machine_type="a2-ultragpu-8g",
            accelerator_type="NVIDIA_A100_80GB",
            accelerator_count=8,
            parallelism=1,
            boot_disk_gb=500,
        ),
        Profile(
            name="tpu-v3-64",  # 64 cores = 32 chips on 8 hosts
            kind="TPU",
            image="tpu",
            location="europe-west4",
            machine_type="cloud-tpu",
            accelerator_type="TPU_V3",
            accelerator_count=64,
            parallelism=1,
            boot_disk_gb=100,
        ),
    )
}

_A100_40 = (
    "us-central1",
    "us-east1",
    "us-west1",
    "us-west3",
    "us-west4",
    "europe-west4",
    "me-west1",
    "asia-northeast1",
    "asia-northeast3",
    "asia-southeast1",
)
_A100_80 = ("us-central1", "us-east4", "us-east5", "europe-west4", "asia-southeast1")
_H100 = (
    "us-central1",
    "us-east4",
    "us-east5",
    "us-west1",
    "us-west4",
    "europe-west1",
    "europe-west4",
    "asia-northeast1",
    "asia-southeast1",
    "australia-southeast1",
)
_L4 = (
    "us-central1",
    "us-east1",
    "us-east4",
    "us-west1",
    "us-west4",
    "northamerica-northeast2",
    "europe-west1",
    "europe-west2",
    "europe-west3",
    "europe-west4",
    "europe-west6",
    "asia-east1",
    "asia-northeast1",
    "asia-northeast3",
    "asia-south1",
    "asia-southeast1",
)
_T4 = (
    "us-central1",
    "us-east1",
    "us-east4",
    "us-west1",
    "us-west2",
    "us-west4",
    "northamerica-northeast1",
    "southamerica-east1",
    "europe-central2",
    "europe-west1",
    "europe-west2",
    "europe-west3",
    "europe-west4",
    "asia-east1",
    "asia-east2",
    "asia-northeast1",
    "asia-northeast3",
    "asia-south1",
    "asia-southeast1",
    "asia-southeast2",
    "australia-southeast1",
)
_V100 = ("us-central1", "us-west1", "europe-west4", "asia-east1")

OFFERS = (
    *(Offer(f"a2-highgpu-{n}g", "NVIDIA_TESLA_A100", (n,), _A100_40) for n in (1, 2, 4, 8)),
    Offer("a2-megagpu-16g", "NVIDIA_TESLA_A100", (16,), _A100_40),
    *(Offer(f"a2-ultragpu-{n}g", "NVIDIA_A100_80GB", (n,), _A100_80) for n in (1, 2, 4, 8)),
    *(Offer(f"a3-highgpu-{n}g", "NVIDIA_H100_80GB", (n,), _H100) for n in (1, 2, 4, 8)),
    Offer("a3-megagpu-8g", "NVIDIA_H100_MEGA_80GB", (8,), _H100),
    *(
        Offer(f"g2-standard-{cpus}", "NVIDIA_L4", (count,), _L4)
        for cpus, count in ((4, 1), (8, 1), (12, 1), (16, 1), (24, 2), (32, 1), (48, 4), (96, 8))
    ),
    *(Offer(f"n1-standard-{cpus}", "NVIDIA_TESLA_T4", (1, 2, 4), _T4) for cpus in (4, 8, 16)),
    Offer("n1-standard-32", "NVIDIA_TESLA_T4", (2, 4), _T4),
    *(Offer(f"n1-standard-{cpus}", "NVIDIA_TESLA_T4", (4,), _T4) for cpus in (64, 96)),
    *(Offer(f"n1-standard-{cpus}", "NVIDIA_TESLA_V100", (1, 2, 4, 8), _V100) for cpus in (4, 8)),
    Offer("n1-standard-16", "NVIDIA_TESLA_V100", (2, 4, 8), _V100),
    Offer("n1-standard-32", "NVIDIA_TESLA_V100", (4, 8), _V100),
    *(Offer(f"n1-standard-{cpus}", "NVIDIA_TESLA_V100", (8,), _V100) for cpus in (64, 96)),
    Offer("cloud-tpu", "TPU_V2", (8,), ("us-central1", "europe-west4", "asia-east1")),
    Offer("cloud-tpu", "TPU_V2", (32, 128, 256, 512), ("us-central1", "europe-west4")),
    Offer("cloud-tpu", "TPU_V3", (8,), ("us-central1", "europe-west4")),
    Offer("cloud-tpu", "TPU_V3", (32, 64, 128, 256, 512, 1024, 2048), ("europe-west4",)),
)


def validate(profile: Profile) -> Profile:
    """Returns the profile unchanged, or refuses it with the list of what the platform has.

    Raises:
        UserError: ``HARDWARE_MACHINE``, ``HARDWARE_ACCELERATOR``, ``HARDWARE_COUNT`` or
            ``HARDWARE_REGION``.
    """
    if not profile.machine_type:
        if profile.accelerator_type or profile.accelerator_count:
            raise _refused("MACHINE", profile, "machine type", "none", _every("machine_type"))
        return profile
    offers = [offer for offer in OFFERS if offer.machine_type == profile.machine_type]
    if not offers:
        raise _refused(
            "MACHINE", profile, "machine type", profile.machine_type, _every("machine_type")
        )
    named = [offer for offer in offers if offer.accelerator_type == profile.accelerator_type]
    if not named:
        has = sorted({offer.accelerator_type for offer in offers})
        raise _refused(
            "ACCELERATOR",
            profile,
            f"accelerator of {profile.machine_type}",
            profile.accelerator_type or "none",
            has,
        )
    counted = [offer for offer in named if profile.accelerator_count in offer.counts]
    if not counted:
        counts = sorted({count for offer in named for count in offer.counts})
        raise _refused(
            "COUNT",
            profile,
            f"count of {profile.accelerator_type} on {profile.machine_type}",
            str(profile.accelerator_count),
            [str(count) for count in counts],
        )
    regions = sorted({region for offer in counted for region in offer.regions})
    if profile.location not in regions:
        raise _refused(
            "REGION",
            profile,
            f"region of {profile.accelerator_count} × {profile.accelerator_type}",
            profile.location or "none",
            regions,
        )
    return profile


def _every(field: str) -> list[str]:
    return list(dict.fromkeys(getattr(offer, field) for offer in OFFERS))


def _refused(code: str, profile: Profile, what: str, found: str, allowed: list[str]) -> UserError:
    return UserError(
        f"HARDWARE_{code}",
        f"profile {profile.name}: {what}: found {found}, the platform has: {', '.join(allowed)}",
        "choose one of these, or add the new offer to pipelines/hardware.py",
    )


def find_profile(name: str) -> Profile:
    """A shipped profile by name.

    Raises:
        UserError: ``PROFILE_UNKNOWN``.
    """
    if name not in PROFILES:
        raise UserError("PROFILE_UNKNOWN", f"found {name!r}, allowed: {', '.join(PROFILES)}")
    return PROFILES[name]
