"""Any models on one held-out set: names, the baseline, the answers, and what the report says."""

import json
import re

import pytest

from pipestill.config import EvalConfig, TeacherConfig
from pipestill.errors import UserError
from pipestill.evaluation.models_report import models_summary, write_models_report
from pipestill.evaluation.models_run import evaluate_models, model_arms, split_name
from pipestill.records import Example, Prediction, read_jsonl, write_json, write_jsonl
from tests.evaluation import tiny
from tests.evaluation.synthetic import predictions


def run(folder, models, **changes):
    """24 rows in two files, of which one row has no answer; the predictions beside them."""
    items = [*tiny.rows(), Example(id="none", input_text="is it", source_row=24)]
    write_jsonl(folder / "one.jsonl", items[1::2])
    write_jsonl(folder / "two.jsonl", items[::2])
    config = {"eval_shots": "", "latency_rows": 2, **changes.pop("config", {})}
    given = {
        "baseline": "",
        "metric": "exact",
        "state_dir": str(folder / "state"),
        "teacher": TeacherConfig(),
        **changes,
    }
    paths = [str(folder / "one.jsonl"), str(folder / "two.jsonl")]
    return evaluate_models(
        models, paths, str(folder / "p.jsonl"), config=EvalConfig(**config), **given
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A trained student that says yes, and a plain model that says no."""
    place = tmp_path_factory.mktemp("models")
    yes = tiny.student(place / "yes" / "model", "dss", 3, "yes")
    return {"yes": yes, "no": tiny.base(place / "no", "no")}


def test_names_come_from_the_reference_or_the_user():
    found = model_arms(["pocket-base", "runs/demo/model", "big=gs://b/x/", "org/m-2@v1"])
    assert list(found.values()) == ["pocket-base", "demo", "big", "m-2"]
    assert found["gs://b/x/"] == "big"
    assert split_name("runs/lr=0.1/model") == ("lr=0.1", "runs/lr=0.1/model")


@pytest.mark.parametrize(
    ("models", "code"),
    [
        ([], "MODELS_UNREADABLE"),
        ([1], "MODELS_UNREADABLE"),
        (["a/x", "b/x"], "ARM_TWICE"),
        (["one=a/x", "two=a/x"], "ARM_TWICE"),
        (["a_vs_b=x"], "ARM_NAME"),
        (["teacher_5_shot=x"], "ARM_NAME"),
        (["runs/lr=0.1/model"], "ARM_NAME"),
    ],
)
def test_names_that_cannot_be_told_apart_are_one_line(models, code):
    with pytest.raises(UserError, match=code) as error:
        model_arms(models)
    assert "\n" not in str(error.value)


def test_every_model_answers_every_labelled_row_once(tmp_path, folders):
    found = run(tmp_path, [folders["yes"], f"second={folders['no']}"], baseline="second")
    assert (found["rows"], found["rows_without_gold"], found["baseline"]) == (24, 1, "second")
    accuracy = {arm: facts["accuracy"] for arm, facts in found["arms"].items()}
    assert accuracy == pytest.approx({"yes": 16 / 24, "second": 8 / 24})
    assert found["arms"]["yes"]["p50_ms"] > 0
    made = list(read_jsonl(tmp_path / "p.jsonl", Prediction))
    for arm in accuracy:
        assert [item.id for item in made if item.arm == arm] == [row.id for row in tiny.rows()]
    assert sum(item.latency_ms is not None for item in made) == 4
    # bytes are tokens, and the end mark one more: the plain model reads the row and nothing else,
    # the student what it was trained on
    first = {item.arm: item for item in made if item.id == "r0"}
    assert first["second"].prompt_tokens == len("is 0 fine") + 1
    assert first["yes"].prompt_tokens == len("predict: is 0 fine") + 1


def test_a_teacher_is_an_arm_where_there_are_shots(tmp_path, folders):
    files = tiny.inputs(tmp_path)
    teacher = TeacherConfig(backend="replay", prompt=files["prompt"], replay_uri=files["recorded"])
    found = run(
        tmp_path,
        [folders["no"]],
        baseline="teacher_recorded",
        teacher=teacher,
        config={"eval_shots": "2"},
    )
    assert found["arms"]["teacher_recorded"]["accuracy"] == pytest.approx(18 / 24)
    assert "teacher" not in run(tmp_path, [folders["no"]], teacher=teacher)["config"]


@pytest.mark.parametrize(
    ("models", "changes", "code"),
    [
        (["{no}"], {"baseline": "other"}, r"BASELINE_UNKNOWN.*'other', allowed: no"),
        (["{no}", "gone=./no/such/folder"], {}, "MODEL_NOT_FOUND.*no/such/folder"),
        (["{no}"], {"metric": "bleu"}, "METRIC_UNKNOWN.*exact"),
    ],
)
def test_a_wrong_setting_is_one_line_before_any_answer(
    tmp_path, folders, capsys, models, changes, code
):
    with pytest.raises(UserError, match=code) as error:
        run(tmp_path, [item.format(**folders) for item in models], **changes)
    assert "\n" not in str(error.value)
    assert "right" not in capsys.readouterr().out


SCORES = {"a": 0.85, "b": 0.4, "c": 0.6, "d": 0.6}


def summary(scores=SCORES, baseline="c", measured=None):
    facts = {"baseline": baseline, "metric": "exact", "arms": measured or {}}
    return models_summary(predictions(500, scores, seeds=1), facts, {"rows_eval": 500})


def test_the_verdict_is_about_the_baseline():
    found = summary()
    assert set(found["comparisons"]) == {"a_vs_c", "b_vs_c", "d_vs_c"}
    assert found["verdict"] == "better"
    assert found["verdict_sentence"].startswith("a (+")
    assert "beats c: 500 held-out rows, 3 compared" in found["verdict_sentence"]
    assert [note.rpartition(": ")[2] for note in found["notes"]] == [
        "falls behind.",
        "cannot tell.",
    ]
    assert all(item["p_holm"] >= item["p"] for item in found["comparisons"].values())


def test_worse_cannot_tell_and_nothing_to_compare():
    assert "b (−" in summary({"b": 0.4, "c": 0.6})["verdict_sentence"]
    assert summary({"b": 0.4, "c": 0.6})["verdict"] == "worse"
    same = summary({"c": 0.6, "d": 0.6})
    assert same["verdict"] == "cannot_tell"
    assert same["verdict_sentence"].startswith("Cannot tell d (")
    assert summary({"c": 0.6})["verdict_sentence"].startswith("Nothing to compare")
    failed = summary({"c": 0.6}, "teacher_2_shot", {"teacher_2_shot": {"error": "no server"}})
    assert "has no result" in failed["verdict_sentence"]
    assert failed["arms"]["teacher_2_shot"]["error"] == "no server"


def pages_of(folder, made, evaluation, data=None):
    """The summary and the page of a report."""
    write_jsonl(folder / "p.jsonl", made)
    write_json(folder / "e.json", evaluation)
    write_json(folder / "d.json", data or {})
    word = write_models_report(
        predictions_path=str(folder / "p.jsonl"),
        evaluation_metrics_path=str(folder / "e.json"),
        rejects_path=str(folder / "none.jsonl"),
        data_metrics_path=str(folder / "d.json"),
        page_path=str(folder / "page.html"),
        summary_path=str(folder / "s.json"),
        title="Side by side",
    )
    summary = json.loads((folder / "s.json").read_text(encoding="utf-8"))
    assert summary["verdict"] == word
    return summary, (folder / "page.html").read_text(encoding="utf-8")


def test_summary_and_page_hold_the_other_scores(tmp_path):
    gap = {"difference": 0.123, "ci95": [0.08, 0.161], "rows_won": 9, "rows_lost": 1, "p": 4e-4}
    behind = gap | {"difference": -0.05, "ci95": [-0.09, -0.01], "p_holm": 4e-4}
    evaluation = {
        "baseline": "c",
        "arms": {
            "a": {"scores": {"rougeL": 0.4567, "macro_f1": 0.25}},
            "c": {"scores": {"rougeL": 0.3335}},
            "teacher_2_shot": {"error": "no server"},
        },
        "score_comparisons": {"rougeL": {"a": gap | {"p_holm": 0.001}, "d": behind}, "chrf": {}},
        "score_signatures": {"chrf": "nrefs:1|<case>:mixed"},
    }
    made = predictions(60, SCORES, seeds=1)
    found, page = pages_of(tmp_path, made, evaluation)
    assert found["arms"]["a"]["scores"] == evaluation["arms"]["a"]["scores"]
    for name in ("score_comparisons", "score_signatures"):
        assert found[name] == evaluation[name]
    section = page.partition("<h2>Other scores</h2>")[2].partition("</section>")[0]
    heads = re.findall(r'<th scope="col"[^>]*>([^<]*)</th>', section)
    assert heads == ["Arm", "Macro-F1 over the reference labels", "ROUGE-L, F-measure"]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", section) == ["25.0 %", "45.7 %", "–", "33.4 %"]
    line = (
        "ROUGE-L: a +12.3 points (95 % CI +8.0 to +16.1), p 0.001 after Holm; "
        "d −5.0 points (95 % CI −9.0 to −1.0), p &lt; 0.001 after Holm"
    )
    assert f"<p>{line}</p>" in section
    assert "chrF, mean" not in section
    assert '<p class="soft">These comparisons decide nothing' in section
    assert "<dt>Score chrf</dt><dd>nrefs:1|&lt;case&gt;:mixed</dd>" in page

    without = {"baseline": "c", "arms": {}}
    found, page = pages_of(tmp_path, made, without)
    assert found["score_comparisons"] == {}
    assert "Other scores" not in page
    assert "decide nothing" not in page


def test_the_page_says_it_and_escapes_what_others_wrote(tmp_path):
    arms = {"a": {"truncated_inputs": 7}, "teacher_2_shot": {"error": "<b>no server</b>"}}
    evaluation = {"baseline": "c", "metric": "exact", "arms": arms, "rows_without_gold": 3}
    data = {"rows_read": 260, "rows_train": 100, "rows_eval": 110}
    found, page = pages_of(tmp_path, predictions(200, SCORES, seeds=1), evaluation, data)
    assert found["verdict"] == "better"
    assert found["data"]["rows_left_out"] == 7  # 210 prepared, 3 without an answer, 200 asked
    for words in (
        "Against c",
        "to its limit: 7",
        "not asked: 3",
        "Left out by eval_rows",
    ):
        assert words in page
    assert "<b>no server" not in page
    assert "<script" not in page
