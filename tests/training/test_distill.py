"""Whole runs: what is trained, what is written, what goes on after a cut."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pipestill.errors import UserError
from pipestill.models.student import Student
from pipestill.training import distill
from pipestill.training.distill_objectives import parse_objective, parse_run
from pipestill.training.distributed import World
from tests.training.distilling import folder_of, run, settings, written

EVERY = [
    *(f"response/{name}" for name in ("forward_kl", "jsd", "skew_reverse_kl", "tvd")),
    *(f"feature/{name}" for name in ("hidden_mse", "cosine", "cka", "attention", "minilm")),
    *(f"relation/{name}" for name in ("rkd", "similarity", "pkt", "ranking")),
    *(f"self/{name}" for name in ("born_again", "ema", "context")),
    *(f"on_policy/{name}" for name in ("reverse_kl", "jsd", "forward_kl")),
]  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    kinds = ("t5_tied", "t5_untied", "gpt2", "llama")
    return {
        (kind, seed): folder_of(kind, folder / f"{kind}{seed}", seed)
        for kind in kinds
        for seed in (1, 2)
    }


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("objective", EVERY)
def test_every_objective_trains_and_exports_a_plain_student(tmp_path, models, objective):
    student, teacher = models["t5_untied", 1], models["llama", 2]
    summary = run(tmp_path, student, teacher, objective, train_steps=3)
    assert summary["objective"] == objective
    assert summary["steps"] == 3
    assert summary["teacher_tokens"] > 0
    shares = [value for name, value in summary.items() if name.endswith("_share")]
    assert len(shares) >= 2
    assert sum(shares) == pytest.approx(1)
    assert weights(tmp_path / "student").keys() == load_file(f"{student}/model.safetensors").keys()
    loaded = Student.load(str(tmp_path / "student"))
    assert loaded.info["style"] == "plain"
    assert len(loaded.answer(["a b"], batch_size=1, max_new_tokens=3)) == 1
    assert not hasattr(loaded.loaded.model, "distillation")


@pytest.mark.parametrize("objective", EVERY)
def test_every_objective_trains_in_bf16(tmp_path, models, objective):
    student, teacher = models["t5_untied", 1], models["t5_tied", 2]
    summary = run(tmp_path, student, teacher, objective, train_steps=2, precision="bf16")
    assert summary["precision"] == "bf16"
    assert summary["label_loss"] > 0


@pytest.mark.parametrize("kind", ["t5_tied", "t5_untied", "llama", "gpt2"])
def test_without_weight_the_teacher_changes_no_bit(tmp_path, models, kind):
    student, teacher = models[kind, 1], models[kind, 2]
    run(tmp_path, student, teacher, "teacher_labels")
    plain = weights(tmp_path / "student")
    summary = run(tmp_path, student, teacher, "response", kd_weight=0.0)
    assert summary["learns_from"] == "text"
    assert_equal(weights(tmp_path / "student"), plain)
    run(tmp_path, student, teacher, "response", kd_weight=0.5)
    assert any(not torch.equal(v, plain[k]) for k, v in weights(tmp_path / "student").items())


def test_a_weight_near_none_is_training_on_the_text(tmp_path, models):
    """The path through the teacher gives the same cross-entropy as the plain one."""
    student, teacher = models["t5_tied", 1], models["llama", 2]
    run(tmp_path, student, teacher, "teacher_labels", train_steps=1)
    plain = weights(tmp_path / "student")
    run(tmp_path, student, teacher, "response", kd_weight=1e-12, train_steps=1)
    for name, value in weights(tmp_path / "student").items():
        torch.testing.assert_close(value, plain[name], rtol=1e-5, atol=1e-6)


def test_controls_train_on_their_own_text(tmp_path, models):
    student = models["t5_tied", 1]
    gold = run(tmp_path, student, "", "gold")
    assert (gold["train_rows"], gold["left_out_rows"], gold["validation_rows"]) == (12, 4, 4)
    assert gold["targets"] == "label"
    audit = json.loads((tmp_path / "student.audit.json").read_text())
    taught = {item["row"]: item["segments"][-1][0] for item in audit["samples"]}
    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "rows.jsonl").open())}
    assert all(text == rows[name]["output_text"] + "</s>" for name, text in taught.items())
    run(tmp_path, student, "", "teacher_labels")
    audit = json.loads((tmp_path / "student.audit.json").read_text())
    taught = {item["row"]: item["segments"][-1][0] for item in audit["samples"]}
    assert all(text == rows[name]["teacher_label"] + "</s>" for name, text in taught.items())


def test_targets_choose_the_text(tmp_path, models):
    names = models["llama", 1], models["llama", 2]
    label = run(tmp_path, *names, "response", targets="label")
    teacher = run(tmp_path, *names, "response", targets="teacher")
    assert label["label_tokens"] < teacher["label_tokens"]


def test_the_audit_shows_the_teachers_view(tmp_path, models):
    run(tmp_path, models["t5_tied", 1], models["llama", 2], "response")
    audit = json.loads((tmp_path / "student.audit.json").read_text())
    mine = {item["row"]: item for item in audit["samples"] if item["task"] == "predict"}
    theirs = [item for item in audit["samples"] if item["task"] == "teacher"]
    assert len(theirs) == 5
    for item in theirs:
        if item["row"] in mine:
            assert item["segments"][-1] == mine[item["row"]]["segments"][-1]
    assert audit["facts"]["teacher_shares_tokens"] is True


@pytest.mark.parametrize("kind", ["t5_tied", "llama"])
@pytest.mark.parametrize(
    "objective", ["response", "on_policy", "self/ema", "self/context", "self/born_again", "feature"]
)
def test_a_run_that_was_cut_ends_with_the_same_weights(
    tmp_path, models, kind, objective, monkeypatch
):
    """Also the moving average, the balance and the samples are those of the whole run."""
    names = models[kind, 1], models[kind, 2]
    balance = objective == "response"
    more = {"train_steps": 6, "checkpoint_interval": 2, "auto_balance": balance}
    whole = run(tmp_path, *names, objective, **more)
    expected = weights(tmp_path / "student")
    original = distill.fit_logged

    class Cut(Exception):
        pass

    def cut(job, folder, path):
        from pipestill.training.loop import fit

        def on_step(progress):
            if progress.step == 5:
                raise Cut

        return fit(job, folder, on_step)

    monkeypatch.setattr(distill, "fit_logged", cut)
    state = str(tmp_path / "state")
    with pytest.raises(Cut):
        run(tmp_path, *names, objective, state=state, **more)
    monkeypatch.setattr(distill, "fit_logged", original)
    again = run(tmp_path, *names, objective, state=state, **more)
    if objective != "self/born_again":  # there the first generation was cut
        assert again["resumed_from_step"] == 4
    assert again["label_loss"] == whole["label_loss"]
    assert_equal(weights(tmp_path / "student"), expected)
    assert not list((tmp_path / "state").rglob("step-*"))


def test_born_again_generations_differ_and_learn_from_each_other(tmp_path, models):
    names = models["llama", 1], ""
    one = run(tmp_path, *names, "self/born_again", generations=1)
    first = weights(tmp_path / "student")
    two = run(tmp_path, *names, "self/born_again", generations=2)
    assert (one["trainings"], two["trainings"]) == (2, 3)
    assert two["teacher_tokens"] == 2 * one["teacher_tokens"]
    assert any(not torch.equal(v, first[k]) for k, v in weights(tmp_path / "student").items())


def test_a_student_of_fewer_layers(tmp_path, models):
    summary = run(tmp_path, models["t5_tied", 1], models["llama", 2], "response@1")
    assert (summary["arm"], summary["layers"]) == ("response@1", "1")
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert (config["num_layers"], config["num_decoder_layers"]) == (1, 1)
    assert Student.load(str(tmp_path / "student")).parameters == summary["parameters"]


def test_projections_lie_beside_the_student(tmp_path, models):
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.training.tiny import make_tokenizer

    torch.manual_seed(0)
    wide = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300, hidden_size=48, intermediate_size=48, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256,
            bos_token_id=1, pad_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip
    wide.save_pretrained(tmp_path / "wide")
    make_tokenizer(False).save_pretrained(tmp_path / "wide")
    student = models["t5_tied", 1]
    run(tmp_path, student, str(tmp_path / "wide"), "feature")
    found = load_file(tmp_path / "student.projections.safetensors")
    assert {name: tuple(w.shape) for name, w in found.items()} == {
        "decoder_0_1.weight": (48, 32),
        "decoder_1_2.weight": (48, 32),
    }
    assert weights(tmp_path / "student").keys() == load_file(f"{student}/model.safetensors").keys()


@pytest.mark.parametrize(
    ("objective", "more", "code", "names"),
    [
        ("response", {"kd_weight": 1.5}, "CONFIG_VALUE", "kd_weight"),
        ("response", {"tau": 0.0}, "CONFIG_VALUE", "tau"),
        ("feature", {"layer_map": "0:7"}, "CONFIG_VALUE", "layer_map"),
        ("response", {"cross_tokenizer": "guess"}, "CONFIG_VALUE", "cross_tokenizer"),
        ("response", {"auto_balance": True, "kd_weight": 1.0}, "CONFIG_VALUE", "kd_weight"),
        ("feature", {"teacher_source": "stored"}, "STORE_OBJECTIVE", "feature"),
        ("relation", {"teacher_source": "stored"}, "STORE_OBJECTIVE", "relation"),
        ("on_policy", {"teacher_source": "stored"}, "STORE_OBJECTIVE", "on_policy"),
        ("respond", {}, "OBJECTIVE_UNKNOWN", "respond"),
        ("response/mse", {}, "OBJECTIVE_UNKNOWN", "response/mse"),
        ("response@9", {}, "LAYERS_TOO_MANY", "9"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(tmp_path, models, objective, more, code, names):
    with pytest.raises(UserError) as caught:
        run(tmp_path, models["llama", 1], models["llama", 2], objective, **more)
    assert caught.value.code == code
    assert names in caught.value.message


def test_no_rows_with_the_text_are_refused(tmp_path, models):
    path = written(tmp_path)
    text = path.read_text().replace('"label_source": "gold"', '"label_source": "teacher"')
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        run(tmp_path, models["llama", 1], "", "gold")
    assert caught.value.code == "TRAIN_EMPTY"


def test_balance_needs_one_process():
    with pytest.raises(UserError) as caught:
        distill.check_distill(
            settings(auto_balance=True), parse_objective("response"), World(size=2)
        )
    assert caught.value.code == "BALANCE_PROCESSES"


def test_names_of_runs():
    found = parse_run("response/jsd@3+1:7")
    assert (found.arm, found.layers, found.seed) == ("response/jsd@3+1", "3+1", 7)
    assert (found.objective.family, found.objective.variant) == ("response", "jsd")
    assert parse_run("relation:0").objective.variant == "rkd"
    assert parse_run("gold:0").objective.is_control
    for bad in (
        "response",
        "response:x",
        "gold/teacher:0",
        "response@:0",
        ":0",
        "response@1+2+3:0",
    ):
        with pytest.raises(UserError):
            parse_run(bad)
