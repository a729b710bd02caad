"""The five claims: every outcome from data that carry it, and no claim from data that do not."""

import itertools
import json
import math

import numpy as np
import pytest

from pipestill.claims.evidence import gather
from pipestill.claims.prompts import _reading, match_words
from pipestill.claims.summary import claims_sentence, claims_summary, claims_verdict
from pipestill.errors import WorkError
from pipestill.evaluation.arms import at_share, label, ordered, share_of
from tests.claims import synthetic_claims as made

KEYS = {
    "verdict", "verdict_sentence", "notes", "claims", "rows", "metric", "arms", "comparisons",
    "curves", "crossings", "shots_to_match", "footprint", "break_even", "frontier", "deployed",
    "data", "teacher", "training", "estimate", "table",
}  # fmt: skip
FLAT = (0.6, 0.65, 0.7, 0.75)


def summarise(rows=300, curves=None, prompted=None, seeds=3, **changed):
    by_arm, items = made.predictions(rows, curves, prompted, seeds)
    metrics = {
        "prompts": made.prompt_metrics(),
        "curves": [made.curve_metrics(arm) for arm in by_arm],
        "labels": made.LABELS,
        "tune": made.TUNE_METRICS,
        "frontier": made.frontier_metrics(),
    }
    evidence = gather(itertools.chain(*by_arm.values(), items), **{**metrics, **changed})
    return claims_summary(evidence, {"rows_read": 740})


@pytest.fixture(scope="module")
def full():
    return summarise()


def test_it_has_the_promised_keys_and_is_json(full):
    assert set(full) == KEYS
    assert [item["number"] for item in full["claims"]] == [1, 2, 3, 4, 5]
    for item in full["claims"]:
        assert set(item) == {"number", "title", "outcome", "sentence", "numbers"}
        assert item["sentence"].endswith(".")
        assert "\n" not in item["sentence"]
    json.dumps(full, allow_nan=False)


def test_a_run_with_large_effects_shows_all_claims(full):
    assert [item["outcome"] for item in full["claims"]] == ["shown"] * 5
    assert full["verdict"] == "better"
    assert full["verdict_sentence"] == "5 of 5 claims are shown on 300 held-out rows."
    assert sum(line.endswith(": SHOWN") for line in full["table"]) == 5
    assert max(map(len, full["table"])) <= 100


@pytest.mark.parametrize(
    ("ci95", "reading"),
    [
        ((-0.019, 0.05), "level"),  # surely not 2 points worse
        ((-0.021, 0.05), "cannot_tell"),
        ((-0.015, -0.001), "level"),  # worse for sure, and by less than counts
        ((-0.05, -0.01), "worse"),
        ((0.01, 0.05), "better"),
    ],
)
def test_needing_no_examples_is_not_being_worse_by_the_margin(ci95, reading):
    sure = ci95[0] > 0 or ci95[1] < 0
    gap = {"ci95": ci95, "difference": sum(ci95) / 2, "p_holm": 0.01 if sure else 0.5}
    assert _reading({**gap, "rows_won": 10, "rows_lost": 10}, 5000) == reading


def test_agreeing_on_a_few_rows_is_no_proof():
    same = {"ci95": (0.0, 0.0), "difference": 0.0, "p_holm": 1.0, "rows_won": 0, "rows_lost": 0}
    assert _reading(same, 20) == "cannot_tell"
    assert _reading(same, 500) == "level"


def test_no_right_answer_shows_nothing():
    found = summarise(prompted=dict.fromkeys(made.PROMPTED, 1e-9))["claims"][0]
    assert found["outcome"] == "cannot_tell"


