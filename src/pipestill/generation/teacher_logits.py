"""The teacher's answers to all rows, and its probabilities of every target token.

Both are made in parts whose content depends on the rows alone, not on their order in the file. A
finished part is kept in the state folder: a killed step goes on there, with an equal result.
"""

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipestill.config import DistillConfig, TeacherLogitsConfig, parse_length
from pipestill.errors import UserError, WorkError
from pipestill.evaluation.scoring import exact
from pipestill.generation import logits_store as stores
from pipestill.generation.logits_shard import SHARD_BYTES
from pipestill.generation.teacher_answers import Answer, all_answers, fitting
from pipestill.generation.teacher_forced import write_shards
from pipestill.models.loading import Loaded, choose_dtype, outline
from pipestill.models.render import Renderer, renderer_for
from pipestill.models.teacher import check_fingerprint
from pipestill.records import Example, Labelled, read_jsonl, write_jsonl
from pipestill.training.batches import encode
from pipestill.training.checkpoint import code_version
from pipestill.training.objectives import label_only
from pipestill.training.student import use_threads
from pipestill.training.teacher_states import (
    Origin,
    load_teacher,
    shared_ids,
    teacher_for,
    vocabulary_digest,
)

TARGETS = ("teacher", "label")
ROWS_READ = 1024  # stored rows that are summed up together


@dataclass(frozen=True)
class Both:
    """Teacher and student: `size` ids mean the same to both, 0 where the vocabularies differ."""

    origin: Origin
    student: Loaded
    renderer: Renderer
    size: int


