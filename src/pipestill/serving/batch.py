"""Answers a file of rows: one shard at a time, resumable, by the code that the server answers with.

Rows are answered in fixed groups. A finished group stands in the journal of its shard, a group that
a kill tore is answered again as a whole, and the output is written at the end in one move. So the
output of a killed and repeated run is that of an uninterrupted one, byte by byte. (What decides a
row's answer includes the rows that share its batch: padding changes sums in their last digits.)
"""

import contextlib
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipestill.data.raw import BadRow, describe
from pipestill.errors import UserError
from pipestill.generation.journal import Journal
from pipestill.generation.teacher import Completion
from pipestill.models.loading import folder_fingerprint, resolve_reference
from pipestill.models.student import ASKING, INFO_FILE, Generated, Student
from pipestill.records import write_jsonl
from pipestill.serving.batch_rows import Asked, fitting, read_shard
from pipestill.training.distributed import World, any_of, current
from pipestill.training.launch import over_processes

GROUP_BATCHES = 4  # batches of a group; the longest rows of a group share a batch
LINE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How a batch is answered. Component `batch_predict`."""

    batch_size: int = 32
    max_output_tokens: int = 256  # the model's own limit holds too
    explain: bool = False  # a rationale as well
    max_rejected_fraction: float = 0.05  # of a shard's rows; more stop it before it answers any


@dataclass(frozen=True)
class Group:
    """Rows that are answered together, and their keys in the journal, by task."""

    rows: list[Asked]
    keys: dict[str, list[str]]

    @property
    def all_keys(self) -> list[str]:
        return [key for keys in self.keys.values() for key in keys]


@over_processes
def predict_shard(
    input_uri: str,
    output_path: str,
    rejects_path: str,
    *,
    model_reference: str,
    shard: str = "0/1",
    state_dir: str = "",
    batch_size: int = BatchConfig.batch_size,
    max_output_tokens: int = BatchConfig.max_output_tokens,
    explain: bool = BatchConfig.explain,
    max_rejected_fraction: float = BatchConfig.max_rejected_fraction,
) -> dict[str, Any]:
    """Answers the rows of one shard; called again after a kill, it goes on.

    Where the machine has several GPUs, as many processes share the groups.

    Args:
        input_uri: rows with ``input_text`` or ``messages`` and perhaps ``id`` (any form that
            `pipestill.data.read.read_records` reads).
        output_path: JSONL in the order of the input: ``id``, ``source_row``, the input,
            ``output_text``, ``rationale`` (if asked for), ``prompt_tokens``, ``output_tokens``.
        rejects_path: JSONL of `BadRow`: rows that were not answered, each with its reason.
        model_reference: folder, pocket model, hub name or ``gs://`` folder.
        shard: ``i/n``: source rows whose number leaves i when divided by n.
        state_dir: folder or ``gs://`` folder that outlives the run and holds the journal; empty =
            beside the output.
        batch_size: rows of a generate call.
        max_output_tokens: of an answer.
        explain: also a rationale.
        max_rejected_fraction: of the shard's rows.

    Returns:
        ``rows_read`` (whole input), ``rows``, ``rows_answered``, ``rows_rejected``,
        ``rows_resumed``, ``rows_at_limit``, ``prompt_tokens``, ``output_tokens``, ``seconds``,
        ``tokens_per_second`` (of what this call generated), ``model_fingerprint``, ``shard``.

    Raises:
        UserError: ``SHARD``, ``BATCH_SETTING``, ``BATCH_REJECTED``; what reading the rows and
            loading the model raise.
    """
    config = BatchConfig(
        batch_size=batch_size,
        max_output_tokens=max_output_tokens,
        explain=explain,
        max_rejected_fraction=max_rejected_fraction,
    )
    check(config)
    rows, bad, total = read_shard(input_uri, shard)
    student = Student.load(model_reference)
    tasks = ("predict", "explain") if explain else ("predict",)
    good, unfit = fitting(student, rows, tasks)
    bad = sorted([*bad, *unfit], key=lambda row: row.source_row)
    world = current()
    if world.is_main:
        write_jsonl(rejects_path, bad)
    _check_share(bad, len(good) + len(bad), config)
    groups = _groups(student, good, config, tasks)
    place = f"{state_dir.rstrip('/')}/batch_predict" if state_dir else f"{output_path}.state"
    keys = [key for group in groups for key in group.all_keys]
    with (
        Journal(f"{place}/{shard.replace('/', '-of-')}") as journal,
        journal.alone(keys) if world.is_main else contextlib.nullcontext(),
    ):
        any_of(False, world)  # none reads the journal before the first process has it for itself
        facts = _answer(student, groups, journal, config, world)
        summary = _write(output_path, groups, journal, student, config) if world.is_main else {}
        if world.is_main and not state_dir:
            shutil.rmtree(place, ignore_errors=True)  # under the lock: a doubled step may wait
    return {
        "shard": shard,
        "rows_read": total,
        "rows": len(good) + len(bad),
        "rows_rejected": len(bad),
        **summary,
        **facts,
        "model_fingerprint": student.loaded.fingerprint,
    }


def check(config: BatchConfig) -> None:
    """Refuses settings that make no sense.

    Raises:
        UserError: ``BATCH_SETTING``.
    """
    for name in ("batch_size", "max_output_tokens"):
        if getattr(config, name) < 1:
            found = getattr(config, name)
            raise UserError("BATCH_SETTING", f"{name}: found {found}, allowed: 1 or more")
    if not 0 <= config.max_rejected_fraction <= 1:
        found = config.max_rejected_fraction
        raise UserError("BATCH_SETTING", f"max_rejected_fraction: found {found}, allowed: 0 to 1")


def model_digest(reference: str) -> str:
    """sha256 over what a model reference stands for now.

    Of a folder its contents count, of a ``gs://`` folder names, generations and checksums, of a hub
    model its name (a revision is part of it).

    Raises:
        UserError: as `pipestill.models.loading.resolve_reference`; of Cloud Storage.
    """
    if reference.startswith("gs://"):
        from pipestill.cloud.objects import list_folder

        found, _ = list_folder(reference, deep=True)
        facts = json.dumps([[item.uri, item.generation, item.crc32c] for item in found])
    else:
        folder = Path(resolve_reference(reference))
        info = folder / INFO_FILE
        facts = folder_fingerprint(folder) if folder.is_dir() else reference
        facts += info.read_text(encoding="utf-8") if info.is_file() else ""
    return hashlib.sha256(facts.encode()).hexdigest()


def _check_share(bad: Sequence[BadRow], rows: int, config: BatchConfig) -> None:
    for row in bad[:5]:
        print(f"not answered: {describe(row)}", flush=True)
    if bad and len(bad) > config.max_rejected_fraction * rows:
        raise UserError(
            "BATCH_REJECTED",
            f"{len(bad)} of {rows} rows cannot be answered, allowed: "
            f"{config.max_rejected_fraction:.0%}; the first: {describe(bad[0])}",
            "correct the rows, or raise max_rejected_fraction",
        )


def _groups(
    student: Student, rows: list[Asked], config: BatchConfig, tasks: Sequence[str]
) -> list[Group]:
    """Fixed groups; a key is a digest of all that decides the group's answers, and a place."""
    model = [student.loaded.fingerprint, str(student.loaded.model.dtype), student.info["objective"]]
    model += [str(student.info.get(name)) for name in ASKING]
    size = config.batch_size * GROUP_BATCHES
    groups = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        asked = [row.fields for row in part]
        facts = json.dumps([model, config.batch_size, config.max_output_tokens, asked])
        digest = hashlib.sha256(facts.encode()).hexdigest()
        keys = {task: [f"{digest}:{task}:{n}" for n in range(len(part))] for task in tasks}
        groups.append(Group(part, keys))
    return groups


