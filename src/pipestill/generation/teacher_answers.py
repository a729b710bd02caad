"""Greedy answers of a local teacher to many rows, in parts that a killed step finds again."""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipestill.errors import UserError
from pipestill.models.loading import resolve_reference
from pipestill.models.render import Renderer
from pipestill.models.student import INFO_FILE, Student
from pipestill.records import write_jsonl
from pipestill.training.teacher_states import Origin

BATCHES = 8  # of one part
LINE_SECONDS = 10.0


@dataclass(frozen=True)
class Answer:
    """`tokens` counts what was generated; `cut`: the text was longer than a target may be."""

    text: str
    tokens: int
    cut: bool = False


def all_answers(
    origin: Origin, texts: Mapping[str, str], *, batch_size: int, limit: int, state: Path | None
) -> dict[str, Answer]:
    """The answer to every text, longest first, the same whatever the order of the texts.

    Args:
        origin: the teacher.
        texts: row id → input.
        batch_size: rows that are answered together.
        limit: tokens of an answer, end mark included.
        state: where finished parts are kept, or None.
    """
    student = Student(origin.loaded, origin.renderer, {"objective": _objective(origin.reference)})
    names = sorted(texts)
    prompts = origin.renderer.prompts("predict", [texts[name] for name in names])
    size = {name: len(prompt.ids) for name, prompt in zip(names, prompts, strict=True)}
    names.sort(key=lambda name: -size[name])
    found: dict[str, Answer] = {}
    with progress(len(names), "teacher's answers", "row") as step:
        for number, start in enumerate(range(0, len(names), batch_size * BATCHES)):
            part = names[start : start + batch_size * BATCHES]
            kept = state / f"answers-{number:05d}.jsonl" if state else None
            found |= _kept(kept, part) or _asked(student, part, texts, batch_size, limit, kept)
            step(len(part))
    return found


def _asked(
    student: Student,
    names: Sequence[str],
    texts: Mapping[str, str],
    batch_size: int,
    limit: int,
    kept: Path | None,
) -> dict[str, Answer]:
    inputs = [texts[name] for name in names]
    outputs = student.answer(inputs, batch_size=batch_size, max_new_tokens=limit)
    found = {
        name: Answer(output.text, output.output_tokens)
        for name, output in zip(names, outputs, strict=True)
    }
    if kept:
        write_jsonl(kept, [{"id": n, **dataclasses.asdict(answer)} for n, answer in found.items()])
    return found


def fitting(answer: Answer, renderers: Sequence[Renderer], limit: int) -> Answer:
    """The answer, cut where one of the models could not be trained on it.

    An answer that ran into the limit has no end mark yet, and one that is tokenised again may be
    longer than it was.
    """
    text, cut = answer.text, False
    for renderer in renderers:
        room = limit - 1
        while room and len(renderer.targets([text])[0]) > limit:
            ids = renderer.tokenizer(text, add_special_tokens=False).input_ids
            text = renderer.tokenizer.decode(ids[:room], skip_special_tokens=True).strip()
            room, cut = room - 1, True
        if len(renderer.targets([text])[0]) > limit:
            text = ""
    return dataclasses.replace(answer, text=text, cut=cut)


@contextlib.contextmanager
def progress(total: int, what: str, unit: str) -> Iterator[Callable[[int], Any]]:
    """Gives a function that counts done units: a bar on a terminal, else a line now and then."""
    if sys.stderr.isatty():
        with tqdm(total=total, desc=what, unit=unit) as bar:
            yield lambda count: bar.update(count)
        return
    began = shown = time.monotonic()
    done = 0

    def step(count: int) -> None:
        nonlocal done, shown
        done += count
        now = time.monotonic()
        if now - shown >= LINE_SECONDS or done == total:
            shown = now
            rate = done / max(now - began, 1e-9)
            print(f"{what}: {done} of {total} {unit}s, {rate:.1f} a second", flush=True)

    yield step


def _objective(reference: str) -> str:
    """What the teacher was trained for, which decides where its answers end."""
    path = Path(resolve_reference(reference)) / INFO_FILE
    if not path.is_file():
        return "none"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["objective"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            "STUDENT_UNREADABLE", f"{path}: not a model's description ({error})", "train it again"
        ) from error


def _kept(path: Path | None, names: Sequence[str]) -> dict[str, Answer] | None:
    """The answers of a part that an earlier run finished; None where there are none."""
    if path is None or not path.is_file():
        return None
    try:
        rows: list[dict[str, Any]] = [json.loads(line) for line in path.open(encoding="utf-8")]
        found = {row["id"]: Answer(row["text"], row["tokens"], row["cut"]) for row in rows}
    except (ValueError, KeyError, TypeError):
        return None
    return found if list(found) == list(names) else None
