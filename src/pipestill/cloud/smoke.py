"""Smoke predictions, and an endpoint to send them to while nobody is served by the model.

The platform sends a prediction to a deployed model by the endpoint's traffic split alone: a model
without traffic cannot be asked anything there. So a new version rehearses on an endpoint of its
own.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from pipestill.cloud.client import Settings, explained, quiet
from pipestill.cloud.endpoint import REHEARSAL, create, find
from pipestill.errors import PipestillError, UserError, WorkError

SMOKE_TRIES, SMOKE_WAIT_S = 3, 10.0
SMOKE_ROWS = 16


def instances(uri: str) -> list[dict[str, Any]]:
    """The smoke predictions, as the server takes them."""
    from pipestill.serving.batch_rows import read_shard
    from pipestill.serving.package import SMOKE_INPUT

    if not uri:
        return [{"input_text": SMOKE_INPUT}]
    rows, bad, _ = read_shard(uri, "0/1")
    if bad or not rows:
        raise UserError(
            "DEPLOY_SMOKE_ROWS", f"{uri}: {len(bad)} unusable rows, {len(rows)} usable ones"
        )
    return [
        {"messages": row.fields["messages"]}
        if "messages" in row.fields
        else {"input_text": row.text}
        for row in rows[:SMOKE_ROWS]
    ]


def smoke(endpoint: Any, instances: Sequence[Any]) -> None:
    """Sends the predictions, one a request; each has to be answered with text.

    Raises:
        WorkError: ``DEPLOY_SMOKE`` naming the prediction and what came.
    """
    for number, instance in enumerate(instances, 1):
        problem = ""
        for attempt in range(SMOKE_TRIES):
            if attempt:
                time.sleep(SMOKE_WAIT_S)
            problem, final = _problem(endpoint, instance)
            if not problem or final:
                break
        if problem:
            raise WorkError(
                "DEPLOY_SMOKE",
                f"smoke prediction {number} of {len(instances)} failed on endpoint "
                f"{endpoint.display_name}: {problem}",
            )


def _problem(endpoint: Any, instance: Any) -> tuple[str, bool]:
    """What is wrong with the answer, and whether asking again cannot help."""
    dedicated = bool(endpoint.gca_resource.dedicated_endpoint_enabled)
    try:
        with quiet():
            answer = endpoint.predict(instances=[instance], use_dedicated_endpoint=dedicated)
    except Exception as error:  # whatever it is, users would see it too
        text = " ".join(str(getattr(error, "message", "") or error).split())[:300]
        return f"{type(error).__name__}: {text}", False
    found = answer.predictions
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], dict):
        return f"the answer is not one prediction: {str(found)[:200]}", True
    tokens = found[0].get("output_tokens", 0)
    spoken = isinstance(tokens, int | float) and tokens >= 1
    if not spoken or not isinstance(found[0].get("output_text"), str):
        return f"the prediction holds no answer: {str(found[0])[:200]}", True
    return "", True


@contextmanager
def rehearsal(name: str, settings: Settings, labels: Mapping[str, str]) -> Iterator[Any]:
    """An endpoint for one test, removed afterwards with all that is deployed to it.

    One that a killed run left behind is removed first.
    """
    left = find(name + REHEARSAL, settings)
    if left is not None:
        _remove(left, settings)
    marked = {**labels, "pipestill-rehearsal": "yes"}
    endpoint = create(name + REHEARSAL, settings, dedicated=False, labels=marked)
    try:
        yield endpoint
    except BaseException:
        with suppress(PipestillError):  # what went wrong first is the news
            _remove(endpoint, settings)
        raise
    _remove(endpoint, settings)


def _remove(endpoint: Any, settings: Settings) -> None:
    """With all that is deployed to it."""
    with explained(settings, f"remove endpoint {endpoint.display_name}"):
        endpoint.delete(force=True, sync=True)
