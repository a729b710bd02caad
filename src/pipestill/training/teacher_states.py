"""The teacher's side of a step: the same examples, the same target tokens, its own prompts.

Sequence s of the teacher's data is sequence s of the student's. With one vocabulary the teacher is
given the student's target ids, end mark included, so that both write the same tokens whatever their
architectures; with two vocabularies each writes the text with its own tokens.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipestill.config import DistillConfig, parse_length
from pipestill.errors import UserError
from pipestill.models.loading import Loaded
from pipestill.models.render import Renderer, renderer_for
from pipestill.models.student import Student
from pipestill.models.teacher import TEACHER_FILE, teacher_reference
from pipestill.records import Labelled
from pipestill.training.batches import Encoded, encode, flatten
from pipestill.training.forward import Batch, Shape, collate, shape_of
from pipestill.training.objectives import label_only


@dataclass(frozen=True)
class Teacher:
    """Another model, frozen, with the run's rows in its own tokens.

    `size` is the number of ids that mean the same to teacher and student; 0 where the vocabularies
    differ. `model` is None where the teacher is a part of the student's module (see `of`).
    """

    model: Any
    shape: Shape
    data: Encoded
    size: int

    def of(self, student: Any) -> Any:
        """The teacher's model; a moving average is kept inside the student's module."""
        return student.distillation.average.model if self.model is None else self.model

    def batch(self, sequences: Sequence[int]) -> Batch:
        """Their batch. Sorted as the student's is, where both write the same tokens."""
        return collate(self.data, sequences, self.shape)

    def tokens(self, sequences: Sequence[int]) -> int:
        """How many tokens the teacher reads and writes for them."""
        lengths = self.data.source_length[sequences] + self.data.target_length[sequences]
        return int(lengths.sum())


@dataclass(frozen=True)
class Origin:
    """A loaded teacher with the way it is asked, and what is told of it."""

    loaded: Loaded
    renderer: Renderer
    reference: str


def load_teacher(path: str | Path, config: DistillConfig, longest: int = 0) -> Origin:
    """The teacher that a `teacher_prepare` folder names, or that `path` is itself.

    A teacher that no run of ours trained is asked as the students are: the input alone.

    Args:
        path: the folder, or a model reference.
        config: precision and longest input.
        longest: tokens of the longest answer that it will read or write (0: ``max_output_tokens``);
            the rest of its positions are left for inputs.

    Raises:
        UserError: what loading a model raises.
    """
    reference = reference_of(path)
    student = Student.load(reference)
    loaded, renderer = student.loaded, student.renderer
    if config.precision == "fp32":
        loaded.model.float()
    loaded.model.requires_grad_(False)
    if student.info["objective"] == "none":
        limits = parse_length(config.max_context_length), longest or config.max_output_tokens
        renderer = renderer_for(loaded, *limits, {"style": "plain"})
    most = max(renderer.max_output_tokens, config.max_output_tokens)
    return Origin(loaded, dataclasses.replace(renderer, max_output_tokens=most), reference)


def reference_of(path: str | Path) -> str:
    """The model that the folder of `teacher_prepare` names; any other path is the reference."""
    return teacher_reference(path) if (Path(path) / TEACHER_FILE).is_file() else str(path)


def teacher_for(
    origin: Origin, student: Loaded, data: Encoded, rows: Sequence[Labelled], autocast: Any
) -> Teacher:
    """The teacher beside a student whose training rows are `data`.

    Args:
        origin: the teacher.
        student: model and tokenizer of the student.
        data: the student's training rows, one sequence each.
        rows: the same, as text.
        autocast: the type that both compute in, or None.

    Raises:
        UserError: ``TEACHER_END`` where both share a vocabulary and end their answers differently.
    """
    shape = shape_of(origin.loaded, autocast)
    size = shared_ids(student.tokenizer, origin.loaded.tokenizer)
    if not size:
        own = encode(rows, label_only(rows, 0), origin.renderer)
        return Teacher(origin.loaded.model, shape, own, 0)
    return Teacher(origin.loaded.model, shape, with_prompts(data, rows, origin.renderer), size)


