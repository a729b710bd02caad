"""Damaged data: every good row arrives, every bad one is set aside with file, line and reason."""

import gzip
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.soak import children
from benchmarks.soak.tally import Tally
from pipestill.config import DataConfig

ROWS = 10_000
MOST_MEMORY = 400_000_000  # bytes of a whole process that reads a line of a gigabyte
GIGABYTE = 1 << 30
GOOD, BAD, EITHER = "good", "bad", "either"
CONFIG = DataConfig(
    dedupe=False, max_rejected_fraction=1.0, eval_fraction=0.3, max_context_length="1000000",
    max_output_tokens=1_000_000,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One line of a file: its bytes, and what has to become of it."""

    kind: str
    line: bytes
    wanted: str
    row_id: str


def run(folder: Path, dice: random.Random, tally: Tally, minutes: float) -> None:
    """The whole group."""
    fuzz_lines(folder, dice, tally, ROWS)
    fuzz_files(folder, dice, tally, 3000)
    cut_shards(folder, dice, tally)
    long_lines(folder, tally)


# --- lines -----------------------------------------------------------------------------------


def good(dice: random.Random, row_id: str) -> dict[str, Any]:
    """A sound row that nobody else has."""
    words = dice.choices(
        ("red", "Grün", "青", "🎈", "a\u2028b", "x\\y", '"q"'), k=dice.randint(2, 9)
    )
    return {"id": row_id, "input_text": f"{row_id} {' '.join(words)}", "output_text": words[0]}


def _dump(value: Any, ascii_only: bool = False) -> bytes:
    return json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")


def _with(row: dict[str, Any], **changes: Any) -> bytes:
    return _dump({**row, **changes}, ascii_only=True)


def _cut(dice: random.Random, row: dict[str, Any]) -> bytes:
    line = _dump(row)
    return line[: dice.randint(1, len(line) - 1)]


def _binary(dice: random.Random, row: dict[str, Any]) -> bytes:
    return b"\xff" + dice.randbytes(dice.randint(1, 300)).replace(b"\n", b" ").replace(b"\r", b" ")


def _mutated(dice: random.Random, row: dict[str, Any]) -> bytes:
    line = bytearray(_dump(row))
    for _ in range(dice.randint(1, 5)):
        value = dice.randrange(256)
        line[dice.randrange(len(line))] = 32 if value in (10, 13) else value
    return bytes(line)


def _deep(row: dict[str, Any]) -> bytes:
    return b'{"input_text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def _raw(row: dict[str, Any], text: bytes) -> bytes:
    """The row with bytes put where its input's first blank is."""
    return _dump(row).replace(f"{row['id']} ".encode(), row["id"].encode() + text, 1)


def _doubled(row: dict[str, Any]) -> bytes:
    return b'{"input_text": "an earlier one", ' + _dump(row)[1:]


def _utf16(row: dict[str, Any]) -> bytes:
    text = json.dumps({"id": row["id"], "input_text": "wide"})
    return text.encode("utf-16")


def _long(row: dict[str, Any]) -> bytes:
    return _with(row, input_text="x" * (1 << 20))


# kind → (bytes of the line, what has to become of it)
KINDS: dict[str, tuple[Callable[[random.Random, dict[str, Any]], bytes], str]] = {
    "cut line": (_cut, BAD),
    "binary": (_binary, BAD),
    "mutated bytes": (_mutated, EITHER),
    "a number as the input": (lambda d, r: _with(r, input_text=5), BAD),
    "a list as the input": (lambda d, r: _with(r, input_text=["a"]), BAD),
    "null as the input": (lambda d, r: _with(r, input_text=None), BAD),
    "an object as the label": (lambda d, r: _with(r, output_text={"a": 1}), BAD),
    "true as the label": (lambda d, r: _with(r, output_text=True), BAD),
    "a list as the id": (lambda d, r: _with(r, id=[1]), BAD),
    "no input": (lambda d, r: _dump({"id": r["id"], "output_text": "x"}), BAD),
    "an empty input": (lambda d, r: _with(r, input_text=" \t "), BAD),
    "not an object": (lambda d, r: d.choice([b"[1]", b"3", b'"x"', b"null", b"true"]), BAD),
    "byte order mark": (lambda d, r: b"\xef\xbb\xbf" + _dump(r), BAD),
    "NUL, escaped": (lambda d, r: _with(r, input_text="a\0b"), BAD),
    "NUL, raw": (lambda d, r: _raw(r, b"\0"), BAD),
    "only NULs": (lambda d, r: b"\0" * 50, BAD),
    "half a surrogate pair": (lambda d, r: _with(r, input_text="a\ud800"), BAD),
    "a whole surrogate pair": (lambda d, r: _with(r, input_text=f"{r['id']} 😀"), GOOD),
    "surrogate as bytes": (lambda d, r: _raw(r, b"\xed\xa0\x80"), BAD),
    "overlong UTF-8": (lambda d, r: _raw(r, b"\xc0\xaf"), BAD),
    "Latin-1": (lambda d, r: _raw(r, b"caf\xe9 "), BAD),
    "UTF-16": (lambda d, r: _utf16(r), BAD),
    "doubled keys": (lambda d, r: _doubled(r), GOOD),
    "a number of 5,000 digits": (
        lambda d, r: b'{"id": ' + b"9" * 5000 + b', "input_text": "a"}', BAD),
    "1e999": (lambda d, r: b'{"input_text": "a", "output_text": 1e999}', BAD),
    "NaN": (lambda d, r: b'{"input_text": "a", "output_text": NaN}', BAD),
    "100,000 brackets": (lambda d, r: _deep(r), BAD),
    "a line over 1 MiB": (lambda d, r: _long(r), BAD),
    "CRLF": (lambda d, r: _dump(r) + b"\r", GOOD),
    "blanks around": (lambda d, r: b" \t" + _dump(r) + b"  ", GOOD),
    "control characters": (lambda d, r: _raw(r, b"\x07"), BAD),
    "two objects": (lambda d, r: _dump(r) + _dump(r), BAD),
    "single quotes": (lambda d, r: str(r).encode(), BAD),
    "a path as the id": (lambda d, r: _with(r, id=f"../../{r['id']}"), GOOD),
    "a line end in the id": (lambda d, r: _with(r, id=f"{r['id']}\nTraceback"), EITHER),
    "numbers as label and id": (lambda d, r: _with(r, id=d.randint(0, 9**30), output_text=1.5),
                                GOOD),
}  # fmt: skip
HEAVY = ("100,000 brackets", "a line over 1 MiB")  # a handful of each is enough


def cases(dice: random.Random, count: int) -> Iterator[Case]:
    """Lines of a file, about a third of them damaged; every kind comes at least twice."""
    light = [kind for kind in KINDS if kind not in HEAVY]
    planned = [kind for kind in KINDS for _ in range(2)]
    planned += dice.choices(light, k=max(0, count // 3 - len(planned)))
    planned += [""] * (count - len(planned))
    dice.shuffle(planned)
    for number, kind in enumerate(planned):
        row = good(dice, f"r{number}")
        if not kind:
            yield Case("good", _dump(row, dice.random() < 0.5), GOOD, row["id"])
            continue
        make, wanted = KINDS[kind]
        line = make(dice, row)
        yield Case(kind, line, wanted if wanted != EITHER else _judged(line), row["id"])


def _judged(line: bytes) -> str:
    """What a second reader, written for this purpose, says of a mutated line."""
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=lambda name: 1 / 0)
        text = row["input_text"]
        others = [row.get(name) for name in ("id", "output_text", "rationale")]
        fine = isinstance(row, dict) and isinstance(text, str) and text.strip()
        fine = fine and all(
            item is None or (isinstance(item, str | int | float) and not isinstance(item, bool))
            for item in others
        )
        texts = [text, *(item for item in others if isinstance(item, str))]
        whole = "".join(texts)
        whole.encode("utf-8")
        return GOOD if fine and "\0" not in whole else BAD
    except (ValueError, KeyError, TypeError, ZeroDivisionError, RecursionError, AttributeError):
        return BAD


def fuzz_lines(folder: Path, dice: random.Random, tally: Tally, count: int) -> None:
    """A file of damaged lines, plain and packed: each line is found in exactly one place."""
    told = list(cases(dice, count))
    plain, packed = folder / "fuzzed.jsonl", folder / "packed.jsonl.gz"
    data = b"\n".join(case.line for case in told)
    plain.write_bytes(data)
    packed.write_bytes(gzip.compress(data, 1))
    for path in (plain, packed):
        out = folder / path.name.replace(".", "-")
        outcome = children.call(lambda p=path, o=out: prepared(p, o), folder / f"{out.name}.log")
        if outcome.code:
            tally.fault(f"fuzzed lines ({path.name})", False, outcome.told)
            continue
        compare(told, path, out, tally)
    readers = (_read_batch, _read_pairs, _read_log)
    failed = [text for reader in readers if (text := _unclear(reader, plain))]
    tally.faults("fuzzed lines as a batch, as preferences, as a request log", len(readers), failed)


def prepared(path: Path, out: Path) -> Any:
    """Data preparation on one file."""
    from pipestill.data.prepare import prepare

    return prepare(
        str(path), "", config=CONFIG, tokenizer_reference="", train_path=f"{out}.train",
        evaluation_path=f"{out}.evaluation", rejects_path=f"{out}.rejects",
    )  # fmt: skip


def compare(told: list[Case], path: Path, out: Path, tally: Tally) -> None:
    """Every line is in the rows or in the rejects, as it should be, and nowhere twice."""
    kept, aside = _found(out)
    damaged = [n for n, case in enumerate(told) if case.kind != "good"]
    failed = []
    for number, case in enumerate(told):
        places = ("good" if number in kept else "") + ("bad" if number in aside else "")
        if places == case.wanted and (places == GOOD or _located(aside[number], path, number)):
            continue
        failed.append(f"line {number + 1} ({case.kind}): wanted {case.wanted}, found "
                      f"{places or 'nothing'} {case.line[:80]!r}")  # fmt: skip
    sound = [n for n, case in enumerate(told) if case.wanted == GOOD]
    tally.lost += sum(number not in kept for number in sound)
    tally.faults(f"damaged line in {path.name}", len(damaged), failed)
    rejected = sum(case.wanted == BAD for case in told)
    tally.facts[f"{path.name}"] = (
        f"{len(told):,} rows, {len(damaged):,} damaged in {len(KINDS)} ways; {len(sound):,} good "
        f"ones arrived, {rejected:,} bad ones set aside with file, line and reason"
    )


def _found(out: Path) -> tuple[set[int], dict[int, dict[str, Any]]]:
    kept = [
        json.loads(line)["source_row"]
        for name in ("train", "evaluation")
        for line in Path(f"{out}.{name}").read_text(encoding="utf-8").split("\n") if line
    ]  # fmt: skip
    text = Path(f"{out}.rejects").read_text(encoding="utf-8")
    aside = [json.loads(line) for line in text.split("\n") if line]
    assert len(set(kept)) == len(kept), "a row arrived twice"
    return set(kept), {row["source_row"]: row for row in aside}


def _located(reject: dict[str, Any], path: Path, number: int) -> bool:
    return bool(reject["file"] == str(path) and reject["line"] == number + 1 and reject["reason"])


# --- whole files -----------------------------------------------------------------------------


def fuzz_files(folder: Path, dice: random.Random, tally: Tally, count: int) -> None:
    """Files of every format with bytes flipped, cut out, doubled or added: rows or one line."""
    rows = [good(dice, f"f{n}") for n in range(60)]
    whole = _formats(rows)
    failed = []
    for number in range(count):
        ending, data = dice.choice(list(whole.items()))
        path = folder / f"fuzz-{number}{ending}"
        path.write_bytes(_damage(dice, data))
        readers = (_read_rows, _read_batch, _read_pairs, _read_log)
        failed += [text for reader in readers if (text := _unclear(reader, path))]
        path.unlink()
    tally.faults("damaged file (JSON lines, list, CSV, TSV, Parquet, gzip)", count, failed)


def _unclear(reader: Callable[[Path], None], path: Path) -> str:
    """What a reader raised that is no error of ours on one line; "" where all is well."""
    from pipestill.errors import PipestillError

    try:
        reader(path)
    except PipestillError as error:
        return f"{path.name}: {error!r} on several lines" if "\n" in str(error) else ""
    except Exception as error:
        return f"{path.name} {reader.__name__}: {type(error).__name__}: {error}"
    return ""


def _formats(rows: list[dict[str, Any]]) -> dict[str, bytes]:
    import csv
    import io

    import pyarrow
    from pyarrow import parquet

    lines = b"".join(_dump(row) + b"\n" for row in rows)
    tables = {}
    for ending, mark in ((".csv", ","), (".tsv", "\t")):
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), delimiter=mark)
        writer.writeheader()
        writer.writerows(rows)
        tables[ending] = text.getvalue().encode()
    packed = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), packed)
    wide = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), wide, compression="none")
    return {
        ".jsonl": lines,
        ".json": _dump(rows),
        **tables,
        ".jsonl.gz": gzip.compress(lines),
        ".parquet": packed.getvalue(),
        ".plain.parquet": wide.getvalue(),
    }


