"""Configuration files and --set."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipestill.cli import settings
from pipestill.errors import UserError

ALLOWED = {
    "dataset_uri": str,
    "data_format": str,
    "dedupe": bool,
    "teacher_backend": str,
    "teacher_prompt": str,
    "teacher_model_reference": str,
    "teacher_shots": int,
    "student_model_reference": str,
    "train_steps": int,
    "max_output_tokens": int,
    "learning_rate": float,
    "max_context_length": str,
    "eval_shots": str,
    "eval_rows": int,
    "deploy_dir": str,
    "runs": list,
    "shards": list,
}


def load(text, tmp_path, *assignments):
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return settings.load(str(path), assignments, ALLOWED)


def refusal(text, tmp_path, *assignments) -> UserError:
    with pytest.raises(UserError) as refused:
        load(text, tmp_path, *assignments)
    assert "\n" not in str(refused.value)
    return refused.value


def test_flat_and_nested_names(tmp_path):
    text = """
dataset_uri: pocket:train
data: {format: dss_svamp, dedupe: false}
teacher:
  backend: replay
  shots: 4
train: {steps: 7}
evaluate: {eval_rows: 300}
learning_rate: 1e-3
max_context_length: 512
eval_shots: [0, 2]
"""
    assert load(text, tmp_path, "teacher.shots=3", "train_steps=9") == {
        "dataset_uri": "pocket:train",
        "data_format": "dss_svamp",
        "dedupe": False,
        "teacher_backend": "replay",
        "teacher_shots": 3,
        "train_steps": 9,
        "eval_rows": 300,
        "learning_rate": 0.001,
        "max_context_length": "512",
        "eval_shots": "0,2",
    }


def test_an_empty_file_and_no_file(tmp_path):
    assert load("# nothing\n", tmp_path) == {}
    assert settings.load(None, [], ALLOWED) == {}


def test_set_takes_text_as_it_is(tmp_path):
    found = load("", tmp_path, "teacher_backend=yes", "dedupe=no", "eval_shots=", "eval_rows=1")
    assert found == {"teacher_backend": "yes", "dedupe": False, "eval_shots": "", "eval_rows": 1}


def test_sugar(tmp_path):
    found = load("seeds: [0, 5]\narms: [dss, shuffled]\nnum_shards: 2\n", tmp_path)
    assert found["runs"] == ["dss:0", "dss:5", "shuffled:0", "shuffled:5"]
    assert found["shards"] == ["0/2", "1/2"]
    assert load("seeds: [7]", tmp_path)["runs"] == ["dss:7", "label_only:7", "shuffled:7"]
    assert load("runs: [dss:1]", tmp_path)["runs"] == ["dss:1"]


@pytest.mark.parametrize(
    ("text", "code", "parts"),
    [
        ("a: 1\ntrain_stesp: 3\n", "CONFIG_UNKNOWN", ["c.yaml, line 1", "'a'"]),
        ("\ntrain_stesp: 3\n", "CONFIG_UNKNOWN", ["line 2", "closest: train_steps"]),
        ("teacher: {bakend: x}", "CONFIG_UNKNOWN", ["teacher.bakend", "teacher_backend"]),
        ("teacher: {max_output_tokens: 3}", "CONFIG_UNKNOWN", ["teacher.max_output_tokens"]),
        ("train_steps: 1\ntrain_steps: 2\n", "CONFIG_DUPLICATE", ["line 2", "line 1"]),
        ("train: {steps: 1}\ntrain_steps: 2\n", "CONFIG_DUPLICATE", ["line 2", "line 1"]),
        ("seeds: [1]\nruns: [dss:1]\n", "CONFIG_DUPLICATE", ["seeds", "line 2"]),
        ("train_steps: many", "CONFIG_TYPE", ["line 1", "'many'", "a whole number"]),
        ("train_steps: 1.5", "CONFIG_TYPE", ["a whole number"]),
        ("train_steps: true", "CONFIG_TYPE", ["a whole number"]),
        ("dedupe: 1", "CONFIG_TYPE", ["true or false"]),
        ("learning_rate: fast", "CONFIG_TYPE", ["a number"]),
        ("teacher_backend: true", "CONFIG_TYPE", ["quote it"]),
        ("runs: dss:1", "CONFIG_TYPE", ["list of words"]),
        ("runs: []", "CONFIG_TYPE", ["list of words"]),
        ("seeds: [a]", "CONFIG_TYPE", ["whole numbers"]),
        ("num_shards: 0", "CONFIG_TYPE", ["1 to 100"]),
        ("x: [1, 2", "CONFIG_YAML", ["line 1"]),
        ("a: &x [1]\nb: *x\n", "CONFIG_YAML", ["line 2", "aliases"]),
        ("- 1\n", "CONFIG_YAML", ["line 1"]),
        ("just text", "CONFIG_YAML", ["line 1"]),
        ("x: !!python/object/apply:os.system [ls]", "CONFIG_UNKNOWN", ["'x'"]),
        ("runs: !!python/object/apply:os.system [ls]", "CONFIG_YAML", ["line 1"]),
        ("? [1, 2]\n: 3\n", "CONFIG_YAML", ["plain word"]),
        ("a: 1\n---\nb: 2\n", "CONFIG_YAML", ["line 2"]),
    ],
)
def test_refused_with_its_place(text, code, parts, tmp_path):
    error = refusal(text, tmp_path)
    assert error.code == code
    assert all(part in str(error) for part in parts), str(error)


def test_bomb_of_aliases_is_refused_at_once(tmp_path):
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
    )
    assert refusal(bomb, tmp_path).code == "CONFIG_YAML"


def test_unreadable_files(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UserError, match="CONFIG_UNREADABLE"):
            settings.load(str(path), [], ALLOWED)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="CONFIG_UNREADABLE"):
        settings.load(str(tmp_path / "b.yaml"), [], ALLOWED)
    (tmp_path / "l.yaml").write_text("#" * 1_000_001)
    with pytest.raises(UserError, match="CONFIG_TOO_LONG"):
        settings.load(str(tmp_path / "l.yaml"), [], ALLOWED)


@pytest.mark.parametrize("text", ["train_steps", "=3", "train_steps=[1", "nope=1"])
def test_wrong_assignments(text, tmp_path):
    assert refusal("", tmp_path, text).code.startswith("CONFIG_")


def test_paths(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    (there / "rows_0.json").write_text("")
    (there / "prompt.yaml").write_text("")
    (there / "model").mkdir()
    monkeypatch.chdir(here)
    text = """
