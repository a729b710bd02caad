"""Supervised tuning: text, chat and code; whole and by adapters; what is refused."""

import dataclasses
import json

import pytest
import torch

from pipestill.config import DataConfig, TuneConfig
from pipestill.errors import UserError
from pipestill.models import lora
from pipestill.models.chat import Conversation
from pipestill.models.student import Student
from pipestill.records import Example, write_jsonl
from pipestill.training.audit import Audit
from pipestill.training.supervised import audit_data, tune
from tests.models.chatml import chat_tokenizer
from tests.training.tiny import COLOURS, KINDS, make_folder

CONFIG = TuneConfig(
    train_steps=8, batch_size=4, evaluation_interval=4, checkpoint_interval=4, max_output_tokens=32,
    precision="fp32", learning_rate=1e-3,
)  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    made = {kind: make_folder(kind, folder / kind) for kind in KINDS}
    made["chatml"] = make_folder("llama", folder / "chatml")
    chat_tokenizer().save_pretrained(folder / "chatml")  # ids 300 and 301
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder / "chatml")
    model.resize_token_embeddings(304)
    model.save_pretrained(folder / "chatml")
    return made


def text_rows(count=30):
    return [
        Example(id=f"w{i}", input_text="abc"[i % 3] * 3, output_text=COLOURS[i % 3])
        for i in range(count)
    ]


def chat_row(name, letter, colour):
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": letter * 3},
    ]
    text = f"user: hi\nassistant: yes?\nuser: {letter * 3}\nassistant:"
    return Example(id=name, input_text=text, output_text=colour, messages=messages)


def chat_rows(count=30):
    return [chat_row(f"c{i}", "abc"[i % 3], COLOURS[i % 3]) for i in range(count)]


def run(tmp_path, rows, model, state_dir="", **changes):
    write_jsonl(tmp_path / "rows.jsonl", rows)
    config = dataclasses.replace(CONFIG, large_model_reference=model, **changes)
    return tune(tmp_path / "rows.jsonl", "", tmp_path / "m", state_dir=state_dir, config=config)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", ["t5_untied", "llama"])
def test_a_model_learns_its_answers(tmp_path, models, kind, method):
    summary = run(
        tmp_path, text_rows(), models[kind], method=method, train_steps=160, learning_rate=5e-3,
        evaluation_interval=80, instruction="Name it.", batch_size=8,
    )  # fmt: skip
    assert summary["val_label_accuracy"] == 1.0
    assert (summary["trained_parameters"] < summary["parameters"]) == (method == "lora")
    student = Student.load(str(tmp_path / "m"))
    assert student.info["instruction"] == "Name it."
    found = student.answer(["aaa", "ccc", "bbb"], batch_size=2, max_new_tokens=20)
    assert [item.text for item in found] == ["red", "blue", "green"]
    assert all(item.output_tokens < 20 for item in found)  # it has learned to stop
    assert (tmp_path / "m" / "adapter" / "adapter_model.safetensors").is_file() == (
        method == "lora"
    )
    assert all("lora" not in name for name in student.loaded.model.state_dict())
    assert "Name it." in (tmp_path / "m.audit.txt").read_text(encoding="utf-8")
    assert list((tmp_path / "m.tensorboard").glob("events.*"))


@pytest.mark.parametrize("kind", ["chatml", "llama", "t5_tied"])
def test_a_chat_model_learns_to_reply_and_to_stop(tmp_path, models, kind):
    summary = run(
        tmp_path, chat_rows(), models[kind], task="chat", train_steps=120, learning_rate=5e-3,
        evaluation_interval=60, instruction="Be short.", batch_size=8,
    )  # fmt: skip
    assert summary["val_label_accuracy"] == 1.0
    student = Student.load(str(tmp_path / "m"))
    rows = chat_rows(3)
    talks = [Conversation(row.input_text, row.messages) for row in rows]
    found = student.answer(talks, batch_size=3, max_new_tokens=20)
    assert [item.text for item in found] == list(COLOURS)
    assert all(item.output_tokens < 20 for item in found)
    if kind == "chatml":
        end = student.loaded.tokenizer.convert_tokens_to_ids("<|im_end|>")
        saved = json.loads((tmp_path / "m" / "generation_config.json").read_text())
        assert end in saved["eos_token_id"]  # other servers stop there too
    sample = (tmp_path / "m.audit.txt").read_text(encoding="utf-8")
    assert "⟦red<|im_end|>⟧" in sample if kind == "chatml" else "red</s>⟧" in sample
    assert "Be short." in sample


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_killed_run_ends_with_the_same_weights(tmp_path, models, method, monkeypatch):
    from pipestill.training import student as module

    write_jsonl(tmp_path / "rows.jsonl", text_rows())
    config = dataclasses.replace(
        CONFIG, large_model_reference=models["llama"], method=method, lora_dropout=0.1
    )
    path = tmp_path / "rows.jsonl"
    whole = tune(path, "", tmp_path / "whole", state_dir="", config=config)
    real = module.fit

    class Killed(Exception):
        pass

    def dies(job, folder, on_step=None):
        def stop(progress):
            if on_step:
                on_step(progress)
            if progress.step == 6:
                raise Killed

        return real(job, folder, stop)

    state = str(tmp_path / "state")
    monkeypatch.setattr(module, "fit", dies)
    with pytest.raises(Killed):
        tune(path, "", tmp_path / "again", state_dir=state, config=config)
    monkeypatch.setattr(module, "fit", real)
    again = tune(path, "", tmp_path / "again", state_dir=state, config=config)
    assert again["resumed_from_step"] == 4
    assert again["label_loss"] == whole["label_loss"]
    name = "model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_gradient_checkpointing_and_packing_change_no_value(tmp_path, models):
    losses = {}
    for name, changes in {
        "plain": {},
        "checkpointing": {"gradient_checkpointing": True},
        "packing": {"packing": "on"},
    }.items():
        summary = run(tmp_path, text_rows(), models["llama"], **changes)
        losses[name] = summary["label_loss"]
    assert losses["checkpointing"] == pytest.approx(losses["plain"], abs=1e-5)
    assert losses["packing"] == pytest.approx(losses["plain"], abs=1e-4)


