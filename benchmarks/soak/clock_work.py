"""One piece of work whose clock may be wrong: ``NAME FOLDER [OPTION]``; prints a result as JSON."""

import json
import sys
from pathlib import Path
from typing import Any

from pipestill.errors import PipestillError


def journal(folder: Path, number: str) -> Any:
    """Ten more answers into the journal, which has to find all earlier ones."""
    from pipestill.generation.journal import Journal
    from pipestill.generation.teacher import Completion

    n = int(number)
    with Journal(str(folder)) as book:
        found = book.find([f"k{i}" for i in range(10 * n)])
        book.append([(f"k{i}", "r", Completion(text=f"a{i}", prompt_tokens=1, output_tokens=1))
                     for i in range(10 * n, 10 * n + 10)])  # fmt: skip
    return {"found": sum(value.text == f"a{key[1:]}" for key, value in found.items())}


def training(folder: Path, name: str) -> Any:
    """A training that goes on where there is a checkpoint."""
    from benchmarks.soak.checkpoint import train

    summary = train(folder, folder / name, folder / "state")
    numbers = [summary["seconds"], summary.get("cpu_seconds", 0.0)]
    return {"resumed": summary["resumed_from_step"], "negative": min(numbers) < 0}


def answering(folder: Path, name: str) -> Any:
    """Latencies of a model that answers."""
    import torch

    from pipestill.models.student import Student

    torch.set_num_threads(1)
    student = Student.load(str(folder / "model"))
    found = student.answer(["red green"] * 5, batch_size=1, max_new_tokens=4)
    spans = [item.latency_ms or 0.0 for item in found]
    return {"fine": min(spans) > 0 and max(spans) < 60_000}


def ticks(folder: Path, number: str) -> Any:
    """A tick of retraining that is looked at, and its line in the ledger."""
    from pipestill.retrain.cron import parse
    from pipestill.retrain.ledger import Book
    from pipestill.retrain.window import freeze, parse_time, window_of

    book = Book.at(folder / "book")
    window = window_of(parse_time(f"2026-02-{int(number) + 2:02d}T03:10:00Z"),
                       parse("0 3 * * *"))  # fmt: skip
    manifest = freeze(book.tick(window.tick, "manifest.json"), str(folder / "rows"), window)
    book.append({"tick": window.tick, "decision": "keep"})
    return {"tick": window.tick, "files": len(manifest.files), "lines": len(book.entries())}


def requests(folder: Path, number: str) -> Any:
    """The request log: every line is in a closed file at the end."""
    from dataclasses import dataclass

    from pipestill.serving.request_log import LogSettings, RequestLog

    @dataclass
    class Instance:
        words: str
        consent: bool = True

        def text(self) -> str:
            return self.words

    log = RequestLog(LogSettings(folder=str(folder / "log"), max_file_bytes=600), "m")
    for n in range(40):
        log.add([Instance(f"run {number} question {n}")], [{"output_text": "yes"}])
    log.close()
    closed = list((folder / "log").glob("requests-*.jsonl"))
    return {"lines": sum(len(path.read_bytes().splitlines()) for path in closed)}


WORK = {item.__name__: item for item in (journal, training, answering, ticks, requests)}

if __name__ == "__main__":
    try:
        print(json.dumps(WORK[sys.argv[1]](Path(sys.argv[2]), sys.argv[3])))
    except PipestillError as error:
        sys.exit(f"error {error}")
