"""A local teacher on a machine with several GPUs: a copy of it on each, with a share of the calls.

The answers go through the journal, as all answers do, so a share that is killed is gone on with.
"""

import contextlib
import dataclasses
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipestill.config import TeacherConfig
from pipestill.generation.budget import Budget
from pipestill.generation.journal import Journal
from pipestill.generation.progress import Progress
from pipestill.generation.teacher import Completion, Decoding, Request, open_teacher
from pipestill.training.distributed import join
from pipestill.training.launch import launch, processes


def spread(
    config: TeacherConfig, decoding: Decoding, todo: Mapping[str, Request], place: str
) -> bool:
    """Answers calls into the journal at `place`, one process a GPU; whether there were several.

    Calls that fail leave nothing in the journal: whoever asks finds out why by asking again. A
    budget is kept by one process alone, so with one nothing is spread.

    Args:
        config: the teacher; only the backend ``transformers`` is spread.
        decoding: how it answers.
        todo: journal key → call, neighbours of similar length.
        place: ``state_dir`` of the journal.

    Returns:
        False where one process is enough and nothing was done.

    Raises:
        UserError, WorkError, Stopped: as `pipestill.training.launch.launch`.
    """
    if config.backend != "transformers" or not todo:
        return False
    count = min(processes(), math.ceil(len(todo) / max(config.batch_size, 1)))
    if count == 1:
        return False
    if Budget(config).limited:
        print("teacher: 1 process answers, because a budget is kept by one", flush=True)
        return False
    print(f"teacher: {count} processes answer {len(todo)} calls", flush=True)
    with tempfile.TemporaryDirectory(prefix="pipestill-calls-") as folder:
        calls = Path(folder) / "calls.jsonl"
        with calls.open("w", encoding="utf-8") as out:
            for key, request in todo.items():
                out.write(json.dumps([key, dataclasses.asdict(request)]) + "\n")
        given = {"calls": str(calls), "config": config, "place": place}
        given["decoding"] = dataclasses.asdict(decoding)
        launch(f"{__name__}:answer_share", given, count)
    return True


def answer_share(calls: str, config: TeacherConfig, place: str, decoding: dict[str, Any]) -> None:
    """Answers every n-th call of the file, as one of n processes."""
    world = join()
    with open(calls, encoding="utf-8") as source:
        wanted = [(key, Request(**fields)) for key, fields in map(json.loads, source)]
    mine = wanted[world.rank :: world.size]
    key_of = {id(request): key for key, request in mine}
    teacher = open_teacher(config, Decoding(**{**decoding, "stop": tuple(decoding["stop"])}))
    shown = Progress(len(wanted), "teacher") if world.is_main else contextlib.redirect_stdout(None)
    tokens = done = 0
    with shown as progress, Journal(place) as journal:
        for batch in teacher.answer(request for _, request in mine):
            answered = [(r, found) for r, found in batch if isinstance(found, Completion)]
            journal.append((key_of[id(r)], r.row_id, found) for r, found in answered)
            tokens += sum(found.prompt_tokens + found.output_tokens for _, found in answered)
            if isinstance(progress, Progress):  # the peers of the first one are about as far
                step = min(len(batch) * world.size, len(wanted) - done)
                done += step
                progress.step(step, tokens * world.size, 0.0)
