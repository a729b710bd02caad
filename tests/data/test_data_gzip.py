"""Packed files are read as what they hold; bombs, broken and foreign ones are refused."""

import gzip
import io
import json
import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipestill.config import DataConfig
from pipestill.data import lines
from pipestill.data.gzipped import FREE_BYTES, unpacked
from pipestill.data.raw import BadRow
from pipestill.data.read import read_records
from pipestill.data.rows import read_rows
from pipestill.data.source import list_files
from pipestill.errors import UserError

ROWS = [{"input_text": f"row {i}", "output_text": "x"} for i in range(3)]
LINES = "\n".join(map(json.dumps, ROWS)).encode()
CSV = b"input_text,output_text\nrow 0,x\nrow 1,x\nrow 2,x\n"


def write(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(gzip.compress(data))
    return str(folder / name)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("rows.jsonl.gz", LINES),
        ("rows.json.gz", json.dumps(ROWS, indent=1).encode()),
        ("rows.csv.gz", CSV),
        ("rows.CSV.GZ", CSV),
        ("rows.tsv.gz", CSV.replace(b",", b"\t")),
        ("rows.jsonl.gz", b"\xef\xbb\xbf" + LINES),
        ("packed", LINES),
    ],
)
def test_packed_rows_are_those_of_the_plain_file(tmp_path: Path, name: str, data: bytes) -> None:
    assert [item.value for item in read_records(write(tmp_path, name, data))] == ROWS


def test_parts_that_were_packed_one_by_one_are_one_file(tmp_path: Path) -> None:
    parts = [gzip.compress(json.dumps(row).encode() + b"\n") for row in ROWS]
    (tmp_path / "rows.jsonl.gz").write_bytes(b"".join(parts))
    assert [item.value for item in read_records(str(tmp_path / "rows.jsonl.gz"))] == ROWS


def test_a_folder_s_packed_files_count(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl.gz", LINES)
    write(tmp_path, "b.parquet.gz", b"PAR1")
    assert [Path(file.path).name for file in list_files(str(tmp_path))] == ["a.jsonl.gz"]


def test_a_line_without_end_costs_itself(tmp_path: Path) -> None:
    long = b'{"input_text": "' + b"ab" * lines.MAX_LINE_BYTES + b'"}\n'
    found = list(read_records(write(tmp_path, "rows.jsonl.gz", long + LINES)))
    assert isinstance(found[0], BadRow)
    assert found[0].reason == "line_too_long"
    assert [item.value for item in found[1:]] == ROWS


@pytest.mark.parametrize("byte", [b" ", b"a", b"["])
def test_a_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path, byte: bytes) -> None:
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wb") as out:
        out.write(LINES + b"\n")
        for _ in range(128):
            out.write(byte * (1 << 20))
    assert path.stat().st_size < 1 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"DATA_FORMAT.*rows\.jsonl\.gz.*200 times their size"):
        list(read_records(str(path)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_a_large_file_of_common_text_passes(tmp_path: Path) -> None:
    """Above the free size, at a ratio that rows do have."""
    path = write(tmp_path, "rows.jsonl.gz", b"")
    with gzip.open(path, "wb") as out:
        for i in range(30_000):
            words = " ".join(str(i * j % 997) for j in range(150))
            out.write(json.dumps({"input_text": words}).encode() + b"\n")
    count = sum(1 for _ in read_records(path))
    assert count == 30_000
    with gzip.open(path) as inside:
        assert inside.seek(0, io.SEEK_END) > FREE_BYTES


@pytest.mark.parametrize("cut", [3, 11, 40, -1, -9])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, cut: int) -> None:
    path = Path(write(tmp_path, "rows.jsonl.gz", LINES * 50))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"DATA_FORMAT.*broken gzip data"):
        list(read_records(str(path)))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (gzip.compress(LINES, mtime=0), "gzip data within gzip data"),
        (b"PAR1" + bytes(50), "Parquet within gzip"),
        (b"\x89PNG\r\n\x1a\n\0\0", "a PNG image"),
    ],
)
def test_what_else_may_be_inside_is_named(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(UserError, match=rf"DATA_FORMAT.*{said}"):
        list(read_records(write(tmp_path, "rows.jsonl.gz", data)))


@given(st.binary(max_size=300), st.integers(1, 40))
def test_bytes_come_back_whatever_the_size_of_reads(data: bytes, size: int) -> None:
    stream = unpacked(io.BytesIO(gzip.compress(data)), "x")
    assert b"".join(iter(lambda: stream.read(size), b"")) == data
    stream.seek(0)
    assert stream.read() == data


def test_humaneval_as_it_is_published(shared_data: Path) -> None:
    path = shared_data / "humaneval" / "HumanEval.jsonl.gz"
    found = list(read_rows(str(path), DataConfig(data_format="humaneval")))
    assert len(found) == 164
    assert not [row for row in found if isinstance(row, BadRow)]


@pytest.mark.parametrize("data", [b"", b"\x1f"])
def test_a_file_that_ends_before_it_begins_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    (tmp_path / "b.jsonl.gz").write_bytes(data)
    with pytest.raises(UserError, match=r"DATA_FORMAT.*b\.jsonl\.gz.*cut off"):
        list(read_records(str(tmp_path)))
