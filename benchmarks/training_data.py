"""Rows of token ids for the training benchmark: real where the data lies beside, else made up.

A row is ``{"prompt": [...], "label": [...], "rationale": [...]}``; chat rows have no rationale.
Rows travel to the compared trainers as ids, so that all of them train on the same tokens.
"""

import json
import os
import random
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, list[int]]
LONGEST_CHAT = 512


def data_folder() -> Path:
    return Path(os.environ.get("PIPESTILL_SHARED", ROOT.parent / "shared")) / "data"


def question_rows(count: int) -> tuple[list[Row], str]:
    """CommonsenseQA questions with labels and rationales for T5, and what they are."""
    folder = data_folder()
    if not (folder / "dss_cqa").is_dir() or not (folder / "tok_t5").is_dir():
        return _random_rows(count, ((35, 90), (2, 6), (15, 60))), "generated rows"
    tokenizer = t5_tokenizer(folder / "tok_t5" / "sentencepiece.model")
    rows = []
    for question, text in _cqa(folder / "dss_cqa"):
        choices = "\n".join(
            f"({c}) {t}" for c, t in zip("abcde", question["choices"], strict=False)
        )
        rows.append(
            {
                "prompt": f"{question['question']}\nAnswer Choices:\n{choices}",
                "label": question["answer"],
                "rationale": text,
            }
        )
        if len(rows) == count:
            break
    return [
        {name: tokenizer(text).input_ids for name, text in row.items()} for row in rows
    ], "CommonsenseQA rows"


def chat_rows(count: int) -> tuple[list[Row], str]:
    """Dialogues whose last assistant turn is trained, for GPT-2's tokenizer."""
    folder = data_folder()
    if not (folder / "hh_helpful").is_dir() or not (folder / "tok_gpt2").is_dir():
        return _random_rows(count, ((20, 300), (10, 120), (0, 0))), "generated rows"
    from transformers import GPT2Tokenizer

    place = folder / "tok_gpt2"
    tokenizer = GPT2Tokenizer(
        vocab=str(place / "gpt2_vocab.json"), merges=str(place / "gpt2_merges.txt")
    )
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    found = json.loads((folder / "hh_helpful" / "helpful.json").read_text(encoding="utf-8"))
    texts = [max(zip(pair["score"], pair["text"], strict=True))[1] for pair in found]
    rows: list[Row] = []
    for text in texts:
        prompt, mark, answer = text.rpartition("\n\nAssistant:")
        row = {
            "prompt": tokenizer(prompt + mark).input_ids,
            "label": [*tokenizer(answer).input_ids, end],
        }
        if mark and answer.strip() and sum(map(len, row.values())) <= LONGEST_CHAT:
            rows.append({**row, "rationale": []})
        if len(rows) == count:
            break
    return rows, "chat rows"


def t5_tokenizer(path: Path) -> Any:
    """T5's tokenizer from its sentencepiece file, without the sentencepiece package."""
    from transformers import T5Tokenizer

    return T5Tokenizer(vocab=list(_pieces(path.read_bytes())), extra_ids=0)


def encoded(
    rows: Sequence[Row], tasks: Sequence[str], prefixes: dict[str, list[int]] | None = None
) -> Any:
    """The rows as the library's `Encoded`: one sequence for each of `tasks` (fields of a row)."""
    import torch

    from pipestill.training.batches import Encoded

    prefixes = prefixes or {}
    pairs = [(prefixes.get(task, []) + row["prompt"], row[task]) for row in rows for task in tasks]
    source, target = (
        torch.tensor([len(ids) for ids in column]) for column in zip(*pairs, strict=True)
    )
    is_label = torch.tensor([task == "label" for task in tasks]).repeat(len(rows))
    width = len(tasks)
    return Encoded(
        source=torch.tensor([i for ids, _ in pairs for i in ids], dtype=torch.int32),
        source_start=source.cumsum(0) - source,
        source_length=source,
        target=torch.tensor([i for _, ids in pairs for i in ids], dtype=torch.int32),
        target_start=target.cumsum(0) - target,
        target_length=target,
        label_length=torch.where(is_label, target, 0),
        of_row=[list(range(i * width, (i + 1) * width)) for i in range(len(rows))],
        cut_inputs=0,
        cut_rationales=0,
    )


def _cqa(folder: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Questions with the first explanation of their recorded outputs, where it names an answer."""
    lines = (folder / "cqa_train.json").read_text(encoding="utf-8").splitlines()
    outputs = [
        text
        for part in range(10)
        for text in json.loads((folder / "llm" / f"train_CoT_{part}.json").read_text("utf-8"))
    ]
    for line, output in zip(lines, outputs, strict=True):
        rationale, answered, _ = output.split("\n\nQ:")[0].partition("So the answer is")
        if answered and rationale.strip():
            yield json.loads(line), rationale.strip()


def _random_rows(count: int, ranges: Sequence[tuple[int, int]]) -> list[Row]:
    dice = random.Random(0)  # noqa: S311
    names = ("prompt", "label", "rationale")
    return [
        {
            name: dice.choices(range(2, 32_000), k=dice.randint(*pair))
            for name, pair in zip(names, ranges, strict=True)
        }
        for _ in range(count)
    ]


def _pieces(data: bytes) -> Iterator[tuple[str, float]]:
    """Pieces and scores of a sentencepiece model: its field 1, whose fields 1 and 2 they are."""
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(value))
            yield piece[1].decode(), struct.unpack("<f", piece[2])[0]


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of the fields of a protocol buffer message."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(data, place)
        else:
            size, place = _varint(data, place) if kind == 2 else ({1: 8, 5: 4}[kind], place)
            value, place = data[place : place + size], place + size
        yield key >> 3, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
