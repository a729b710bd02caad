"""Every kind of bad input costs itself, is named, and never crashes the reader."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipestill.data import lines
from pipestill.data.json_list import split_list
from pipestill.data.raw import REASONS, BadRow, Raw, describe
from pipestill.data.read import read_records
from pipestill.errors import UserError

GOOD = b'{"input_text": "a", "output_text": "b"}'
RECORD = {"input_text": "a", "output_text": "b"}


def read(tmp_path: Path, content: bytes, name: str = "rows.jsonl", fmt: str = "auto") -> list:
    path = tmp_path / name
    path.write_bytes(content)
    return list(read_records(str(path), fmt))


def values(items: list) -> list:
    return [item.value if isinstance(item, Raw) else item.reason for item in items]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", GOOD + b"\n" + GOOD + b"\n"),
        ("a.jsonl", GOOD + b"\r\n" + GOOD),
        ("a.jsonl", b"\xef\xbb\xbf" + GOOD + b"\n\n  \n" + GOOD),
        ("a.json", GOOD + b"\n" + GOOD),
        ("a.json", b"[" + GOOD + b"," + GOOD + b"]"),
        ("a.jsonl", b" [\n " + GOOD + b",\n " + GOOD + b"\n]\n"),
        ("a.json", json.dumps([RECORD, RECORD], indent=2).encode()),
        ("noending", GOOD + b"\n" + GOOD),
        ("a.csv", b"input_text,output_text\na,b\na,b\n"),
        ("a.csv", b'\xef\xbb\xbfinput_text;output_text\r\na;b\r\n\r\n"a";"b"\r\n'),
        ("a.tsv", b"input_text\toutput_text\na\tb\na\tb"),
        ("data", b"\n\n" + GOOD + b"\n" + GOOD),
    ],
)
def test_accepted_forms_give_the_same_rows(tmp_path: Path, name: str, content: bytes) -> None:
    assert values(read(tmp_path, content, name)) == [RECORD, RECORD]


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"input_text": ["a", "b", "c"], "output_text": ["x", None, "z"]})
    parquet.write_table(table, tmp_path / "rows.bin", row_group_size=2)
    items = list(read_records(str(tmp_path / "rows.bin")))
    assert [item.line for item in items] == [1, 2, 3]
    assert values(items)[1] == {"input_text": "b", "output_text": None}
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "rows.bin").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"DATA_FORMAT.*cut\.parquet: broken Parquet"):
        list(read_records(str(tmp_path / "cut.parquet")))


@pytest.mark.parametrize(
    ("content", "name", "found"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0", "a.jsonl", "a PNG image"),
        (b"\x1f\x8b\x08" + b"x" * 50, "a.jsonl.gz", "broken gzip data"),
        (b"PK\x03\x04" + b"x" * 50, "a.csv", "a zip archive"),
        ('{"a": 1}'.encode("utf-16"), "a.json", "UTF-16"),
        ('{"a": 1}'.encode("utf-16-le"), "a.json", "UTF-16"),
        (b"%PDF-1.7", "a.pdf", "PDF"),
        (b"<!DOCTYPE html><p>404", "a.jsonl", "HTML"),
        (b"just some words\nand more", "notes.txt", "text that begins with"),
        (b'{\n  "data": [1]\n}', "a.json", "one JSON object spread over lines"),
        (b"ORC" + bytes(20), "a", "ORC"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, content: bytes, name: str, found: str) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, content, name)
    assert error.value.code == "DATA_FORMAT"
    assert found in str(error.value)
    assert "\n" not in str(error.value)


def test_a_csv_whose_header_looks_like_a_signature(tmp_path: Path) -> None:
    assert values(read(tmp_path, b"ORCID,input_text\n1,a\n", "a.csv")) == [
        {"ORCID": "1", "input_text": "a"}
    ]


def test_named_format_wins_over_ending(tmp_path: Path) -> None:
    assert values(read(tmp_path, b"input_text\na", "a.txt", "csv")) == [{"input_text": "a"}]
    assert values(read(tmp_path, GOOD, "a.csv", "jsonl")) == [RECORD]
    with pytest.raises(UserError, match="text, where data_format says parquet"):
        read(tmp_path, GOOD, "a.jsonl", "parquet")


@pytest.mark.parametrize("content", [b"", b"\n \n", b"[]", b"[\n]", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a"])
def test_empty_files(tmp_path: Path, content: bytes, name: str) -> None:
    if name == "a.csv" and content.startswith(b"["):
        pytest.skip("a bracket is a fine column name")
    with pytest.raises(UserError, match="DATA_EMPTY") as error:
        read(tmp_path, content, name)
    assert name in str(error.value)


def test_a_csv_with_a_header_only_is_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="DATA_EMPTY"):
        read(tmp_path, b"input_text,output_text\n", "a.csv")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"input_text": "a", }', "broken_json"),
        (b'{"input_text": "a"', "broken_json"),
        (b"hello", "broken_json"),
        (b'{"input_text": "\xff\xfe"}', "invalid_utf8"),
        (b'{"input_text": NaN}', "json_nan"),
        (b'{"input_text": -Infinity}', "json_nan"),
        (b'{"input_text": ' + b"9" * 5000 + b"}", "broken_json"),
        (b'{"input_text": "a\0b"}', "broken_json"),
        (b"[" * 100_000, "nested_too_deep"),
        (b'{"input_text": "' + b"x" * lines.MAX_LINE_BYTES + b'"}', "line_too_long"),
        (b"]", "broken_json"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_broken_line_costs_itself(tmp_path: Path, bad: bytes, reason: str, place: int) -> None:
    rows = [GOOD, GOOD]
    rows.insert(place, bad)
    if place == 0 and bad.startswith(b"[["):
        pytest.skip("a file that begins with brackets is read as a list")
    items = read(tmp_path, b"\n".join(rows))
    assert values(items) == [reason if place == n else RECORD for n in range(3)]
    assert items[place].line == place + 1
    assert len(items[place].found) <= 80
    assert "\n" not in describe(items[place])


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"a": }', "broken_json"),
        (b'{"a": ]}', "broken_json"),
        (b"}", "broken_json"),
        (b"nul", "broken_json"),
        (b"", "broken_json"),
        (b'{"a": "\xff"}', "invalid_utf8"),
        (b'{"a": "' + b"\\\\x" * lines.MAX_LINE_BYTES + b'"}', "line_too_long"),
    ],
)
def test_a_broken_element_costs_itself(tmp_path: Path, bad: bytes, reason: str) -> None:
    items = read(tmp_path, b"[" + b",\n".join([GOOD, bad, GOOD]) + b"]")
    assert values(items) == [RECORD, reason, RECORD]
    assert [item.line for item in items] == [1, 2, 3]


@pytest.mark.parametrize(
    "content",
    [
        b"[" + GOOD,
        b"[" + GOOD + b', {"a": "x\n"}]',
        b"[" + GOOD + b"] more",
        b"[" + GOOD + b"][" + GOOD + b"]",
        b"[" + GOOD + b', {"a": "x]',
    ],
)
def test_a_list_without_a_safe_place_to_go_on(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match=r"DATA_JSON_BROKEN.*line \d"):
        read(tmp_path, content, "a.json")


@given(
    st.lists(
        st.recursive(
            st.none() | st.text(st.characters(codec="utf-8")) | st.integers(),
            st.lists,
            max_leaves=4,
        )
    )
)
@settings(max_examples=60, deadline=None)
def test_a_list_is_split_as_json_reads_it(rows: list) -> None:
    for indent, ascii_only in ((None, True), (1, False)):
        data = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
        stream = io.BytesIO(data.encode())
        assert [json.loads(part.data) for part in split_list(stream, "x")] == rows


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_chunk_edges(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int) -> None:
    monkeypatch.setattr("pipestill.data.json_list.CHUNK_BYTES", size)
    rows = [{"a": 'q"\\"\\\\', "b": ["}", "]", ","]}, "\\", [[1], {"c": "é"}]]
    assert values(read(tmp_path, json.dumps(rows).encode(), "a.json")) == rows


def test_csv_rows_beside_a_broken_one_survive(tmp_path: Path) -> None:
    content = (
        b'input_text,output_text\n"one,x\ntwo,y\n"multi\nline","z""q"\nthree\nfour,v\n"a"b,c\n'
    )
    items = read(tmp_path, content, "a.csv")
    good = [item.value for item in items if isinstance(item, Raw)]
    assert good == [
        {"input_text": "two", "output_text": "y"},
        {"input_text": "multi\nline", "output_text": 'z"q'},
        {"input_text": "four", "output_text": "v"},
    ]
    assert [(item.line, item.reason) for item in items if isinstance(item, BadRow)] == [
        (2, "broken_csv"),
        (6, "csv_columns"),
        (8, "broken_csv"),
    ]


def test_csv_quote_that_never_closes(tmp_path: Path) -> None:
    rows = b"".join(b"row %d,x\n" % n for n in range(50))
    items = read(tmp_path, b'input_text,output_text\n"open,x\n' + rows, "a.csv")
    assert [isinstance(item, Raw) for item in items] == [False] + [True] * 50
    assert items[0].line == 2


def test_csv_bytes_and_long_lines(tmp_path: Path) -> None:
    long = b"x" * (lines.MAX_LINE_BYTES + 10)
    items = read(tmp_path, b"input_text\n\xff\n" + long + b"\nfine\n", "a.csv")
    assert values(items) == ["invalid_utf8", "line_too_long", {"input_text": "fine"}]


@pytest.mark.parametrize("header", [b"a,a\n1,2", b'"a,b\n1,2', b"\xff,b\n1,2"])
def test_csv_header(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(UserError, match="DATA_CSV_HEADER"):
        read(tmp_path, header, "a.csv")


@given(
    st.lists(
        st.lists(
            st.text(st.characters(exclude_characters="\r\0", codec="utf-8")), min_size=2, max_size=2
        )
    )
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_csv_is_read_as_it_was_written(tmp_path: Path, rows: list[list[str]]) -> None:
    import csv

    rows = [row for row in rows if "\n" not in row[0][:1] and "".join(row).strip()]
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out, quoting=csv.QUOTE_ALL).writerows([["p", "q"], *rows])
    if rows:
        assert values(list(read_records(str(path)))) == [{"p": p, "q": q} for p, q in rows]


JSONISH = st.lists(
    st.sampled_from([GOOD, b"\n", b"[", b"]", b"{", b'"', b"\\", b",", b"\xff", b"\0"])
)


@given(
    st.binary(max_size=200) | JSONISH.map(b"".join), st.sampled_from(["jsonl", "json", "csv", "x"])
)
@example(b"PAR1" + b"\0" * 20, "x")
@example(b"PAR1PAR1", "parquet")
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_bytes_give_rows_or_one_user_error(tmp_path: Path, content: bytes, ending: str) -> None:
    message, items = "", []
    try:
        items = read(tmp_path, content, f"fuzz.{ending}")
    except UserError as error:
        message = str(error)
    assert bool(message) != bool(items)
    assert "\n" not in message
    assert all(isinstance(item, Raw) or item.reason in REASONS for item in items)
    json.dumps([describe(item) for item in items if isinstance(item, BadRow)]).encode()


BIG_READER = """
import resource, sys
from pipestill.data.read import read_records
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
items = list(read_records(sys.argv[1]))
print(len(items), [getattr(i, "reason", "good") for i in items])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["jsonl", "json", "csv"])
def test_a_line_of_100_megabytes_is_read_past(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"big.{form}"
    before, between, after = {
        "jsonl": (b"", b"\n", b"\n"),
        "json": (b"[", b",", b"]"),
        "csv": (b"input_text,output_text\n", b"\n", b"\n"),
    }[form]
    good = b"a,b" if form == "csv" else GOOD
    quote = b"" if form == "csv" else b'"'
    with path.open("wb") as out:
        out.write(before + good + between + quote)
        for _ in range(100):
            out.write(b"x" * 1_000_000)
        out.write(quote + between + good + after)
    done = subprocess.run(
        [sys.executable, "-c", BIG_READER, str(path)], capture_output=True, text=True, check=True
    )
    rows, grown = done.stdout.splitlines()
    assert rows == "3 ['good', 'line_too_long', 'good']"
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(grown) * unit < 20_000_000