def with_prompts(data: Encoded, rows: Sequence[Labelled], renderer: Renderer) -> Encoded:
    """`data` with the inputs as another renderer writes them; the targets stay.

    Raises:
        UserError: ``TEACHER_END``.
    """
    last = int(data.target[-1])
    if renderer.end != last:
        raise UserError(
            "TEACHER_END",
            f"the teacher closes its answers with token {renderer.end}, the student with {last}",
            "use teacher_labels (the teacher's text alone), or models that end answers alike",
        )
    prompts = renderer.prompts("predict", [row.input_text for row in rows])
    opening = opening_ids(renderer)
    source, start, length = flatten([[*prompt.ids, *opening] for prompt in prompts])
    cut = sum(prompt.truncated for prompt in prompts)
    return dataclasses.replace(
        data, source=source, source_start=start, source_length=length, cut_inputs=cut
    )


def opening_ids(renderer: Renderer) -> list[int]:
    """What a decoder's chat template writes between prompt and answer; else nothing."""
    if renderer.style != "chat" or renderer.is_encoder_decoder or not renderer.frame.before:
        return []
    ids: list[int] = renderer.tokenizer(renderer.frame.before, add_special_tokens=False).input_ids
    return ids


def shared_ids(student: Any, teacher: Any) -> int:
    """How many ids mean the same to two tokenizers; 0 where their vocabularies differ.

    Rows of the models beyond the tokenizer's ids (padding to a round number) do not count.
    """
    mine, other = student.get_vocab(), teacher.get_vocab()
    return max(mine.values()) + 1 if mine == other else 0


def vocabulary_digest(tokenizer: Any) -> str:
    """sha256 over the token → id map."""
    text = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_vocabulary(student: Loaded, origin: Origin, names: tuple[str, str], mode: str) -> bool:
    """Whether both share a vocabulary; a mismatch that the settings do not allow is refused.

    Args:
        student: the student.
        origin: the teacher.
        names: the references of student and teacher.
        mode: ``cross_tokenizer``.

    Raises:
        UserError: ``TOKENIZER_MISMATCH``.
    """
    if shared_ids(student.tokenizer, origin.loaded.tokenizer):
        return True
    if mode != "refuse":
        return False
    mine, other = (
        f"{name!r} ({len(tokenizer.get_vocab())} tokens, "
        f"fingerprint {vocabulary_digest(tokenizer)[:12]})"
        for name, tokenizer in zip(names, (student.tokenizer, origin.loaded.tokenizer), strict=True)
    )
    raise UserError(
        "TOKENIZER_MISMATCH",
        f"student {mine} and teacher {other} have different vocabularies, so their ids cannot be "
        "compared",
        "set cross_tokenizer to uld (compares the sorted probabilities) or to sequence (trains on "
        "the teacher's text), or choose models that share a tokenizer",
    )


def paired(student: Encoded, teacher: Encoded, sequences: Sequence[int]) -> tuple[Any, Any]:
    """Which target positions of both belong together where the vocabularies differ.

    Of every sequence the first positions, up to the shorter target, by index (Boizard et al. 2024,
    arXiv 2402.12030, section 3).

    Returns:
        Two tensors (M,) of positions in the order of `pipestill.training.forward.batch_nll`.
    """
    import torch

    starts = [_starts(data, sequences) for data in (student, teacher)]
    found: tuple[list[Any], list[Any]] = ([], [])
    for s in sequences:
        common = torch.arange(paired_length(student, teacher, s))
        for side, start in zip(found, starts, strict=True):
            side.append(common + start[s])
    return torch.cat(found[0]), torch.cat(found[1])


def paired_length(student: Encoded, teacher: Encoded, sequence: int) -> int:
    """How many target positions of a sequence have a partner."""
    return min(int(student.target_length[sequence]), int(teacher.target_length[sequence]))


def _starts(data: Encoded, sequences: Sequence[int]) -> dict[int, int]:
    """Where each sequence's targets begin within the batch, sorted as `collate` does."""
    starts, total = {}, 0
    for s in in_order(data, sequences):
        starts[s] = total
        total += int(data.target_length[s])
    return starts


def in_order(data: Encoded, sequences: Sequence[int]) -> list[int]:
    """The sequences as `pipestill.training.forward.collate` sorts them."""
    import torch

    chosen = torch.tensor(sequences)
    found: list[int] = chosen[data.target_length[chosen].argsort(stable=True)].tolist()
    return found
