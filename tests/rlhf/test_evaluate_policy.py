"""A policy against its start: figures, comparisons, judge, gate; on tiny models for real."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from pipestill.config import PolicyConfig, TeacherConfig, TuneEvalConfig
from pipestill.errors import UserError
from pipestill.generation.prompts import load_prompt
from pipestill.models.loading import load
from pipestill.models.student import Student, save_student
from pipestill.models.teacher import write_reference
from pipestill.records import write_json, write_jsonl
from pipestill.rlhf.comparison import column, length_controlled, of, token_nll
from pipestill.rlhf.evaluate import FRESH, evaluate_policy, fresh_rows
from pipestill.rlhf.policy_gate import gate_policy, read_answers
from pipestill.rlhf.policy_judge import cohen_kappa, told
from pipestill.rlhf.scoring import RewardModel
from tests.rlhf.policies import rows
from tests.rlhf.test_policy_reward import trained
from tests.training.tiny import make_folder

CONFIG = TuneEvalConfig(latency_rows=2, eval_batch_size=16)
POLICY = PolicyConfig(rlhf_eval_rows=4)
GATE = {
    "min_rows": 5, "min_gain": 0.0, "perplexity_margin": 0.5, "eos_margin": 0.05, "kl_bound": 20.0,
}  # fmt: skip


def make_policy_folder(kind, folder, noise):
    """A policy's folder whose weights lie `noise` away from its base's; returns both."""
    base = make_folder(kind, folder / "base")
    loaded = load(base, precision="fp32")
    dice = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in loaded.model.parameters():
            weight += noise * torch.randn(weight.shape, generator=dice)
    info = {
        "objective": "ppo", "style": "plain", "instruction": "", "seed": 0, "best_step": 2,
        "max_input_tokens": 64, "max_output_tokens": 8, "base_model": base,
    }  # fmt: skip
    log = "\n".join(json.dumps({"step": i, "val_kl": 0.1 * i}) for i in range(3))
    save_student(loaded.model, loaded.tokenizer, folder / "policy", info, train_log=log)
    write_reference(folder / "start", base, "")
    return str(folder / "policy"), base


@pytest.fixture(scope="module", params=["t5_tied", "llama"])
def evaluated(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    policy, base = make_policy_folder(request.param, folder, 0.05)
    trained(folder, base)
    write_jsonl(folder / "prompts.jsonl", rows(40))
    found = evaluate_policy(
        policy, folder / "start", folder / "rm", folder / "prompts.jsonl", folder / "p.jsonl",
        config=CONFIG, policy=POLICY,
    )  # fmt: skip
    write_json(folder / "metrics.json", found)
    return folder, found, read_answers(folder / "p.jsonl")


def test_every_prompt_has_four_answers(evaluated):
    _, found, answers = evaluated
    assert found["rows"] == 36
    assert found["left_out"] == 4
    assert len(answers) == 4 * 36
    assert {row["id"] for row in answers if row["arm"] == "base"} == {
        row["id"] for row in answers if row["arm"] == "tuned"
    }
    assert all(1 <= row["output_tokens"] <= 8 for row in answers)
    timed = [row for row in answers if row["latency_ms"] is not None]
    assert len(timed) == 4
    assert {row["mode"] for row in timed} == {"greedy"}


def test_figures_are_those_of_the_models(evaluated):
    """Greedy answers, rewards and log-probabilities, each computed anew in another way."""
    folder, _, answers = evaluated
    tuned, base = Student.load(str(folder / "policy")), Student.load(str(folder / "base"))
    greedy = of(answers, "tuned", "greedy")
    texts = [row["input_text"] for row in greedy]
    again = tuned.answer(texts, batch_size=8, max_new_tokens=8)
    assert [row["output_text"] for row in greedy] == [item.text for item in again]
    scorer = RewardModel.load(folder / "rm")
    row, prompt = greedy[0], tuned.renderer.prompts("predict", texts[:1])[0]
    left = not tuned.loaded.is_encoder_decoder
    model = tuned.loaded.model
    output = model.generate(torch.tensor([prompt.ids]), max_new_tokens=8)[0]
    ids = output[len(prompt.ids) :] if left else output[1:]
    ids = ids[: row["output_tokens"]].tolist()
    assert float(scorer.score([prompt.ids], [ids])[0]) == pytest.approx(row["reward"], abs=1e-4)
    whole = [plain_logprob(student.loaded.model, prompt.ids, ids) for student in (tuned, base)]
    assert row["nll"] == pytest.approx(-whole[1], abs=1e-3)
    assert row["kl"] == pytest.approx(whole[0] - whole[1], abs=1e-3)


def plain_logprob(model, prompt, ids):
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            logits = model(torch.tensor([prompt]), labels=torch.tensor([ids])).logits[0]
        else:
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1)[range(len(ids)), ids].sum())


def test_the_start_has_no_distance_from_itself(evaluated):
    _, found, answers = evaluated
    for mode in ("sampled", "greedy"):
        assert np.abs(column(of(answers, "base", mode), "kl")).max() < 1e-4
    assert found["comparisons"]["kl"]["value"] > 0.05


def test_comparisons_are_paired_means(evaluated):
    _, found, answers = evaluated
    base, tuned = (of(answers, arm, "sampled") for arm in ("base", "tuned"))
    gap = column(tuned, "reward") - column(base, "reward")
    compared = found["comparisons"]
    assert compared["reward"]["difference"] == pytest.approx(gap.mean())
    low, high = compared["reward"]["ci95"]
    assert low < gap.mean() < high
    assert compared["win_rate"]["value"] == pytest.approx(((gap > 0) + (gap == 0) / 2).mean())
    assert found["arms"]["tuned"]["perplexity"] == pytest.approx(
        math.exp(column(tuned, "nll").sum() / column(tuned, "output_tokens").sum())
    )
    assert compared["token_nll"]["difference"] == pytest.approx(
        (token_nll(tuned) - token_nll(base)).mean()
    )


def test_the_gate_reads_what_the_evaluation_wrote(evaluated, tmp_path):
    folder, found, _ = evaluated
    decided = gate_policy(
        str(folder / "p.jsonl"), str(folder / "metrics.json"), str(folder / "policy"),
        str(tmp_path / "d.json"), **GATE,
    )  # fmt: skip
    written = json.loads((tmp_path / "d.json").read_text())
    assert written["decision"] == decided
    rules = {rule["name"]: rule for rule in written["rules"]}
    assert rules["reward"]["numbers"]["ci95"] == found["comparisons"]["reward"]["ci95"]
    assert rules["alarms"]["outcome"] == "pass"
    strict = gate_policy(
        str(folder / "p.jsonl"), str(folder / "metrics.json"), str(folder / "policy"),
        str(tmp_path / "d.json"), **{**GATE, "kl_bound": 1e-3},
    )  # fmt: skip
    assert strict == "keep"
    rules = {
        r["name"]: r["outcome"] for r in json.loads((tmp_path / "d.json").read_text())["rules"]
    }
    assert rules["KL_to_the_start"] == rules["alarms"] == "fail"  # the log passes that bound, too
    with pytest.raises(UserError, match="gate_eos_margin"):
        gate_policy("", "", "", "", **{**GATE, "eos_margin": 0.0})


def test_the_same_model_is_not_promoted(tmp_path):
    policy, base = make_policy_folder("t5_tied", tmp_path, 0.0)
    trained(tmp_path, base)
    write_jsonl(tmp_path / "prompts.jsonl", rows(40))
    found = evaluate_policy(
        policy, tmp_path / "start", tmp_path / "rm", tmp_path / "prompts.jsonl",
        tmp_path / "p.jsonl", config=CONFIG, policy=POLICY,
    )  # fmt: skip
    assert found["comparisons"]["reward"]["difference"] == 0.0  # the same draws, the same answers
    assert found["comparisons"]["win_rate"]["value"] == 0.5
    write_json(tmp_path / "m.json", found)
    paths = (str(tmp_path / name) for name in ("p.jsonl", "m.json", "policy", "d.json"))
    assert gate_policy(*paths, **GATE) == "cannot_tell"


def test_prompts_that_chose_the_checkpoint_are_left_out(tmp_path):
    write_jsonl(tmp_path / "prompts.jsonl", rows(FRESH + 10))
    settings = dataclasses.replace(POLICY, rlhf_eval_rows=10)
    found, left_out, notes = fresh_rows(tmp_path / "prompts.jsonl", 0, settings)
    assert (len(found), left_out, notes) == (FRESH, 10, [])
    settings = dataclasses.replace(POLICY, rlhf_eval_rows=11)
    found, left_out, notes = fresh_rows(tmp_path / "prompts.jsonl", 7, settings)
    assert (len(found), left_out) == (7, 0)
    assert "flattered" in notes[0]
    write_jsonl(tmp_path / "none.jsonl", [])
    with pytest.raises(UserError, match="NO_EVALUATION_ROWS"):
        fresh_rows(tmp_path / "none.jsonl", 0, settings)


def test_reward_that_is_length_alone_is_no_gain_at_equal_length():
    dice = np.random.default_rng(0)
    lengths = dice.integers(2, 20, 300).astype(float), dice.integers(10, 40, 300).astype(float)
    base, tuned = (0.1 * lengths[i] + dice.normal(0, 0.1, 300) for i in (0, 1))
    found = length_controlled(tuned, base, lengths[1], lengths[0])
    assert tuned.mean() - base.mean() > 1
    assert found["slope"] == pytest.approx(0.1, abs=0.01)
    assert found["ci95"][0] < 0 < found["ci95"][1]
    better = length_controlled(tuned + 0.5, base, lengths[1], lengths[0])
    assert better["difference"] == pytest.approx(0.5, abs=0.05)
    # against least squares on (1, arm, length)
    table = np.stack([np.ones(600), np.repeat([1.0, 0.0], 300), np.concatenate(lengths[::-1])], 1)
    wanted = np.linalg.lstsq(table, np.concatenate([tuned + 0.5, base]), rcond=None)[0]
    assert (better["difference"], better["slope"]) == pytest.approx(wanted[1:], abs=1e-9)


def test_equal_lengths_leave_the_difference_as_it_is():
    same = np.full(20, 7.0)
    found = length_controlled(np.arange(20.0) + 1, np.arange(20.0), same, same)
    assert (found["difference"], found["slope"]) == (1.0, 0.0)


def test_kappa():
    assert cohen_kappa([(1, 1), (0, 0)] * 5) == 1.0
    assert cohen_kappa([(1, 0), (0, 1)] * 5) == -1.0
    assert cohen_kappa([(1, 1)] * 5) == 0.0
    assert cohen_kappa([]) == 0.0
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: the textbook's 0.4
    table = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15
    assert cohen_kappa(table) == pytest.approx(0.4)


def test_ties_count_half():
    aside = [
        {"reason": "identical", "answers": []},
        {"reason": "order_conflict", "answers": ["x\nAnswer: A", "x\nAnswer: A"]},
        {"reason": "unparsable", "answers": ["?", "A"]},
        {"reason": "failed", "answers": [None, None]},
    ]
    found = told([1, 1, 0], aside, load_prompt("judge_helpful.v1"))
    assert (found["won"], found["lost"], found["ties"], found["judged"]) == (2, 1, 2, 5)
    assert found["win_rate"] == pytest.approx(0.6)
    assert found["both_orders"] == 4


def test_a_recorded_judge_compares_the_greedy_answers(tmp_path):
    policy, base = make_policy_folder("llama", tmp_path, 0.5)
    trained(tmp_path, base)
    write_jsonl(tmp_path / "prompts.jsonl", rows(8))
    # of every pair: the start's answer first, then the tuned policy's first
    lines = [json.dumps(f"why\nAnswer: {v}") for _ in range(8) for v in ("B", "A")]
    (tmp_path / "judge.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    judge = TeacherConfig(
        backend="replay", replay_uri=str(tmp_path / "judge.jsonl"), prompt="judge_helpful.v1"
    )
    found = evaluate_policy(
        policy, tmp_path / "start", tmp_path / "rm", tmp_path / "prompts.jsonl",
        tmp_path / "p.jsonl", config=CONFIG, policy=POLICY, judge=judge,
    )["judge"]  # fmt: skip
    assert found["pairs"] == 8
    assert found["lost"] == 0
    assert found["won"] + found["ties"] == found["judged"] == 8
    assert found["win_rate"] > 0.5