def test_curves_are_the_means_of_the_predictions(full):
    by_arm, _ = made.predictions()
    for arm, share in (("dss", 0.25), ("finetune", 1.0)):
        right = [item.correct for item in by_arm[arm] if item.arm == at_share(arm, share)]
        point = next(p for p in full["curves"][arm] if p["share"] == share)
        assert point["accuracy"] == pytest.approx(sum(right) / len(right))
        assert point["rows"] == share * made.TRAINING_ROWS
        assert point["ci95"][0] < point["accuracy"] < point["ci95"][1]
        assert len(point["accuracy_by_seed"]) == 3


def test_dss_is_compared_with_each_arm_at_each_share_in_one_family(full):
    found = full["comparisons"]["rows"]
    for other in ("finetune", "distillation", "dss_teacher", "shuffled"):
        for place in ("0.125", "0.25", "0.5", "1", "mean"):
            assert f"dss:{place}_vs_{other}:{place}" in found
    assert "dss:1_vs_teacher_2_shot" in found
    assert "dss_teacher:0.5_vs_distillation:0.5" in found
    assert len(found) == 5 * 4 + 5 + 5
    assert all(item["p_holm"] >= item["p"] for item in found.values())
    mean = found["dss:mean_vs_finetune:mean"]["difference"]
    each = [found[f"dss:{p}_vs_finetune:{p}"]["difference"] for p in ("0.125", "0.25", "0.5", "1")]
    assert mean == pytest.approx(np.mean(each))


def test_crossings_lie_where_the_curves_do(full):
    item = full["crossings"]["dss_reaches_finetune_all_rows"]
    points = full["curves"]["dss"]
    rows, accuracy = ([p[key] for p in points] for key in ("rows", "accuracy"))
    at = np.interp(math.log(item["rows"]), np.log(rows), accuracy)
    assert at == pytest.approx(full["curves"]["finetune"][-1]["accuracy"])
    assert item["ci95_rows"][0] < item["rows"] < item["ci95_rows"][1]
    assert item["share"] == pytest.approx(item["rows"] / 400)
    assert "finetune_reaches_finetune_all_rows" not in full["crossings"]
    beyond = full["crossings"]["distillation_reaches_few_shot_teacher"]
    assert beyond["rows"] is None
    assert beyond["ci95_rows"][1] is None


@pytest.mark.parametrize(
    ("curves", "outcome", "words"),
    [
        ({"dss": FLAT, "finetune": FLAT}, "cannot_tell", "cannot be told from standard"),
        ({"dss": (0.4, 0.5, 0.55, 0.6), "finetune": (0.6, 0.7, 0.8, 0.85)}, "not_shown", "behind"),
        ({"dss": (0.9, 0.9, 0.4, 0.4), "finetune": FLAT}, "cannot_tell", "and falls behind it"),
        ({"finetune": FLAT}, "not_measured", "DSS was not trained"),
        ({}, "not_measured", "Not measured"),
    ],
)
def test_claim_2_says_no_more_than_the_intervals(curves, outcome, words):
    found = summarise(curves=curves)["claims"][1]
    assert (found["outcome"], words in found["sentence"]) == (outcome, True), found["sentence"]


def test_what_gets_nothing_right_is_reached_by_none():
    arms = ("finetune", "distillation", "dss", "dss_teacher", "shuffled")
    found = summarise(curves=dict.fromkeys(arms, (1e-9,) * 4))
    assert not any(name.endswith("_finetune_all_rows") for name in found["crossings"])
    assert "to reach fine-tuning" not in found["claims"][1]["sentence"]
    assert found["claims"][1]["outcome"] == "cannot_tell"


def test_claim_2_names_the_control(full):
    assert "what the rationales say matters" in full["claims"][1]["sentence"]
    same = summarise(curves={"dss": made.CURVES["dss"], "finetune": made.CURVES["finetune"],
                             "shuffled": made.CURVES["dss"]})  # fmt: skip
    assert (
        "whether it matters what the rationales say cannot be told"
        in (same["claims"][1]["sentence"])
    )