def teacher_logits(
    train_path: str | Path,
    teacher_path: str | Path,
    rows_path: str | Path,
    store_path: str | Path,
    *,
    student_reference: str,
    state_dir: str,
    config: TeacherLogitsConfig,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Asks the teacher for an answer to every row, and stores its top-k log-probabilities.

    The target tokens are those that a student is trained on: the text that ``targets`` names, in
    the student's tokens. Nothing is stored where teacher and student have different vocabularies.

    Args:
        train_path: JSONL of `Example`.
        teacher_path: folder of `teacher_prepare`.
        rows_path: JSONL of `Labelled`, written. ``teacher_label`` is the teacher's greedy answer,
            ``output_text`` the gold label where there is one, else that answer; ``agreement`` the
            mean probability that the teacher gives the tokens of its own answer, where it is stored
            at tau 1, else 0.
        store_path: folder of a `pipestill.generation.logits_store`, written.
        student_reference: whose tokens the targets are.
        state_dir: folder that outlives the run; empty (or an address): a killed step begins anew.
        config: the settings.
        shard_bytes: of one shard of the store.

    Returns:
        A flat summary: rows, empty and cut answers, accuracy on rows with a gold label (-1 without
        any), tokens, bytes a token, mean mass of the k largest, seconds.

    Raises:
        UserError: ``CONFIG_VALUE``, ``TEACHER_…``, ``TRAIN_EMPTY``, ``LABEL_TOO_LONG``,
            ``STATE_DIR``; what loading a model raises.
        WorkError: ``TEACHER_SILENT`` where answers are needed and there is none.
    """
    begun, spent = time.perf_counter(), time.process_time()
    _check(config)
    use_threads()
    rows = _rows(train_path)
    both = _load(teacher_path, student_reference, config)
    state = _state(state_dir, train_path, both, config, shard_bytes)
    answers = _answers(rows, both, config, state)
    labelled = [_labelled(row, answers[row.id].text) for row in rows]
    store = _store(labelled, both, config, Path(store_path), state, shard_bytes)
    facts, agreement = _measured(store, [row.id for row in rows])
    if config.targets == "teacher" and config.tau == 1:
        labelled = [dataclasses.replace(r, agreement=agreement.get(r.id, 0.0)) for r in labelled]
    write_jsonl(rows_path, labelled)
    if state is not None:
        shutil.rmtree(state, ignore_errors=True)
    summary = {
        **_counts(rows, answers),
        **facts,
        "targets": config.targets,
        "tau": config.tau,
        "top_k": store.k,
        "vocabulary_size": store.vocabulary_size,
        "store_digest": store.digest,
        "teacher_fingerprint": both.origin.loaded.fingerprint,
        "seconds": round(time.perf_counter() - begun, 3),
        "cpu_seconds": round(time.process_time() - spent, 3),
    }
    print(_sentence(summary), flush=True)
    return summary


def _load(teacher_path: str | Path, student_reference: str, config: TeacherLogitsConfig) -> Both:
    """Loads the teacher, and of the student only what decides its tokens."""
    asked = DistillConfig(
        precision=config.precision,
        max_context_length=config.max_context_length,
        max_output_tokens=config.max_output_tokens,
    )
    origin = load_teacher(teacher_path, asked)
    check_fingerprint(teacher_path, origin.loaded.fingerprint)
    origin.loaded.model.to(choose_dtype(config.precision))
    student = outline(student_reference)
    limits = parse_length(config.max_context_length), config.max_output_tokens
    renderer = renderer_for(student, *limits, {"style": "plain"})
    size = shared_ids(student.tokenizer, origin.loaded.tokenizer)
    return Both(origin, student, renderer, size)


def _answers(
    rows: Sequence[Example], both: Both, config: TeacherLogitsConfig, state: Path | None
) -> dict[str, Answer]:
    """The teacher's answer to every row, in a length that both models can be trained on.

    Raises:
        WorkError: ``TEACHER_SILENT`` where answers are needed and there is none.
    """
    size, limit = config.teacher_eval_batch_size, config.max_output_tokens
    texts = {row.id: row.input_text for row in rows}
    found = all_answers(both.origin, texts, batch_size=size, limit=limit, state=state)
    renderers = [both.renderer, both.origin.renderer]
    cut = {name: fitting(answer, renderers, limit) for name, answer in found.items()}
    needed = config.targets == "teacher" or any(row.output_text is None for row in rows)
    if needed and not any(answer.text for answer in cut.values()):
        raise WorkError(
            "TEACHER_SILENT",
            f"the teacher {both.origin.reference!r} gave no answer to any of {len(rows)} rows",
            "choose a teacher that was tuned for the task, or set teacher_train_steps",
        )
    return cut


def _store(
    rows: Sequence[Labelled],
    both: Both,
    config: TeacherLogitsConfig,
    folder: Path,
    state: Path | None,
    shard_bytes: int,
) -> stores.Store:
    """The store of all rows; an empty one where nothing can be or is to be stored."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    k = min(config.top_k, both.size)
    shards = []
    if k:
        taught = [_with_target(row, config.targets) for row in rows]
        data = encode(taught, label_only(taught, 0), both.renderer)
        shards = write_shards(
            teacher_for(both.origin, both.student, data, taught, None),
            [row.id for row in rows],
            state or folder,
            k=k,
            tau=config.tau,
            batch_size=config.teacher_eval_batch_size,
            shard_bytes=shard_bytes,
        )
    if state is not None:
        for entry in shards:
            shutil.copyfile(state / entry["file"], folder / entry["file"])
    if config.top_k and not both.size:
        print(
            "Note: teacher and student have different vocabularies, so no log-probabilities are "
            "stored; see cross_tokenizer.",
            flush=True,
        )
    return stores.close_store(
        folder,
        shards,
        k=k,
        tau=config.tau,
        targets=config.targets,
        vocabulary_digest=vocabulary_digest(both.student.tokenizer),
        vocabulary_size=both.size,
    )


def _measured(store: stores.Store, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """Sizes and mean mass of a store, and of every row the mean probability of its own tokens."""
    mass, agreement = 0.0, {}
    for start in range(0, len(names) if store.k else 0, ROWS_READ):
        for row in store.rows(names[start : start + ROWS_READ]):
            mass += float(row.logprobs.exp().sum())
            agreement[row.id] = round(float(row.label_logprobs.exp().mean()), 6)
    facts = {
        "tokens": store.tokens,
        "store_bytes": store.bytes,
        "bytes_per_token": round(store.bytes_per_token, 2),
        # Sums of rounded probabilities may pass 1 by the rounding.
        "mean_mass": min(1.0, mass / store.tokens) if store.tokens else -1.0,
    }
    return facts, agreement


def _counts(rows: Sequence[Example], answers: Mapping[str, Answer]) -> dict[str, Any]:
    """Rows, answers, and how many of them are right where a gold label is known."""
    gold = {row.id: row.output_text for row in rows if row.output_text is not None}
    right = sum(exact(answers[name].text, label) for name, label in gold.items())
    return {
        "rows": len(rows),
        "answered": sum(bool(answer.text) for answer in answers.values()),
        "empty_answers": sum(not answer.text for answer in answers.values()),
        "cut_answers": sum(answer.cut for answer in answers.values()),
        "gold_rows": len(gold),
        "accuracy": right / len(gold) if gold else -1.0,
        "answer_tokens": sum(answer.tokens for answer in answers.values()),
    }


def _labelled(row: Example, answer: str) -> Labelled:
    has_gold = row.output_text is not None
    return Labelled(
        id=row.id,
        input_text=row.input_text,
        output_text=answer if row.output_text is None else row.output_text,
        label_source="gold" if has_gold else "teacher",
        teacher_label=answer,
        gold_rationale=row.rationale,
        source_row=row.source_row,
    )


def _with_target(row: Labelled, targets: str) -> Labelled:
    text = row.output_text if targets == "label" else (row.teacher_label or "")
    return dataclasses.replace(row, output_text=text)


def _rows(path: str | Path) -> list[Example]:
    rows = list(read_jsonl(path, Example))
    if not rows:
        raise UserError(
            "TRAIN_EMPTY", f"{path}: no rows", "look at the counts of the steps before this one"
        )
    return rows


def _state(
    state_dir: str,
    train_path: str | Path,
    both: Both,
    config: TeacherLogitsConfig,
    shard_bytes: int,
) -> Path | None:
    """The folder of this very work, named by all that decides its result."""
    if not state_dir:
        return None
    if "://" in state_dir:
        print(f"Note: {state_dir} is no folder here, so a killed step begins anew.", flush=True)
        return None
    facts = [
        code_version(),
        [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))],
        dataclasses.asdict(config),
        shard_bytes,
        hashlib.sha256(Path(train_path).read_bytes()).hexdigest(),
        both.origin.loaded.fingerprint,
        str(both.origin.loaded.model.device.type),
        vocabulary_digest(both.student.tokenizer),
        dataclasses.asdict(dataclasses.replace(both.renderer, tokenizer=None)),
    ]
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    folder = Path(state_dir).expanduser() / "teacher_logits" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            "STATE_DIR",
            f"state_dir {state_dir}: {error.strerror or error}",
            "give a folder that can be written and that outlives the run",
        ) from error
    return folder


