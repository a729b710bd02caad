"""The prediction contract, on tiny random models."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient

from pipestill.models.student import Student
from pipestill.serving.app import create_app
from pipestill.serving.engine import Engine
from pipestill.serving.settings import Settings

TEXTS = ["the refund is due", "a late order was sent back", "order", "paid in full and sent"]


def client_for(folder, **changes):
    settings = Settings(**changes)
    engine = Engine(
        lambda: Student.load(str(folder)),
        max_batch=settings.max_batch,
        max_wait_ms=settings.max_wait_ms,
        max_queue=settings.max_queue,
    )
    return TestClient(create_app(engine, settings))


def wait_until_healthy(client, route="/health"):
    end = time.monotonic() + 30
    while client.get(route).status_code != 200:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def client(student_folder):
    with client_for(student_folder, max_output_tokens=8) as client:
        wait_until_healthy(client)
        yield client


@pytest.fixture(scope="module")
def direct(student_folder):
    return Student.load(str(student_folder))


def test_strings_and_objects_give_the_students_answers(client, direct):
    expected = [
        {
            "output_text": found.text,
            "prompt_tokens": found.prompt_tokens,
            "output_tokens": found.output_tokens,
        }
        for found in direct.answer(TEXTS, batch_size=4, max_new_tokens=8)
    ]
    assert any(answer["output_text"] for answer in expected)
    objects = [{"input_text": text, "id": 7} for text in TEXTS]
    for instances in (TEXTS, objects):
        answer = client.post("/predict", json={"instances": instances})
        assert answer.status_code == 200
        assert answer.json() == {"predictions": expected}


def test_parameters_limit_and_explain(client, direct):
    parameters = {"max_output_tokens": 3.0, "explain": True}
    body = {"instances": TEXTS[:2], "parameters": parameters, "deployedModelId": "1"}
    found = client.post("/predict", json=body).json()["predictions"]
    rationales = direct.explain(TEXTS[:2], batch_size=2, max_new_tokens=3)
    assert [item["rationale"] for item in found] == [item.text for item in rationales]
    assert all(item["output_tokens"] <= 3 for item in found)
    plain = client.post("/predict", json={"instances": TEXTS[:1], "parameters": None}).json()
    assert "rationale" not in plain["predictions"][0]


def test_concurrent_requests_answer_as_one_by_one(client):
    bodies = [{"instances": [text, f"{text} and back"]} for text in TEXTS * 3]
    alone = [client.post("/predict", json=body).json() for body in bodies]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda body: client.post("/predict", json=body).json(), bodies))
    assert together == alone


DEEP = '{"instances": ' + "[" * 100_000 + "]" * 100_000 + "}"
BAD = [
    (b"", 400, "body: Invalid JSON"),
    (b"hello", 400, "body: Invalid JSON"),
    (b'{"instances": ["a"', 400, "body: Invalid JSON"),
    (b'{"instances": ["\xff\xfe"]}', 400, "body: Invalid JSON"),
    (b'{"instances": ["\\ud800"]}', 400, "body: Invalid JSON"),
    (DEEP.encode(), 400, "body: Invalid JSON"),
    (b"[]", 400, "body:"),
    (b"null", 400, "body:"),
    (b"{}", 400, "instances: Field required"),
    (b'{"instances": "a"}', 400, "instances:"),
    (b'{"instances": {}}', 400, "instances:"),
    (b'{"instances": []}', 400, "instances:"),
    (b'{"instances": ["a", 3]}', 400, "instances[1]:"),
    (b'{"instances": ["a", null]}', 400, "instances[1]:"),
    (b'{"instances": ["a", ["b"]]}', 400, "instances[1]:"),
    (b'{"instances": [{"text": "a"}]}', 400, "instances[0].input_text: Field required"),
    (b'{"instances": ["a", {"input_text": 3}]}', 400, "instances[1].input_text:"),
    (b'{"instances": ["a", "  "]}', 400, "instances[1].input_text: must not be blank"),
    (b'{"instances": ["a"], "parameters": 3}', 400, "parameters:"),
    (b'{"instances": ["a"], "parameters": {"max_tokens": 3}}', 400, "parameters.max_tokens:"),
    (
        b'{"instances": ["a"], "parameters": {"max_output_tokens": 0}}',
        400,
        "parameters.max_output_tokens:",
    ),
    (
        b'{"instances": ["a"], "parameters": {"max_output_tokens": 2.5}}',
        400,
        "parameters.max_output_tokens:",
    ),
    (
        b'{"instances": ["a"], "parameters": {"max_output_tokens": true}}',
        400,
        "parameters.max_output_tokens:",
    ),
    (
        b'{"instances": ["a"], "parameters": {"max_output_tokens": 1e99}}',
        400,
        "parameters.max_output_tokens:",
    ),
    (b'{"instances": ["a"], "parameters": {"explain": "yes"}}', 400, "parameters.explain:"),
    (json.dumps({"instances": ["a"] * 129}).encode(), 400, "instances: 129 given, at most 128"),
    (b'{"instances": [' + b"1," * 700_000 + b"1]}", 400, "instances: 700,001 given"),
    (
        json.dumps({"instances": ["order", "order " * 65]}).encode(),
        400,
        "instances[1].input_text: longer than 64 tokens",
    ),
    (b" " * 1_500_001, 413, "the body is larger than 1,500,000 bytes"),
]


@pytest.mark.parametrize(("body", "status", "says"), BAD, ids=range(len(BAD)))
def test_bad_bodies_are_refused_in_one_sentence(client, body, status, says):
    begun = time.monotonic()
    answer = client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text[:300]
    assert list(answer.json()) == ["error"]
    assert says in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert len(answer.text) < 400
    assert time.monotonic() - begun < 2
    assert client.get("/health").status_code == 200


def test_a_good_request_works_after_all_that(client):
    assert client.post("/predict", json={"instances": ["order"]}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/predict"])
def test_other_addresses_answer_with_an_error_object(client, path):
    answer = client.get(path)
    assert answer.status_code in (404, 405)
    assert list(answer.json()) == ["error"]


def test_routes_and_limits_come_from_the_settings(t5_student):
    routes = {"health_route": "/v1/health", "predict_route": "/v1/predict", "max_instances": 2}
    with client_for(t5_student, **routes, max_body_bytes=60) as client:
        wait_until_healthy(client, "/v1/health")
        assert client.get("/health").status_code == 404
        assert client.post("/v1/predict", json={"instances": ["order"]}).status_code == 200
        assert client.post("/v1/predict", json={"instances": ["a"] * 3}).status_code == 400
        assert client.post("/v1/predict", json={"instances": ["a" * 60]}).status_code == 413


def test_health_is_red_and_predict_refuses_where_the_model_is_broken(tmp_path):
    with client_for(tmp_path / "nothing") as client:
        end = time.monotonic() + 10
        while "cannot be loaded" not in client.get("/health").json()["error"]:
            assert time.monotonic() < end
        for answer in (
            client.get("/health"),
            client.post("/predict", json={"instances": ["order"]}),
        ):
            assert answer.status_code == 503
            assert "MODEL_NOT_FOUND" in answer.json()["error"]