@pytest.mark.parametrize(
    ("changed", "outcome", "words"),
    [
        ({"large_10_shot": 0.93}, "cannot_tell", "cannot be told from untuned with 10 examples"),
        ({"large_10_shot": 0.985, "tuned": 0.85}, "not_shown", "falls behind untuned with"),
        ({"tuned": None}, "not_measured", "no tuned large model in this run: no memory"),
    ],
)
def test_claim_1_says_no_more_than_the_intervals(changed, outcome, words):
    prompted = {k: v for k, v in (made.PROMPTED | changed).items() if v is not None}
    prompts = made.prompt_metrics(prompted)
    if "tuned" not in prompted:
        prompts["arms"]["tuned"] = {"error": "no memory"}
    found = summarise(prompted=prompted, prompts=prompts)
    claim = found["claims"][0]
    assert (claim["outcome"], words in claim["sentence"]) == (outcome, True), claim["sentence"]


def test_the_teachers_shots_stand_in_where_the_large_model_is_the_teacher():
    prompted = {k: v for k, v in made.PROMPTED.items() if not k.startswith("large")}
    prompts = made.prompt_metrics(prompted, large_is_teacher=True)
    found = summarise(prompted=prompted, prompts=prompts)
    assert found["claims"][0]["outcome"] == "shown"
    assert found["shots_to_match"]["measured"] == [0, 2, 5, 10]


def test_shots_needed_to_match_and_what_they_cost():
    prompted = made.PROMPTED | {"large_5_shot": 0.92, "large_10_shot": 0.98, "tuned": 0.93}
    match = summarise(prompted=prompted)["shots_to_match"]
    assert match["not_surely_worse"]["shots"] == 5
    assert match["reaches"]["shots"] in (5, 10)
    ratio = match["not_surely_worse"]["ratio"]
    assert ratio["prompt_tokens"] == pytest.approx(471 / 38)
    assert ratio["usd_per_1000"] == pytest.approx(318 / 150)
    assert match_words(match).startswith("Shots needed to match: 5 (")
    assert match_words(summarise()["shots_to_match"]).startswith("No measured number")


def test_claim_3_in_every_outcome(full):
    found = full["footprint"]
    assert found["ratios"]["params"] == pytest.approx(1.64 / 2.36)
    low, high = found["p50_ratio_ci95"]
    assert low < 9 / 241 * 1.1
    assert high < 1
    assert found["timed_rows"] == made.TIMED
    larger = made.prompt_metrics()
    larger["arms"]["dss"]["params"] = 5_000_000
    assert summarise(prompts=larger)["claims"][2]["outcome"] == "not_shown"
    halved = made.prompt_metrics()
    halved["arms"]["teacher_2_shot"]["bytes"] = 4_720_000
    claim = summarise(prompts=halved)["claims"][2]
    assert claim["outcome"] == "not_shown"
    assert "140 % of its bytes on disk (4 bytes a parameter against 2)" in claim["sentence"]
    unknown = made.prompt_metrics()
    del unknown["arms"]["dss"]["peak_memory_bytes"]
    claim = summarise(prompts=unknown)["claims"][2]
    assert (claim["outcome"], "not known: memory" in claim["sentence"]) == ("cannot_tell", True)


def test_a_recorded_teacher_has_no_size_and_no_price():
    prompted = {"dss": 0.86, "teacher_recorded": 0.9}
    prompts = made.prompt_metrics(prompted)
    prompts["arms"]["teacher_recorded"] = {"accuracy": 0.9}
    found = summarise(prompted=prompted, prompts=prompts)
    assert [found["claims"][at]["outcome"] for at in (2, 4)] == ["not_measured", "not_measured"]
    assert found["break_even"]["missing"] == ["labelling_usd", "teacher_request_usd"]
    assert found["crossings"]["dss_reaches_few_shot_teacher"]["target_arm"] == "teacher_recorded"