def _damage(dice: random.Random, data: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 5, 30))):
        at = dice.randrange(max(1, len(found)))
        how = dice.randrange(5)
        if how == 0:
            del found[at:]
        elif how == 1:
            del found[at : at + dice.randint(1, 200)]
        elif how == 2:
            found[at:at] = dice.randbytes(dice.randint(1, 60))
        elif how == 3:
            found[at:at] = found[at : at + 100]
        elif found:
            found[min(at, len(found) - 1)] = dice.randrange(256)
    return bytes(found)


def _read_rows(path: Path) -> None:
    from pipestill.data.rows import read_rows

    for item in read_rows(str(path), CONFIG):
        json.dumps(item.fields if hasattr(item, "fields") else vars(item)).encode()


def _read_batch(path: Path) -> None:
    from pipestill.serving.batch_rows import read_shard

    read_shard(str(path), "0/1")


def _read_pairs(path: Path) -> None:
    from pipestill.data.pairs import pair_fields
    from pipestill.data.rows import read_with

    list(read_with(str(path), pair_fields))


def _read_log(path: Path) -> None:
    from pipestill.retrain.logs import read_log

    read_log(str(path), 1.0)


def cut_shards(folder: Path, dice: random.Random, tally: Tally) -> None:
    """One of three shards is cut off: one line that names it; all rows once it is whole again."""
    rows = [good(dice, f"s{n}") for n in range(90)]
    for ending in (".jsonl.gz", ".parquet", ".json"):
        shards = folder / f"shards{ending}"
        shards.mkdir()
        for part in range(3):
            data = _formats(rows[part * 30 : part * 30 + 30])[ending]
            (shards / f"part-{part}{ending}").write_bytes(data)
        victim = shards / f"part-1{ending}"
        whole = victim.read_bytes()
        failed = []
        cuts = [*range(1, 12), *sorted(dice.sample(range(12, len(whole)), 25))]
        for at in cuts:
            victim.write_bytes(whole[:at])
            outcome = _read_shards(shards)
            if not (isinstance(outcome, str) and victim.name in outcome and "\n" not in outcome):
                failed.append(f"cut at {at} of {len(whole)}: {outcome}")
        victim.write_bytes(whole)
        found = _read_shards(shards)
        if found != 90:
            failed.append(f"whole again: {found}")
        tally.faults(f"cut shard {ending}", len(cuts), failed)


