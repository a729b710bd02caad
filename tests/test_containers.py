"""The container files, read as text: no container engine is needed (none may be there)."""

import fnmatch
import os
import re
import runpy
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipestill import __version__
from pipestill.pipelines.compile import COMPILED
from pipestill.pipelines.custom_job import LAUNCHER_IMAGE
from pipestill.pipelines.hardware import PROFILES

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "containers"
TARGETS = ("cpu", "gpu", "tpu", "serve")
LOCKED = ("cpu", "gpu", "tpu")
KNOWN = {
    "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "RUN",
    "USER", "WORKDIR",
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
            base, name = re.fullmatch(r"(\S+) AS ([\w-]+)", rest).groups()
            assert base in found or base == "${BASE}", base
            found[name] = list(found.get(base, []))
        elif name:
            found[name].append((word, rest))
    return found


def pins(name: str) -> dict[str, str]:
    """Package → version of one lock file; every one of its lines is a pin or a hash."""
    found = {}
    for line in (FOLDER / f"requirements-{name}.lock").read_text().splitlines():
        if line.startswith("    --hash=sha256:"):
            continue
        package, version = re.fullmatch(r"(\S+)==(\S+)(?: ;[^\\]*)? \\", line).groups()
        found[canonicalize_name(package)] = version
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
def test_images_hold_packages_and_nothing_that_installs_them(target):
    steps = stages()[target]
    copies = [rest for word, rest in steps if word == "COPY"]
    own = "cpu" if target == "serve" else target
    assert copies == [f"--from=packages-{own} /opt/pipestill /opt/pipestill"]
    commands = [rest for word, rest in steps if word == "RUN"]
    assert not any("pip install" in command for command in commands)
    assert any(re.search(r"pip uninstall --yes .*\bpip\b", command) for command in commands)
    environment = " ".join(rest for word, rest in steps if word == "ENV")
    assert "PATH=/opt/pipestill/bin:$PATH" in environment
    assert "PYTHONDONTWRITEBYTECODE=1" in environment


@pytest.mark.parametrize("target", LOCKED)
def test_everything_installed_is_hash_checked(target):
    runs = [rest for word, rest in stages()[f"packages-{target}"] if word == "RUN"]
    installs = [
        part for run in runs for part in run.split("&&") if re.search(r"pip (install|wheel)", part)
    ]
    assert len(installs) == 4
    for command in installs:
        assert "--require-hashes" in command or "--no-index" in command
        assert "--no-deps" in command
    (wheel,) = [command for command in installs if "pip wheel" in command]
    assert "--no-build-isolation" in wheel  # or pip would fetch build tools that nobody locked


def test_bases_are_pinned_by_tag():
    (base,) = [rest for word, rest in instructions() if word == "ARG" and rest.startswith("BASE=")]
    assert re.fullmatch(r"BASE=python:3\.\d+\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", base)
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
        assert any("image.version" in rest for word, rest in stages()[target] if word == "LABEL")


def test_what_is_copied_exists_and_passes_dockerignore():
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    makefile = (FOLDER / "Makefile").read_text()
    for word, rest in instructions():
        if word != "COPY" or rest.startswith("--from="):
            continue
        for source in rest.split()[:-1]:
            assert any(fnmatch.fnmatch(source, rule[1:]) for rule in rules), source
            assert (ROOT / source).exists(), source
            if source.endswith(".lock"):
                assert f"-o {Path(source).name}" in makefile, source


@pytest.mark.parametrize("image", LOCKED)
def test_locks_hold_what_the_package_asks_for(image):
    locked = pins(image)
    wanted = runpy.run_path(str(FOLDER / "requirements.py"))["requirements"](image)
    assert len(wanted) > 14
    for line in map(Requirement, wanted):
        version = locked[canonicalize_name(line.name)]
        assert line.specifier.contains(version, prereleases=True), (line, version)


def test_each_lock_has_its_own_torch():
    assert pins("cpu")["torch"].endswith("+cpu")
    assert any(name.startswith("nvidia-") for name in pins("gpu"))
    assert pins("gpu")["torch"] == pins("cpu")["torch"].removesuffix("+cpu")
    assert pins("tpu")["torch"].startswith("2.9.")
    assert pins("tpu")["torch-xla"].startswith("2.9.")


def test_cloud_clients_are_where_they_are_used():
    google = {"google-cloud-aiplatform", "google-cloud-storage", "google-cloud-quotas"}
    assert google <= set(pins("cpu"))
    for image in ("gpu", "tpu"):
        assert google & set(pins(image)) == {"google-cloud-storage"}


@pytest.mark.parametrize("image", LOCKED)
def test_locks_are_the_tested_set(image):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line and line[0] != "#")
    tested = {canonicalize_name(name): version for name, version in tested.items()}
    locked = {name: version.removesuffix("+cpu") for name, version in pins(image).items()}
    shared = (set(tested) & set(locked)) - ({"torch"} if image == "tpu" else set())
    assert len(shared) > 50
    assert {name: locked[name] for name in shared} == {name: tested[name] for name in shared}
    assert pins("kfp") == {name: tested[name] for name in ("kfp", "kfp-server-api")}


