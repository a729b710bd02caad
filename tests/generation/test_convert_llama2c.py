"""Real weights: the 260k-parameter Llama of llama2.c, converted, as a model and as a teacher."""

import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipestill.config import TeacherConfig
from pipestill.generation.label import label_shard
from pipestill.models.convert_llama2c import main, read_pieces
from pipestill.records import write_jsonl
from tests.generation.helpers import rows


@pytest.fixture(scope="module")
def source(shared_data: Path) -> Path:
    return shared_data / "model_stories260K"


@pytest.fixture(scope="module")
def folder(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    target = tmp_path_factory.mktemp("converted") / "stories260k"
    assert main([str(source / "stories260K.bin"), str(source / "tok512.bin"), str(target)]) == 0
    return target


def test_it_loads_and_tells_a_story(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("Once upon a time", return_tensors="pt")
    out = model.generate(**prompt, max_new_tokens=60, do_sample=False)[0]
    text = tokenizer.decode(out, skip_special_tokens=True)
    # What llama2.c itself prints for this model at temperature 0.
    assert text.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
        "park. One day, she saw a big, red ball."
    )
    assert not list(folder.glob("*.bin"))


def _encode(pieces: list[tuple[str, float]], text: str) -> list[int]:
    """llama2.c's own encoder (`encode` in run.c): best pair first, leftmost of equals."""
    ids = {piece: place for place, (piece, _) in enumerate(pieces)}
    tokens = [1]
    for sign in (" " if text else "") + text:
        tokens += [ids[sign]] if sign in ids else [byte + 3 for byte in sign.encode("utf-8")]
    while True:
        best: tuple[float, int, int] | None = None
        for place in range(1, len(tokens) - 1):
            merged = ids.get(pieces[tokens[place]][0] + pieces[tokens[place + 1]][0])
            if merged is not None and (best is None or pieces[merged][1] > best[0]):
                best = (pieces[merged][1], place, merged)
        if best is None:
            return tokens
        tokens[best[1] : best[1] + 2] = [best[2]]


def test_ids_are_those_of_llama2c(folder: Path, source: Path) -> None:
    from transformers import AutoTokenizer

    pieces, tokenizer = read_pieces(source / "tok512.bin"), AutoTokenizer.from_pretrained(folder)
    words = ["Lily", "the dog", " said", "\n", "“Hi”", "é", "日本", "don't", "  ", "1,000", "aaaa"]

    @settings(max_examples=150, deadline=None)
    @given(
        st.one_of(
            st.lists(st.sampled_from(words), max_size=12).map("".join),
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=40),
        )
    )
    def check(text: str) -> None:
        found = tokenizer(text)["input_ids"]
        assert found == _encode(pieces, text)
        assert tokenizer.decode(found, skip_special_tokens=True) == text

    check()


def test_as_a_teacher_it_gives_counts_and_no_crash(folder: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [*rows(4), *rows(8, gold="yes")[4:]])
    write_jsonl(tmp_path / "evaluation.jsonl", [])
    summary = label_shard(
        str(tmp_path / "train.jsonl"),
        str(tmp_path / "evaluation.jsonl"),
        str(tmp_path / "labelled.jsonl"),
        shard="0/1",
        state_dir="",
        config=TeacherConfig(
            model_reference=str(folder),
            prompt="generic.v1",
            shots=1,
            max_new_tokens=24,
            min_success=0.0,
        ),
    )
    assert summary["calls_made"] == 8
    assert summary["audit_rows"] == 4
    assert summary["rows_failed"] + summary["rows_labelled"] == 8
    assert summary["cached_prompt_tokens"] > summary["prompt_tokens"] / 2


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda data: data[:-4], "LLAMA2C_SIZE"),
        (lambda data: data + b"1234", "LLAMA2C_SIZE"),
        (lambda data: data[:20], "LLAMA2C_HEADER"),
        (lambda data: b"PK\x03\x04" * 50, "LLAMA2C_HEADER"),
        (lambda data: struct.pack("<i", 0x616B3432) + data[4:], "LLAMA2C_HEADER"),
        (lambda data: struct.pack("<7i", 64, 1, 1, 7, 1, 512, 8) + data[28:], "LLAMA2C_HEADER"),
    ],
)
def test_broken_weights_are_named(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change, code: str
) -> None:
    broken = tmp_path / "broken.bin"
    broken.write_bytes(change((source / "stories260K.bin").read_bytes()))
    assert main([str(broken), str(source / "tok512.bin"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert code in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_broken_tokenizers_are_named(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (source / "tok512.bin").read_bytes()
    weights = str(source / "stories260K.bin")
    for data in (whole[:-3], whole[:100], b"", whole + struct.pack("<fi", 0.0, 2) + b"zz"):
        (tmp_path / "t.bin").write_bytes(data)
        assert main([weights, str(tmp_path / "t.bin"), str(tmp_path / "out")]) == 2
        assert "LLAMA2C_TOKENIZER" in capsys.readouterr().err
    assert main([weights, str(tmp_path / "absent"), str(tmp_path / "out")]) == 2
    assert "LLAMA2C_UNREADABLE" in capsys.readouterr().err
