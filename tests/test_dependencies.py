"""docs/dependencies.md says why each dependency is there: all of them, and no others."""

import ast
import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
# Import name → package, where they differ.
PACKAGES = {
    "google.api_core": "google-api-core", "google.auth": "google-auth",
    "google.cloud.aiplatform": "google-cloud-aiplatform",
    "google.cloud.aiplatform_v1": "google-cloud-aiplatform",
    "google.cloud.cloudquotas_v1": "google-cloud-quotas",
    "google.cloud.storage": "google-cloud-storage", "google.protobuf": "protobuf",
    "google_crc32c": "google-crc32c", "yaml": "pyyaml",
}  # fmt: skip


def rows(title: str) -> list[tuple[set[str], list[str]]]:
    """The table below one heading: the packages of the first column, and the other cells."""
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:3] == "| `"]
    return [(set(re.findall(r"`([^`]+)`", first)), rest) for first, *rest in lines]


def names_of(title: str) -> set[str]:
    return {canonicalize_name(name) for names, _ in rows(title) for name in names}


def declared() -> dict[str, str]:
    """Package → where pyproject.toml asks for it."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found: dict[str, list[str]] = {}
    groups = {"always": data["project"]["dependencies"]}
    groups |= {f"`{k}`": v for k, v in data["project"]["optional-dependencies"].items()}
    groups["build"] = data["build-system"]["requires"]
    for group, lines in groups.items():
        for line in lines:
            found.setdefault(canonicalize_name(Requirement(line).name), []).append(group)
    return {name: ", ".join(where) for name, where in found.items()}


def imported() -> set[str]:
    """The third-party packages that the library imports."""
    found = set()
    for folder in ("src", "components", "pipelines"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {package_of(name) for name in found} - {""}


def package_of(module: str) -> str:
    for name, package in PACKAGES.items():
        if f"{module}.".startswith(f"{name}."):
            return package
    top = module.split(".")[0]
    own = top in sys.stdlib_module_names or top == "pipestill"
    return "" if own else canonicalize_name(top if top != "google" else module)


def test_every_dependency_has_its_reason():
    said = {}
    for names, (where, why) in rows("Asked for"):
        (name,) = names
        assert len(why) > 3, name
        said[canonicalize_name(name)] = where
    assert said == declared()


def test_every_import_is_asked_for_or_brought_along():
    brought = names_of("Imported, and brought by one of the above")
    dev_only = {name for name, where in declared().items() if where in ("`dev`", "`dev`, build")}
    assert imported() <= (set(declared()) - dev_only) | brought
    assert brought <= imported()


def test_what_is_left_out_is_left_out():
    absent = names_of("Not there, on purpose")
    assert absent
    assert not absent & set(declared())
    assert not absent & imported()