@pytest.mark.parametrize(
    ("shift", "outcome"), [(0.0, "shown"), (-0.7, "cannot_tell"), (-2.0, "not_shown")]
)
def test_claim_4_needs_a_gain_whose_interval_is_above_zero(shift, outcome):
    frontier = made.frontier_metrics()
    for point in frontier["points"]:
        point["gain"] += shift
        point["gain_ci95"] = [end + shift for end in point["gain_ci95"]]
    assert summarise(frontier=frontier)["claims"][3]["outcome"] == outcome


def test_the_frontier_leaves_out_what_another_policy_beats():
    frontier = made.frontier_metrics()
    frontier["points"][0]["reward"] = 0.5  # most KL, and less reward than the second
    points = summarise(frontier=frontier)["frontier"]["points"]
    assert [(p["kl_coeff"], p["on_front"]) for p in points] == [
        (1.6, True), (0.4, True), (0.1, False),
    ]  # fmt: skip


def test_no_preferences_no_claim():
    claim = summarise(frontier={"points": []})["claims"][3]
    assert (claim["outcome"], claim["numbers"]) == ("not_measured", {})


def test_the_break_even_is_its_formula(full):
    table = full["break_even"]
    hour = 0.19 / 3600
    assert table["labelling_usd"]["likely"] == pytest.approx(500 * 0.241 * hour)
    assert table["training_usd"]["likely"] == pytest.approx(32 * hour)
    assert table["training_usd"]["high"] == pytest.approx(310 * 0.25 / 3600)
    saved = (0.241 - 0.009) * hour
    assert table["requests"]["likely"] == pytest.approx((500 * 0.241 + 32) * hour / saved)
    assert table["requests"]["low"] < table["requests"]["likely"] < table["requests"]["high"]


def test_paid_labels_cost_what_was_paid_and_tokens_what_tokens_cost():
    prompts = made.prompt_metrics()
    prompts["arms"]["teacher_2_shot"] |= {"usd_how": "tokens", "usd_per_1000": 2.0}
    labels = made.LABELS | {"cost_usd": 0.31, "calls_made": 310, "calls_from_journal": 0}
    table = summarise(prompts=prompts, labels=labels)["break_even"]
    assert table["labelling_usd"] == {"low": 0.31, "likely": 0.31, "high": 0.31}
    assert table["teacher_request_usd"]["high"] == pytest.approx(0.002)
    saved = 0.002 - 0.009 * 0.19 / 3600
    fixed = 0.31 + 32 * 0.19 / 3600
    assert table["requests"]["likely"] == pytest.approx(fixed / saved)


def test_a_student_that_is_not_cheaper_never_pays():
    prompts, prompted = made.prompt_metrics(), made.PROMPTED
    by_arm, items = made.predictions()
    slow = [
        item if item.arm != "dss" or item.latency_ms is None
        else type(item)(**{**vars(item), "latency_ms": 400.0}) for item in items
    ]  # fmt: skip
    prompts["arms"]["dss"]["p50_ms"] = 400.0
    evidence = gather(
        itertools.chain(*by_arm.values(), slow), prompts=prompts,
        curves=[made.curve_metrics(arm) for arm in by_arm], labels=made.LABELS,
    )  # fmt: skip
    found = claims_summary(evidence, {})
    assert prompted
    assert found["claims"][4]["outcome"] == "not_shown"
    assert found["claims"][4]["sentence"].startswith("Never: a request to DSS costs no less")
    assert found["break_even"]["requests"] == {"low": None, "likely": None, "high": None}


def test_the_machines_price_may_be_unknown():
    prompts = made.prompt_metrics(machine={})
    for arm in prompts["arms"].values():
        del arm["usd_per_1000"]
    claim = summarise(prompts=prompts)["claims"][4]
    assert claim["outcome"] == "not_measured"
    assert claim["sentence"].startswith("Not known: there is no figure for labelling, training")


