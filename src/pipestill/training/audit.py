"""The look at what is trained, before any step is paid for.

A loss that goes down says nothing about what was learned: a mask that is off by one, an end mark
that is never trained or a prompt that serving writes differently all train well and answer badly.
So every run first takes some rows apart, from the very tensors that the loss will see, shows them
with the trained tokens in ⟦ ⟧, and stops where something is wrong.
"""

import dataclasses
import hashlib
import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipestill.errors import UserError
from pipestill.models import chat
from pipestill.models.render import Renderer
from pipestill.records import Labelled, write_json
from pipestill.training.batches import Encoded
from pipestill.training.forward import Batch, Shape, collate
from pipestill.training.objectives import Target, Targets

ROWS_SHOWN = 20
MOST_CUT_INPUTS = 0.05  # a larger share of cut inputs is a setting gone wrong, not a few long rows
OPEN, CLOSE = "⟦", "⟧"


@dataclass(frozen=True)
class Segment:
    """A run of tokens as text, and whether they carry loss."""

    text: str
    loss: bool


@dataclass(frozen=True)
class Sample:
    """One sequence as the model is trained on it."""

    row: str
    task: str
    tokens: int
    loss_tokens: int
    segments: tuple[Segment, ...]

    def text(self, opening: str = OPEN, closing: str = CLOSE) -> str:
        """The whole sequence, the tokens that carry loss between the two marks."""
        return "".join(
            f"{opening}{_visible(part.text)}{closing}" if part.loss else _visible(part.text)
            for part in self.segments
        )


