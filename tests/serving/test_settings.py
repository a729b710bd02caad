"""Vertex's variables, and what is refused."""

import pytest

from pipestill.errors import UserError
from pipestill.serving.settings import Settings, settings_from


def test_without_variables_the_server_is_local():
    assert settings_from({}) == Settings()
    assert (Settings().host, Settings().port) == ("127.0.0.1", 8080)


def test_vertex_variables_are_followed():
    found = settings_from(
        {
            "AIP_HTTP_PORT": "9000",
            "AIP_HEALTH_ROUTE": "/v1/endpoints/1/deployedModels/2",
            "AIP_PREDICT_ROUTE": "/v1/endpoints/1/deployedModels/2:predict",
        }
    )
    assert (found.host, found.port) == ("0.0.0.0", 9000)
    assert found.health_route == "/v1/endpoints/1/deployedModels/2"
    assert found.predict_route == "/v1/endpoints/1/deployedModels/2:predict"


def test_limits_are_taken_over():
    found = settings_from({}, max_queue=2, timeout_s=0.5, drain_s=0)
    assert (found.max_queue, found.timeout_s, found.drain_s) == (2, 0.5, 0)


def test_arguments_win():
    found = settings_from({"AIP_HTTP_PORT": "9000"}, host="127.0.0.1", port=1234, max_batch=3)
    assert (found.host, found.port, found.max_batch) == ("127.0.0.1", 1234, 3)


@pytest.mark.parametrize(
    ("environment", "arguments", "code"),
    [
        ({"AIP_HTTP_PORT": "http"}, {}, "SERVE_PORT"),
        ({"AIP_HTTP_PORT": "70000"}, {}, "SERVE_PORT"),
        ({}, {"port": -1}, "SERVE_PORT"),
        ({"AIP_HEALTH_ROUTE": "health"}, {}, "SERVE_ROUTE"),
        ({"AIP_PREDICT_ROUTE": "/a/{b}"}, {}, "SERVE_ROUTE"),
        ({"AIP_PREDICT_ROUTE": "/health"}, {}, "SERVE_ROUTE"),
        ({"AIP_HEALTH_ROUTE": "/metrics"}, {}, "SERVE_ROUTE"),
        ({}, {"max_batch": 0}, "SERVE_BATCH"),
        ({}, {"max_queue": 0}, "SERVE_QUEUE"),
        ({}, {"timeout_s": 0.0}, "SERVE_TIMEOUT"),
        ({}, {"timeout_s": float("nan")}, "SERVE_TIMEOUT"),
        ({}, {"timeout_s": float("inf")}, "SERVE_TIMEOUT"),
        ({}, {"drain_s": -1.0}, "SERVE_DRAIN"),
    ],
)
def test_wrong_settings_are_refused(environment, arguments, code):
    with pytest.raises(UserError) as caught:
        settings_from(environment, **arguments)
    assert caught.value.code == code