def test_lora_takes_ten_times_the_recommended_rate(tmp_path, models):
    changes = {"learning_rate": 0.0, "learning_rate_multiplier": 0.5, "train_steps": 1}
    full, adapters = (
        run(tmp_path, text_rows(), models["llama"], method=method, **changes)["learning_rate"]
        for method in ("full", "lora")
    )
    assert adapters == pytest.approx(lora.HIGHER_RATE * full)


def test_validation_rows_of_one_s_own(tmp_path, models):
    write_jsonl(tmp_path / "v.jsonl", text_rows(5))
    write_jsonl(tmp_path / "rows.jsonl", text_rows(12))
    config = dataclasses.replace(CONFIG, large_model_reference=models["gpt2"])
    summary = tune(
        tmp_path / "rows.jsonl", tmp_path / "v.jsonl", tmp_path / "m", state_dir="", config=config
    )
    assert (summary["train_rows"], summary["validation_rows"]) == (12, 5)


def test_rows_without_an_answer_are_left_out(tmp_path, models):
    rows = [*text_rows(12), Example(id="x", input_text="ddd")]
    assert run(tmp_path, rows, models["gpt2"])["unlabelled_rows"] == 1
    with pytest.raises(UserError, match=r"TRAIN_EMPTY.*1 without"):
        run(tmp_path, rows[-1:], models["gpt2"])


@pytest.mark.parametrize(
    "change",
    [{"task": "poem"}, {"method": "half"}, {"packing": "yes"}, {"compile": "maybe"},
     {"lora_rank": 0}, {"lora_alpha": 0.0}, {"lora_dropout": 1.0}, {"train_steps": 0}],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(tmp_path, models, change):
    with pytest.raises(UserError, match=f"CONFIG_VALUE.*{next(iter(change))}"):
        run(tmp_path, text_rows(3), models["gpt2"], **change)


def test_chat_needs_messages(tmp_path, models):
    with pytest.raises(UserError, match=r"TRAIN_NO_MESSAGES.*row w0.*chat_messages"):
        run(tmp_path, text_rows(), models["llama"], task="chat")


def test_a_failed_audit_stops_before_the_first_step(tmp_path, models):
    rows = [Example(id=f"r{i}", input_text="word " * 90, output_text="red") for i in range(9)]
    with pytest.raises(UserError, match="AUDIT_INPUT_CUT"):
        run(tmp_path, rows, models["llama"], max_context_length="20")
    assert (tmp_path / "m.audit.json").is_file()
    assert not (tmp_path / "m").exists()
    assert not (tmp_path / "m.tensorboard").exists()


@pytest.mark.parametrize("kind", ["llama", "t5_tied"])
def test_the_audit_of_raw_rows_reads_no_weights(tmp_path, models, kind):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"input_text": "aaa", "output_text": "red"},
        {"input_text": "bbb"},
        {"output_text": "x"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    config = dataclasses.replace(CONFIG, large_model_reference=models[kind])
    found = audit_data(str(path), DataConfig(), config, Audit())
    assert (found.facts["rows"], found.facts["unlabelled_rows"], found.facts["bad_rows"]) == (
        1,
        1,
        1,
    )
    assert found.samples[0].text().endswith("⟦red</s>⟧")


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_s_loss_does_not_depend_on_the_rows_beside_it(kind):
    """Padding invariance of loss and gradients, as the batches pad: on the right."""
    from pipestill.training.forward import batch_nll, collate
    from tests.training.tiny import make_data, make_loaded, make_rows

    loaded = make_loaded(kind)
    data, shape = make_data(loaded, make_rows(5), "label_only")
    model = loaded.model

    def gradients(parts):
        model.zero_grad()
        total = sum(batch_nll(model, collate(data, part, shape), shape).sum() for part in parts)
        total.backward()
        return float(total.detach()), [
            w.grad.clone() for w in model.parameters() if w.grad is not None
        ]

    together, one = gradients([range(5)])
    apart, many = gradients([[i] for i in range(5)])
    assert together == pytest.approx(apart, abs=1e-4)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one, many, strict=True))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_left_padding_gives_the_same_loss_where_positions_are_given(kind):
    """What generation pads on the left, training pads on the right: the same values."""
    from tests.training.tiny import make_loaded

    model = make_loaded(kind).model
    ids = torch.arange(2, 12)[None]
    pads = torch.zeros(1, 4, dtype=torch.long)
    mask = torch.cat([pads, torch.ones_like(ids)], 1)
    with torch.no_grad():
        alone = model(input_ids=ids).logits
        right = model(input_ids=torch.cat([ids, pads], 1), attention_mask=mask.flip(1)).logits[
            :, :10
        ]
        left = model(
            input_ids=torch.cat([pads, ids], 1), attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        ).logits[:, 4:]  # fmt: skip
    assert torch.allclose(right, alone, atol=1e-5)
    assert torch.allclose(left, alone, atol=1e-5)
