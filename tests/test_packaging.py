"""The wheel holds every package on disk and every file that the code reads at run time."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
    "setuptools"
]


def packages_on_disk() -> set[str]:
    found = {"pipestill.components", "pipestill.pipelines"}
    for path in (ROOT / "src" / "pipestill").rglob("__init__.py"):
        found.add(".".join(path.parent.relative_to(ROOT / "src").parts))
    return found


def test_every_package_on_disk_is_listed():
    assert set(SETTINGS["packages"]) == packages_on_disk()


def test_every_module_lies_in_a_package():
    for path in (ROOT / "src" / "pipestill").rglob("*.py"):
        assert (path.parent / "__init__.py").exists(), path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    """Names in a wheel that is built from a copy, so that the checkout stays clean."""
    if Version(version("setuptools")) < Version("77"):  # cannot read our pyproject.toml
        pytest.skip("needs setuptools 77")
    copy = tmp_path_factory.mktemp("copy")
    for name in ("src", "components", "pipelines"):
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", build, str(copy / "out")]
    (copy / "out").mkdir()
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = (copy / "out").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


ROOMS = (
    ("src/pipestill", "pipestill"),
    ("components", "pipestill/components"),
    ("pipelines", "pipestill/pipelines"),
)
DATA = {
    "prompts": "pipestill/generation/prompts/svamp.v1.yaml",
    "report template": "pipestill/evaluation/templates/",
    "catalogue": "pipestill/models/catalogue.yaml",
    "pocket rows": "pipestill/pocket/data/train.jsonl",
    "pocket teacher": "pipestill/pocket/models/pocket-teacher/model.safetensors",
    "pocket base": "pipestill/pocket/models/pocket-base/model.safetensors",
    "compiled pipelines": "pipestill/pipelines/compiled/distill_step_by_step.tpu-v3-64.yaml",
    "types": "pipestill/py.typed",
}


@pytest.mark.parametrize("kind", DATA)
def test_the_wheel_holds(kind, wheel):
    assert any(name.startswith(DATA[kind]) for name in wheel)


def test_the_wheel_holds_every_file(wheel):
    missing = []
    for source, inside in ROOMS:
        for path in (ROOT / source).rglob("*"):
            name = path.relative_to(ROOT / source)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in name.parts)
            if path.is_file() and not hidden and f"{inside}/{name.as_posix()}" not in wheel:
                missing.append(f"{source}/{name}")
    assert missing == [], "add them to [tool.setuptools.package-data]"
