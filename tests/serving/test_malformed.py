"""Thousands of malformed bodies: each gets a 4xx in one sentence, and the server lives on."""

import asyncio
import gc
import json
import random
import resource
import socket

import pytest

from tests.serving.asking import call, echo_app, slow_server
from tests.serving.test_engine import until

GOOD = {"instances": ["a refund", {"input_text": "a receipt"}], "parameters": {"explain": True}}
NUMBERS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "-1e400",
    "-0",
    "1e-400",
    "0.5",
    "0x10",
    "01",
    "+1",
    "1.",
    ".5",
    "--1",
    "1e",
    "8193",
    "0",
    "-1",
]
NUMBERS += ["1" * 5000, "9" * 25]
JUNK = ["null", "true", "3", "[]", "{}", '""', '" "', "[[]]", "[null]", '{"a": 1}', "NaN", "-"]
SURROGATES = ["\\ud800", "\\udfff", "\\ud800x", "\\udc00\\ud800", "\\u12", "\\u", "\\x41", "\\"]
BYTES = [b"\xff", b"\xfe\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80"]
BYTES += [b"\xe2\x82", b"\x00", b"\n", b"\x1f"]
PARAMETERS = ["3", "[]", '"x"', "true", '{"explain": "yes"}', '{"explain": 1}', '{"stream": "no"}']
PARAMETERS += ['{"stream": 0}', '{"explain": null}']
TOPS = ['"instances"', '{"instances": 3}', '{"instances": {}}', '{"Instances": ["a"]}']
TOPS += ['{"instances": null}', '["instances"]', '{"instances": "a"}']
NAMES = ["max_output_tokens", "other", "ma\\u0000x", "\\u202e", "__proto__", "k" * 4000]


def truncated(dice):
    text = json.dumps(GOOD).encode()
    return text[: dice.randrange(len(text) - 1)]


def wrong_instance(dice):
    bad = dice.choice([*JUNK[:5], *JUNK[6:], *NUMBERS])
    good = ['"fine"'] * dice.randrange(3)
    return ('{"instances": [' + ", ".join([*good, bad, *good]) + "]}").encode()


def wrong_field(dice):
    bad = dice.choice(JUNK + NUMBERS)
    key = dice.choice(["input_text", "messages", "messages[0]", "content", "role"])
    inner = {
        "input_text": f'{{"input_text": {bad}}}',
        "messages": f'{{"messages": {bad}}}',
        "messages[0]": f'{{"messages": [{bad}]}}',
        "content": f'{{"messages": [{{"role": "user", "content": {bad}}}]}}',
        "role": f'{{"messages": [{{"role": {bad}, "content": "a"}}]}}',
    }[key]
    return f'{{"instances": [{inner}]}}'.encode()


def wrong_parameter(dice):
    bad = dice.choice(
        [n for n in NUMBERS if n not in ("1.5e3",)] + JUNK[1:2] + JUNK[3:4] + JUNK[5:]
    )
    bad = bad if dice.random() < 0.8 else '{"' + "k" * dice.randrange(1, 5000) + '\\n": 1}'
    name = dice.choice(
        ["max_output_tokens", "other", "ma\\u0000x", "\\u202e", "__proto__", "k" * 4000]
    )
    return f'{{"instances": ["a"], "parameters": {{"{name}": {bad}}}}}'.encode()


def wrong_parameters(dice):
    bad = dice.choice(PARAMETERS)
    return f'{{"instances": ["a"], "parameters": {bad}}}'.encode()


def wrong_top(dice):
    bad = dice.choice([*JUNK, *TOPS])
    return bad.encode()


def deep(dice):
    depth = dice.choice([300, 1000, 20_000, 100_000])
    left, right = dice.choice([("[", "]"), ('{"a":', "}"), ('[{"messages":', "}]")])
    closed = right * depth if dice.random() < 0.5 else ""
    return ('{"instances": ' + left * depth + ("1" if closed else "") + closed + "}").encode()


def torn_text(dice):
    return ('{"instances": ["a' + dice.choice(SURROGATES) + '"]}').encode()


