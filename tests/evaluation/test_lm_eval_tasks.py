"""The lm-evaluation-harness tasks: their files, their rows, and the harness beside our own run."""

import importlib
import json
from itertools import pairwise

import jinja2
import pytest
import yaml

from pipestill.config import EvalConfig, TeacherConfig
from pipestill.data.convert import ESNLI_LABELS
from pipestill.errors import UserError
from pipestill.evaluation import lm_eval_rows
from pipestill.evaluation.lm_eval_rows import TASKS, docs
from pipestill.evaluation.models_run import evaluate_models
from pipestill.models.render import SEPARATOR
from pipestill.models.student import Student
from pipestill.records import Labelled, Prediction, read_jsonl, write_jsonl
from pipestill.training.student import train_student
from tests.evaluation import tiny
from tests.training.tiny import config, make_folder

SOURCES = {
    "pipestill_esnli": ("dss_esnli/esnli_valid.json", "dss_esnli"),
    "pipestill_svamp": ("dss_svamp/svamp_train.json", "dss_svamp"),
}


class Loader(yaml.SafeLoader):
    """Reads ``!function module.name`` as the function."""


def function(loader, node):
    module, _, name = loader.construct_scalar(node).rpartition(".")
    return getattr(importlib.import_module(module), name)


Loader.add_constructor("!function", function)


def task(name):
    return yaml.load((TASKS / f"{name}.yaml").read_text(encoding="utf-8"), Loader)


def rendered(template, doc):
    made = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return made.from_string(template).render(**doc)


def test_there_is_one_file_a_task():
    assert {path.stem for path in TASKS.glob("*.yaml")} == set(SOURCES)
    for name in SOURCES:
        found = task(name)
        assert found["task"] == name
        assert found["custom_dataset"] is lm_eval_rows.load
        assert found["output_type"] == "generate_until"
        assert found["generation_kwargs"]["do_sample"] is False
        assert found["generation_kwargs"]["until"] == [SEPARATOR]


@pytest.mark.parametrize("name", SOURCES)
def test_a_task_reads_the_real_rows(name, shared_data):
    """Prompt and target of every row; its target is right, and another row's is not."""
    file, data_format = SOURCES[name]
    found = task(name)
    rows = docs(str(shared_data / file), data_format, backend="seq2seq")
    assert len(rows) == {"pipestill_esnli": 9842, "pipestill_svamp": 800}[name]
    for row, other in pairwise(rows[:300]):
        assert rendered(found["doc_to_text"], row) == row["input_text"]
        target = rendered(found["doc_to_target"], row)
        scores = found["process_results"](row, [target])
        assert scores == {metric["metric"]: 1.0 for metric in found["metric_list"]}
        if other["output_text"] != target:
            assert found["process_results"](other, [target])["exact_match"] == 0.0


def test_targets_are_those_of_the_source(shared_data):
    file = shared_data / SOURCES["pipestill_esnli"][0]
    raw = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows = docs(str(file), "dss_esnli")
    assert [row["output_text"] for row in rows] == [ESNLI_LABELS[str(r["label"])] for r in raw]
    assert all(r["premise"] in row["prompt"] for row, r in zip(rows, raw, strict=True))
    file = shared_data / SOURCES["pipestill_svamp"][0]
    raw = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for row, given in zip(docs(str(file), "dss_svamp"), raw, strict=True):
        assert lm_eval_rows.equation(row, [given["label"]])["equation"] == 1.0


def test_an_equation_counts_by_its_value():
    row = {"output_text": "84 / 2"}
    assert lm_eval_rows.equation(row, ["(84/2)"]) == {"exact_match": 0.0, "equation": 1.0}
    assert lm_eval_rows.equation(row, ["84 - 2"]) == {"exact_match": 0.0, "equation": 0.0}
    assert lm_eval_rows.exact(row, [" 84 / 2. "]) == {"exact_match": 1.0}


STYLES = [
    {"style": "prefix"},
    {"style": "plain", "instruction": "Name it."},
    {"style": "plain"},
    {},
]