def _answer(
    student: Student, groups: list[Group], journal: Journal, config: BatchConfig, world: World
) -> dict[str, Any]:
    """Answers this process's share of the groups that the journal lacks; waits for the others."""
    done = journal.find([key for group in groups for key in group.all_keys])
    todo = [group for group in groups if not all(key in done for key in group.all_keys)]
    any_of(False, world)  # no process writes before all have read
    resumed = sum(len(group.rows) for group in groups) - sum(len(group.rows) for group in todo)
    began = time.perf_counter()
    speaker = _Speaker(sum(len(group.rows) for group in todo))
    for group in todo[world.rank :: world.size]:
        texts = [row.text for row in group.rows]
        limits = {"batch_size": config.batch_size, "max_new_tokens": config.max_output_tokens}
        answers = {"predict": student.answer(texts, **limits)}
        if config.explain:
            answers["explain"] = student.explain(texts, **limits)
        journal.append(
            (key, row.id, _completion(given))
            for task, found in answers.items()
            for key, row, given in zip(group.keys[task], group.rows, found, strict=True)
        )
        if world.is_main:
            speaker.step(len(group.rows) * world.size)
    any_of(False, world)
    if not world.is_main:
        return {}  # the first process has all it needs, and may remove the journal any moment
    seconds = time.perf_counter() - began
    found = journal.find([key for group in todo for key in group.all_keys])
    speed = sum(item.output_tokens for item in found.values()) / max(seconds, 1e-9)
    return {
        "rows_resumed": resumed,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(speed, 1),
    }


def _completion(given: Generated) -> Completion:
    return Completion(
        text=given.text, prompt_tokens=given.prompt_tokens, output_tokens=given.output_tokens
    )


def _write(
    path: str, groups: list[Group], journal: Journal, student: Student, config: BatchConfig
) -> dict[str, Any]:
    """The output, from the journal alone, in one move."""
    found = journal.find([key for group in groups for key in group.all_keys])
    counts = {"prompt_tokens": 0, "output_tokens": 0, "rows_at_limit": 0}
    limit = min(config.max_output_tokens, student.renderer.max_output_tokens)

    def lines() -> Iterator[dict[str, Any]]:
        for group in groups:
            for place, row in enumerate(group.rows):
                given = found[group.keys["predict"][place]]
                line = {"id": row.id, "source_row": row.source_row, **row.fields}
                line["output_text"] = given.text
                if config.explain:
                    line["rationale"] = found[group.keys["explain"][place]].text
                line |= {"prompt_tokens": given.prompt_tokens, "output_tokens": given.output_tokens}
                counts["prompt_tokens"] += given.prompt_tokens
                counts["output_tokens"] += given.output_tokens
                counts["rows_at_limit"] += given.output_tokens >= limit
                yield line

    return {"rows_answered": write_jsonl(path, lines()), **counts}


class _Speaker:
    """A bar on a terminal, a plain line every few seconds elsewhere."""

    def __init__(self, total: int) -> None:
        from tqdm import tqdm

        self._total, self._done = total, 0
        self._began = self._shown = time.monotonic()
        self._bar = tqdm(total=total, desc="batch", unit="row") if sys.stderr.isatty() else None

    def step(self, rows: int) -> None:
        """So many more rows are answered."""
        rows = min(rows, self._total - self._done)
        self._done += rows
        if self._bar is not None:
            self._bar.update(rows)
            return
        now = time.monotonic()
        if now - self._shown >= LINE_SECONDS or self._done == self._total:
            self._shown = now
            rate = self._done / max(now - self._began, 1e-9)
            print(f"batch: {self._done} of {self._total} rows, {rate:.1f} a second", flush=True)