dataset_uri: rows_*.json
deploy_dir: served
teacher_prompt: prompt.yaml
teacher_model_reference: model
student_model_reference: google/flan-t5-base
"""
    found = load(text, there)
    assert found == {
        "dataset_uri": str(there / "rows_*.json"),  # only beside the file
        "deploy_dir": str(here / "served"),  # nowhere yet: the working directory
        "teacher_prompt": str(there / "prompt.yaml"),
        "teacher_model_reference": str(there / "model"),
        "student_model_reference": "google/flan-t5-base",
    }
    (here / "rows_1.json").write_text("")
    assert load("dataset_uri: rows_*.json", there)["dataset_uri"] == str(here / "rows_*.json")
    for uri in ("gs://b/x", "hf://d/x", "pocket:train", "/abs/x", ""):
        assert load(f"dataset_uri: '{uri}'", there)["dataset_uri"] == uri


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_in_one_line(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "c.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with contextlib.suppress(UserError):
        settings.load(str(path), [], ALLOWED)


def test_a_name_that_the_pipeline_takes_is_no_sugar(tmp_path):
    own = {**ALLOWED, "arms": list, "seeds": str, "shares": str}
    path = tmp_path / "c.yaml"
    path.write_text("arms: [dss]\nseeds: [0, 1]\nshares: [0.5, 1]\nstudy: claims\n")
    found = settings.load(str(path), [], own)
    assert found == {"arms": ["dss"], "seeds": "0,1", "shares": "0.5,1"}


def test_a_study_chooses_the_pipeline(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("title: x\nstudy: claims\n")
    chosen = settings.pipeline_of
    assert chosen("evaluate", str(path), []) == "claims"
    assert chosen("evaluate", None, []) == "evaluate"
    assert chosen("evaluate", str(path), ["study=models"]) == "evaluate"
    assert chosen("rlhf", str(path), ["study=claims"]) == "rlhf"
    for wrong in (["study=claim"], ["study="]):
        with pytest.raises(UserError, match=r"STUDY_UNKNOWN.*--set study=.*models, claims"):
            chosen("evaluate", None, wrong)
    path.write_text("\nstudy: [claims]\n")
    with pytest.raises(UserError, match=r"STUDY_UNKNOWN.*line 2"):
        chosen("evaluate", str(path), [])
