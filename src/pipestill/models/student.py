"""A student that answers and explains, and how it is kept on disk.

A saved student is an ordinary `save_pretrained` folder plus `pipestill.json`, which says what it
was trained for. Any other model folder, pocket name or hub name serves as an untrained student.
"""

import dataclasses
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipestill.errors import UserError
from pipestill.models.loading import Loaded, folder_fingerprint, load, resolve_reference
from pipestill.models.render import PREFIXES, SEPARATOR, Prompt, Renderer, renderer_for
from pipestill.records import write_json

INFO_FILE = "pipestill.json"
DEFAULT_INPUT_TOKENS, DEFAULT_OUTPUT_TOKENS = 1024, 256
# What of a description decides how a model is asked.
ASKING = ("style", "instruction", "max_input_tokens", "max_output_tokens")


@dataclass(frozen=True)
class Generated:
    """One answer. `latency_ms` is the row's own time (rendering, generation) at batch size 1.

    `output_tokens` counts what was generated, end mark included.
    """

    text: str
    prompt_tokens: int
    output_tokens: int
    latency_ms: float | None
    truncated_input: bool


@dataclass(frozen=True)
class Student:
    """A loaded model with the way it is to be asked. Greedy: the same input, the same answer."""

    loaded: Loaded
    renderer: Renderer
    info: Mapping[str, Any]

    @classmethod
    def load(cls, reference_or_folder: str, asked_like: Mapping[str, Any] = {}) -> "Student":
        """Loads a saved student, or any model as an untrained one.

        Args:
            reference_or_folder: what to load.
            asked_like: the `info` of a tuned model; its style, instruction and limits hold instead
                of this model's own, so that both read the same prompts.

        Raises:
            UserError: as `pipestill.models.loading.load`; ``STUDENT_UNREADABLE``.
        """
        described = _read_info(resolve_reference(reference_or_folder))
        loaded = load(reference_or_folder)
        borrowed = {name: asked_like[name] for name in ASKING if name in asked_like}
        info = {**_default_info(loaded), **described, **borrowed}
        limits = int(info["max_input_tokens"]), int(info["max_output_tokens"])
        renderer = renderer_for(loaded, *limits, info)
        loaded.model.generation_config = plain_greedy(loaded, renderer.end)
        return cls(loaded, renderer, info)

    @property
    def parameters(self) -> int:
        return self.loaded.parameters

    @property
    def bytes(self) -> int:
        return self.loaded.bytes

    @property
    def max_input_tokens(self) -> int:
        return self.renderer.max_input_tokens

    def answer(
        self, inputs: Sequence[str], *, batch_size: int, max_new_tokens: int
    ) -> list[Generated]:
        """Answers `inputs` (task ``predict``), in their order."""
        if self.info["objective"] != "label_then_rationale":
            return self._generate("predict", inputs, batch_size, max_new_tokens)
        # The answer is complete at the separator: what would follow it is never paid for.
        found = self._generate("predict", inputs, batch_size, max_new_tokens, stop=SEPARATOR)
        return [dataclasses.replace(g, text=self.renderer.answer_part(g.text)) for g in found]

    def explain(
        self, inputs: Sequence[str], *, batch_size: int, max_new_tokens: int
    ) -> list[Generated]:
        """Explains the answers to `inputs` (task ``explain``), in their order."""
        if self.info["objective"] != "label_then_rationale":
            return self._generate("explain", inputs, batch_size, max_new_tokens)
        found = self._generate("predict", inputs, batch_size, max_new_tokens)
        return [dataclasses.replace(g, text=self.renderer.rationale_part(g.text)) for g in found]

    def _generate(
        self, task: str, inputs: Sequence[str], batch_size: int, max_new_tokens: int, stop: str = ""
    ) -> list[Generated]:
        """Greedy generation, longest inputs first (memory runs out early or never)."""
        begun = time.perf_counter()
        prompts = self.renderer.prompts(task, inputs)
        rendering_ms = (time.perf_counter() - begun) * 1e3 / max(1, len(prompts))
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].ids))
        limit = min(max_new_tokens, self.renderer.max_output_tokens)
        found: dict[int, Generated] = {}
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            begun = time.perf_counter()
            outputs = list(self._run([prompts[i].ids for i in rows], limit, stop))
            spent = (time.perf_counter() - begun) * 1e3 + rendering_ms
            for i, ids in zip(rows, outputs, strict=True):
                latency = spent if batch_size == 1 else None
                found[i] = self._generated(prompts[i], ids, latency)
        return [found[i] for i in range(len(prompts))]

    def _generated(self, prompt: Prompt, ids: list[int], latency: float | None) -> Generated:
        text = self.renderer.tokenizer.decode(ids, skip_special_tokens=True).strip()
        return Generated(text, len(prompt.ids), len(ids), latency, prompt.truncated)

    def _run(self, rows: list[list[int]], limit: int, stop: str) -> Iterator[list[int]]:
        """The generated ids of one batch, each up to and with its end mark."""
        import torch

        model, tokenizer = self.loaded.model, self.renderer.tokenizer
        left = not self.loaded.is_encoder_decoder
        ids, mask = padded(rows, tokenizer.pad_token_id, left=left)
        extra = {"stop_strings": [stop], "tokenizer": tokenizer} if stop else {}
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=limit,
                **extra,
            )
        output = output[:, ids.shape[1] :] if left else output[:, 1:]
        ends = set(model.generation_config.eos_token_id)
        for row in output.tolist():
            yield _until_end(row, ends, tokenizer.pad_token_id if stop else None)