def _read_shards(folder: Path) -> int | str:
    """How many rows arrive, or the error's line."""
    from pipestill.data.rows import Row, read_rows
    from pipestill.errors import UserError

    try:
        return sum(isinstance(item, Row) for item in read_rows(str(folder), CONFIG))
    except UserError as error:
        return str(error)


# --- a gigabyte ------------------------------------------------------------------------------


def long_lines(folder: Path, tally: Tally) -> None:
    """A line of a gigabyte, in a file with holes: set aside, the others arrive, little memory."""
    path = folder / "long.jsonl"
    text = "row " * 10
    rows = [_dump({"input_text": f"{text}{n}", "output_text": "x"}) for n in range(2000)]
    with path.open("wb") as out:
        out.write(b"\n".join(rows[:1500]) + b'\n{"input_text": "')
        out.seek(GIGABYTE, 1)  # NULs, which take no room on most disks
        out.write(b'"}\n' + b"\n".join(rows[1500:]))
    for reader in ("rows", "batch", "log", "digest"):
        done = children.command(["-m", "benchmarks.soak.long_line", reader, str(path)])
        wanted = "good 2000 bad 1" if reader in ("rows", "batch") else "done"
        detail = f"peak {done.peak_bytes / 1e6:.0f} MB, {done.seconds:.1f} s: {done.told}"
        fine = done.code == 0 and wanted in done.output and done.peak_bytes < MOST_MEMORY
        tally.fault(f"1 GB line read as {reader}", fine, detail)
    path.unlink()
    bomb = folder / "bomb.jsonl.gz"
    with gzip.open(bomb, "wb", 9) as packed:
        for _ in range(256):
            packed.write(b" " * (1 << 20))
    done = children.command(["-m", "benchmarks.soak.long_line", "rows", str(bomb)])
    fine = "DATA_FORMAT" in done.told and "unpack" in done.told and done.peak_bytes < MOST_MEMORY
    tally.fault("gzip bomb", fine, f"peak {done.peak_bytes / 1e6:.0f} MB: {done.told}")
