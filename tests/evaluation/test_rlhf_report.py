"""The report of an RLHF run, from made-up metrics: what stands on the page and in the summary."""

import json

import pytest

from pipestill.evaluation.gate import Rule, decide
from pipestill.evaluation.rlhf_report import curves, samples, write_rlhf_report
from pipestill.evaluation.rlhf_summary import rlhf_summary
from pipestill.records import write_json, write_jsonl

EVIL = "<script>alert(1)</script>"


def answers(count=12):
    return [
        {
            "id": f"r{i:02d}", "arm": arm, "mode": mode, "input_text": f"prompt {i} {EVIL}",
            "output_text": f"{arm} {i} {EVIL}", "reward": i / 10 * (1 if arm == "tuned" else -1),
            "prompt_tokens": 4, "output_tokens": 5 + i, "ended": i % 2 == 0, "kl": 0.5, "nll": 2.0,
            "latency_ms": None,
        }
        for arm in ("base", "tuned") for mode in ("sampled", "greedy") for i in range(count)
    ]  # fmt: skip


def arm(reward):
    figures = {
        "reward": reward, "reward_ci95": [reward - 0.1, reward + 0.1], "eos_share": 0.9,
        "output_tokens": 9.0, "distinct_1": 0.2, "distinct_2": 0.4, "perplexity": 2.5,
        "prompt_tokens": 5.0,
    }  # fmt: skip
    greedy = {f"greedy_{name}": value for name, value in figures.items()}
    return {**figures, **greedy, "p50_ms": 3.0, "p95_ms": 4.0, "params": 1000, "bytes": 4000}


def evaluation(low=0.4, high=0.8, judge=None):
    gap = {"difference": (low + high) / 2, "ci95": [low, high]}
    share = {"value": 0.7, "ci95": [0.6, 0.8]}
    return {
        "rows": 12, "left_out": 4, "notes": [], "objective": "ppo", "seed": 0,
        "arms": {"base": arm(0.1), "tuned": arm(0.1 + gap["difference"])},
        "comparisons": {
            "reward": gap, "reward_greedy": gap, "reward_length_controlled": {**gap, "slope": 0.1},
            "output_tokens": gap, "token_nll": gap, "ended": gap, "win_rate": share,
            "win_rate_greedy": share, "kl": {"value": 1.2, "ci95": [1.0, 1.4]},
        },
        "judge": judge or {}, "latency_rows": 2, "config": {"start": "pocket-base"},
    }  # fmt: skip


def reward_metrics():
    found = {"pairs": 60, "accuracy": 0.9, "accuracy_ci95": [0.8, 0.97], "ece": 0.05}
    for name, value in (("longer", 0.5), ("length_model", 0.55)):
        found |= {
            f"{name}_accuracy": value, f"{name}_accuracy_ci95": [0.4, 0.6],
            f"difference_to_{name}": 0.9 - value, f"difference_to_{name}_ci95": [0.2, 0.5],
            f"against_{name}": "better",
        }  # fmt: skip
    found |= {
        "length_correlation": 0.1, "length_correlation_in_pairs": -0.1,
        "accuracy_where_longer_is_preferred": 0.9, "pairs_where_longer_is_preferred": 30,
        "accuracy_where_shorter_is_preferred": None, "pairs_where_shorter_is_preferred": 0,
        "reliability": [{"from": 0.5, "pairs": 20, "claimed": 0.55, "right": 0.5},
                        {"from": 0.9, "pairs": 40, "claimed": 0.95, "right": 0.97}],
    }  # fmt: skip
    return {
        "base_model": EVIL,
        "train_pairs": 200,
        "steps": 10,
        "best_step": 8,
        "evaluation": found,
    }


LOG = [
    {"step": 0, "val_reward": 0.1, "val_kl": 0.0, "val_reward_se": 0.01, "val_distinct_2": 0.5},
    *({"step": i, "reward": i / 10, "kl": i / 20, "eos_share": 1.0} for i in range(1, 6)),
    {"step": 6, "reward": 0.9, "kl": 0.3, "val_reward": 0.8, "val_kl": 0.3,
     "val_distinct_2": 0.1},
]  # fmt: skip
DATA = {
    "pairs_read": 100, "pairs_rejected": 1, "set_aside_tie": 3, "set_aside_same_after_cut": 2,
    "set_aside_identical_candidates": 0, "pairs_train": 80, "pairs_eval": 14, "prompts_train": 70,
    "prompts_eval": 12, "choice_0_share": 0.5, "choice_0_share_before": 1.0,
    "preferred_longer_share": 0.6,
}  # fmt: skip
RULES = [
    Rule(name="reward", outcome="pass", text="difference +0.6"),
    Rule(name="KL_to_the_start", outcome="open", text="1.2 nats"),
]


