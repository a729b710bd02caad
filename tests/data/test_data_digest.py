"""The digest that caching rests on: same content hits, changed content or code misses."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipestill.data import digest, source
from pipestill.data.digest import CODE_VERSION_ENV, code_digest, content_digest, run_digest
from pipestill.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(f"{name}\n")
    return tmp_path


def test_changed_data_at_the_same_path(folder: Path) -> None:
    path = folder / "a.jsonl"
    before, whole = run_digest(dataset_uri=str(path)), content_digest(str(folder))
    stamp = path.stat()
    path.write_text("A.jsonl\n")
    os.utime(path, (stamp.st_atime, stamp.st_mtime))
    assert run_digest(dataset_uri=str(path)) != before
    assert content_digest(str(folder)) != whole
    path.write_text("a.jsonl\n")
    assert run_digest(dataset_uri=str(path)) == before
    assert len(before) == 64


def test_moving_keeps_and_renaming_changes(folder: Path) -> None:
    shutil.copytree(folder, folder / "copy")
    assert content_digest(str(folder / "copy")) == content_digest(str(folder))
    assert content_digest(str(folder / "*.jsonl")) == content_digest(str(folder))
    (folder / "copy" / "a.jsonl").rename(folder / "copy" / "c.jsonl")
    assert content_digest(str(folder / "copy")) != content_digest(str(folder))


def test_every_role_counts(folder: Path) -> None:
    a, b = str(folder / "a.jsonl"), str(folder / "b.jsonl")
    roles = ("dataset_uri", "evaluation_data_uri", "teacher_replay_uri")
    given = [(a, "", ""), (a, b, ""), (a, "", b), (b, a, "")]
    digests = [run_digest(**dict(zip(roles, uris, strict=True))) for uris in given]
    assert len(set(digests)) == 4


def test_a_missing_input_fails_at_once(folder: Path) -> None:
    for uri, other in [("no", ""), (str(folder), "no"), (str(folder), "no/*.json")]:
        with pytest.raises(UserError, match="DATA_NOT_FOUND"):
            run_digest(dataset_uri=uri, teacher_replay_uri=other)


def test_changed_code_misses(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CODE_VERSION_ENV, raising=False)
    files = dict(digest._code_files())
    for name in ("pipestill/data/digest.py", "pipestill.components/data_prep.py"):
        assert files[name].is_file()
    assert not any("__pycache__" in name or "pipelines/" in name for name in files)
    before, run_before = code_digest(), run_digest(dataset_uri=str(folder))
    assert code_digest() == before
    changed = tmp_path / "changed.py"
    changed.write_bytes(files["pipestill/data/split.py"].read_bytes() + b"# one more line\n")
    changed_files = [*(files | {"pipestill/data/split.py": changed}).items()]
    monkeypatch.setattr(digest, "_code_files", lambda: iter(changed_files))
    assert code_digest() != before
    assert run_digest(dataset_uri=str(folder)) != run_before


def test_a_version_stands_for_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = code_digest()
    monkeypatch.setenv(CODE_VERSION_ENV, "1.2.3+abc")
    named = code_digest()
    monkeypatch.setenv(CODE_VERSION_ENV, "1.2.4")
    assert len({plain, named, code_digest()}) == 3


class Bucket(MemoryFileSystem):
    """Answers like Google Cloud Storage and refuses downloads."""

    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    facts: dict[str, str] = {}  # noqa: RUF012

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return {**super().info(path, **kwargs), **self.facts}

    def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        if self.facts and kwargs.get("mode", args[0] if args else "rb") == "rb":
            raise AssertionError("downloaded")
        return super()._open(path, *args, **kwargs)


def test_objects_are_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket()
    bucket.pipe("/bucket/a.jsonl", b"one")
    monkeypatch.setattr(source, "remote_filesystem", lambda uri, scheme: bucket)
    streamed = content_digest("gs://bucket/a.jsonl")
    seen = {streamed}
    for facts in ({"generation": "1", "crc32c": "x"}, {"generation": "2", "crc32c": "x"}):
        monkeypatch.setattr(Bucket, "facts", facts)
        seen.add(content_digest("gs://bucket/a.jsonl"))
        assert content_digest("gs://bucket/a.jsonl") in seen
    assert len(seen) == 3
