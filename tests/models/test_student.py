"""A student on disk and at work."""

import json
import os

import pytest
import torch

from pipestill.errors import UserError
from pipestill.models import student as module
from pipestill.models.student import Student, save_student
from tests.training.tiny import KINDS, make_folder, make_loaded

INPUTS = ["a", "b c d e f g h", "red", "a a a a", "h g f e d c b a h g f e d c b a", "blue b"]


@pytest.fixture(scope="module", params=KINDS)
def student(request, tmp_path_factory):
    return Student.load(make_folder(request.param, tmp_path_factory.mktemp("m") / request.param))


def reference(student: Student, text: str, limit: int) -> list[int]:
    """Greedy decoding of one row, one full forward pass a token: no cache, no padding."""
    model, tokenizer = student.loaded.model, student.loaded.tokenizer
    both = student.loaded.is_encoder_decoder
    ids = tokenizer("predict: " + text + ("" if both else "\n")).input_ids
    out: list[int] = []
    with torch.inference_mode():
        while len(out) < limit and (not out or out[-1] != tokenizer.eos_token_id):
            if both:
                start = [model.config.decoder_start_token_id, *out]
                logits = model(
                    input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([start])
                ).logits
            else:
                logits = model(input_ids=torch.tensor([ids + out])).logits
            out.append(int(logits[0, -1].argmax()))
    return out


def test_answers_are_greedy_and_do_not_depend_on_the_batch(student):
    wanted = [reference(student, text, 12) for text in INPUTS]
    decode = student.loaded.tokenizer.decode
    for size in (1, 2, 4, 6):
        found = student.answer(INPUTS, batch_size=size, max_new_tokens=12)
        assert [g.output_tokens for g in found] == [len(ids) for ids in wanted]
        assert [g.text for g in found] == [
            decode(ids, skip_special_tokens=True).strip() for ids in wanted
        ]


def test_counts_and_latency(student):
    alone = student.answer(INPUTS[:2], batch_size=1, max_new_tokens=3)
    beside = student.answer(INPUTS[:2], batch_size=2, max_new_tokens=3)
    assert all(g.latency_ms > 0 for g in alone)
    assert all(g.latency_ms is None for g in beside)
    assert alone[0].prompt_tokens < alone[1].prompt_tokens
    assert all(g.output_tokens <= 3 and not g.truncated_input for g in beside)


def test_no_inputs(student):
    assert student.answer([], batch_size=4, max_new_tokens=3) == []


def test_a_long_input_is_cut_and_says_so(student):
    student = Student(
        student.loaded,
        module.Renderer(student.renderer.tokenizer, student.loaded.is_encoder_decoder, 20, 8),
        student.info,
    )
    (found,) = student.answer(["red " * 50], batch_size=1, max_new_tokens=99)
    assert found.truncated_input
    assert found.prompt_tokens == 20
    assert found.output_tokens <= 8


@pytest.mark.parametrize("kind", ["t5_tied", "gpt2"])
def test_saved_and_loaded_again(tmp_path, kind):
    loaded = make_loaded(kind)
    info = {"objective": "dss", "max_input_tokens": 99, "max_output_tokens": 33}
    save_student(loaded.model, loaded.tokenizer, tmp_path / "s", info, train_log='{"step": 1}\n')
    names = {path.name for path in (tmp_path / "s").iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "pipestill.json"}
    assert (tmp_path / "s" / "train_log.jsonl").read_text() == '{"step": 1}\n'
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pkl"))]
    student = Student.load(str(tmp_path / "s"))
    assert student.info["objective"] == "dss"
    assert (student.max_input_tokens, student.renderer.max_output_tokens) == (99, 33)
    assert student.info["digest"] == student.loaded.fingerprint
    assert student.parameters == loaded.parameters
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(student.loaded.model.state_dict()[name], value)


def test_saving_replaces_and_leaves_nothing_behind(tmp_path):
    loaded = make_loaded("gpt2")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "old.txt").write_text("old")
    save_student(loaded.model, loaded.tokenizer, tmp_path / "s", {"objective": "dss"})
    assert not (tmp_path / "s" / "old.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_failed_save_leaves_the_old_student(tmp_path, monkeypatch):
    loaded = make_loaded("gpt2")
    save_student(loaded.model, loaded.tokenizer, tmp_path / "s", {"objective": "dss"})
    monkeypatch.setattr(loaded.tokenizer, "save_pretrained", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_student(loaded.model, loaded.tokenizer, tmp_path / "s", {"objective": "other"})
    assert json.loads((tmp_path / "s" / "pipestill.json").read_text())["objective"] == "dss"
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_mount_that_cannot_rename_folders(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("folders cannot be renamed here")

    real = os.rename
    monkeypatch.setattr(module.os, "rename", refuse)
    loaded = make_loaded("gpt2")
    save_student(loaded.model, loaded.tokenizer, tmp_path / "s", {"objective": "dss"})
    monkeypatch.setattr(module.os, "rename", real)
    assert Student.load(str(tmp_path / "s")).info["objective"] == "dss"
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_broken_description_is_one_line(tmp_path):
    folder = make_folder("gpt2", tmp_path / "m")
    (tmp_path / "m" / "pipestill.json").write_text("{")
    with pytest.raises(UserError, match="STUDENT_UNREADABLE") as error:
        Student.load(folder)
    assert "\n" not in str(error.value)


def test_sampling_habits_of_a_model_are_dropped(tmp_path):
    from transformers import GenerationConfig

    folder = make_folder("gpt2", tmp_path / "m")
    plain = Student.load(folder).answer(INPUTS, batch_size=3, max_new_tokens=8)
    GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=3.0, eos_token_id=[1, 7]
    ).save_pretrained(tmp_path / "m")
    student = Student.load(folder)
    assert student.loaded.model.generation_config.eos_token_id == [1, 7]
    again = student.answer(INPUTS, batch_size=3, max_new_tokens=8)
    for a, b in zip(plain, again, strict=True):
        assert a.text.startswith(b.text)  # 7 ends it earlier, nothing else differs


def test_a_description_of_brackets_is_one_line(tmp_path):
    folder = make_folder("gpt2", tmp_path / "model")
    (tmp_path / "model" / "pipestill.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="STUDENT_UNREADABLE"):
        Student.load(folder)
