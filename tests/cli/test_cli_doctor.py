"""`pipestill doctor`."""

import argparse
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pipestill.cli import doctor
from pipestill.errors import UserError
from pipestill.models.counting import local_folder

SECRET = "sk-this-must-never-be-seen"


def run(*arguments):
    parser = argparse.ArgumentParser()
    doctor.configure(parser)
    return doctor.main(parser.parse_args(arguments))


def test_every_line_has_a_mark_and_no_secret_is_printed(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    code = run("--run-dir", str(tmp_path))
    *lines, last = capsys.readouterr().out.splitlines()
    assert all(line[0] in "✓✗–" for line in lines)
    assert SECRET not in "".join(lines)
    assert "✓ OPENAI_API_KEY: set" in lines
    assert any(line.startswith("– HF_TOKEN: not set") for line in lines)
    for name in ("Python", "torch", "transformers", "kfp", "run folder", "disk", "pocket-base"):
        assert any(line[2:].startswith(name) for line in lines), name
    failed = sum(line.startswith("✗") for line in lines)
    assert (code == 0, last == "ready") == (failed == 0, failed == 0)
    assert list(tmp_path.iterdir()) == []


def test_it_is_ready_where_the_pocket_models_are(capsys, tmp_path):
    if not (local_folder("pocket-teacher") and local_folder("pocket-base")):
        pytest.skip("the pocket models are not in this checkout")
    assert run("--run-dir", str(tmp_path)) == 0, capsys.readouterr().out


def test_the_cloud_profiles_require_credentials(capsys, monkeypatch, tmp_path):
    file = tmp_path / "key.json"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    assert run("--profile", "a100-80gb-x8", "--run-dir", str(tmp_path)) == 1
    assert "✗ Google credentials" in capsys.readouterr().out
    run("--profile", "cpu-local", "--run-dir", str(tmp_path))
    assert "– Google credentials" in capsys.readouterr().out
    file.write_text(SECRET)
    run("--profile", "a100-80gb-x8", "--run-dir", str(tmp_path))
    text = capsys.readouterr().out
    assert "✓ Google credentials" in text
    assert SECRET not in text


def test_an_unknown_profile_is_refused_before_anything_is_printed(capsys):
    with pytest.raises(UserError, match="PROFILE_UNKNOWN"):
        run("--profile", "h100")
    assert capsys.readouterr().out == ""


def test_versions_are_held_against_the_projects_own_ranges():
    assert doctor.package_version("torch").passed
    assert "<2.14" in doctor.package_version("torch").found
    missing = doctor.package_version("no-such-package-here")
    assert (missing.passed, missing.found) == (False, "not installed")


def test_a_version_outside_the_range_fails(monkeypatch):
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "1.0")
    check = doctor.package_version("torch")
    assert not check.passed
    assert "pip install 'torch" in check.advice


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_fails(tmp_path):
    tmp_path.chmod(0o500)
    assert not doctor.folder_writable(tmp_path / "runs").passed


def test_a_run_folder_below_a_file_fails(tmp_path):
    (tmp_path / "file").write_text("")
    assert not doctor.folder_writable(tmp_path / "file" / "runs").passed


def test_a_broken_pocket_model_fails(monkeypatch, tmp_path):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr("pipestill.pocket.resolve", lambda name: tmp_path)
    assert doctor.pocket_model("pocket-base").found == "files missing"
    (tmp_path / "model.safetensors").write_bytes(b"half")
    check = doctor.pocket_model("pocket-base")
    assert not check.passed
    assert "not a safetensors file" in check.found


def test_little_memory_says_what_to_set(monkeypatch):
    monkeypatch.setenv("PIPESTILL_MEMORY_GB", "100000")
    check = doctor.memory()
    assert not check.passed
    assert "PIPESTILL_MEMORY_GB=" in check.advice


def test_the_hub_is_asked_only_when_told_to(capsys, monkeypatch, tmp_path):
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        run("--run-dir", str(tmp_path))
        assert asked == []
        run("--run-dir", str(tmp_path), "--online")
        server.shutdown()
    assert asked == ["/"]
    assert "✓ model hub" in capsys.readouterr().out
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert not doctor.hub_answers().passed
