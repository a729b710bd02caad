"""More clients than the queue holds: every request ends soon, answered or told to come back."""

import asyncio
import json
import time

from tests.serving.asking import call, echo_app
from tests.serving.test_engine import Echo, until


class Slow(Echo):
    def generate(self, prompts, limit, watch):
        time.sleep(0.02)
        super().generate(prompts, limit, watch)


def flood(app, engine, clients, each):
    async def client(number):
        found = []
        for turn in range(each):
            text = f"c{number}t{turn}"
            status, headers, said = await call(app, json.dumps({"instances": [text]}).encode())
            if status == 200:
                assert json.loads(said)["predictions"][0]["output_text"] == text
            else:
                assert headers[b"retry-after"] == b"1"
                assert json.loads(said) == {"error": "busy: 4 requests wait already"}
            found.append(status)
        return found

    async def go():
        async with app.router.lifespan_context(app):
            await asyncio.to_thread(until, lambda: engine.problem is None)
            found = await asyncio.gather(*(client(number) for number in range(clients)))
            assert engine.waiting == app.state.metrics.active == 0
            assert await client(-1) == [200] * each  # as good as new
            return [status for statuses in found for status in statuses]

    return asyncio.run(asyncio.wait_for(go(), 20))


def test_every_request_of_64_clients_ends_in_200_or_429():
    app, engine, echo = echo_app(Slow(), max_queue=4, max_batch=4)
    begun = time.monotonic()
    found = flood(app, engine, 64, 5)
    assert time.monotonic() - begun < 10
    assert len(found) == 320
    assert set(found) == {200, 429}
    assert found.count(200) >= 8  # what ran and what waited, at the least
    assert max(map(len, echo.calls)) <= 4
