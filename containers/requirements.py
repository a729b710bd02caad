"""Prints what an image needs, for `make lock`: lines of pyproject.toml, and the image's own.

kfp is not among them: it is installed without its dependencies (see docs/containers.md).
"""

import re
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
STORAGE = "google-cloud-storage"  # all that a step on an accelerator needs of Google's
IMAGES = ("cpu", "gpu", "tpu")  # serve is made from cpu


def name_of(line: str) -> str:
    """The package that one requirement line is about, normalised."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", line)[0]).lower()


def requirements(image: str) -> list[str]:
    """The requirement lines of one image."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    google: list[str] = project["optional-dependencies"]["gcp"]
    if image != "cpu":
        google = [line for line in google if name_of(line) == STORAGE]
    extra = HERE / f"requirements-{image}.in"
    lines = extra.read_text(encoding="utf-8").splitlines() if extra.exists() else []
    wanted = [line for line in lines if line and not line.startswith("#")]
    plain: list[str] = [line for line in project["dependencies"] if name_of(line) != "kfp"]
    return plain + google + wanted


if __name__ == "__main__":
    if sys.argv[1:] not in [[image] for image in IMAGES]:
        sys.exit(f"usage: requirements.py {{{','.join(IMAGES)}}}")
    print("\n".join(requirements(sys.argv[1])))
