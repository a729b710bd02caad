"""`pipestill doctor`: is everything here that a run needs, and what to do where it is not."""

import argparse
import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_KEY_VARIABLES = ("OPENAI_API_KEY", "GEMINI_API_KEY", "HF_TOKEN")
_CLOUD_PACKAGES = ("google-cloud-aiplatform", "google-cloud-storage", "google-cloud-quotas")
_NEEDED_DISK = 2 * 10**9


@dataclass(frozen=True)
class Check:
    """One line of the doctor's answer; `required` ones decide the exit code."""

    name: str
    passed: bool
    found: str
    advice: str = ""
    required: bool = True


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pipestill doctor`."""
    parser.description = __doc__
    parser.add_argument(
        "--profile", default="cpu-local", help="cpu-local, a100-80gb-x8 or tpu-v3-64"
    )
    parser.add_argument("--run-dir", default="runs", help="folder where runs are written")
    parser.add_argument(
        "--online", action="store_true", help="also ask whether the model hub answers"
    )


def main(args: argparse.Namespace) -> int:
    """Prints every check with ✓ or ✗; returns 0 when all required ones pass, else 1."""
    from pipestill.models.memory import profile_named

    profile_named(args.profile)  # refuses an unknown profile before anything is printed
    failed = 0
    for check in _checks(args):
        mark = "✓" if check.passed else "✗" if check.required else "–"
        line = f"{mark} {check.name}: {check.found}"
        print(line if check.passed or not check.advice else f"{line} → {check.advice}", flush=True)
        failed += check.required and not check.passed
    print("ready" if not failed else f"{failed} required checks failed")
    return 1 if failed else 0


def _checks(args: argparse.Namespace) -> Iterator[Check]:
    cloud = args.profile != "cpu-local"
    yield python_version()
    for name in ("torch", "transformers", "kfp", "safetensors", "fastapi"):
        yield package_version(name)
    yield torch_works()
    yield folder_writable(Path(args.run_dir))
    yield disk_free(Path(args.run_dir))
    for name in ("pocket-teacher", "pocket-base"):
        yield pocket_model(name)
    if not cloud:
        yield memory()
    for variable in _KEY_VARIABLES:
        yield key_present(variable)
    for package in _CLOUD_PACKAGES:
        yield package_version(package, required=cloud, extra="gcp")
    yield credentials(required=cloud)
    yield docker()
    if args.online:
        yield hub_answers()


def python_version() -> Check:
    """Python 3.11 or newer."""
    found = ".".join(str(part) for part in sys.version_info[:3])
    return Check("Python", sys.version_info >= (3, 11), found, "install Python 3.11 or newer")


def package_version(name: str, *, required: bool = True, extra: str = "") -> Check:
    """Whether `name` is installed in the version range that this package itself asks for."""
    allowed = _allowed_versions(name)
    target = f"pipestill[{extra}]" if extra else f"{name}{allowed}"
    advice = f"pip install '{target}'"
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, "not installed", advice, required)
    from packaging.specifiers import SpecifierSet

    inside = SpecifierSet(allowed).contains(found, prereleases=True)
    return Check(name, inside, f"{found} (allowed: {allowed or 'any'})", advice, required)


def _allowed_versions(name: str) -> str:
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("pipestill") or []
    except importlib.metadata.PackageNotFoundError:
        lines = []
    ranges = [str(item.specifier) for item in map(Requirement, lines) if item.name == name]
    return ranges[0] if ranges else ""


def torch_works() -> Check:
    """Whether torch loads and adds, its build, threads and GPUs."""
    try:
        import torch

        works = bool((torch.ones(2) + 1).sum() == 4)
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except Exception as error:  # a broken binary raises OSError, ImportError and others
        return Check(
            "torch loads", False, f"{type(error).__name__}: {error}", "install torch again"
        )
    found = f"{build}, {torch.get_num_threads()} threads, {', '.join(gpus) or 'no CUDA device'}"
    return Check("torch loads", works, found, "install torch again")


def _nearest_existing(folder: Path) -> Path:
    for candidate in (folder.absolute(), *folder.absolute().parents):
        if candidate.exists():
            return candidate
    return Path("/")


def folder_writable(folder: Path) -> Check:
    """Whether runs can be written; nothing is left behind."""
    try:
        with tempfile.TemporaryFile(dir=_nearest_existing(folder)):
            return Check("run folder", True, f"{folder} can be written")
    except OSError as error:
        return Check("run folder", False, f"{folder}: {error.strerror}", "choose another --run-dir")


def disk_free(folder: Path) -> Check:
    """At least 2 GB free where runs are written."""
    free = shutil.disk_usage(_nearest_existing(folder)).free
    found = f"{free / 1e9:.1f} GB free, {_NEEDED_DISK / 1e9:.0f} GB needed"
    return Check("disk", free >= _NEEDED_DISK, found, "free some space or choose another --run-dir")


def memory() -> Check:
    """This computer's memory against what the profile cpu-local assumes."""
    from pipestill.models.memory import LOCAL_MEMORY_VARIABLE, profile_named

    assumed = profile_named("cpu-local").memory
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return Check("memory", True, "not known on this system", required=False)
    found = f"{total / 1e9:.1f} GB, the profile counts with {assumed / 1e9:.1f} GB"
    advice = f"set {LOCAL_MEMORY_VARIABLE}={total / 1e9:.0f}"
    return Check("memory", total >= 0.9 * assumed, found, advice, required=False)


def pocket_model(name: str) -> Check:
    """Whether an embedded model is whole: size, parameters and digest of its weights."""
    import hashlib

    from pipestill.errors import UserError
    from pipestill.models.counting import count_parameters, local_folder

    advice = "install pipestill again; its package data is incomplete"
    folder = local_folder(name)
    weights = sorted(folder.glob("*.safetensors")) if folder else []
    if folder is None or not weights or not (folder / "tokenizer.json").is_file():
        return Check(name, False, "files missing", advice)
    try:
        parameters = count_parameters(folder)
    except UserError as error:
        return Check(name, False, error.message, advice)
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in weights)).hexdigest()
    size = sum(file.stat().st_size for file in weights)
    return Check(
        name, True, f"{parameters:,} parameters, {size / 1e6:.1f} MB, sha256 {digest[:12]}…"
    )


def key_present(variable: str) -> Check:
    """Whether a key's variable is set; its value is never read into the answer."""
    present = bool(os.environ.get(variable))
    advice = "needed only by a teacher or hub that asks for it"
    return Check(variable, present, "set" if present else "not set", advice, required=False)


def credentials(*, required: bool) -> Check:
    """Whether Application Default Credentials lie where Google's libraries look; not opened."""
    named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    default = Path(os.environ.get("CLOUDSDK_CONFIG") or Path.home() / ".config" / "gcloud")
    file = Path(named) if named else default / "application_default_credentials.json"
    found = "found" if file.is_file() else f"no file at {file}"
    advice = "gcloud auth application-default login"
    return Check("Google credentials", file.is_file(), found, advice, required)


def docker() -> Check:
    """Docker is only needed to build the images and for the DockerRunner."""
    path = shutil.which("docker")
    advice = "optional: only for building images"
    return Check("docker", bool(path), path or "not found", advice, required=False)


def hub_answers() -> Check:
    """One request to the model hub (``HF_ENDPOINT`` where set)."""
    import httpx

    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        status = httpx.head(address, timeout=10, follow_redirects=True).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        found, answered = f"{address}: {type(error).__name__}", False
    else:
        found, answered = f"{address} answered {status}", status < 500
    return Check("model hub", answered, found, "use local folders as model references")
