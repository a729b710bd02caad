"""The server as a process: a real uvicorn on a loopback port, and where its model comes from."""

import gc
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from pipestill.errors import UserError
from pipestill.models.student import Student
from pipestill.serving.server import _listen, announce, curl_line, local_copy, serve
from pipestill.serving.settings import Settings

RUN = """
import argparse, sys
from pipestill.cli import serve
from pipestill.errors import PipestillError
parser = argparse.ArgumentParser()
serve.configure(parser)
try:
    sys.exit(serve.main(parser.parse_args()))
except PipestillError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def start(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *map(str, arguments)],
        env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_server_process_speaks_the_contract_and_ends_cleanly(gpt2_student, tmp_path):
    variables = {"AIP_HTTP_PORT": "0", "AIP_PREDICT_ROUTE": "/v1/predict"}
    process = start(
        "--host", "127.0.0.1", AIP_STORAGE_URI=str(gpt2_student), TMPDIR=str(tmp_path), **variables
    )
    try:
        assert "loading" in process.stdout.readline()
        assert "ready" in process.stdout.readline()
        curl = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", curl).group()
        assert "/v1/predict" in curl
        assert httpx.get(f"{address}/health").json() == {"status": "ok"}
        found = httpx.post(f"{address}/v1/predict", json={"instances": ["the refund is due"]})
        student = Student.load(str(gpt2_student))
        (expected,) = student.answer(["the refund is due"], batch_size=1, max_new_tokens=256)
        assert found.json()["predictions"][0]["output_text"] == expected.text
        bad = httpx.post(f"{address}/v1/predict", content=b"{")
        assert bad.status_code == 400
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors


def test_a_model_that_does_not_load_ends_the_process_with_one_line(tmp_path):
    process = start(tmp_path / "nothing", "--port", "0")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "MODEL_NOT_FOUND" in errors
    assert "Traceback" not in errors


def test_no_model_at_all():
    process = start("--port", "0", AIP_STORAGE_URI="")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "SERVE_NO_MODEL" in errors


def test_answers_do_not_wait_for_acknowledgements():
    listening = _listen(Settings(port=0))
    with listening as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_taken_port_is_told(gpt2_student):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match="SERVE_ADDRESS"):
            serve(str(gpt2_student), Settings(port=port))


def test_a_remote_folder_is_copied_without_pickles_and_removed_afterwards(gpt2_student, tmp_path):
    stored = shutil.copytree(gpt2_student, tmp_path / "bucket" / "model")
    (stored / "extra.bin").write_bytes(b"pickle")
    (stored / "modeling.py").write_text("print('never')")
    (stored / "deeper").mkdir()
    with local_copy(f"file://{stored}") as folder:
        names = set(os.listdir(folder))
        assert {"model.safetensors", "pipestill.json", "config.json"} <= names
        assert not names & {"extra.bin", "modeling.py", "deeper"}
        assert Student.load(folder).info["objective"] == "dss"
    assert not os.path.exists(folder)


@pytest.mark.parametrize("uri", ["file:///nowhere/at/all", "nosuchscheme://bucket/model"])
def test_an_unreadable_remote_folder_is_told(uri):
    with pytest.raises(UserError, match="SERVE_STORAGE"), local_copy(uri):
        pass


def test_an_empty_remote_folder_is_told(tmp_path):
    with pytest.raises(UserError, match="holds no model file"), local_copy(f"file://{tmp_path}"):
        pass


def test_a_local_folder_is_used_in_place(tmp_path):
    with local_copy(str(tmp_path)) as folder:
        assert folder == str(tmp_path)


def test_what_is_loaded_is_not_collected_again_and_again(capsys):
    gc.unfreeze()
    try:
        announce(Settings(port=8080), 8080)
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()
    assert capsys.readouterr().out.startswith("ready; try it:")


def test_the_curl_line_is_one_that_a_shell_can_run():
    begun = time.monotonic()
    line = curl_line(Settings(host="0.0.0.0"), 8080).splitlines()[1]
    shell = subprocess.run(
        ["bash", "-c", line.replace("curl", "printf '%s|'")], capture_output=True
    )
    assert b"http://127.0.0.1:8080/predict" in shell.stdout
    assert b'{"instances": ["your text"]}' in shell.stdout
    assert "[::1]:1/" in curl_line(Settings(host="::1"), 1)
    assert time.monotonic() - begun < 5
