"""containers/Dockerfile, read as text: no container engine is needed (none may be there)."""

import fnmatch
import re
from pathlib import Path

import pytest

from pipestill import __version__
from pipestill.pipelines.custom_job import LAUNCHER_IMAGE
from pipestill.pipelines.hardware import PROFILES

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "containers"
TARGETS = ("cpu", "gpu", "tpu", "serve")
KNOWN = {
    "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN", "USER",
    "WORKDIR",
}  # fmt: skip


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.MULTILINE)
    joined = re.sub(r"\\\n\s*", "", text)
    lines = [line for line in joined.splitlines() if line.strip()]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Stage → its instructions, with those of the stage that it starts from in front."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for word, rest in instructions():
        if word == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\w+)", rest).groups()
            assert base in found or base == "${BASE}", base
            found[name] = list(found.get(base, []))
        elif name:
            found[name].append((word, rest))
    return found


def test_only_known_instructions_and_never_add():
    assert {word for word, _ in instructions()} <= KNOWN


def test_every_profile_has_its_target():
    assert set(TARGETS) <= set(stages())
    assert {profile.image for profile in PROFILES.values()} <= set(stages())


@pytest.mark.parametrize("target", TARGETS)
def test_images_do_not_run_as_root(target):
    users = [rest for word, rest in stages()[target] if word == "USER"]
    assert users
    assert users[-1] == "10001"


@pytest.mark.parametrize("target", TARGETS)
def test_everything_installed_is_hash_checked(target):
    installs = [rest for word, rest in stages()[target] if word == "RUN" and "pip install" in rest]
    assert len(installs) == 3
    for command in installs:
        assert "--require-hashes" in command or "--no-index" in command
    assert sum("requirements-kfp.lock" in command for command in installs) == 1
    assert all("--no-deps" in command for command in installs if "kfp" in command)


def test_bases_are_pinned_by_tag():
    (base,) = [rest for word, rest in instructions() if word == "ARG" and rest.startswith("BASE=")]
    assert re.fullmatch(r"BASE=python:3\.\d+\.\d+-slim-\w+", base)
    assert re.search(r":\d+\.\d+\.\d+$", LAUNCHER_IMAGE)


def test_serve_has_a_health_check_and_the_contracts_variables():
    serve = dict(stages()["serve"])
    assert "AIP_HEALTH_ROUTE" in serve["HEALTHCHECK"]
    assert serve["ENTRYPOINT"] == '["pipestill", "serve"]'
    environment = " ".join(rest for word, rest in stages()["serve"] if word == "ENV")
    for name in ("AIP_HTTP_PORT", "AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE"):
        assert f"{name}=" in environment
    code = re.search(r'"-c", "(.*)"\]', serve["HEALTHCHECK"])[1]
    compile(code, "healthcheck", "exec")


def test_code_version_is_the_packages():
    for target in TARGETS:
        assert ("ARG", f"VERSION={__version__}") in stages()[target]
        environment = " ".join(rest for word, rest in stages()[target] if word == "ENV")
        assert "PIPESTILL_CODE_VERSION=${VERSION}" in environment


def test_tpu_pins_the_pair():
    text = (FOLDER / "requirements-tpu.in").read_text()
    assert "torch==2.9.*" in text
    assert "torch_xla[tpu]==2.9.*" in text


def test_what_is_copied_exists_and_passes_dockerignore():
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    makefile = (FOLDER / "Makefile").read_text()
    for word, rest in instructions():
        if word != "COPY" or rest.startswith("--from="):
            continue
        for source in rest.split()[:-1]:
            assert any(fnmatch.fnmatch(source, rule[1:]) for rule in rules), source
            if source.endswith(".lock"):
                assert re.search(rf"(-o|>) {re.escape(Path(source).name)}", makefile), source
            else:
                assert (ROOT / source).exists(), source
