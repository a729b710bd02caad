"""The embedded folders must load as any other model does, and the teacher must know its task."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from pipestill.pocket import DATA_DIR, POCKET, prompt, tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MODELS = DATA_DIR.parent / "models"
FLOOR = 0.75
TEXTS = (
    "Where would you store a jar of peanut butter? (a) pantry (b) shelf (c) don't know",
    "If there are 3 cars and 2 more arrive, how many cars are there? (3 + 2) * 10 / 4.5 = 12.50",
    "  two spaces, a tab\tand lines\n\n\nQ: 2026-11-24 at 07:45, 1,000,000 people\r\n",
    "na\u00efve caf\u00e9 \u2014 \u65e5\u672c\u8a9e \U0001f642 \u0417\u0434\u0440\u0430",
    "predict: Maria from Oslo brings back a toy. It looks torn.",
)


@pytest.fixture(scope="module")
def teacher() -> tuple[Any, Any]:
    folder = POCKET["pocket-teacher"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def base() -> tuple[Any, Any]:
    folder = POCKET["pocket-base"]
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", sorted(POCKET))
def test_any_text_round_trips(name: str, text: str) -> None:
    tok = transformers.AutoTokenizer.from_pretrained(POCKET[name])
    ids = tok(text).input_ids
    assert tok.decode(ids, skip_special_tokens=True) == text


def test_world_words_are_one_token(teacher: tuple[Any, Any]) -> None:
    tok = teacher[1]
    for word in tokenizer.world_words():
        assert len(tok(f" {word}").input_ids) == 1, word


def test_english_is_not_spelt_out(teacher: tuple[Any, Any]) -> None:
    text = TEXTS[0]
    assert len(text) / len(teacher[1](text).input_ids) > 2.0


def test_only_the_student_side_closes_its_texts(
    teacher: tuple[Any, Any], base: tuple[Any, Any]
) -> None:
    assert base[1]("It is late.").input_ids[-1] == base[1].eos_token_id
    assert teacher[1].eos_token_id not in teacher[1]("Q: It is late.\nA:").input_ids


def test_base_copies_and_compares(base: tuple[Any, Any]) -> None:
    model, tok = base
    note = (
        "Omar from Oslo brings back a toy. It was bought 52 days ago. It cost 9 euros. It is torn."
    )
    asked = {
        f"find city: {note}": "Oslo",
        f"find days: {note}": "52",
        "explain: 52 is more or less than 45?": "52 is more than 45.",
        "predict: 52 is more or less than 61?": "less",
        "explain: The limit is 45 days for a toy. It was bought 52 days ago.":
            "52 is more than 45, so it is late.",
    }  # fmt: skip
    for source, expected in asked.items():
        out = model.generate(**tok(source, return_tensors="pt"), max_new_tokens=40)
        assert tok.decode(out[0], skip_special_tokens=True) == expected


def test_teacher_answers_by_chain_of_thought(teacher: tuple[Any, Any]) -> None:
    model, tok = teacher
    lines = (DATA_DIR / "eval.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    rows = [json.loads(line) for line in lines]
    texts = [prompt.filled(5, row["input_text"]) for row in rows]
    batch = tok(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        out = model.generate(**batch, max_new_tokens=48, do_sample=False)
    answers = tok.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    found = [re.search(r"So the answer is (\w+)\.", answer) for answer in answers]
    pairs = zip(found, rows, strict=True)
    right = sum(bool(match) and match[1] == row["output_text"] for match, row in pairs)
    assert right / len(rows) >= FLOOR


def test_folders_are_small_and_hold_no_pickles() -> None:
    files = [path for path in MODELS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 16_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".jinja"}
    assert (MODELS / "README.md").is_file()
