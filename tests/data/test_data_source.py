"""References: files, folders, globs, embedded data, and what each mistake says."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipestill.data import source
from pipestill.data.read import read_records
from pipestill.data.source import list_files
from pipestill.errors import UserError

ROW = b'{"input_text": "a"}\n'


def names(uri: object) -> list[str]:
    return [os.path.basename(file.path) for file in list_files(str(uri))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("p10.jsonl", "p2.jsonl", "p1.json", "_SUCCESS", ".hidden.jsonl", "SOURCE.txt"):
        (tmp_path / name).write_bytes(ROW)
    (tmp_path / "sub.jsonl").mkdir()
    (tmp_path / "sub.jsonl" / "deep.jsonl").write_bytes(ROW)
    return tmp_path


def test_a_folder_in_natural_order(folder: Path) -> None:
    assert names(folder) == ["p1.json", "p2.jsonl", "p10.jsonl"]


def test_globs(folder: Path) -> None:
    assert names(folder / "p*.jsonl") == ["p2.jsonl", "p10.jsonl"]
    assert names(folder / "**/deep*") == ["deep.jsonl"]


def test_brackets_in_a_real_name(tmp_path: Path) -> None:
    (tmp_path / "a[1].jsonl").write_bytes(ROW)
    assert names(tmp_path / "a[1].jsonl") == ["a[1].jsonl"]


def test_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.jsonl").write_bytes(ROW)
    assert names("~/a.jsonl") == ["a.jsonl"]


@pytest.mark.parametrize(
    ("uri", "code", "words"),
    [
        ("", "DATA_NOT_FOUND", "no data reference"),
        ("nothing.jsonl", "DATA_NOT_FOUND", "no such file"),
        ("p3.jsonl", "DATA_NOT_FOUND", "did you mean .*p2.jsonl"),
        ("no/such/folder/*.jsonl", "DATA_NOT_FOUND", "nothing found"),
        ("p2.jsonl/x", "DATA_UNREADABLE", "Not a directory"),
        ("x" * 5000, "DATA_UNREADABLE", "name too long"),
        ("a\0b", "DATA_NOT_FOUND", "no data reference"),
        ("s3://bucket/x", "DATA_SCHEME", "s3:// is not read here"),
        ("https://host/x", "DATA_SCHEME", "https:// is not read here"),
        ("file:///etc/passwd", "DATA_SCHEME", "file:// is not read"),
        ("pocket:nothing", "DATA_NOT_FOUND", "no such embedded data"),
        ("loop", "DATA_UNREADABLE", "symbolic link"),
        ("gone", "DATA_NOT_FOUND", "no such file"),
        ("pipe", "DATA_UNREADABLE", "neither a file nor a folder"),
    ],
)
def test_mistakes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, uri: str, code: str, words: str
) -> None:
    monkeypatch.chdir(folder)
    os.symlink("loop", "loop")
    os.symlink("nowhere", "gone")
    os.mkfifo("pipe")
    with pytest.raises(UserError, match=words) as error:
        list_files(uri)
    assert error.value.code == code
    assert "\n" not in str(error.value)


def test_a_folder_without_data_names_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.xz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"found rows\.jsonl\.xz.*\.tsv, each also with \.gz"):
        list_files(str(tmp_path))


@pytest.mark.parametrize("target", ["file", "folder"])
def test_no_permission(tmp_path: Path, target: str) -> None:
    """Also as root: a child process gives its rights away first."""
    (tmp_path / "rows.jsonl").write_bytes(ROW)
    path = tmp_path / "rows.jsonl" if target == "file" else tmp_path
    path.chmod(0)
    child = os.fork()
    if child == 0:
        code = 99
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            list(read_records(str(tmp_path / "rows.jsonl")))
        except UserError as error:
            code = 0 if error.code == "DATA_UNREADABLE" and "ermission" in str(error) else 98
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    path.chmod(0o700)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize(("scheme", "extra"), [("gs", "gcp"), ("hf", "hub")])
def test_a_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, scheme: str, extra: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"EXTRA_MISSING.*pip install 'pipestill\[{extra}\]'"):
        list_files(f"{scheme}://somewhere/x.jsonl")


def test_the_hub_without_network_is_one_line() -> None:
    pytest.importorskip("huggingface_hub")
    with pytest.raises(UserError, match=r"DATA_UNREADABLE|DATA_NOT_FOUND") as error:
        list_files("hf://datasets/nobody/nothing/rows.jsonl")
    assert "\n" not in str(error.value)


class Store(MemoryFileSystem):
    """A store in memory, to run the remote code path without a network."""

    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012


def test_remote_file_folder_and_glob(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    for name in ("/bucket/p10.jsonl", "/bucket/p2.jsonl", "/bucket/readme.txt"):
        store.pipe(name, ROW)
    monkeypatch.setattr(source, "remote_filesystem", lambda uri, scheme: store)
    assert names("gs://bucket/p2.jsonl") == ["p2.jsonl"]
    assert names("gs://bucket") == ["p2.jsonl", "p10.jsonl"]
    assert names("gs://bucket/*.txt") == ["readme.txt"]
    assert [item.file for item in read_records("gs://bucket/p2.jsonl")] == ["gs://bucket/p2.jsonl"]
    with pytest.raises(UserError, match="DATA_NOT_FOUND"):
        list_files("gs://bucket/absent.jsonl")
    with pytest.raises(UserError, match="no data files"):
        list_files("gs://bucket/*.parquet")


def test_embedded_data() -> None:
    file = list_files("pocket:train")[0]
    assert file.name == "pocket:train"
    if not os.path.exists(file.path):
        pytest.skip("the embedded data is not there yet")
    assert sum(1 for _ in read_records("pocket:train")) > 50