def bad_bytes(dice):
    text = bytearray(b'{"instances": ["a refund is due"]}')
    place = dice.randrange(17, 30)
    text[place:place] = dice.choice(BYTES)
    return bytes(text)


def noise(dice):
    return dice.randbytes(dice.randrange(200))


def flipped(dice):
    """A good body with its structure cut up: a sign of JSON is taken away or doubled."""
    text = json.dumps(GOOD)
    places = [i for i, sign in enumerate(text) if sign in '{}[]"']
    place = dice.choice(places)
    return (text[:place] + text[place + 1 :]).encode()


def many(dice):
    if dice.random() < 0.5:
        return json.dumps({"instances": ["a"] * dice.randrange(129, 2000)}).encode()
    keys = {f"k{i}": i for i in range(dice.randrange(1, 3000))}
    return json.dumps({"instances": ["a"], "parameters": keys}).encode()


KINDS = [truncated, wrong_instance, wrong_field, wrong_parameter, wrong_parameters, wrong_top]
KINDS += [torn_text, bad_bytes, noise, flipped, many]


def bodies(count, seed):
    """Malformed bodies from a seed; few deep ones, because they are long."""
    dice = random.Random(seed)
    for number in range(count):
        yield (deep if number % 100 == 0 else dice.choice(KINDS))(dice)


def check(status, said, body):
    assert 400 <= status < 500, (status, said[:200], body[:200])
    error = json.loads(said)
    assert list(error) == ["error"], body[:200]
    assert error["error"].isprintable(), body[:200]
    assert len(error["error"]) <= 301, body[:200]


@pytest.mark.slow
def test_ten_thousand_malformed_bodies_get_4xx_and_the_server_lives_on():
    async def go():
        app, engine, _ = echo_app()
        async with app.router.lifespan_context(app):
            await asyncio.to_thread(until, lambda: engine.problem is None)
            peaks = []
            for part in range(5):
                for body in bodies(2000, part):
                    status, _, said = await call(app, body)
                    check(status, said, body)
                    await asyncio.sleep(0)
                gc.collect()
                peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            assert peaks[-1] < 1.1 * peaks[1], peaks  # the first parts fill caches
            assert app.state.metrics.active == engine.waiting == 0
            status, _, said = await call(app, json.dumps({"instances": ["a refund"]}).encode())
            assert (status, json.loads(said)["predictions"][0]["output_text"]) == (200, "a refund")
            assert engine.problem is None

    asyncio.run(go())


def exchange(address, payload, half_close=True):
    """Raw bytes to the server; everything that it sends until it closes."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(payload)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        found = b""
        while piece := connection.recv(65536):
            found += piece
        return found


def post(body, length=None, extra=b""):
    size = len(body) if length is None else length
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + extra
    return head + f"Content-Length: {size}\r\n\r\n".encode() + body


BROKEN_HTTP = [
    b"\x00\x01\x02\r\n\r\n",
    b"POST /predict HTTP/9.9\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: ten\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nhi\r\n0\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
]


@pytest.mark.slow
def test_malformed_bodies_over_a_socket():
    with slow_server(0, 5) as (process, address):
        for number, body in enumerate(bodies(300, 77)):
            found = exchange(address, post(body), half_close=number % 2 == 0)
            assert found.startswith(b"HTTP/1.1 4"), (found[:200], body[:200])
        for payload in BROKEN_HTTP:
            assert exchange(address, payload)[:10] in (b"HTTP/1.1 4", b""), payload[:80]
        short, long = post(b"{}", length=50), post(b'{"instances": ["a"]} and more', length=5)
        assert not exchange(address, short).startswith(b"HTTP/1.1 2")
        assert exchange(address, long).startswith(b"HTTP/1.1 400")
        huge = exchange(address, post(b"", length=10**12), half_close=False)
        assert huge.startswith(b"HTTP/1.1 413")
        good = exchange(address, post(b'{"instances": ["abc"]}'), half_close=False)
        assert b'"output_text":"abc"' in good
        assert process.poll() is None
