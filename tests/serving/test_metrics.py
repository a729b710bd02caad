"""What a server tells Prometheus, and that it tells nothing of the inputs."""

from prometheus_client.parser import text_string_to_metric_families

from tests.serving.asking import echo_client, figures


def test_requests_tokens_calls_and_the_queue_are_counted():
    with echo_client() as (client, _):
        before = figures(client)
        assert before["pipestill_model_ready"] == 1
        client.post("/predict", json={"instances": ["ab", "cde"]})
        client.post("/predict", json={"instances": []})
        client.get("/health")
        client.post("/nowhere", content=b"secret")
        found = figures(client)
        rows = "pipestill_batch_rows"
        assert found['pipestill_requests_total{status="200"}'] == 1
        assert found['pipestill_requests_total{status="400"}'] == 1
        assert found["pipestill_request_seconds_count"] == 2
        assert found["pipestill_prompt_tokens_total"] == 5
        assert found["pipestill_output_tokens_total"] == 7  # the end marks are tokens
        assert found[f"{rows}_count"] - before[f"{rows}_count"] == 4  # steps
        assert found[f"{rows}_sum"] - before[f"{rows}_sum"] == 7
        assert found["pipestill_queue_depth"] == found["pipestill_requests_in_flight"] == 0


def test_two_servers_count_apart():
    with echo_client() as (one, _), echo_client() as (other, _):
        one.post("/predict", json={"instances": ["a"]})
        assert 'pipestill_requests_total{status="200"}' in figures(one)
        assert 'pipestill_requests_total{status="200"}' not in figures(other)


def test_nothing_of_a_request_is_told():
    with echo_client() as (client, _):
        secret = "topsecret"
        client.post("/predict", json={"instances": [secret]}, headers={"x-user": secret})
        client.post(f"/{secret}", json={secret: secret})
        client.post("/predict", json={"instances": ["a"], "parameters": {secret: 1}})
        client.request(secret.upper(), "/predict")
        text = client.get("/metrics").text
        assert secret not in text.lower()
        names = {family.name for family in text_string_to_metric_families(text)}
        assert {name.partition("_")[0] for name in names} == {"pipestill"}


def test_the_metrics_can_be_read_while_the_model_is_loading_or_broken():
    with echo_client() as (client, echo):
        echo.broken = True
        client.post("/predict", json={"instances": ["a"]})
        answer = client.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
        assert figures(client)['pipestill_requests_total{status="503"}'] == 1
