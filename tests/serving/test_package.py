"""Choosing, packaging and deploying a student."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from pipestill.errors import UserError, WorkError
from pipestill.models.student import Student
from pipestill.serving.package import Candidate, choose, package_student

SUMMARY = {
    "verdict": "better",
    "verdict_sentence": "DSS beats <b>label only</b> by 3 points.",
    "rows": 600,
    "arms": {"dss": {"accuracy": 0.621, "ci95": [0.58, 0.66], "seeds": [0, 1, 2]}},
    "data": {"rows_train": 400, "rows_eval": 600, "train_digest": "abc123", "input_tokens_p50": 9},
}


def copy_of(folder: Path, target: Path, **info) -> Path:
    shutil.copytree(folder, target)
    facts = json.loads((target / "pipestill.json").read_text())
    (target / "pipestill.json").write_text(json.dumps({**facts, **info}))
    return target


@pytest.fixture
def summary(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(SUMMARY))
    return path


@pytest.fixture
def students(t5_student, gpt2_student, tmp_path):
    scores = {"val_label_accuracy": 0.7, "val_label_loss": 0.5}
    return [
        copy_of(gpt2_student, tmp_path / "a", seed=0, **scores),
        copy_of(t5_student, tmp_path / "b", seed=1, **{**scores, "val_label_accuracy": 0.8}),
        copy_of(gpt2_student, tmp_path / "c", seed=2, val_label_accuracy=-1.0),
        copy_of(gpt2_student, tmp_path / "d", objective="label_only", val_label_accuracy=0.99),
    ]


def test_the_best_seed_is_packaged_and_answers(students, summary, tmp_path):
    (students[1] / "optimizer.pt").write_bytes(b"pickle")
    (students[1] / "modeling_evil.py").write_text("raise SystemExit")
    served = tmp_path / "out" / "served"
    location, facts = package_student(
        students, summary, served, objective="dss", display_name="refunds"
    )
    assert location == str(served)
    assert (facts["seed"], facts["objective"], facts["display_name"]) == (1, "dss", "refunds")
    assert facts["val_label_accuracy"] == 0.8
    assert facts["base_model"] == "google/flan-t5-small"
    assert facts["bytes"] == (served / "model.safetensors").stat().st_size
    assert len(facts["sha256"]) == 64
    # Every served tensor is the chosen student's, and the folder answers as the student does.
    original = load_file(students[1] / "model.safetensors")
    copied = load_file(served / "model.safetensors")
    assert original.keys() == copied.keys()
    assert all((original[name] == copied[name]).all() for name in original)
    assert facts["parameters"] == sum(tensor.numel() for tensor in original.values())
    question = {"batch_size": 1, "max_new_tokens": 8}
    (first,) = Student.load(str(students[1])).answer(["order"], **question)
    (second,) = Student.load(str(served)).answer(["order"], **question)
    assert first.text == second.text
    names = {path.name for path in served.iterdir()}
    assert {"README.md", "summary.json", "pipestill.json", "tokenizer.json"} <= names
    assert {"config.json", "generation_config.json"} <= names
    assert not names & {"optimizer.pt", "modeling_evil.py"}
    assert json.loads((served / "summary.json").read_text()) == SUMMARY
    assert {path.name for path in served.parent.iterdir()} == {"served"}, "nothing is left behind"
    json.dumps(facts)


def test_the_card_says_what_is_known(students, summary, tmp_path):
    package_student(students, summary, tmp_path / "served", objective="dss", display_name="a\n<b>")
    card = (tmp_path / "served" / "README.md").read_text()
    for text in (
        "# a &lt;b>\n",
        "google/flan-t5-small",
        "Apache-2.0",
        "62.1 % (95 % interval 58.0 % to 66.0 %), the mean over 3 seeds",
        "on 600 rows",
        "Verdict: DSS beats &lt;b>label only",
        "| rows train | 400 |",
        "| train digest | abc123 |",
        "## Limits",
        "64 tokens is refused",
        "pipestill serve",
    ):
        assert text in card, text
    assert "input tokens p50" not in card


def test_a_summary_without_the_arm_is_said_to_be_unmeasured(students, tmp_path):
    (tmp_path / "s.json").write_text("{}")
    _, facts = package_student(students, tmp_path / "s.json", tmp_path / "o", objective="dss")
    assert "Not measured in this run." in (tmp_path / "o" / "README.md").read_text()
    assert facts["display_name"].startswith("flan-t5-small dss 20")


def test_an_objective_that_was_not_trained_lists_those_that_were(students, summary, tmp_path):
    with pytest.raises(UserError, match="'shuffled', trained in this run: dss, label_only"):
        package_student(students, summary, tmp_path / "served", objective="shuffled")
    assert not (tmp_path / "served").exists()


def test_deploying_twice_keeps_the_previous_version(students, summary, tmp_path):
    place = tmp_path / "live" / "model"
    for objective, name in (("dss", "one"), ("label_only", "two"), ("dss", "three")):
        location, _ = package_student(
            students,
            summary,
            tmp_path / "served",
            objective=objective,
            display_name=name,
            deploy_dir=str(place),
        )
        assert location == str(place)
    assert (place / "README.md").read_text().startswith("# three")
    previous = place.with_name("model.previous")
    assert (previous / "README.md").read_text().startswith("# two")
    assert Student.load(str(previous)).info["objective"] == "label_only"
    assert {path.name for path in place.parent.iterdir()} == {"model", "model.previous"}


def test_a_folder_with_other_things_is_never_replaced(students, summary, tmp_path):
    place = tmp_path / "home"
    place.mkdir()
    (place / "thesis.txt").write_text("ten years")
    with pytest.raises(UserError, match="DEPLOY_DIR"):
        package_student(
            students, summary, tmp_path / "served", objective="dss", deploy_dir=str(place)
        )
    assert (place / "thesis.txt").read_text() == "ten years"


def test_a_place_that_cannot_be_written_is_told(students, summary, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="DEPLOY_DIR"):
        package_student(
            students,
            summary,
            tmp_path / "served",
            objective="dss",
            deploy_dir=str(tmp_path / "file" / "model"),
        )


def test_a_broken_model_is_not_deployed(students, summary, tmp_path):
    weights = students[1] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    place = tmp_path / "live"
    with pytest.raises(WorkError, match="STUDENT_MUTE"):
        package_student(
            students, summary, tmp_path / "served", objective="dss", deploy_dir=str(place)
        )
    assert not place.exists()
    assert not (tmp_path / "served").exists()


def test_weights_only_as_pickle_are_refused(students, summary, tmp_path):
    weights = students[1] / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(UserError, match="STUDENT_NO_WEIGHTS"):
        package_student(students, summary, tmp_path / "served", objective="dss")


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"seed": 1}'])
def test_a_broken_description_is_told(students, summary, tmp_path, text):
    (students[0] / "pipestill.json").write_text(text)
    with pytest.raises(UserError, match="STUDENT_UNREADABLE"):
        package_student(students, summary, tmp_path / "served", objective="dss")


def test_a_missing_summary_is_told(students, tmp_path):
    with pytest.raises(UserError, match="SUMMARY_UNREADABLE"):
        package_student(students, tmp_path / "no.json", tmp_path / "served", objective="dss")


measured = st.floats(0, 1) | st.sampled_from([-1.0, float("nan"), None])


@given(st.lists(st.tuples(measured, measured), min_size=1, max_size=6))
def test_the_choice_is_the_highest_accuracy_whatever_the_order(scores):
    candidates = [
        Candidate(
            Path(str(seed)),
            {"objective": "dss", "seed": seed, "val_label_accuracy": a, "val_label_loss": b},
        )
        for seed, (a, b) in enumerate(scores)
    ]
    best = choose(candidates, "dss")
    assert choose(candidates[::-1], "dss") == best
    known = [c.measured("val_label_accuracy") for c in candidates]
    known = [accuracy for accuracy in known if accuracy is not None]
    assert best.measured("val_label_accuracy") == (max(known) if known else None)


def test_links_do_not_travel_with_a_model(students, summary, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    (students[1] / "notes.txt").symlink_to(tmp_path / "secret.txt")
    (students[1] / "loop.json").symlink_to(students[1] / "loop.json")
    served = tmp_path / "out" / "served"
    package_student(students, summary, served, objective="dss")
    assert not {"notes.txt", "loop.json"} & {path.name for path in served.iterdir()}
