"""The loopback servers, and an environment that leads every Google client to them."""

import pytest

pytest.importorskip("google.cloud.aiplatform", reason="needs pip install 'pipestill[gcp]'")

from pipestill.cloud import watch
from tests.cloud.fake_kfp import FakeKfp
from tests.cloud.fake_vertex import FakeVertex

CHECKED: dict[str, int] = {}


@pytest.fixture
def vertex(monkeypatch, request):
    """An empty Vertex AI with the bucket ``gs://stage``, to which the clients are led."""
    with FakeVertex() as fake:
        monkeypatch.setenv("PIPESTILL_API_ENDPOINT", fake.url)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake.url)
        monkeypatch.setenv("NO_GCE_CHECK", "true")
        monkeypatch.setattr(watch, "POLL_S", 0.0)
        for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT"):
            monkeypatch.delenv(name, raising=False)
        yield fake
        CHECKED[request.node.nodeid] = fake.requests_checked


@pytest.fixture
def kubeflow(monkeypatch, request):
    """An empty Kubeflow Pipelines server."""
    with FakeKfp() as fake:
        monkeypatch.setattr(watch, "POLL_S", 0.0)
        monkeypatch.delenv("KFP_TOKEN", raising=False)
        yield fake
        CHECKED[request.node.nodeid] = fake.requests_checked


def pytest_terminal_summary(terminalreporter):
    """How many requests the fakes have checked."""
    if CHECKED:
        total = sum(CHECKED.values())
        terminalreporter.write_line(f"{total} requests checked in {len(CHECKED)} stories")
