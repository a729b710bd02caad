"""The claims page: verdict first, all that was promised, escaped, small, and complete in itself."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipestill.claims.charts import (
    CostLine,
    RewardPoint,
    Series,
    cost_chart,
    frontier_chart,
    series_chart,
)
from pipestill.claims.report import write_claims_report
from pipestill.claims.samples import by_length, overlap, rationale_groups
from pipestill.components.report_claims import report_claims
from pipestill.errors import UserError
from pipestill.evaluation.charts import ArmPoint, scatter_chart
from tests.claims import synthetic_claims as made
from tests.evaluation.test_report_page import EVIL, Page

SECTIONS = (
    "1. A tuned model needs no examples", "2. Rationales make rows worth more",
    "3. The student is smaller", "4. RLHF raises the reward", "5. The student pays back",
    "Where the curves cross", "Quality against cost and size", "On the front:", "Rows DSS won",
    "Rows DSS lost", "By gold label", "By input length", "Every run (60)", "Best", "Worst",
    "By chance", "Rows set aside: the first 10 of 12", "Estimate against actual", "Model card",
    "To reproduce", "sha256 of training rows", "seed 1: went on at step 120", "Limits",
    "No measured number of examples", "an upper bound", "Requests until paid back",
)  # fmt: skip
PLAN = {
    "pipeline": "claims",
    "profile": "a100-80gb-x8",
    "steps": [
        {
            "component": component,
            "hours": {"low": 0.1, "likely": 0.2, "high": 0.5},
            "cost_usd": {"low": 4.0, "likely": 9.0, "high": 40.0},
            "teacher_usd": {"low": 0.0, "likely": 1.0, "high": 2.0},
        }
        for component in ("data_prep", "teacher_label", "train_curve", "train_curve")
    ],
}


def write(folder: Path, plan=None, **changed):
    arguments = made.write_run(folder, **changed)
    plan_uri = str(folder / "plan.json") if plan else ""
    if plan:
        Path(plan_uri).write_text(json.dumps(plan), encoding="utf-8")
    word = write_claims_report(**arguments, plan_uri=plan_uri)
    html = Path(arguments["page_path"]).read_text(encoding="utf-8")
    summary = json.loads(Path(arguments["summary_path"]).read_text(encoding="utf-8"))
    assert word == summary["verdict"]
    return html, Page(html), summary


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write(tmp_path_factory.mktemp("claims"), PLAN)


def test_the_verdict_comes_first_and_then_the_claims_in_order(written):
    html, page, summary = written
    assert html.index('class="verdict better"') < html.index("<h2>")
    places = [html.index(f">{item['number']}. {item['title']}") for item in summary["claims"]]
    assert places == sorted(places)
    for item in summary["claims"]:
        assert item["sentence"] in page.text


def test_everything_promised_is_on_the_page(written):
    _, page, _ = written
    for words in SECTIONS:
        assert words in page.text, words


def test_it_is_complete_in_itself_and_small(written):
    html, page, _ = written
    names = {name for name, _ in page.tags}
    assert (page.broken, page.open) == ([], [])
    assert not names & {"script", "iframe", "object", "embed", "link", "img", "form", "a"}
    for _, attributes in page.tags:
        assert not {"src", "href", "xlink:href", "action"} & attributes.keys()
        assert not [key for key in attributes if key.startswith("on")]
    assert not any(words in html for words in ("http://", "https://", "url(", "@import"))
    assert "default-src 'none'; style-src 'unsafe-inline'" in html
    assert len(html.encode()) < 500_000


def test_charts_have_names_and_ids_of_their_own(written):
    _, page, _ = written
    charts = [a for name, a in page.tags if name == "svg" and "role" in a]
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(charts) >= 18
    assert len(ids) == len(set(ids))
    assert "Pareto front: DSS, Tuned" in page.text
    assert "went on after a stop at step 120" in page.text


def test_no_text_of_others_becomes_markup(tmp_path):
    by_arm, items = made.predictions(60)
    evil = dict.fromkeys(("input_text", "output_text", "gold", "rationale"), EVIL)
    by_arm = {
        arm: [dataclasses.replace(item, id=item.id + EVIL, **evil) for item in rows]
        for arm, rows in by_arm.items()
    }
    items = [dataclasses.replace(item, id=item.id + EVIL, **evil) for item in items]
    rows = [
        dataclasses.replace(row, id=EVIL, input_text=EVIL, output_text=EVIL, teacher_label=EVIL,
                            rationale=EVIL, gold_rationale=EVIL, rationale_status=EVIL)
        for row in made.training_rows(3)
    ]  # fmt: skip
    prompts = made.prompt_metrics(machine={"name": EVIL, "source": EVIL, "date": EVIL,
                                           "usd_per_hour": {"likely": 0.2}},
                                  metric=EVIL, config={EVIL: EVIL})  # fmt: skip
    prompts["arms"]["large_9_shot"] = {"error": EVIL}
    curves = [made.curve_metrics(arm, base_model=EVIL) for arm in by_arm]
    curves.append({"arm": EVIL, "error": EVIL, "restarts": {EVIL: [3]}})
    frontier = made.frontier_metrics()
    frontier["points"][0]["decision"] = EVIL
    html, page, _ = write(
        tmp_path, predictions=(by_arm, items), rows_=rows, prompts=prompts, curve_metrics=curves,
        frontier=frontier, title=EVIL, tune={"base_model": EVIL},
    )  # fmt: skip
    assert not {name for name, _ in page.tags} & {"script", "img"}
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert "<script" not in html
    assert page.text.count("{{ 7*7 }}") > 10
    assert (page.broken, page.open) == ([], [])


def test_a_run_that_measured_almost_nothing_still_makes_a_page(tmp_path):
    by_arm, items = made.predictions(20, {"finetune": made.CURVES["finetune"]}, {"base": 0.3}, 1)
    html, page, summary = write(
        tmp_path, predictions=(by_arm, items), curve_metrics=[{"arm": "finetune"}], prompts={},
        frontier={"points": []}, data={}, labels={}, tune={}, rows_=[], rejects=[],
    )  # fmt: skip
    assert summary["verdict"] == "cannot_tell"
    assert "0 of 5 claims are shown on 20 held-out rows" in page.text
    assert (page.broken, page.open) == ([], [])
    assert "Estimate against actual" not in page.text
    assert html


def test_the_plan_stands_beside_what_was_measured(tmp_path):
    _, page, summary = write(tmp_path, PLAN, labels={"seconds": 360.0})
    parts = summary["estimate"]["parts"]
    assert set(parts) == {"Labels and rationales", "Students", "Together"}
    labels = parts["Labels and rationales"]
    assert labels["minutes"] == pytest.approx({"low": 6, "likely": 12, "high": 30, "measured": 6})
    assert labels["usd"]["likely"] == pytest.approx(8)  # less the teacher's price
    assert labels["usd"]["measured"] == pytest.approx(360 / 3600 * 40)
    assert parts["Students"]["minutes"]["likely"] == pytest.approx(24)
    assert parts["Together"]["usd"]["likely"] == pytest.approx(24)
    assert "at the plan's price of an hour" in page.text


@pytest.mark.parametrize("change", [{"pipeline": "rlhf"}, {"steps": [{"hours": 3}]}, {"steps": 7}])
def test_another_file_is_no_plan(tmp_path, change):
    with pytest.raises(UserError, match=r"PLAN_UNREADABLE.*plan.json.*pipestill plan"):
        write(tmp_path, {**PLAN, **change})


@pytest.mark.slow
def test_ten_thousand_rows_make_no_large_page(tmp_path):
    curves = {arm: made.CURVES[arm] for arm in ("dss", "finetune")}
    prompted = {
        arm: made.PROMPTED[arm] for arm in ("tuned", "large_2_shot", "teacher_2_shot", "dss")
    }
    html, _, summary = write(
        tmp_path, predictions=made.predictions(10_000, curves, prompted, seeds=1)
    )
    assert summary["rows"] == 10_000
    assert len(html.encode()) < 2_000_000


def test_the_component_hands_everything_over(tmp_path):
    paths = made.write_run(tmp_path, rows=40)

    def artifact(path):
        return SimpleNamespace(path=str(path))

    lists = ("curve_predictions", "curve_metrics")
    word = report_claims.python_func(
        **{name: [artifact(path) for path in paths[f"{name}_paths"]] for name in lists},
        **{
            name.removesuffix("_path"): artifact(path)
            for name, path in paths.items()
            if name.endswith("_path")
        },
        title="A title",
    )
    summary = json.loads(Path(paths["summary_path"]).read_text(encoding="utf-8"))
    assert word == summary["verdict"]
    assert "A title" in Path(paths["page_path"]).read_text(encoding="utf-8")


def test_rationales_are_ranked_by_answer_agreement_and_words():
    best, worst, chance = rationale_groups(made.training_rows(), "exact")
    assert all(row["columns"][1]["right"] for row in best["rows"])
    assert not any(row["columns"][1]["right"] for row in worst["rows"])
    assert "60 % of its samples agree" in worst["rows"][0]["columns"][1]["name"]
    assert len(chance["rows"]) == 3
    assert rationale_groups([], "exact") == []


def test_overlap_is_the_f1_of_shared_words():
    assert overlap("a b c", "A b d e.") == pytest.approx(2 * 2 / 7)
    assert overlap("a a", "a") == pytest.approx(2 / 3)
    assert (overlap(None, "a"), overlap("", ""), overlap("x", "y")) == (0.0, 0.0, 0.0)


def test_the_thirds_of_length_hold_every_row_once():
    words = np.random.default_rng(0).integers(3, 40, 200)
    masks = list(by_length(words).values())
    assert np.sum(masks, axis=0).tolist() == [1] * 200
    assert by_length(np.full(9, 4)) == {}
    two = by_length(np.array([20] * 9 + [23] * 12))
    assert list(two) == ["shorter, 20 to 20 words", "longer, 23 to 23 words"]


def test_one_validation_loss_a_run_is_no_curve(tmp_path):
    curves = [made.curve_metrics(arm) for arm in made.CURVES]
    for item in curves:
        for rows in item["curves"].values():
            for row in rows[:-1]:
                row[2] = None
    _, page, _ = write(tmp_path, curve_metrics=curves)
    assert "Training loss" in page.text
    assert not [a for _, a in page.tags if a.get("id", "").startswith("validation-loss")]


@pytest.mark.parametrize("width", [350.0, 960.0])
def test_charts_survive_extreme_values(width):
    point = ArmPoint(arm="dss", accuracy=1.0, low=1.0, high=1.0, x=1.0)
    one, two = Series(arm="dss", points=(point,)), Series(arm="base", points=(point, point))
    reward = RewardPoint(name="b", reward=0.0, reward_ends=(0.0, 0.0), kl=0.0, kl_ends=(0.0, 0.0),
                         on_front=False)  # fmt: skip
    drawn = [
        series_chart([one], [], "x", width, name="a", log=True),
        series_chart([one, two] * 6, [point], "x", width, name="a", log=False),
        frontier_chart([reward], width),
        frontier_chart([reward, dataclasses.replace(reward, on_front=True, kl=9.0)], width),
        cost_chart([CostLine(arm="dss", fixed=0.0, each=1e-9)], 0.2, width),
        cost_chart([CostLine(arm="dss", fixed=1e6, each=1e-9),
                    CostLine(arm="teacher", fixed=0, each=30.0)], 4e12, width),
        scatter_chart([point, point], "tokens", width, [0]),
    ]  # fmt: skip
    for chart in drawn:
        assert "nan" not in chart
        assert Page(chart).open == []
