"""Which public models serve as teacher, student or tunable model, and on which profile they fit.

The facts stand in ``catalogue.yaml``. A model outside it is allowed: its parameters are counted
where it lies in a local folder, and it is used unchecked where they cannot be known.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from pipestill.errors import UserError
from pipestill.models.counting import count_parameters, local_folder, read_config
from pipestill.models.memory import (
    LOCAL_MEMORY_VARIABLE,
    PROFILES,
    MemoryNeed,
    Profile,
    gigabytes,
    memory_need,
    profile_named,
)

ROLES = ("teacher", "student", "tunable")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model. `parameters` is None where it is not known; `gated` is None where it is not."""

    reference: str
    family: str
    architecture: str
    roles: tuple[str, ...]
    methods: tuple[str, ...]
    parameters: int | None
    approx: bool = False
    context: int | None = None
    licence: str = "unknown"
    gated: bool | None = None
    source: str = ""
    note: str = ""


@cache
def load_catalogue() -> tuple[Entry, ...]:
    """All entries, in the order of the file."""
    import yaml

    text = Path(__file__).with_name("catalogue.yaml").read_text(encoding="utf-8")
    families = yaml.safe_load(text)
    return tuple(_entry(family, model) for family in families for model in family["models"])


def _entry(family: Mapping[str, Any], model: Mapping[str, Any]) -> Entry:
    facts = {key: value for key, value in {**family, **model}.items() if key != "models"}
    if facts["parameters"] == "folder":
        folder = local_folder(facts["reference"])
        facts["parameters"] = count_parameters(folder) if folder else None
    return Entry(**{**facts, "roles": tuple(facts["roles"]), "methods": tuple(facts["methods"])})


def _key(reference: str) -> str:
    return reference.strip().partition("@")[0].lower().replace("_", "-")


def find(reference: str) -> Entry | None:
    """The entry of a hub name, with or without organisation and ``@revision``.

    Case does not count, and ``_`` equals ``-``, as in Google's own lookup of model references.
    """
    key = _key(reference)
    for entry in load_catalogue():
        name = _key(entry.reference)
        if key == name or key == name.rpartition("/")[2]:
            return entry
    return None


def describe(reference: str) -> Entry:
    """The catalogue's entry, or what can be read from the model's own folder, or an empty entry.

    Raises:
        UserError: ``MODEL_UNKNOWN`` where the name is neither known nor a folder nor ``org/name``.
    """
    entry, folder = find(reference), local_folder(reference)
    # A folder wins over a hub name, as when the model is loaded.
    if entry is not None and (folder is None or entry.family == "Pocket"):
        return entry
    if folder is None and reference.count("/") != 1:
        known = [_key(item.reference) for item in load_catalogue()]
        close = get_close_matches(_key(reference), [*known, *(k.split("/")[-1] for k in known)])
        raise UserError(
            "MODEL_UNKNOWN",
            f"model {reference!r}: not in the catalogue, no local folder, no hub name org/name",
            f"close names: {', '.join(close)}" if close else "see: pipestill models",
        )
    config = read_config(folder) if folder else {}
    two_stacks = bool(config.get("is_encoder_decoder"))
    return Entry(
        reference=reference,
        family="outside the catalogue",
        architecture="encoder-decoder" if two_stacks else "decoder-only",
        roles=ROLES,
        methods=("sft", "dss", "distill", "rlhf"),
        parameters=count_parameters(folder) if folder else None,
        context=config.get("max_position_embeddings") or config.get("n_positions"),
        source=str(folder) if folder else "",
        note="" if folder else "size not known, so its memory need is not checked",
    )


def need_on(entry: Entry, method: str, profile: Profile) -> MemoryNeed | None:
    """What `method` needs on a profile; None where the model's size is not known."""
    if not entry.parameters:
        return None
    return memory_need(
        entry.parameters,
        method,
        profile.precision,
        entry.architecture,
        devices=profile.devices,
    )


def check_fits(
    model: str | int, method: str, profile: str, *, memory_gb: float | None = None
) -> MemoryNeed | None:
    """Refuses a model that a profile has no room for; returns the need where it fits.

    Args:
        model: a hub name, a pocket model, a local folder, or a number of parameters.
        method: sft, dss, distill, rlhf, or inference for a teacher.
        profile: a name in `PROFILES`.
        memory_gb: overrides cpu-local's 16 GB.

    Returns:
        The need, or None where the model's size is not known (nothing was checked then).

    Raises:
        UserError: ``MODEL_TOO_BIG`` with the arithmetic; ``PROFILE_UNKNOWN``; ``MODEL_UNKNOWN``.
    """
    machine = profile_named(profile, memory_gb)
    if isinstance(model, int):
        entry = Entry(
            reference="this model",
            family="",
            architecture="decoder-only",
            roles=(),
            methods=(),
            parameters=model,
        )
    else:
        entry = describe(model)
    need = need_on(entry, method, machine)
    if need is not None and need.total > machine.memory:
        raise UserError(
            "MODEL_TOO_BIG",
            f"{entry.reference}: {need.arithmetic()}; profile {machine.name} has "
            f"{gigabytes(machine.memory)} ({machine.description})",
            _advice(entry, method, machine),
        )
    return need


def fits(entry: Entry, method: str, profile: Profile) -> bool | None:
    """Whether it fits; None where the size is not known."""
    need = need_on(entry, method, profile)
    return None if need is None else need.total <= profile.memory


def _advice(entry: Entry, method: str, profile: Profile) -> str:
    role = "teacher" if method == "inference" else "tunable"
    fitting = [
        item
        for item in load_catalogue()
        if role in item.roles and item.parameters and fits(item, method, profile)
    ]
    advice = []
    if fitting:
        largest = max(fitting, key=lambda item: item.parameters or 0)
        advice.append(f"the largest that fits is {largest.reference}")
    others = [other.name for other in PROFILES.values() if fits(entry, method, other)]
    if others:
        advice.append(f"it fits {' and '.join(others)}")
    if profile.name == "cpu-local":
        advice.append(f"if this computer has more, set {LOCAL_MEMORY_VARIABLE}")
    return "; ".join(advice) or "choose a smaller model"
