"""A tuned model against its base, and the page that says what changed."""

import json

import pytest

from pipestill.config import TuneConfig, TuneEvalConfig
from pipestill.errors import UserError
from pipestill.evaluation.likelihood import likelihood
from pipestill.evaluation.tuned import evaluate_tuned
from pipestill.evaluation.tuned_report import score_rows, tuned_summary, write_tuned_report
from pipestill.models.student import Student
from pipestill.records import Example, Prediction, read_jsonl, write_json, write_jsonl
from pipestill.training.supervised import tune
from tests.training.tiny import COLOURS, make_folder

CONFIG = TuneEvalConfig(latency_rows=2, max_output_tokens=16)
NAMES = {"a": "red", "b": "green", "c": "blue"}


def rows(count, tests=False):
    return [
        Example(
            id=f"w{i}",
            input_text="abc"[i % 3] * 3,
            output_text=COLOURS[i % 3],
            tests="assert True\n" if tests else None,
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A model that has learned its rows, its base, and its training metrics."""
    folder = tmp_path_factory.mktemp("tuned")
    base = make_folder("llama", folder / "base")
    write_jsonl(folder / "rows.jsonl", rows(30))
    config = TuneConfig(
        large_model_reference=base, task="code", train_steps=100, batch_size=8, learning_rate=5e-3,
        evaluation_interval=50, max_output_tokens=32, precision="fp32",
        instruction="<b>Name</b> it.",
    )  # fmt: skip
    summary = tune(folder / "rows.jsonl", "", folder / "m", state_dir="", config=config)
    return folder, base, summary


def evaluate(tuned, examples, out, **changes):
    folder, base, _ = tuned
    write_jsonl(out / "held.jsonl", examples)
    settings = TuneEvalConfig(latency_rows=2, max_output_tokens=16, **changes)
    return evaluate_tuned(
        str(folder / "m"), str(out / "held.jsonl"), str(out / "p.jsonl"),
        base_reference=base, config=settings,
    )  # fmt: skip


def test_both_models_answer_the_same_prompts(tuned, tmp_path):
    found = evaluate(tuned, rows(6), tmp_path)
    assert (found["rows"], found["metric"], found["task"]) == (6, "verbatim", "code")
    arms = found["arms"]
    assert (arms["tuned"]["accuracy"], arms["base"]["accuracy"]) == (1.0, 0.0)
    assert arms["tuned"]["prompt_tokens"] == arms["base"]["prompt_tokens"]
    assert arms["tuned"]["template_accuracy"] == arms["tuned"]["token_accuracy"] == 1.0
    assert arms["tuned"]["perplexity"] < 1.5 < arms["base"]["perplexity"]
    assert arms["tuned"]["scores"]["chrf"] == arms["tuned"]["scores"]["rougeL"] == 1.0
    assert found["score_comparisons"]["chrf"]["tuned"]["difference"] > 0.5
    assert arms["tuned"]["p50_ms"] > 0
    assert "pass_at_1" not in arms["tuned"]
    predictions = list(read_jsonl(tmp_path / "p.jsonl", Prediction))
    assert len(predictions) == 12
    assert sum(item.latency_ms is not None for item in predictions) == 4


def test_code_runs_only_where_it_is_asked_for(tuned, tmp_path):
    """The answer to ``aaa`` is ``red``, a name that no program knows."""
    assert evaluate(tuned, rows(3, tests=True), tmp_path)["metric"] == "verbatim"
    found = evaluate(tuned, rows(3, tests=True), tmp_path, code_execution=True)
    assert found["metric"] == "pass@1"
    assert found["arms"]["tuned"]["exact"] == 1.0
    assert found["arms"]["tuned"]["accuracy"] == found["arms"]["tuned"]["pass_at_1"] == 0.0
    predictions = list(read_jsonl(tmp_path / "p.jsonl", Prediction))
    assert all(item.error.startswith("failed") for item in predictions if item.arm == "tuned")


def test_likelihood_is_that_of_a_plain_forward_pass(tuned):
    import torch

    folder, _, _ = tuned
    student = Student.load(str(folder / "m"))
    inputs, answers = ["aaa", "bbb"], ["red", "blue"]
    found = likelihood(student, inputs, answers)
    nll, hits, tokens = 0.0, 0, 0
    for text, answer in zip(inputs, answers, strict=True):
        prompt = student.renderer.prompts("predict", [text])[0].ids
        target = student.renderer.targets([answer])[0]
        with torch.no_grad():
            logits = student.loaded.model(input_ids=torch.tensor([prompt + target])).logits[0]
        logits = logits[len(prompt) - 1 : -1].double()
        wanted = torch.tensor(target)
        nll -= float(logits.log_softmax(-1).gather(1, wanted[:, None]).sum())
        hits += int((logits.argmax(-1) == wanted).sum())
        tokens += len(target)
    assert found.tokens == tokens
    assert found.nll == pytest.approx(nll / tokens, abs=1e-4)
    assert found.token_accuracy == hits / tokens


def test_a_model_that_was_not_tuned_is_refused(tuned, tmp_path):
    _, base, _ = tuned
    write_jsonl(tmp_path / "held.jsonl", rows(3))
    with pytest.raises(UserError, match="MODEL_NOT_TUNED"):
        evaluate_tuned(
            base, str(tmp_path / "held.jsonl"), str(tmp_path / "p.jsonl"), base_reference=base,
            config=CONFIG,
        )  # fmt: skip


def test_the_report(tuned, tmp_path):
    folder, _, training = tuned
    found = evaluate(tuned, rows(30), tmp_path)
    for name, value in {
        "e": found,
        "d": {"rows_read": 60, "rows_train": 30},
        "t": training,
    }.items():
        write_json(tmp_path / f"{name}.json", value)
    verdict = write_tuned_report(
        predictions_path=str(tmp_path / "p.jsonl"),
        evaluation_metrics_path=str(tmp_path / "e.json"),
        rejects_path=str(tmp_path / "none"),
        data_metrics_path=str(tmp_path / "d.json"),
        train_metrics_path=str(tmp_path / "t.json"),
        model_path=str(folder / "m"),
        page_path=str(tmp_path / "page.html"),
        summary_path=str(tmp_path / "summary.json"),
        title="<Colours>",
    )
    assert verdict == "better"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["arms"]["tuned"]["accuracy"] == 1.0
    assert "from 0.0 % to 100.0 %: +100.0 points" in summary["verdict_sentence"]
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;Colours&gt;" in page
    assert "<b>Name" not in page  # the audited rows are shown as text
    assert "&lt;b&gt;Name" in page
    assert "<mark>red&lt;/s&gt;</mark>" in page
    assert summary["arms"]["tuned"]["scores"] == found["arms"]["tuned"]["scores"]
    measured = json.loads((tmp_path / "e.json").read_text())
    assert summary["score_comparisons"] == measured["score_comparisons"]
    shown = page.partition("<h2>Further scores</h2>")[2].partition("</section>")[0]
    assert '<th scope="row">ROUGE-L, F-measure</th><td class="n">100.0 %</td>' in shown
    assert "Macro-F1 over the reference labels" in shown  # three labels, ten rows each
    assert "<p>ROUGE-L: Tuned +100.0 points (95 % CI +100.0 to +100.0), p &lt; 0.001 after" in shown
    assert "<p>chrF, mean of the rows: Tuned +" in shown
    assert "decide nothing" in shown
    assert f"<dt>Score bleu</dt><dd>{found['score_signatures']['bleu']}</dd>" in page
    assert "Right since tuning" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")

    from pipestill.evaluation.summary import format_table

    assert "Tuned" in format_table(summary)


def test_the_scores_of_sampled_programs_and_of_texts_are_shown():
    known = {
        "exact": 0.5,
        "perplexity": 1.25,
        "pass_at_1": 0.25,
        "pass_at_k": {"1": 0.3, "5": 0.625},
        "scores": {"exact": 0.75, "rougeL": 0.5, "bleu": 0.125, "chrf": 0.4},
    }
    base = {"exact": 0.0, "perplexity": 2.0}
    rows = score_rows({"arms": {"tuned": known, "base": base}})
    assert {row["name"]: (row["tuned"], row["base"]) for row in rows} == {
        "Answers that equal the row's": ("50.0 %", "0.0 %"),
        "Programs that pass their tests (pass@1)": ("25.0 %", "–"),
        "pass@1 of sampled programs": ("30.0 %", "–"),
        "pass@5 of sampled programs": ("62.5 %", "–"),
        "ROUGE-L, F-measure": ("50.0 %", "–"),
        "chrF of the whole set": ("40.0 %", "–"),
        "BLEU of the whole set": ("12.5 %", "–"),
        "Perplexity of the right answers": ("1.25", "2"),
    }


def test_a_tuning_that_changed_nothing_cannot_tell():
    def answer(arm, row, right):
        return Prediction(
            id=row, arm=arm, seed=0 if arm == "tuned" else -1, input_text="x", gold="y",
            output_text="y" if right else "n", correct=right, prompt_tokens=1, output_tokens=1,
        )  # fmt: skip

    predictions = [answer(arm, f"r{i}", i % 2 == 0) for arm in ("tuned", "base") for i in range(20)]
    found = tuned_summary(predictions, {"arms": {"base": {"pass_at_k": {"5": 0.5}}}}, {}, {})
    assert found["arms"]["base"]["pass_at_k"] == {"5": 0.5}
    assert found["verdict"] == "cannot_tell"
    assert "may or may not change" in found["verdict_sentence"]
