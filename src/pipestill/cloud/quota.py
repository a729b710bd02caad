"""Quota: what a run needs at one time, what the project has, and where to ask for more.

A CustomJob draws on the metrics ``custom_model_training_…``. The metrics
``restricted_image_training_…`` ("Restricted image training …" on the page of tuned models) cover
Google's own images; both are shown and the first decides. A metric whose name is not in our table
is found by its display name.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

from pipestill.cloud.client import Settings, credentials, explained, is_loopback, quiet
from pipestill.errors import PipestillError

SERVICE = "aiplatform.googleapis.com"
QUOTAS_ENDPOINT = "cloudquotas.googleapis.com"
TIMEOUT_S = 30.0
# family: metric prefix → (words of its display names, whether our jobs draw on it)
FAMILIES = {
    "custom_model_training": ("custom model training", True),
    "restricted_image_training": ("restricted image training", False),
}


@dataclass(frozen=True)
class Resource:
    """Something counted: the end of its metric's name, and the words of its display name."""

    metric: str
    label: str
    words: frozenset[str]
    without: frozenset[str] = frozenset()


def _resource(metric: str, label: str, words: str, without: str = "") -> Resource:
    return Resource(metric, label, frozenset(words.split()), frozenset(without.split()))


# accelerator type or CPU family → resource. The names of the a100_80gb and cpus metrics stand in
# public error messages; that of TPU pods is not confirmed, so its display name is what finds it.
RESOURCES = {
    "NVIDIA_A100_80GB": _resource("nvidia_a100_80gb_gpus", "A100 80GB GPUs", "a100 80gb gpus"),
    "NVIDIA_TESLA_A100": _resource("nvidia_a100_gpus", "A100 GPUs", "a100 gpus", "80gb"),
    "NVIDIA_H100_80GB": _resource("nvidia_h100_gpus", "H100 GPUs", "h100 gpus", "mega"),
    "NVIDIA_H100_MEGA_80GB": _resource("nvidia_h100_mega_gpus", "H100 Mega GPUs", "h100 mega gpus"),
    "NVIDIA_L4": _resource("nvidia_l4_gpus", "L4 GPUs", "l4 gpus"),
    "NVIDIA_TESLA_T4": _resource("nvidia_t4_gpus", "T4 GPUs", "t4 gpus"),
    "NVIDIA_TESLA_V100": _resource("nvidia_v100_gpus", "V100 GPUs", "v100 gpus"),
    "TPU_V2": _resource("tpu_v2", "TPU v2 cores", "tpu v2 cores", "pod"),
    "TPU_V3": _resource("tpu_v3", "TPU v3 cores", "tpu v3 cores", "pod"),
    "TPU_V2_POD": _resource("tpu_v2_pod", "TPU v2 pod cores", "tpu v2 pod cores"),
    "TPU_V3_POD": _resource("tpu_v3_pod", "TPU v3 pod cores", "tpu v3 pod cores"),
    "a2": _resource("a2_cpus", "A2 CPUs", "a2 cpus"),
    "a3": _resource("a3_cpus", "A3 CPUs", "a3 cpus"),
    "g2": _resource("g2_cpus", "G2 CPUs", "g2 cpus"),
    "n1": _resource("cpus", "N1 and E2 CPUs", "cpus n1"),
}
SINGLE_HOST_CORES = 8  # a larger TPU slice is a pod and has a quota of its own
CPUS_PER_GPU = {"a2-highgpu": 12, "a2-ultragpu": 12, "a2-megagpu": 6, "a3-highgpu": 26}
NOT_OURS = frozenset({"preemptible", "spot", "serving", "dws", "flex"})


@dataclass(frozen=True, kw_only=True)
class Need:
    """`each` a job, for as many jobs as run at one time."""

    resource: str
    each: int
    jobs: int
    region: str

    @property
    def total(self) -> int:
        return self.each * self.jobs


@dataclass(frozen=True, kw_only=True)
class QuotaRow:
    """One metric: what is needed and what there is. `have` is None where nobody could tell.

    `decides` is true for the family that our jobs draw on. `status` is one of enough, short,
    unlimited, not listed, not checked; `why` explains the last two.
    """

    metric: str
    label: str
    region: str
    each: int
    jobs: int
    need: int
    have: int | None
    decides: bool
    status: str
    why: str = ""
    link: str = ""
    command: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def problem(self) -> str:
        """Why this row stops a run; empty where it does not."""
        if not (self.decides and self.status == "short"):
            return ""
        times = f"{self.each} a job × {self.jobs} at one time" if self.jobs > 1 else f"{self.each}"
        none = " (it was never granted)" if self.have == 0 else ""
        return (
            f"quota of {self.label} in {self.region}: need {self.need} ({times}), have {self.have}"
            f"{none}; metric {self.metric} → ask for more at {self.link}"
            + (
                ", or run fewer at one time"
                if self.jobs > 1 and (self.have or 0) >= self.each
                else ""
            )
        )


def needs_of(
    machine_type: str, accelerator_type: str, count: int, *, jobs: int, region: str
) -> list[Need]:
    """What `jobs` jobs on one machine type draw on at one time."""
    needs = []
    if accelerator_type:
        pod = accelerator_type.startswith("TPU") and count > SINGLE_HOST_CORES
        name = f"{accelerator_type}_POD" if pod else accelerator_type
        if name in RESOURCES:
            needs.append(Need(resource=name, each=count, jobs=jobs, region=region))
    family = machine_type.split("-")[0]
    cpus = machine_cpus(machine_type, count)
    if cpus:
        name = family if family in RESOURCES else "n1"
        needs.append(Need(resource=name, each=cpus, jobs=jobs, region=region))
    return needs