@pytest.fixture
def write(tmp_path):
    def report(found, log, override=""):
        write_jsonl(tmp_path / "p.jsonl", answers())
        (tmp_path / "policy").mkdir(exist_ok=True)
        if log:
            write_jsonl(tmp_path / "policy" / "train_log.jsonl", log)
        parts = {
            "e": found, "g": decide(RULES, override), "d": DATA, "r": reward_metrics(),
            "t": {"objective": found["objective"], "steps": 6, "best_step": 6, "seconds": 1.5},
        }  # fmt: skip
        for name, value in parts.items():
            write_json(tmp_path / f"{name}.json", value)
        verdict = write_rlhf_report(
            predictions_path=str(tmp_path / "p.jsonl"),
            evaluation_metrics_path=str(tmp_path / "e.json"),
            decision_path=str(tmp_path / "g.json"),
            rejects_path=str(tmp_path / "none"),
            data_metrics_path=str(tmp_path / "d.json"),
            reward_metrics_path=str(tmp_path / "r.json"),
            train_metrics_path=str(tmp_path / "t.json"),
            model_path=str(tmp_path / "policy"),
            page_path=str(tmp_path / "page.html"),
            summary_path=str(tmp_path / "s.json"),
            kl_bound=20.0,
            title=EVIL,
        )
        page = (tmp_path / "page.html").read_text(encoding="utf-8")
        return verdict, page, json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))

    return report


def test_the_page(write):
    verdict, page, summary = write(evaluation(), LOG)
    assert verdict == summary["verdict"] == "better"
    assert "PPO raises the reward from +0.10 to +0.70: +0.60 (95 % CI +0.40 to +0.80)" in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert page.index("ANSWERS_ALIKE") < page.index("raises the reward")  # alarms stand first
    for words in (
        "KL to the start", "not settled", "Reward against training step", "Reward against KL, nats",
        "It is better than length alone", "Expected calibration error", "Set aside, ties",
        "Set aside, equal after cutting", "Most reward gained", "By chance", "To reproduce",
        "as read in 100.0 %", "prefers-color-scheme: dark",
    ):  # fmt: skip
        assert words in page, words
    assert len(page) < 2_000_000
    assert summary["decision"] == "cannot_tell"
    assert 'class="verdict cannot_tell"' in page  # better in reward, and yet not promoted
    assert summary["alarms"][0]["step"] == 6
    assert max(map(len, summary["table"])) <= 100


def test_a_direct_objective_without_a_log_of_rewards(write):
    found = {**evaluation(-0.2, 0.3), "objective": "dpo"}
    log = [{"step": 1, "preference_loss": 0.6}, {"step": 2, "val_kl": 0.2}]
    verdict, page, summary = write(found, log)
    assert verdict == "cannot_tell"
    assert "The training log has no rewards to draw" in page
    assert "No alarm rang" in page
    assert "DPO may or may not change" in page
    assert not any("trained against" in note for note in summary["notes"])


def test_no_log_at_all(write):
    assert write({**evaluation(-0.5, -0.2), "objective": "ipo"}, [])[0] == "worse"


def test_an_override_and_a_judge(write):
    judge = {"win_rate": 0.6, "ci95": [0.5, 0.7], "won": 7, "lost": 4, "ties": 1, "pairs": 12,
             "judged": 12, "kappa": 0.5, "both_orders": 12}  # fmt: skip
    _, page, summary = write(evaluation(judge=judge), LOG, override=f"read by me {EVIL}")
    assert summary["decision"] == "promote"
    assert "read by me &lt;script&gt;" in page
    assert "Cohen&#39;s κ 0.50" in page
    assert 'class="verdict better"' in page


def test_samples_are_the_extremes_and_some_by_chance():
    best, worst, chance = samples(answers())
    assert [row["id"] for row in best["rows"]] == ["r11", "r10", "r09"]
    assert [row["id"] for row in worst["rows"]] == ["r00", "r01", "r02"]
    assert len(chance["rows"]) == 3
    assert best["rows"][0]["difference"] == "+2.20"
    assert "cut off" in best["rows"][0]["answers"][0]["meta"]


def test_curves_of_a_single_evaluation_are_not_drawn():
    assert curves(LOG[:1]) == []
    assert len(curves(LOG)) == 3


def test_every_key_that_the_card_reads_is_there():
    summary = rlhf_summary(evaluation(), decide(RULES), DATA, reward_metrics(), {}, [])
    assert summary["arms"]["tuned"]["accuracy"] is None  # rewards are no accuracies
    assert summary["rows"] == 12