def _visible(text: str) -> str:
    """Rows may hold anything; a terminal must not obey it."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else "�" for sign in text)


@dataclass
class Audit:
    """What was seen. `notes` are worth reading and stop nothing."""

    samples: list[Sample] = field(default_factory=list)
    facts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def text(self, opening: str = OPEN, closing: str = CLOSE) -> str:
        """The sample for a person to read."""
        lines = [f"Tokens in {opening}these marks{closing} carry loss.", *self.notes, ""]
        for sample in self.samples:
            lines.append(
                f"--- row {_visible(sample.row)}, {sample.task}: {sample.loss_tokens} of "
                f"{sample.tokens} tokens carry loss"
            )
            lines += [sample.text(opening, closing), ""]
        return "\n".join(lines)

    def write(self, beside: str | Path) -> None:
        """Writes ``<beside>.audit.txt`` and ``.audit.json``."""
        path = Path(beside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f"{path.name}.audit.txt").write_text(
            self.text().encode("utf-8", "replace").decode(), encoding="utf-8"
        )
        value = {
            "facts": self.facts,
            "notes": self.notes,
            "samples": [
                {
                    "row": item.row,
                    "task": item.task,
                    "tokens": item.tokens,
                    "loss_tokens": item.loss_tokens,
                    "segments": [[part.text, part.loss] for part in item.segments],
                }
                for item in self.samples
            ],
        }
        write_json(path.with_name(f"{path.name}.audit.json"), json.loads(json.dumps(value)))


@dataclass(frozen=True)
class _Sequence:
    """One sequence of the data with where it came from."""

    number: int
    row: Labelled
    target: Target


def audit(
    rows: Sequence[Labelled],
    targets: Targets,
    data: Encoded,
    serving: Renderer,
    shape: Shape,
    beside: str | Path = "",
    into: Audit | None = None,
) -> Audit:
    """Checks all sequences, takes `ROWS_SHOWN` rows apart, and stops at the first fault.

    Args:
        rows: the training rows.
        targets: what each of them is taught.
        data: the same, tokenised for training.
        serving: the renderer that the saved model will be asked through.
        shape: of the model.
        beside: the sample is written as ``<beside>.audit.txt`` and ``.audit.json``, also where the
            audit fails; empty for no files.
        into: filled and returned; a caller who wants to show what a failed audit saw gives one.

    Raises:
        UserError: ``AUDIT_EMPTY_LABEL``, ``AUDIT_NO_LOSS`` (no token of a row is trained),
            ``AUDIT_NO_END`` (the end mark is not trained), ``AUDIT_INPUT_CUT``, ``AUDIT_RENDER``
            (training and serving write a prompt differently), ``AUDIT_LOSS_MASK``,
            ``AUDIT_TEMPLATE``, ``AUDIT_INPUT_TEXT``; each with the row's id.
    """
    found = Audit() if into is None else into
    shape = dataclasses.replace(shape, packed=0)  # one sequence at a time
    sequences = list(_sequences(rows, targets, data))
    try:
        _check_all(sequences, data, serving)
        _check_cut(sequences, data, serving, found)
        for item in sample_of(sequences):
            found.samples.append(_taken_apart(item, data, serving, shape))
            _check_sample(item, data, serving, shape, found)
    finally:
        found.facts["sequences"] = len(sequences)
        found.facts["loss_tokens"] = int(data.target_length.sum())
        if beside:
            found.write(beside)
    return found


def sample_of(sequences: Sequence[_Sequence]) -> list[_Sequence]:
    """All sequences of `ROWS_SHOWN` rows, chosen by a hash of their ids."""
    rows = {item.row.id for item in sequences}
    ranked = sorted(rows, key=lambda row: hashlib.sha256(row.encode("utf-8", "replace")).digest())
    shown = set(ranked[:ROWS_SHOWN])
    return [item for item in sequences if item.row.id in shown]


def _sequences(rows: Sequence[Labelled], targets: Targets, data: Encoded) -> Iterator[_Sequence]:
    for row, wanted, numbers in zip(rows, targets, data.of_row, strict=True):
        for target, number in zip(wanted, numbers, strict=True):
            yield _Sequence(number, row, target)


def _check_all(sequences: Sequence[_Sequence], data: Encoded, serving: Renderer) -> None:
    """Every label says something, every target is there, and every whole one ends."""
    last = (data.target_start + data.target_length - 1).clamp(min=0)
    ends = (data.target[last] == serving.end).tolist() if len(data.target) else []
    lengths = data.target_length.tolist()
    for item in sequences:
        words = item.target.label or item.target.rationale
        if not words.strip():
            raise _fault("EMPTY_LABEL", item, "its label is empty", "remove or label the row")
        if lengths[item.number] == 0:
            raise _fault(
                "NO_LOSS",
                item,
                "none of its tokens would be trained",
                "raise max_output_tokens or shorten the row",
            )
        cut = bool(item.target.rationale) and lengths[item.number] >= serving.max_output_tokens
        if not ends[item.number] and not cut:
            raise _fault(
                "NO_END",
                item,
                f"its target does not end in the end mark (id {serving.end}), so the model would "
                "never learn to stop",
                "check eos_token and chat_template of the model's tokenizer",
            )


def _check_cut(
    sequences: Sequence[_Sequence], data: Encoded, serving: Renderer, found: Audit
) -> None:
    """A few inputs may be too long; many mean that the model does not see what the teacher saw."""
    found.facts |= {"cut_inputs": data.cut_inputs, "cut_rationales": data.cut_rationales}
    if not data.cut_inputs:
        return
    longest = (data.source_length >= serving.max_input_tokens).tolist()
    first = next((item for item in sequences if longest[item.number]), sequences[0])
    words = (
        f"{data.cut_inputs} of {len(sequences)} inputs are longer than the "
        f"{serving.max_input_tokens} tokens that the model reads, and lose a part"
    )
    if data.cut_inputs > MOST_CUT_INPUTS * len(sequences):
        raise _fault("INPUT_CUT", first, words, "raise max_context_length or shorten the rows")
    found.notes.append(f"Note: {words}; one of them is row {first.row.id}.")


def _check_sample(
    item: _Sequence, data: Encoded, serving: Renderer, shape: Shape, found: Audit
) -> None:
    source, target = _ids(data, item.number)
    (prompt,) = serving.prompts(item.target.task, [item.row.input_text])
    if prompt.ids != source:
        raise _fault(
            "RENDER",
            item,
            "training and serving write its prompt differently: "
            + _difference(serving.tokenizer, source, prompt.ids),
            "this is a fault of the tokenizer files or of this library; nothing was trained",
        )
    ids, mask = trained_tokens(collate(data, [item.number], shape), shape)
    carried = [token for token, loss in zip(ids, mask, strict=True) if loss]
    if carried != target or ids != source + target:
        raise _fault(
            "LOSS_MASK",
            item,
            "the tokens that carry loss are not its target: "
            + _difference(serving.tokenizer, target, carried),
            "this is a fault of this library; nothing was trained",
        )
    if serving.style == "chat":
        _check_template(item, serving)
    if not prompt.truncated:
        _check_text(item, source, serving, found)


def _check_template(item: _Sequence, serving: Renderer) -> None:
    """The template must go on from the prompt exactly as the target does."""
    if serving.is_encoder_decoder:
        return
    messages = serving.messages(item.row.input_text)
    prompt = chat.prompt_text(serving.tokenizer, messages)
    whole = chat.whole_text(serving.tokenizer, messages, item.target.label)
    wanted = f"{serving.frame.before}{item.target.label}{serving.frame.after}"
    if not whole.startswith(prompt) or whole[len(prompt) :].rstrip() != wanted.rstrip():
        raise _fault(
            "TEMPLATE",
            item,
            f"the chat template writes {whole[len(prompt) :][:80]!r} where the target is "
            f"{wanted[:80]!r}",
            "use a template that renders replies the same way in every turn",
        )


def _check_text(item: _Sequence, source: list[int], serving: Renderer, found: Audit) -> None:
    """What the student reads must hold the row's text, which is what a teacher is shown."""
    text = item.row.input_text
    # Templates may shorten older turns (some drop their reasoning), never the last one.
    wanted = text.messages[-1]["content"] if isinstance(text, chat.Conversation) else str(text)
    if _loose(wanted) in _loose(serving.tokenizer.decode(source, skip_special_tokens=False)):
        return
    if serving.tokenizer.unk_token_id in source:
        found.notes.append(
            f"Note: row {item.row.id} holds characters that the tokenizer does not know."
        )
        return
    raise _fault(
        "INPUT_TEXT",
        item,
        f"the student does not see the row's text: {wanted[:60]!r} is not in its prompt",
        "check the tokenizer's normaliser and the chat template",
    )