@pytest.mark.parametrize("info", STYLES, ids=lambda info: "-".join(info.values()) or "default")
@pytest.mark.parametrize("kind", ["t5_tied", "llama"])
def test_a_prompt_is_what_the_model_was_trained_on(kind, info, tmp_path):
    """As text here, as token ids in training; the harness adds what the tokenizer adds."""
    folder = make_folder(kind, tmp_path / "m")
    described = {"objective": "label_only", "seed": 0, **info}
    (tmp_path / "m" / "pipestill.json").write_text(json.dumps(described), encoding="utf-8")
    write_jsonl(tmp_path / "rows.jsonl", tiny.rows(3))
    found = docs(str(tmp_path / "rows.jsonl"), pretrained=folder)
    renderer = Student.load(folder).renderer
    wanted = renderer.prompts("predict", [row["input_text"] for row in found])
    ids = [renderer.tokenizer(row["prompt"]).input_ids for row in found]
    assert [prompt.ids for prompt in wanted] == ids


def test_a_model_of_others_reads_the_row_as_it_is(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", tiny.rows(2))
    rows = str(tmp_path / "rows.jsonl")
    assert docs(rows, pretrained="org/name", backend="seq2seq")[0]["prompt"] == "is 0 fine"
    assert docs(rows, pretrained="org/name", backend="causal")[0]["prompt"] == "is 0 fine\n"


def test_what_cannot_be_evaluated_is_said(tmp_path):
    with pytest.raises(UserError, match="--metadata"):
        docs(pretrained="x", backend="causal")
    (tmp_path / "bad.jsonl").write_text('{"input_text": "a"}\n{"input_text": 3}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl:2 input_text"):
        docs(str(tmp_path / "bad.jsonl"), backend="causal")
    (tmp_path / "none.jsonl").write_text('{"input_text": "a"}\n')
    with pytest.raises(UserError, match="no row with a right answer"):
        docs(str(tmp_path / "none.jsonl"), backend="causal")
    (tmp_path / "pipestill.json").write_text('{"style": "chat"}')
    write_jsonl(tmp_path / "rows.jsonl", tiny.rows(2))
    with pytest.raises(UserError, match="style 'chat'"):
        docs(str(tmp_path / "rows.jsonl"), pretrained=str(tmp_path), backend="causal")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["seq2seq", "causal"])
def test_the_harness_finds_the_same_rows_right(backend, tmp_path):
    lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install lm_eval")
    manager = importlib.import_module("lm_eval.tasks").TaskManager
    folder = answering(backend, tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", tiny.rows())
    given = {"pretrained": folder, "backend": backend, "dtype": "float32"}
    metadata = {"rows": str(tmp_path / "rows.jsonl")}
    found = lm_eval.simple_evaluate(
        model="hf", model_args=given, tasks=["pipestill_esnli"], batch_size=5, device="cpu",
        log_samples=True, bootstrap_iters=0, metadata=metadata,
        task_manager=manager(include_path=str(TASKS), metadata={**given, **metadata}),
    )  # fmt: skip
    samples = {s["doc"]["id"]: s for s in found["samples"]["pipestill_esnli"]}
    ours = evaluate_models(
        [f"m={folder}"], [str(tmp_path / "rows.jsonl")], str(tmp_path / "p.jsonl"), baseline="",
        metric="exact", state_dir="", teacher=TeacherConfig(),
        config=EvalConfig(eval_shots="", latency_rows=1),
    )  # fmt: skip
    predictions = list(read_jsonl(tmp_path / "p.jsonl", Prediction))
    assert len(predictions) == len(samples) == 24
    for item in predictions:
        assert samples[item.id]["resps"][0][0].strip() == item.output_text
        assert bool(samples[item.id]["exact_match"]) == item.correct
    accuracy = found["results"]["pipestill_esnli"]["exact_match,none"]
    assert accuracy == pytest.approx(ours["arms"]["m"]["accuracy"])
    assert 0 < accuracy < 1


def answering(backend, folder):
    """A student that has learned to say yes: right in two rows of three."""
    if backend == "seq2seq":
        return tiny.student(folder / "m", "label_only", 0, "yes")
    rows = [
        Labelled(id=r.id, input_text=r.input_text, output_text="yes", label_source="gold")
        for r in tiny.rows()
    ]
    write_jsonl(folder / "train.jsonl", rows)
    training = config(
        student_model_reference=make_folder("llama", folder / "base"), train_steps=60,
        learning_rate=5e-3, evaluation_interval=30, batch_size=8,
    )  # fmt: skip
    train_student(
        folder / "train.jsonl", folder / "m", run="label_only:0", state_dir="", config=training
    )
    return str(folder / "m")
