"""The audit before the first step: what it shows, and every fault it stops at."""

import dataclasses
import json

import pytest

from pipestill.errors import UserError
from pipestill.models.chat import Conversation
from pipestill.models.render import Renderer
from pipestill.records import Labelled
from pipestill.training import audit as module
from pipestill.training.audit import Audit, audit
from pipestill.training.batches import encode
from pipestill.training.forward import shape_of
from pipestill.training.objectives import OBJECTIVES, Target
from tests.models.chatml import CHATML, HISTORY, chat_tokenizer
from tests.training.tiny import KINDS, make_loaded, make_rows


def prepared(kind="llama", rows=None, objective="dss", renderer=None, limit=128):
    loaded = make_loaded(kind)
    rows = make_rows(8) if rows is None else rows
    renderer = renderer or Renderer(loaded.tokenizer, loaded.is_encoder_decoder, limit, 64)
    targets = OBJECTIVES[objective](rows, 0)
    return rows, targets, encode(rows, targets, renderer), renderer, shape_of(loaded)


def row(text="red dog", label="blue", name="r1") -> Labelled:
    return Labelled(id=name, input_text=text, output_text=label, label_source="gold")


@pytest.mark.parametrize("kind", KINDS)
def test_the_sample_marks_the_target_and_nothing_else(kind, tmp_path):
    rows, targets, data, renderer, shape = prepared(kind, [row()], "label_only")
    found = audit(rows, targets, data, renderer, shape, beside=tmp_path / "m")
    (sample,) = found.samples
    read = "predict: red dog</s>" if shape.is_encoder_decoder else "predict: red dog\n"
    assert sample.text() == f"{read}⟦blue</s>⟧"
    assert (sample.row, sample.loss_tokens) == ("r1", int(data.target_length[0]))
    assert f"{read}⟦blue</s>⟧" in (tmp_path / "m.audit.txt").read_text(encoding="utf-8")
    written = json.loads((tmp_path / "m.audit.json").read_text(encoding="utf-8"))
    assert written["samples"][0]["segments"] == [[read, False], ["blue</s>", True]]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", ["t5_tied", "gpt2"])
def test_every_objective_passes(kind, objective):
    found = audit(*prepared(kind, make_rows(30), objective))
    assert len({sample.row for sample in found.samples}) == module.ROWS_SHOWN
    assert all(sample.loss_tokens > 0 for sample in found.samples)


def test_a_chat_with_its_own_end_mark():
    renderer = Renderer(chat_tokenizer(CHATML), False, 256, 64, "chat")
    rows = [row(Conversation("plain", HISTORY), "blue")]
    (sample,) = audit(*prepared(rows=rows, objective="label_only", renderer=renderer)).samples
    assert sample.text().endswith("and now?<|im_end|>\n<|im_start|>assistant\n⟦blue<|im_end|>⟧")


def test_an_empty_label():
    with pytest.raises(UserError, match=r"AUDIT_EMPTY_LABEL.*row r1"):
        audit(*prepared(rows=[row(label="  ")], objective="label_only"))


def test_a_target_without_tokens():
    rows, targets, data, renderer, shape = prepared()
    data.target_length[2] = 0
    with pytest.raises(UserError, match=r"AUDIT_NO_LOSS.*row r1"):
        audit(rows, targets, data, renderer, shape)


@pytest.mark.parametrize("kind", ["t5_tied", "llama"])
def test_an_end_mark_that_is_not_trained(kind):
    rows, targets, data, renderer, shape = prepared(kind, objective="label_only")
    data.target_length[0] -= 1
    with pytest.raises(UserError, match=r"AUDIT_NO_END.*row r0"):
        audit(rows, targets, data, renderer, shape)


def test_a_rationale_that_was_cut_needs_no_end_mark():
    rows = [dataclasses.replace(row(), rationale="so " * 200)]
    assert audit(*prepared("t5_tied", rows)).facts["cut_rationales"] == 1


def test_many_cut_inputs_stop_and_few_are_a_note():
    long = row("word " * 100, name="long")
    with pytest.raises(UserError, match=r"AUDIT_INPUT_CUT.*row long.*max_context_length"):
        audit(*prepared(rows=[row(), long], objective="label_only", limit=40))
    few = [row(name=f"r{i}") for i in range(30)] + [long]
    found = audit(*prepared(rows=few, objective="label_only", limit=40))
    assert "1 of 31 inputs" in found.notes[0]
    assert "row long" in found.notes[0]


def test_training_and_serving_that_differ():
    rows, targets, data, renderer, shape = prepared(objective="label_only")
    serving = dataclasses.replace(renderer, style="plain")
    with pytest.raises(UserError, match=r"AUDIT_RENDER.*row \w+: .*at token 1"):
        audit(rows, targets, data, serving, shape)


@pytest.mark.parametrize("kind", ["t5_tied", "llama"])
def test_a_loss_mask_that_is_off_by_one(kind, monkeypatch):
    rows, targets, data, renderer, shape = prepared(kind, objective="label_only")
    real = module.collate

    def shifted(*arguments):
        batch = real(*arguments)
        (piece,) = batch.pieces
        piece = dataclasses.replace(piece, positions=piece.positions[:-1], labels=piece.labels[:-1])
        return dataclasses.replace(batch, pieces=(piece,))

    monkeypatch.setattr(module, "collate", shifted)
    with pytest.raises(UserError, match="AUDIT_LOSS_MASK"):
        audit(rows, targets, data, renderer, shape)


def test_a_template_that_changes_replies():
    shouting = CHATML.replace(
        "message['content'] +", "(message['content'] | replace('blue', 'BLUE')) +"
    )
    renderer = Renderer(chat_tokenizer(shouting), False, 256, 64, "chat")
    rows = [row(Conversation("plain", HISTORY), "blue")]
    into = Audit()
    with pytest.raises(UserError, match=r"AUDIT_TEMPLATE.*row r1.*BLUE"):
        audit(*prepared(rows=rows, objective="label_only", renderer=renderer), into=into)
    assert into.samples  # what was wrong can be looked at


def test_an_input_that_the_student_does_not_see():
    deaf = CHATML.replace("message['content'] +", "(message['content'] | replace('now', '')) +")
    renderer = Renderer(chat_tokenizer(deaf), False, 256, 64, "chat")
    rows = [row(Conversation("plain", HISTORY), "blue")]
    with pytest.raises(UserError, match=r"AUDIT_INPUT_TEXT.*row r1.*and now"):
        audit(*prepared(rows=rows, objective="label_only", renderer=renderer))


def test_the_target_of_an_explanation_counts_too():
    rows, targets, data, renderer, shape = prepared()
    targets[0] = [targets[0][0], Target("explain", rationale=" ")]
    with pytest.raises(UserError, match=r"AUDIT_EMPTY_LABEL.*row r0"):
        audit(rows, targets, data, renderer, shape)


def test_rows_cannot_write_to_the_terminal():
    found = audit(*prepared(rows=[row("\x1b[31mred")], objective="label_only"))
    assert "\x1b" not in found.text()
    assert "\x1b[32m" in found.text("\x1b[32m", "\x1b[0m")
