"""Features and relations: which states are compared, and that training brings them closer."""

import dataclasses
import json

import pytest
import torch

from pipestill.errors import UserError
from pipestill.losses.feature import hidden_mse, layer_map
from pipestill.losses.relation import ranking
from pipestill.models.loading import load
from pipestill.training.distill_relation import CANDIDATES, candidates
from pipestill.training.forward import batch_nll, collate
from tests.training.distilling import distill_rows, folder_of, gradients, made, run

ROWS = [0, 3, 5, 7, 8, 9, 11, 12]
# objective → the term of its own
OWN = {
    "response": "kd_loss",
    "response/reverse_kl": "kd_loss",
    "response/jsd": "kd_loss",
    "response/skew_kl": "kd_loss",
    "response/skew_reverse_kl": "kd_loss",
    "response/tvd": "kd_loss",
    "feature/hidden_mse": "feature_loss",
    "feature/cosine": "feature_loss",
    "feature/cka": "feature_loss",
    "feature/attention": "feature_loss",
    "feature/minilm": "feature_loss",
    "relation/rkd": "relation_loss",
    "relation/similarity": "relation_loss",
    "relation/pkt": "relation_loss",
    "relation/ranking": "relation_loss",
    "on_policy": "on_policy_loss",
}


def folders(tmp_path, student, teacher):
    return folder_of(student, tmp_path / "s", 1), folder_of(teacher, tmp_path / "t", 2)


@pytest.mark.parametrize("objective", OWN)
def test_thirty_steps_lower_the_objectives_own_term(tmp_path, objective):
    more = {"train_steps": 30, "batch_size": 16, "kd_weight": 1.0, "learning_rate": 5e-3}
    run(tmp_path, *folders(tmp_path, "llama", "llama"), objective, **more)
    lines = (tmp_path / "student" / "train_log.jsonl").read_text().splitlines()
    values = [json.loads(line)[OWN[objective]] for line in lines]
    assert sum(values[-3:]) / 3 < 0.95 * values[0]


@pytest.mark.parametrize("pair", [("t5_tied", "t5_tied"), ("llama", "llama"), ("t5_tied", "llama")])
def test_hidden_states_are_those_at_target_positions(tmp_path, pair):
    """Against each model run on one row after the other, its hidden states as it tells them."""
    names = folders(tmp_path, *pair)
    plan, job, loaded = made(tmp_path, *names, "feature")
    terms, _ = gradients(plan, job, ROWS)
    (work,) = plan.works(job, ROWS, 1)
    feature = work.compute.keywords["feature"]
    both = pair[0] == pair[1] == "t5_tied"
    assert set(feature.maps) == ({"encoder", "decoder"} if both else {"decoder"})
    other = load(names[1], precision="fp32").model
    loaded.model.eval()
    sums = {"encoder": [0.0, 0], "decoder": [0.0, 0]}
    for s in ROWS:
        sides = []
        for model, data in ((loaded.model, job.train), (other, feature.teacher.data)):
            sides.append(states_of(model, data, s))
        for stack in feature.maps:
            for mine, theirs in layer_map(2, 2):
                pair_of = (normed(sides[0][stack][mine + 1]), normed(sides[1][stack][theirs + 1]))
                sums[stack][0] += float(hidden_mse(*pair_of).sum())
            sums[stack][1] += len(sides[0][stack][1])
    values = [value / count for value, count in sums.values() if count]
    assert terms["feature_loss"] == pytest.approx(sum(values) / (2 * len(values)), rel=1e-4)


def normed(states):
    return states / states.square().mean(-1, keepdim=True).sqrt()


