"""Fixtures of all tests: where the real data lies, and one thread per process."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # one worker a core: more threads would only wait
    os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real public data, or a skip that says how to have it."""
    folder = Path(os.environ.get("PIPESTILL_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set PIPESTILL_SHARED to its parent folder")
    return folder
