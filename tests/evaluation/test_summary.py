"""The summary: exactly the promised keys, the right verdict, and a table that fits a terminal."""

import json

import pytest

from pipestill.errors import WorkError
from pipestill.evaluation.arms import label, ordered, strongest_prompt
from pipestill.evaluation.summary import build_summary, format_table, json_safe
from pipestill.evaluation.wording import big_number, number, percent, signed_points
from tests.evaluation import synthetic

KEYS = {
    "verdict", "verdict_sentence", "notes", "rows", "metric", "arms", "comparisons", "gap_closed",
    "teacher", "data", "training",
}  # fmt: skip
ARM_KEYS = {
    "accuracy", "ci95", "seeds", "accuracy_by_seed", "params", "bytes", "p50_ms", "p95_ms",
    "prompt_tokens", "output_tokens",
}  # fmt: skip


def _summary(items, **changed):
    inputs = {
        "evaluation": synthetic.evaluation_metrics(items),
        "data": synthetic.DATA_METRICS,
        "labels": synthetic.LABEL_METRICS,
        "training": synthetic.training_metrics(),
    }
    return build_summary(items, **{**inputs, **changed})


@pytest.fixture(scope="module")
def items():
    return synthetic.predictions()


@pytest.fixture(scope="module")
def summary(items):
    return _summary(items)


def test_it_has_exactly_the_promised_keys(summary):
    assert set(summary) == KEYS
    assert {"dss", "label_only", "shuffled", "teacher_few_shot", "base"} <= set(summary["arms"])
    assert {"teacher_0_shot", "teacher_2_shot", "teacher_5_shot"} <= set(summary["arms"])
    for arm, entry in summary["arms"].items():
        assert set(entry) - {"arm"} == ARM_KEYS, arm
    assert set(summary["comparisons"]) == {
        "dss_vs_label_only", "dss_vs_shuffled", "dss_vs_teacher_few_shot", "dss_vs_base",
    }  # fmt: skip
    assert set(summary["comparisons"]["dss_vs_base"]) == {
        "difference", "ci95", "p_mcnemar", "rows_won", "rows_lost",
    }  # fmt: skip


def test_the_numbers_are_those_of_the_predictions(items, summary):
    right = [item.correct for item in items if item.arm == "dss"]
    entry = summary["arms"]["dss"]
    assert entry["accuracy"] == pytest.approx(sum(right) / len(right))
    assert entry["ci95"][0] < entry["accuracy"] < entry["ci95"][1]
    assert entry["seeds"] == [0, 1, 2]
    assert set(entry["accuracy_by_seed"]) == {"0", "1", "2"}
    assert summary["arms"]["teacher_few_shot"]["arm"] == "teacher_5_shot"
    pair = summary["comparisons"]["dss_vs_label_only"]
    gap = entry["accuracy"] - summary["arms"]["label_only"]["accuracy"]
    assert pair["difference"] == pytest.approx(gap)
    assert summary["training"]["dss:1"]["steps"] == 300
    assert "curve" not in summary["training"]["dss:1"]


def test_a_known_effect_is_better_and_the_sentence_says_by_how_much(summary):
    assert summary["verdict"] == "better"
    sentence = summary["verdict_sentence"]
    pair = summary["comparisons"]["dss_vs_label_only"]
    points = f"{pair['difference'] * 100:.1f}"
    assert 5 < float(points) < 16
    assert sentence.startswith(f"DSS beats label-only fine-tuning by {points} points (95 % CI ")
    assert sentence.endswith("on 400 held-out rows over 3 seeds.")
    assert "content of the rationales matters" in summary["notes"][0]


def test_the_reverse_effect_is_worse(items):
    swap = {"dss": "label_only", "label_only": "dss"}
    swapped = [type(i)(**{**vars(i), "arm": swap.get(i.arm, i.arm)}) for i in items]
    found = _summary(swapped)
    assert found["verdict"] == "worse"
    low, high = found["comparisons"]["dss_vs_label_only"]["ci95"]
    assert found["verdict_sentence"].startswith("DSS falls behind label-only fine-tuning by ")
    assert f"(95 % CI {-high * 100:.1f} to {-low * 100:.1f})" in found["verdict_sentence"]