def _loose(text: str) -> str:
    """Letters and digits alone: tokenizers change white space, case and accents for good reason."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    return "".join(sign for sign in plain if sign.isalnum())


def trained_tokens(batch: Batch, shape: Shape) -> tuple[list[int], list[bool]]:
    """The ids of a batch of one sequence in reading order, and which of them carry loss.

    Taken from the tensors that the loss sees, not from the data they were made of.
    """
    (piece,) = batch.pieces
    labels = piece.labels.tolist()
    if shape.is_encoder_decoder:
        read = batch.encoder["input_ids"][0].tolist()
        return read + labels, [False] * len(read) + [True] * len(labels)
    ids = piece.inputs["input_ids"][0].tolist()
    carries = [False] * len(ids)
    for position, label in zip(piece.positions.tolist(), labels, strict=True):
        if ids[position + 1] == label:
            carries[position + 1] = True
    return ids, carries


def _taken_apart(item: _Sequence, data: Encoded, serving: Renderer, shape: Shape) -> Sample:
    ids, mask = trained_tokens(collate(data, [item.number], shape), shape)
    segments: list[Segment] = []
    start = 0
    for at in range(1, len(ids) + 1):
        if at == len(ids) or mask[at] != mask[start]:
            words = serving.tokenizer.decode(ids[start:at], skip_special_tokens=False)
            segments.append(Segment(words, mask[start]))
            start = at
    return Sample(item.row.id, item.target.task, len(ids), sum(mask), tuple(segments))


def _ids(data: Encoded, number: int) -> tuple[list[int], list[int]]:
    def part(flat: Any, start: Any, length: Any) -> list[int]:
        begin = int(start[number])
        ids: list[int] = flat[begin : begin + int(length[number])].tolist()
        return ids

    return (
        part(data.source, data.source_start, data.source_length),
        part(data.target, data.target_start, data.target_length),
    )


def _difference(tokenizer: Any, wanted: list[int], found: list[int]) -> str:
    """Where two lists of ids part, with a few tokens of both."""
    pairs = enumerate(zip(wanted, found, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(wanted), len(found)))
    shown = [tokenizer.decode(ids[at : at + 6]) for ids in (wanted, found)]
    return f"at token {at + 1} {shown[0]!r} against {shown[1]!r}"


def _fault(code: str, item: _Sequence, what: str, hint: str) -> UserError:
    return UserError(f"AUDIT_{code}", f"row {item.row.id}: {what}", hint)