def test_a_step_needs_nothing_of_kfps_that_the_accelerator_images_lack():
    absent = {"docstring_parser", "kubernetes", "kfp_server_api", "click_option_group"}
    absent |= {"kfp.pipeline_spec", "requests_toolbelt"}
    names = {canonicalize_name(name) for name in absent if "." not in name}
    assert not names & (set(pins("gpu")) | set(pins("tpu")))
    absent |= {"tabulate"}  # there because of sacrebleu, and not needed by kfp
    code = f"import sys; sys.modules |= dict.fromkeys({absent!r}); import kfp.dsl.executor_main"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "_KFP_RUNTIME": "true"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_tag_in_every_compiled_pipeline_is_the_version():
    files = sorted(COMPILED.glob("*.yaml"))
    assert files
    for file in files:
        tags = re.findall(r"\bpipestill/(?:cpu|gpu|tpu|serve):([\w.+-]+)", file.read_text())
        assert set(tags) == {__version__}, file.name


def test_cloud_build_builds_and_pushes_every_target():
    build = yaml.safe_load((ROOT / "cloudbuild.yaml").read_text())
    assert set(build) <= {"steps", "images", "substitutions", "options", "timeout"}
    given = build["substitutions"]
    assert given["_VERSION"] == __version__
    name = "${_REGION}-docker.pkg.dev/$PROJECT_ID/${_REPOSITORY}/%s:${_VERSION}"
    assert build["images"] == [name % target for target in TARGETS]
    assert [step["id"] for step in build["steps"]] == list(TARGETS)
    before = {"-"}
    for step in build["steps"]:
        assert set(step) == {"id", "name", "waitFor", "args"}
        assert set(step["waitFor"]) <= before
        before.add(step["id"])
        assert step["args"][0] == "build"
        assert step["args"][-1] == "."
        assert f"--target={step['id']}" in step["args"]
        assert f"--tag={name % step['id']}" in step["args"]
        assert "--file=containers/Dockerfile" in step["args"]
        declared = {rest.split("=")[0] for word, rest in instructions() if word == "ARG"}
        passed = {arg.split("=")[1] for arg in step["args"] if arg.startswith("--build-arg=")}
        assert passed <= declared
    assert re.fullmatch(r"\d+s", build["timeout"])


def test_cloud_build_uses_what_it_declares():
    build = yaml.safe_load((ROOT / "cloudbuild.yaml").read_text())
    used = set(re.findall(r"\$\{?(\w+)\}?", str([build["steps"], build["images"]])))
    own = {name for name in used if name.startswith("_")}
    # Cloud Build refuses a declared name that nothing uses, and a used one that nobody gives.
    assert own == set(build["substitutions"]) | {"_CPU_WHEELS"}
    assert used - own == {"PROJECT_ID", "COMMIT_SHA"}


def crane(folder: Path, answer: str) -> dict[str, str]:
    """An environment in which `crane` answers so."""
    tool = folder / "crane"
    tool.write_text(
        f'#!/bin/sh\n[ "$1" = digest ] || exit 9\necho "$2" > {folder}/asked\n{answer}\n'
    )
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def pin(folder: Path, answer: str) -> tuple[int, str, str]:
    file = folder / "Dockerfile"
    shutil.copy(FOLDER / "Dockerfile", file)
    done = subprocess.run(
        [str(FOLDER / "pin_base.sh"), str(file)],
        env=crane(folder, answer), capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, file.read_text(), done.stderr


def test_the_digest_is_the_registrys_answer(tmp_path):
    digest = "sha256:" + "ab" * 32
    code, text, _ = pin(tmp_path, f"echo {digest}")
    assert code == 0
    assert re.search(rf"^ARG BASE=python:\S+@{digest}$", text, flags=re.MULTILINE)
    assert (tmp_path / "asked").read_text().startswith("docker.io/library/python:3.")
    assert len(text.splitlines()) == len((FOLDER / "Dockerfile").read_text().splitlines())


@pytest.mark.parametrize("answer", ["exit 1", "echo latest", "echo sha256:abc", "true"])
def test_without_a_digest_nothing_is_written(tmp_path, answer):
    code, text, errors = pin(tmp_path, answer)
    assert code == 1
    assert text == (FOLDER / "Dockerfile").read_text()
    assert "gave no digest" in errors


@pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint is not installed")
def test_hadolint_is_content():
    done = subprocess.run(
        ["hadolint", "--no-color", str(FOLDER / "Dockerfile")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