def save_student(
    model: Any,
    tokenizer: Any,
    folder: str | Path,
    info: Mapping[str, Any],
    *,
    dtype: Any = None,
    adapter: Path | None = None,
    **files: str,
) -> None:
    """Writes a student's folder at once: safetensors, tokenizer and `pipestill.json`.

    Args:
        model: the trained model.
        tokenizer: its tokenizer.
        folder: where to; a folder that is there is replaced.
        info: objective, limits and origin; prefixes and the digest are added.
        dtype: the torch dtype to store the weights in, into which `model` itself is turned; None
            for the one it has.
        adapter: a folder of LoRA adapters, kept as ``adapter/``.
        files: more text files for the folder; ``train_log="…"`` becomes ``train_log.jsonl``.
    """
    target = Path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        work.chmod(0o755)
        (model if dtype is None else model.to(dtype)).save_pretrained(work, safe_serialization=True)
        tokenizer.save_pretrained(work)
        for name, text in files.items():
            (work / f"{name}.jsonl").write_text(text, encoding="utf-8")
        write_json(
            work / INFO_FILE, {**info, "prefixes": PREFIXES, "digest": folder_fingerprint(work)}
        )
        if adapter is not None:
            shutil.copytree(adapter, work / "adapter")
        for path in work.rglob("*"):  # the writer of safetensors makes them private; servers read
            path.chmod(0o755 if path.is_dir() else 0o644)
        _move(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _move(work: Path, target: Path) -> None:
    """Renames `work` to `target`; copies where the file system cannot rename folders (mounts)."""
    if target.exists():
        shutil.rmtree(target)
    try:
        os.rename(work, target)
    except OSError:
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(work.rglob("*"), key=lambda p: p.name == INFO_FILE):
            place = target / path.relative_to(work)
            if path.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place)


def _read_info(source: str) -> dict[str, Any]:
    path = Path(source) / INFO_FILE
    if not path.is_file():
        return {}
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        return {**info, "objective": str(info["objective"])}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            "STUDENT_UNREADABLE",
            f"{path}: not a student's description ({type(error).__name__}: {error})",
            "train the student again, or delete the file to use the folder as a plain model",
        ) from error


def _default_info(loaded: Loaded) -> dict[str, Any]:
    """What holds for a model that no run of ours trained; a short context goes to the input."""
    positions = getattr(loaded.model.config, "max_position_embeddings", None)
    output = min(DEFAULT_OUTPUT_TOKENS, positions // 4) if positions else DEFAULT_OUTPUT_TOKENS
    limits = {"max_input_tokens": DEFAULT_INPUT_TOKENS, "max_output_tokens": output}
    return {"objective": "none", **limits}


def plain_greedy(loaded: Loaded, end: int) -> Any:
    """Greedy settings that keep the model's special ids and none of its sampling habits.

    `end` is the id that closes what the model was taught to write; generation stops there too.
    """
    from transformers import GenerationConfig

    old = loaded.model.generation_config
    listed = old.eos_token_id if isinstance(old.eos_token_id, list) else [old.eos_token_id]
    ends = {*listed, loaded.tokenizer.eos_token_id, end} - {None}
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        eos_token_id=sorted(ends),
        pad_token_id=loaded.tokenizer.pad_token_id,
        bos_token_id=old.bos_token_id,
        decoder_start_token_id=old.decoder_start_token_id,
    )


def padded(rows: Sequence[Sequence[int]], pad: int, *, left: bool = False) -> tuple[Any, Any]:
    """Ids and mask (0 or 1), both (rows, longest) int64; left for decoders, which write on."""
    import torch

    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place] = torch.tensor(row, dtype=torch.long)
        mask[i, place] = 1
    return ids, mask


def _until_end(row: list[int], ends: set[int], filler: int | None) -> list[int]:
    """The row up to and with its end mark; one that stopped at a string loses its `filler`."""
    for position, token in enumerate(row):
        if token in ends:
            return row[: position + 1]
    while row and row[-1] == filler:
        row = row[:-1]
    return row