def machine_cpus(machine_type: str, count: int) -> int:
    """vCPUs of a machine type; 0 for TPU hosts, which have no quota of their own."""
    per_gpu = CPUS_PER_GPU.get("-".join(machine_type.split("-")[:2]))
    if per_gpu:
        return per_gpu * count
    size = machine_type.rpartition("-")[2]
    return int(size) if size.isdigit() else 0


def check_quota(needs: Sequence[Need], settings: Settings | None) -> list[QuotaRow]:
    """What there is of each need, in both families.

    Never raises for what the project or the network refuses: such rows say "not checked" and why.

    Args:
        needs: from `needs_of`.
        settings: the project; None = nothing can be asked.
    """
    if settings is None or not settings.project:
        infos, why = None, "no project was asked (give --project, without --offline)"
    else:
        infos, why = _asked(settings)
    project = settings.project if settings else ""
    return [
        _row(need, family, infos, why, project)
        for need in needs
        for family in FAMILIES
        if infos is None or FAMILIES[family][1] or _find(infos, family, RESOURCES[need.resource])
    ]


def _asked(settings: Settings) -> tuple[list[Any] | None, str]:
    """Every quota of the service in the project, or None and the reason."""
    try:
        from google.cloud import cloudquotas_v1
    except ImportError:
        return None, "the client is not installed (pip install google-cloud-quotas)"
    loopback = is_loopback(settings.api_endpoint)
    endpoint = settings.api_endpoint if loopback else QUOTAS_ENDPOINT
    parent = f"projects/{settings.project}/locations/global/services/{SERVICE}"
    try:
        with explained(settings, "quota"), quiet():
            client = cloudquotas_v1.CloudQuotasClient(
                credentials=credentials(settings),
                transport="rest",
                client_options={"api_endpoint": endpoint},
            )
            request = {"parent": parent, "page_size": 500}
            pages = client.list_quota_infos(request=request, timeout=TIMEOUT_S, retry=None)
            return list(pages), ""
    except PipestillError as error:
        hint = f" → {error.hint}" if error.hint and "--fallback" not in error.hint else ""
        return None, f"{error.message}{hint}".replace(SERVICE, QUOTAS_ENDPOINT)


def _row(need: Need, family: str, infos: Sequence[Any] | None, why: str, project: str) -> QuotaRow:
    resource = RESOURCES[need.resource]
    metric = f"{SERVICE}/{family}_{resource.metric}"
    have, status = None, "not checked"
    if infos is not None:
        info = _find(infos, family, resource)
        have = _limit(info, need.region) if info else None
        metric = info.metric if info else metric
        status, why = _status(have, need.total), ""
        if have is None:
            why = "no such quota is listed for this project and region"
    words, decides = FAMILIES[family]
    return QuotaRow(
        metric=metric,
        label=f"{words} {resource.label}",
        region=need.region,
        each=need.each,
        jobs=need.jobs,
        need=need.total,
        have=have,
        decides=decides,
        status=status,
        why=why,
        link=console_link(metric, need.region, project),
        command="" if status in ("enough", "short", "unlimited") else gcloud(metric, project),
    )


def _status(have: int | None, need: int) -> str:
    if have is None:
        return "not listed"
    if have < 0:
        return "unlimited"
    return "enough" if have >= need else "short"


def console_link(metric: str, region: str, project: str) -> str:
    """The page of the console that shows the quota and takes a request for more."""
    link = (
        f"https://console.cloud.google.com/iam-admin/quotas?service={SERVICE}"
        f"&metric={quote(metric, safe='')}&location={quote(region, safe='')}"
    )
    return link + (f"&project={quote(project, safe='')}" if project else "")


def gcloud(metric: str, project: str) -> str:
    """The command that shows the quota."""
    return (
        f"gcloud beta quotas info list --service={SERVICE} --project={project or 'PROJECT'}"
        f" --filter='metric={metric}'"
    )


def _find(infos: Iterable[Any], family: str, resource: Resource) -> Any:
    """The regional quota of a resource: by the metric's name, else by its display name."""
    wanted = f"{SERVICE}/{family}_{resource.metric}"
    listed = list(infos)
    exact = [info for info in listed if info.metric == wanted]
    found = exact or [info for info in listed if _shown_as(info, FAMILIES[family][0], resource)]
    regional = [info for info in found if "region" in info.dimensions]
    return next(iter(regional or found), None)


def _shown_as(info: Any, family: str, resource: Resource) -> bool:
    """Whether either display name has the family's and the resource's words and none of others."""
    for name in (info.metric_display_name, info.quota_display_name):
        words = frozenset(re.findall(r"[a-z0-9]+", name.lower()))
        words |= {f"{word}s" for word in words if word in ("cpu", "gpu", "core")}
        wrong = words & (NOT_OURS | resource.without)
        if words >= resource.words | frozenset(family.split()) and not wrong:
            return True
    return False


def _limit(info: Any, region: str) -> int | None:
    """The limit in a region: its own entry, else that of all regions; -1 is no limit."""
    general: int | None = None
    for entry in info.dimensions_infos:
        dimensions: Mapping[str, str] = dict(entry.dimensions)
        if dimensions.get("region") == region:
            return int(entry.details.value)
        places = list(entry.applicable_locations)
        if not dimensions and (not places or region in places or "global" in places):
            general = int(entry.details.value)
    return general