def states_of(model, data, s):
    start, length = int(data.source_start[s]), int(data.source_length[s])
    begin, count = int(data.target_start[s]), int(data.target_length[s])
    prompt = data.source[start : start + length].long()
    target = data.target[begin : begin + count].long()
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            given = torch.cat([torch.tensor([0]), target[:-1]])[None]
            out = model(input_ids=prompt[None], decoder_input_ids=given, output_hidden_states=True)
            return {
                "encoder": [h[0] for h in out.encoder_hidden_states],
                "decoder": [h[0] for h in out.decoder_hidden_states],
            }
        ids = torch.cat([prompt, target])[None]
        out = model(input_ids=ids, output_hidden_states=True)
        return {"decoder": [h[0, length - 1 : -1] for h in out.hidden_states]}


def test_a_map_may_leave_the_encoder_out(tmp_path):
    names = folders(tmp_path, "t5_tied", "t5_untied")
    plan, job, _ = made(tmp_path, *names, "feature", layer_map="decoder 1:0")
    (work,) = plan.works(job, ROWS, 1)
    assert work.compute.keywords["feature"].maps == {"decoder": [(1, 0)]}


def test_minilm_needs_separate_projections(tmp_path):
    with pytest.raises(UserError) as caught:
        made(tmp_path, *folders(tmp_path, "gpt2", "llama"), "feature/minilm")
    assert caught.value.code == "MINILM_LAYERS"
    assert "GPT2" in caught.value.message


def test_ranking_scores_whole_texts_of_the_same_input(tmp_path):
    names = folders(tmp_path, "t5_tied", "llama")
    plan, job, loaded = made(tmp_path, *names, "relation/ranking", tau=2.0)
    terms, _ = gradients(plan, job, ROWS)
    (work,) = plan.works(job, ROWS, 1)
    mine, theirs = work.compute.keywords["data"], work.compute.keywords["teacher"]
    each = work.compute.keywords["each"]
    assert each == CANDIDATES
    assert work.repeats == each
    scores = torch.zeros(2, len(ROWS), each)
    with torch.no_grad():
        for row, s in enumerate(ROWS):
            for i in range(each):
                number = s * each + i
                one = batch_nll(loaded.model, collate(mine, [number], job.shape), job.shape)
                two = batch_nll(theirs.model, theirs.batch([number]), theirs.shape)
                scores[0, row, i], scores[1, row, i] = -one.sum(), -two.sum()
    assert terms["relation_loss"] == pytest.approx(float(ranking(*scores, tau=2.0)), rel=1e-4)
    tokens = float(job.train.target_length[ROWS].sum())
    assert terms["label_loss"] == pytest.approx(-float(scores[0, :, 0].sum()) / tokens, rel=1e-5)


def test_candidates_are_the_rows_own_text_and_others(tmp_path):
    rows = distill_rows(30)
    found = candidates(rows, 0)
    assert found == candidates(rows, 0)
    for i, chosen in enumerate(found):
        texts = [rows[j].output_text for j in chosen]
        assert chosen[0] == i
        assert len(set(texts)) == len(texts) == CANDIDATES
    two = [
        dataclasses.replace(row, output_text="red" if i % 2 else "blue")
        for i, row in enumerate(rows)
    ]
    assert all(len(chosen) == 2 for chosen in candidates(two, 0))
    one = [dataclasses.replace(row, output_text="red") for row in rows]
    with pytest.raises(UserError) as caught:
        candidates(one, 0)
    assert caught.value.code == "RANKING_TEXTS"


def test_an_encoder_reads_the_input_of_several_answers_once(tmp_path):
    plan, job, loaded = made(tmp_path, *folders(tmp_path, "t5_tied", "t5_tied"), "relation/ranking")
    (work,) = plan.works(job, ROWS, 1)
    data = work.compute.keywords["data"]
    numbers = [s * CANDIDATES + i for s in ROWS[:3] for i in range(CANDIDATES)]
    batch = collate(data, numbers, job.shape)
    assert len(batch.encoder["input_ids"]) == 3
    together = batch_nll(loaded.model, batch, job.shape)
    apart = [batch_nll(loaded.model, collate(data, [n], job.shape), job.shape) for n in numbers]
    torch.testing.assert_close(together.sort().values, torch.cat(apart).sort().values)
    assert collate(job.train, ROWS, job.shape).inputs is None
