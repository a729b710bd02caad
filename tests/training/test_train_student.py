"""A whole run: what it writes, what it says, what it refuses, and that it learns."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pipestill.errors import UserError, WorkError
from pipestill.models.loading import load
from pipestill.models.student import Student
from pipestill.records import Labelled, write_jsonl
from pipestill.training import loop, step
from pipestill.training.student import parse_run, split, train_student
from tests.training.tiny import COLOURS, config, make_folder, make_rows

SUMMARY = {
    "run", "objective", "seed", "steps", "best_step", "train_rows", "rationale_rows",
    "validation_rows", "label_loss", "rationale_loss", "val_label_loss", "val_label_accuracy",
    "parameters", "bytes", "label_tokens", "rationale_tokens", "input_tokens", "seconds",
    "cpu_seconds", "learning_rate", "resumed_from_step", "base_model", "base_fingerprint",
    "rows_digest",
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {kind: make_folder(kind, folder / kind) for kind in ("t5_tied", "gpt2")}


@pytest.fixture
def rows_path(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", make_rows(30))
    return tmp_path / "rows.jsonl"


def train(path, out, run="dss:0", **changes):
    return train_student(path, out, run=run, state_dir="", config=config(**changes))


@pytest.mark.parametrize("kind", ["t5_tied", "gpt2"])
def test_the_summary_and_the_folder(tmp_path, rows_path, models, kind):
    summary = train(rows_path, tmp_path / "s", student_model_reference=models[kind])
    assert summary.keys() >= SUMMARY
    assert all(isinstance(value, str | int | float) for value in summary.values())
    assert (summary["objective"], summary["seed"]) == ("dss", 0)
    assert summary["train_rows"] + summary["validation_rows"] == 30
    assert summary["validation_rows"] == 3
    assert 0 < summary["rationale_rows"] < summary["train_rows"]
    assert summary["bytes"] == (tmp_path / "s" / "model.safetensors").stat().st_size
    info = json.loads((tmp_path / "s" / "pipestill.json").read_text())
    assert info["prefixes"] == {"predict": "predict: ", "explain": "explain: "}
    assert info["objective"] == "dss"
    log = [json.loads(x) for x in (tmp_path / "s" / "train_log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == list(range(1, 7))
    assert [e["step"] for e in log if "val_label_loss" in e] == [2, 4, 6]
    assert min(e["val_label_loss"] for e in log if "val_label_loss" in e) == pytest.approx(
        summary["val_label_loss"]
    )


def word_rows(count: int) -> list[Labelled]:
    """The label names the colour at the letter's place: learnable by heart in a few steps."""
    return [
        Labelled(
            id=f"w{i}",
            input_text="abc"[i % 3] * 3,
            output_text=COLOURS[i % 3],
            label_source="gold",
            rationale=f"the letter names {COLOURS[i % 3]}",
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("kind", ["t5_tied", "gpt2"])
@pytest.mark.parametrize("objective", ["dss", "label_then_rationale"])
def test_a_student_learns_to_answer_and_to_explain(tmp_path, models, kind, objective):
    write_jsonl(tmp_path / "rows.jsonl", word_rows(30))
    summary = train(
        tmp_path / "rows.jsonl", tmp_path / "s", run=f"{objective}:0", train_steps=240,
        learning_rate=5e-3, evaluation_interval=80, student_model_reference=models[kind],
    )  # fmt: skip
    assert summary["val_label_accuracy"] == 1.0
    student = Student.load(str(tmp_path / "s"))
    answers = student.answer(["aaa", "ccc", "bbb"], batch_size=2, max_new_tokens=20)
    assert [answer.text for answer in answers] == ["red", "blue", "green"]
    explained = student.explain(["ccc"], batch_size=1, max_new_tokens=40)
    assert explained[0].text == "the letter names blue"
    assert answers[0].output_tokens < explained[0].output_tokens  # answering stays cheap


@pytest.mark.parametrize("kind", ["t5_tied", "gpt2"])
def test_weights_learn_in_fp32_and_are_stored_as_those_of_the_base(tmp_path, rows_path, kind):
    wide, half = make_folder(kind, tmp_path / "wide"), tmp_path / "half"
    loaded = load(wide)
    loaded.model.to(torch.bfloat16).save_pretrained(half)
    loaded.tokenizer.save_pretrained(half)
    of_wide = train(rows_path, tmp_path / "s32", student_model_reference=wide)
    of_half = train(rows_path, tmp_path / "s16", student_model_reference=str(half))
    sizes, learnt = [], {}
    for name, dtype in (("s32", torch.float32), ("s16", torch.bfloat16)):
        stored = load_file(tmp_path / name / "model.safetensors")
        assert {value.dtype for value in stored.values()} == {dtype}
        config_told = json.loads((tmp_path / name / "config.json").read_text())
        assert config_told["dtype"] == str(dtype).removeprefix("torch.")
        sizes.append(sum(value.numel() * value.element_size() for value in stored.values()))
        learnt = stored
    assert sizes[0] == 2 * sizes[1]
    assert of_half["bytes"] < of_wide["bytes"]
    base = load_file(half / "model.safetensors")
    assert any(not torch.equal(value, base[name]) for name, value in learnt.items())
    assert Student.load(str(tmp_path / "s16")).answer(["aaa"], batch_size=1, max_new_tokens=4)


def test_the_best_validated_weights_are_saved(tmp_path, rows_path, models, monkeypatch):
    losses = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(step, "validate", lambda job: (next(losses), 0.5))
    model = models["t5_tied"]
    best = train(rows_path, tmp_path / "best", student_model_reference=model)
    assert (best["best_step"], best["val_label_loss"]) == (4, 1.0)
    seen = {}

    def note(run, rows, original=loop._one_step):
        original(run, rows)
        seen[run.progress.step] = run.job.model.lm_head.weight.detach().clone()

    losses = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(loop, "_one_step", note)
    train(rows_path, tmp_path / "again", student_model_reference=model)
    saved = Student.load(str(tmp_path / "again")).loaded.model.lm_head.weight
    assert torch.equal(saved, seen[4])
    assert not torch.equal(saved, seen[6])


@pytest.mark.parametrize(("stopping", "steps"), [(True, 8), (False, 20)])
def test_early_stopping(tmp_path, rows_path, models, monkeypatch, stopping, steps):
    losses = iter([1.0, *[2.0] * 20])
    monkeypatch.setattr(step, "validate", lambda job: (next(losses), 0.0))
    summary = train(
        rows_path, tmp_path / "s", train_steps=20, enable_early_stopping=stopping,
        student_model_reference=models["t5_tied"],
    )  # fmt: skip
    assert (summary["steps"], summary["best_step"]) == (steps, 2)


def test_without_validation_the_last_weights_count(tmp_path, rows_path, models):
    summary = train(
        rows_path, tmp_path / "s", validation_fraction=0.0,
        student_model_reference=models["t5_tied"],
    )  # fmt: skip
    assert (summary["validation_rows"], summary["best_step"]) == (0, 6)
    assert summary["val_label_loss"] == -1.0


def test_bf16_trains(tmp_path, rows_path, models):
    summary = train(
        rows_path, tmp_path / "s", precision="bf16", student_model_reference=models["t5_tied"]
    )
    assert summary["precision"] == "bf16"
    assert 0 < summary["label_loss"] < 20
    saved = Student.load(str(tmp_path / "s")).loaded.model
    assert all(p.dtype == torch.float32 for p in saved.parameters())


def test_the_same_seed_gives_the_same_student_and_another_does_not(tmp_path, rows_path, models):
    for name, run in (("a", "dss:1"), ("b", "dss:1"), ("c", "dss:2")):
        train(rows_path, tmp_path / name, run=run, student_model_reference=models["gpt2"])
    a, b, c = ((tmp_path / n / "model.safetensors").read_bytes() for n in "abc")
    assert a == b
    assert a != c


def test_checkpoints_go_after_success_unless_asked_for(tmp_path, rows_path, models):
    settings = config(student_model_reference=models["gpt2"])
    state = tmp_path / "state"
    for keep in (True, False):
        train_student(
            rows_path, tmp_path / "s", run="dss:0", state_dir=str(state), config=settings,
            keep_checkpoints=keep,
        )  # fmt: skip
        assert bool(list(state.rglob("state.json"))) == keep


def test_a_loss_that_explodes_is_reported(tmp_path, rows_path, models):
    with pytest.raises(WorkError, match="LOSS_NOT_FINITE"):
        train(
            rows_path, tmp_path / "s", learning_rate=1e30, max_grad_norm=0.0, train_steps=20,
            student_model_reference=models["gpt2"],
        )  # fmt: skip


def test_threads_follow_the_environment(tmp_path, rows_path, models, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setenv("PIPESTILL_THREADS", "2")
    train(rows_path, tmp_path / "s", train_steps=1, student_model_reference=models["gpt2"])
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


@pytest.mark.parametrize("run", ["", "dss", "dss:", "dss:x", "dss:-1", "nope:0", "dss:0:1", ":0"])
def test_a_run_that_is_none_is_refused(run):
    with pytest.raises(UserError, match=r"RUN_UNKNOWN.*dss, label_only, shuffled"):
        parse_run(run)


@pytest.mark.parametrize(
    "change",
    [{"alpha": 1.5}, {"train_steps": 0}, {"batch_size": 0}, {"validation_fraction": 1.0},
     {"learning_rate_multiplier": 0.0}, {"warmup_fraction": -0.1}, {"evaluation_interval": 0}],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(tmp_path, rows_path, change):
    with pytest.raises(UserError, match=f"CONFIG_VALUE.*{next(iter(change))}"):
        train(rows_path, tmp_path / "s", **change)


def test_no_rows_are_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(UserError, match="TRAIN_EMPTY"):
        train(tmp_path / "rows.jsonl", tmp_path / "s")


def test_the_split_is_by_id_alone():
    rows = make_rows(40)
    train_rows, held = split(rows, 0.1)
    assert (len(train_rows), len(held)) == (36, 4)
    again = split(list(reversed(rows)), 0.1)[1]
    assert {row.id for row in again} == {row.id for row in held}
    assert split(rows[:1], 0.5) == (rows[:1], [])
    assert split(rows, 0.0) == (rows, [])