def _check(config: TeacherLogitsConfig) -> None:
    rules: Iterable[tuple[str, bool, str]] = [
        ("targets", config.targets in TARGETS, ", ".join(TARGETS)),
        ("top_k", config.top_k >= 0, "0 (nothing is stored) or more"),
        ("tau", config.tau > 0, "above 0"),
        ("teacher_eval_batch_size", config.teacher_eval_batch_size >= 1, "1 or more"),
        ("max_output_tokens", config.max_output_tokens >= 1, "1 or more"),
    ]
    for name, fine, allowed in rules:
        if not fine:
            raise UserError(
                "CONFIG_VALUE",
                f"{name}: found {getattr(config, name)!r}, allowed: {allowed}",
                "correct the value in the configuration file or in --set",
            )


def _sentence(summary: Mapping[str, Any]) -> str:
    right = f"{summary['accuracy']:.1%} of {summary['gold_rows']} gold labels met, "
    stored = (
        f"{summary['top_k']} log-probabilities of {summary['tokens']} tokens stored "
        f"({summary['bytes_per_token']} bytes a token, {summary['mean_mass']:.1%} of the mass)"
    )
    return (
        f"teacher: {summary['answered']} of {summary['rows']} rows answered, "
        f"{right if summary['gold_rows'] else ''}{stored if summary['tokens'] else 'none stored'}"
    )