def test_equal_arms_cannot_be_told_apart(items):
    twins = [i for i in items if i.arm == "dss"]
    twins += [type(i)(**{**vars(i), "arm": "label_only"}) for i in twins]
    found = _summary(twins)
    assert found["verdict"] == "cannot_tell"
    assert found["comparisons"]["dss_vs_label_only"]["difference"] == 0.0
    assert found["verdict_sentence"].startswith("Cannot tell whether DSS differs")


def test_arms_that_were_not_run_are_there_and_empty(items):
    found = _summary([i for i in items if i.arm == "dss"], evaluation={"arms": {}})
    assert found["verdict"] == "cannot_tell"
    assert "does not hold both arms" in found["verdict_sentence"]
    assert found["arms"]["shuffled"]["accuracy"] is None
    assert found["arms"]["shuffled"]["error"] == "not part of this run"
    assert set(found["arms"]["shuffled"]) == ARM_KEYS | {"error"}
    assert "Shuffled" not in format_table(found)


def test_a_failed_teacher_arm_keeps_its_error_and_costs_no_other_arm(items):
    students = [i for i in items if not i.arm.startswith("teacher")]
    metrics = synthetic.evaluation_metrics(students)
    metrics["arms"]["teacher_5_shot"] = {"error": "[BUDGET_REACHED] the budget is reached"}
    found = _summary(students, evaluation=metrics)
    assert found["verdict"] == "better"
    assert found["arms"]["teacher_few_shot"]["accuracy"] is None
    assert "BUDGET" in found["arms"]["teacher_few_shot"]["error"]
    assert found["gap_closed"] == {}
    assert "Teacher, 5 shots: no result ([BUDGET_REACHED]" in format_table(found)


def test_recorded_answers_stand_for_the_few_shot_teacher(items):
    recorded = [
        type(i)(**{**vars(i), "arm": "teacher_recorded"}) if i.arm == "teacher_5_shot" else i
        for i in items
        if i.arm not in ("teacher_0_shot", "teacher_2_shot")
    ]
    assert _summary(recorded)["arms"]["teacher_few_shot"]["arm"] == "teacher_recorded"


def test_one_seed_says_that_luck_is_not_counted():
    found = _summary(synthetic.predictions(seeds=1))
    assert any("One seed" in note for note in found["notes"])


def test_arms_on_different_rows_are_refused(items):
    with pytest.raises(WorkError, match="ROWS_DIFFER"):
        _summary(items[1:])
    with pytest.raises(WorkError, match="NO_PREDICTIONS"):
        _summary([])


def test_it_is_plain_json(summary):
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert json_safe({"a": (float("nan"), float("inf"), 1.5)}) == {"a": [None, None, 1.5]}


def test_the_table_is_aligned_and_fits_100_columns(summary):
    lines = format_table(summary).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= 100
    assert [line.split("  ")[0] for line in lines[2:5]] == [
        "DSS",
        "Label only",
        "Shuffled rationales",
    ]
    assert "teacher_few_shot" not in format_table(summary)


def test_arms_have_one_order_and_words():
    arms = ["teacher_5_shot", "base", "teacher_0_shot", "mine", "label_only", "dss"]
    assert ordered(arms) == [
        "dss",
        "label_only",
        "mine",
        "base",
        "teacher_0_shot",
        "teacher_5_shot",
    ]
    assert label("teacher_1_shot") == "Teacher, 1 shot"
    assert strongest_prompt(["teacher_2_shot", "teacher_10_shot"]) == "teacher_10_shot"
    assert strongest_prompt(["dss"]) is None


def test_numbers_in_words():
    assert (percent(0.7325), percent(None)) == ("73.2 %", "–")
    assert (number(38.42), number(471), number(1234.5), number(None)) == (
        "38.4",
        "471",
        "1,234",
        "–",
    )
    assert (big_number(1_450_000), big_number(540e9), big_number(512)) == ("1.45 M", "540 B", "512")
    assert (signed_points(0.061), signed_points(-0.02), signed_points(0.0001)) == (
        "+6.1",
        "−2.0",
        "0.0",
    )