def test_what_failed_is_said():
    curves = [{"arm": "dss", "error": "out of memory"}, made.curve_metrics("finetune")]
    prompts = made.prompt_metrics()
    prompts["arms"]["large_20_shot"] = {"error": "prompt too long"}
    found = summarise(curves={"finetune": FLAT}, **{"prompts": prompts})
    assert any("20 shots has no result: prompt too long" in note for note in found["notes"])
    by_arm, items = made.predictions(curves={"finetune": FLAT})
    evidence = gather(itertools.chain(*by_arm.values(), items), prompts=prompts, curves=curves)
    assert "DSS failed (out of memory)" in claims_summary(evidence, {})["claims"][1]["sentence"]


def test_nothing_but_predictions_is_enough():
    by_arm, items = made.predictions(40, {"dss": FLAT}, {"base": 0.3}, seeds=1)
    found = claims_summary(
        gather(itertools.chain(*by_arm.values(), items), prompts={}, curves=[]), {}
    )
    assert {item["outcome"] for item in found["claims"]} == {"not_measured"}
    assert found["verdict"] == "cannot_tell"
    assert found["verdict_sentence"].startswith("0 of 5 claims")
    with pytest.raises(WorkError, match="NO_PREDICTIONS"):
        gather([], prompts={}, curves=[])


def test_the_verdict_does_not_outrun_the_claims():
    def verdict(*outcomes):
        return claims_verdict([{"outcome": outcome} for outcome in outcomes])

    assert verdict("shown", "not_measured") == "better"
    assert verdict("shown", "cannot_tell") == "cannot_tell"
    assert verdict("shown", "not_shown") == "cannot_tell"
    assert verdict("not_shown", "cannot_tell") == "worse"
    assert verdict("not_measured") == "cannot_tell"
    outcomes = ("shown", "cannot_tell", "not_shown", "cannot_tell")
    claims = [{"outcome": word, "number": at} for at, word in enumerate(outcomes, 1)]
    assert claims_sentence(claims, 1200) == (
        "1 of 4 claims are shown on 1,200 held-out rows (1); not shown: 3; cannot tell: 2, 4."
    )


def test_names_of_the_arms_of_the_claims():
    assert label("dss:0.125") == "DSS, 12.5 % of the rows"
    assert label("large_1_shot") == "Large, untuned, 1 shot"
    assert (share_of("dss:0.5"), share_of("dss"), share_of("dss:mean")) == (
        ("dss", 0.5),
        None,
        None,
    )
    for name in ("llama:8", "llama:0.50", "x:nan", "x:inf", "x:-1", "x:"):
        assert share_of(name) is None
    names = ["teacher_2_shot", "large_10_shot", "large_2_shot", "base", "finetune", "dss"]
    assert ordered(names) == list(reversed([names[0], names[1], names[2], *names[3:]]))


@pytest.mark.slow
def test_without_an_effect_claim_2_is_rarely_shown():
    wrong = 0
    random = np.random.default_rng(0)
    arms = ("dss", "finetune", "shuffled", "distillation")
    for _ in range(60):
        hard = random.normal(0, 1, 120)
        scores = {}
        for arm in arms:
            for place in made.SHARES:
                luck = random.normal(0, 0.25, 3)
                scores[at_share(arm, place)] = {
                    seed: (random.random(120) < 1 / (1 + np.exp(-(0.5 + luck[seed] - hard)))) * 1.0
                    for seed in range(3)
                }
        wrong += _shown(scores)
    assert wrong <= 7  # 60 x 5 % = 3; more than 7 would come by chance in 2 of 100 such tests


def _shown(scores) -> bool:
    from pipestill.records import Prediction

    items = (
        Prediction(id=str(at), arm=arm, seed=seed, input_text="", gold="", output_text="",
                   correct=bool(right), prompt_tokens=0, output_tokens=0)
        for arm, by_seed in scores.items() for seed, rows in by_seed.items()
        for at, right in enumerate(rows)
    )  # fmt: skip
    found = claims_summary(gather(items, prompts={}, curves=[]), {})
    return found["claims"][1]["outcome"] == "shown"
