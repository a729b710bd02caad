"""PPO's pure functions: oracles, exact identities, padding, gradients and whitening over parts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipestill.losses import common, ppo
from tests.losses.rl_oracles import (
    BETA,
    CLIP,
    GAMMA,
    LAM,
    Rollout,
    gae_double_sum,
    gae_matrix,
    gae_scan,
    gae_with_score_on_padding,
    mask_of,
    ppo_loss_by_hand,
    random_rollout,
    stored,
    table,
    widened,
)

batches = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def estimates() -> tuple[torch.Tensor, torch.Tensor]:
    rewards = ppo.token_rewards(Rollout.logprobs, Rollout.ref, Rollout.scores, Rollout.mask, BETA)
    return ppo.advantages(rewards, Rollout.values, Rollout.mask, GAMMA, LAM)


def update() -> dict[str, torch.Tensor]:
    found, returns = estimates()
    white = ppo.whiten(found, Rollout.mask)
    surrogate = (Rollout.new, Rollout.logprobs, white, Rollout.mask, CLIP)
    values = (Rollout.new_values, Rollout.values, returns, Rollout.mask, CLIP)
    losses = {
        "pg_loss": ppo.masked_mean(ppo.policy_loss(*surrogate), Rollout.mask),
        "vf_loss": ppo.masked_mean(ppo.value_loss(*values), Rollout.mask),
        "clipfrac": ppo.clip_fraction(*surrogate),
    }
    return losses | {"total_vf0.1": losses["pg_loss"] + 0.1 * losses["vf_loss"]}


class TestOracles:
    def test_rewards_advantages_and_returns(self, shared_data):
        oracle = stored(shared_data, "ppo")
        rewards = ppo.token_rewards(
            Rollout.logprobs, Rollout.ref, Rollout.scores, Rollout.mask, BETA
        )
        found, returns = estimates()
        white = ppo.whiten(found, Rollout.mask)
        named = {"rewards": rewards, "adv": found, "ret": returns, "adv_whitened": white}
        for name, value in named.items():
            assert torch.allclose(value, table(oracle[name]), atol=1e-6, rtol=0), name

    @pytest.mark.parametrize("name", ["pg_loss", "vf_loss", "clipfrac", "total_vf0.1"])
    def test_update(self, shared_data, name):
        assert float(update()[name]) == pytest.approx(stored(shared_data, "ppo")[name], abs=1e-6)

    def test_kl(self, shared_data):
        oracle = stored(shared_data, "ppo")
        sums = ppo.kl_to_reference(Rollout.logprobs, Rollout.ref, Rollout.mask)
        assert sums.tolist() == pytest.approx(oracle["kl_k1_sum"], abs=1e-6)
        mean = ppo.approx_kl(Rollout.ref, Rollout.logprobs, Rollout.mask)
        assert float(mean) == pytest.approx(oracle["k3_mean"], abs=1e-6)

    def test_adaptive_kl(self, shared_data):
        oracle = stored(shared_data, "ppo")["adaptive_kl(0.15,target6,h10000,n64; cur=0,6,7.5,30)"]
        coeff, found = 0.15, []
        for kl in (0.0, 6.0, 7.5, 30.0):
            coeff = ppo.adaptive_kl(coeff, kl, 6.0, 64, 10_000)
            found.append(coeff)
        assert found == pytest.approx(oracle, abs=1e-12)


class TestTokenRewards:
    @pytest.mark.parametrize("lengths", [[1], [5], [1, 3, 5]])
    def test_the_score_lands_on_the_last_real_token(self, lengths):
        """An answer of one token, of full length, and between."""
        made = random_rollout(lengths, 5)
        scores = torch.arange(1.0, 1.0 + len(lengths), dtype=torch.float64)
        found = ppo.token_rewards(made["old"], made["old"], scores, made["mask"], 0.1)
        for row, length in enumerate(lengths):
            expected = [0.0] * 5
            expected[length - 1] = float(scores[row])
            assert found[row].tolist() == expected

    def test_the_penalty_is_that_of_every_token(self):
        made = random_rollout([4, 2], 4)
        found = ppo.token_rewards(made["old"], made["ref"], table([0.0, 0.0]), made["mask"], 0.3)
        expected = -0.3 * (made["old"] - made["ref"])
        assert torch.equal(found, torch.where(made["mask"], expected, 0.0))

    def test_a_score_on_the_first_padding_gives_other_advantages(self):
        """What TRL's PPO does: the value at a token nobody sampled joins the episode."""
        lengths = [3, 5]
        parts = [part[:1].expand(2, -1).clone() for part in (Rollout.logprobs, Rollout.ref)]
        values, mask = Rollout.values[:1].expand(2, -1).clone(), mask_of(lengths, 5)
        scores = table([2.0, 2.0])

        def ours() -> torch.Tensor:
            rewards = ppo.token_rewards(*parts, scores, mask, BETA)
            return ppo.advantages(rewards, values, mask, GAMMA, LAM)[0]

        def theirs() -> torch.Tensor:
            return gae_with_score_on_padding(*parts, values, scores, lengths)

        before, other = ours(), theirs()
        assert torch.allclose(before[1], other[1])  # no padding: nothing to get wrong
        end, at_pad = lengths[0] - 1, float(values[0, lengths[0]])
        assert float(other[0, lengths[0]]) == pytest.approx(2.0 - at_pad)
        assert before[0, lengths[0] :].tolist() == [0.0, 0.0]
        gap = float(before[0, end] - other[0, end])
        assert gap == pytest.approx((1 - GAMMA * LAM) * 2.0 - GAMMA * (1 - LAM) * at_pad)
        values[0, lengths[0]] += 10.0
        assert torch.equal(ours(), before)
        assert float((theirs() - other)[0, end]) == pytest.approx(GAMMA * (1 - LAM) * 10.0)


class TestAdvantages:
    @settings(max_examples=60, deadline=None)
    @given(batches, st.integers(0, 3), st.floats(0, 1), st.floats(0, 1), st.integers(0, 10**6))
    def test_loop_scan_matrix_and_double_sum_agree(self, lengths, padding, gamma, lam, seed):
        made = random_rollout(lengths, max(lengths) + padding, seed)
        found, returns = ppo.advantages(made["rewards"], made["values"], made["mask"], gamma, lam)
        for other in (gae_double_sum, gae_matrix, gae_scan):
            expected = other(made["rewards"], made["values"], lengths, gamma, lam)
            assert torch.allclose(found, expected, atol=1e-12), other.__name__
        values = made["values"].masked_fill(~made["mask"], 0.0)
        assert torch.equal(returns, found + values)

    def test_lambda_one_is_reward_to_go_less_value(self):
        made = random_rollout([6, 3], 6)
        found, returns = ppo.advantages(made["rewards"], made["values"], made["mask"], 1.0, 1.0)
        rewards = made["rewards"].nan_to_num(0.0)
        to_go = rewards.flip(1).cumsum(1).flip(1)
        assert torch.allclose(returns, to_go.masked_fill(~made["mask"], 0.0))
        assert torch.allclose(found, (to_go - made["values"]).nan_to_num(0.0))

    def test_lambda_zero_is_one_step(self):
        made = random_rollout([1], 1)
        found, returns = ppo.advantages(made["rewards"], made["values"], made["mask"], 0.9, 0.0)
        assert torch.equal(found, made["rewards"] - made["values"])
        assert torch.allclose(returns, made["rewards"])

    def test_gradcheck(self):
        mask = mask_of([3, 1], 3)
        inputs = tuple(torch.randn(2, 3, dtype=torch.float64).requires_grad_() for _ in range(2))
        assert torch.autograd.gradcheck(lambda r, v: ppo.advantages(r, v, mask, 0.97, 0.9), inputs)


class TestWhiten:
    def test_real_tokens_have_mean_zero_and_biased_variance_one(self):
        made = random_rollout([5, 2, 7], 7)
        found = ppo.whiten(made["rewards"], made["mask"])
        real = found[made["mask"]]
        assert float(real.mean()) == pytest.approx(0.0, abs=1e-12)
        assert float(real.square().mean()) == pytest.approx(1.0, abs=1e-6)
        assert found[~made["mask"]].tolist() == [0.0] * 7

    def test_without_shift_the_mean_stays(self):
        made = random_rollout([5, 2], 5)
        found = ppo.whiten(made["rewards"], made["mask"], shift_mean=False)[made["mask"]]
        assert float(found.mean()) == pytest.approx(float(made["rewards"][made["mask"]].mean()))
        assert float(found.var(correction=0)) == pytest.approx(1.0, abs=1e-6)

    @settings(max_examples=30, deadline=None)
    @given(batches.filter(lambda x: len(x) > 1), st.booleans(), st.integers(0, 10**6))
    def test_parts_that_share_their_sums_equal_the_whole(self, lengths, shift_mean, seed):
        made = random_rollout(lengths, max(lengths), seed)
        x, mask = made["rewards"], made["mask"]
        whole = ppo.whiten(x, mask, shift_mean=shift_mean)
        parts = whitened_together(x.split(1), mask.split(1), shift_mean)
        assert torch.allclose(torch.cat(parts), whole, atol=1e-12)

    def test_a_process_without_answers_joins_both_sums(self):
        calls = []
        empty = torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.bool)
        found = ppo.whiten(*empty, reduce=lambda t: calls.append(t.shape) or t)
        assert found.shape == (0, 4)
        assert calls == [(2,), (1,)]

    def test_equal_values_and_a_lone_token_give_zero(self):
        mask = mask_of([1, 1], 2)
        assert ppo.whiten(torch.full((2, 2), 0.1), mask).tolist() == [[0.0, 0.0]] * 2
        assert ppo.whiten(torch.full((2, 2), 0.1)[:1], mask[:1]).tolist() == [[0.0, 0.0]]


def whitened_together(xs, masks, shift_mean) -> list[torch.Tensor]:
    """Run every part as one process of several: first collect what each would send, then sum."""
    sums: list[torch.Tensor] = []
    for stage in range(2):
        sent = []
        for x, mask in zip(xs, masks, strict=True):
            ppo.whiten(x, mask, shift_mean=shift_mean, reduce=Exchange(sums, sent))
        sums.append(torch.stack([parts[stage] for parts in chunked(sent)]).sum(dim=0))
    return [
        ppo.whiten(x, mask, shift_mean=shift_mean, reduce=Exchange(sums, []))
        for x, mask in zip(xs, masks, strict=True)
    ]


def chunked(sent: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    return [sent[i : i + 2] for i in range(0, len(sent), 2)]


class Exchange:
    """Answers each call with the sum over processes where it is known by now."""

    def __init__(self, sums: list[torch.Tensor], sent: list[torch.Tensor]) -> None:
        self.sums, self.sent, self.calls = sums, sent, 0

    def __call__(self, part: torch.Tensor) -> torch.Tensor:
        self.sent.append(part)
        self.calls += 1
        return self.sums[self.calls - 1] if self.calls <= len(self.sums) else part


class TestPolicyLoss:
    @settings(max_examples=60, deadline=None)
    @given(st.floats(-6, 0), st.floats(-6, 0), st.floats(-3, 3), st.floats(0.05, 0.5))
    def test_is_the_formula_by_cases(self, new, old, advantage, clip):
        one = [table([[x]]) for x in (new, old, advantage)]
        found = ppo.policy_loss(*one, mask_of([1], 1), clip)
        assert float(found) == pytest.approx(ppo_loss_by_hand(new, old, advantage, clip))

    def test_unchanged_policy_has_ratio_one_and_nothing_to_report(self):
        made = random_rollout([5, 1, 3], 6)
        same = (made["old"], made["old"], made["advantages"], made["mask"])
        found = ppo.policy_loss(*same, CLIP)
        assert torch.equal(found, (-made["advantages"]).masked_fill(~made["mask"], 0.0))
        assert float(ppo.clip_fraction(*same, CLIP)) == 0.0
        for estimator in ("k1", "k3"):
            assert float(ppo.approx_kl(made["old"], made["old"], made["mask"], estimator)) == 0.0
        assert ppo.kl_to_reference(made["old"], made["old"], made["mask"]).tolist() == [0.0] * 3

    def test_past_the_clip_a_gain_has_no_gradient_and_a_loss_keeps_it(self):
        old, mask = table([[0.0, 0.0, 0.0, 0.0]]), mask_of([4], 4)
        new = table([[0.5, -0.5, 0.5, -0.5]]).requires_grad_()
        advantages = table([[1.0, 1.0, -1.0, -1.0]])
        ppo.policy_loss(new, old, advantages, mask, CLIP).sum().backward()
        assert [g != 0.0 for g in new.grad[0].tolist()] == [False, True, True, False]
        assert float(ppo.clip_fraction(new, old, advantages, mask, CLIP)) == 0.5

    def test_weights_scale_every_token(self):
        made = random_rollout([3, 2], 3)
        parts = (made["new"], made["old"], made["advantages"], made["mask"], CLIP)
        found = ppo.policy_loss(*parts, weights=made["values"])
        expected = ppo.policy_loss(*parts) * made["values"].nan_to_num(0.0)
        assert torch.equal(found, expected)

    def test_gradcheck(self):
        mask, old = mask_of([3, 1], 3), Rollout.logprobs[:, :3]
        new = (old + table([[0.05, 0.4, -0.4], [-0.1, 0.0, 0.0]])).requires_grad_()
        advantages = table([[1.0, 0.5, -2.0], [0.7, 0.0, 0.0]])
        assert torch.autograd.gradcheck(
            lambda x: ppo.policy_loss(x, old, advantages, mask, CLIP), new
        )


class TestValueLoss:
    @settings(max_examples=50, deadline=None)
    @given(st.floats(-2, 2), st.floats(-2, 2), st.floats(-2, 2))
    def test_is_the_formula(self, new, old, target):
        held = min(max(new, old - CLIP), old + CLIP)
        one = [table([[x]]) for x in (new, old, target)]
        found = ppo.value_loss(*one, mask_of([1], 1), CLIP)
        expected = 0.5 * max((new - target) ** 2, (held - target) ** 2)
        assert float(found) == pytest.approx(expected, abs=1e-12)

    def test_gradcheck(self):
        mask, old = mask_of([3, 1], 3), Rollout.values[:, :3]
        new = (old + table([[0.05, 0.4, -0.4], [-0.1, 0.0, 0.0]])).requires_grad_()
        returns = old + 0.11
        assert torch.autograd.gradcheck(lambda x: ppo.value_loss(x, old, returns, mask, CLIP), new)


def losses_and_grads(made: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Everything of one update, from the rollout to gradients of both losses."""
    mask = made["mask"]
    new, new_values = (made[name].clone().requires_grad_() for name in ("new", "new_values"))
    scores = torch.arange(float(len(mask)), dtype=torch.float64)
    rewards = ppo.token_rewards(made["old"], made["ref"], scores, mask, BETA)
    found, returns = ppo.advantages(rewards, made["values"], mask, GAMMA, LAM)
    white = ppo.whiten(found, mask)
    surrogate = ppo.policy_loss(new, made["old"], white, mask, CLIP, weights=made["ref"].exp())
    values = ppo.value_loss(new_values, made["values"], returns, mask, CLIP)
    total = ppo.masked_mean(surrogate, mask) + 0.1 * ppo.masked_mean(values, mask)
    (total + ppo.kl_to_reference(new, made["ref"], mask).sum()).backward()
    tokens = {"rewards": rewards, "white": white, "returns": returns, "surrogate": surrogate}
    clipped = ppo.clip_fraction(new, made["old"], white, mask, CLIP)
    scalars = {"total": total, "clipped": clipped, "kl": ppo.approx_kl(new, made["old"], mask)}
    return tokens | {"grad": new.grad, "value_grad": new_values.grad} | scalars


@settings(max_examples=30, deadline=None)
@given(batches, st.integers(1, 4), st.integers(0, 10**6))
def test_columns_of_padding_change_neither_values_nor_gradients(lengths, extra, seed):
    made = random_rollout(lengths, max(lengths), seed)
    plain, padded = losses_and_grads(made), losses_and_grads(widened(made, extra))
    for name, value in plain.items():
        other = padded[name].detach()
        if other.ndim:
            assert other[:, value.shape[1] :].abs().sum() == 0.0, name
            other = other[:, : value.shape[1]]
        assert torch.allclose(other, value.detach(), atol=1e-12), name


class TestEstimators:
    def test_means_over_the_old_policys_samples_are_the_kl(self):
        """Every token of the vocabulary once, weighed by its probability: the exact mean."""
        p, q = torch.softmax(table([0.3, -1.0, 2.0]), 0), torch.softmax(table([1.0, 0.0, 0.5]), 0)
        expected = float((p * (p / q).log()).sum())
        one = mask_of([1], 1)
        for estimator in ("k1", "k3"):
            drawn = [
                float(ppo.approx_kl(b.log().view(1, 1), a.log().view(1, 1), one, estimator))
                for a, b in zip(p, q, strict=True)
            ]
            mean = sum(w * x for w, x in zip(p.tolist(), drawn, strict=True))
            assert mean == pytest.approx(expected, abs=1e-12)

    def test_unknown_estimator(self):
        with pytest.raises(ValueError, match="'k9'"):
            ppo.approx_kl(Rollout.new, Rollout.logprobs, Rollout.mask, "k9")

    @pytest.mark.parametrize(("target", "horizon"), [(0.0, 10), (-1.0, 10), (6.0, 0)])
    def test_adaptive_kl_needs_a_target_and_a_horizon(self, target, horizon):
        with pytest.raises(ValueError, match="above 0"):
            ppo.adaptive_kl(0.1, 3.0, target, 64, horizon)

    def test_importance_weights_are_truncated_and_have_no_graph(self):
        trainer = table([-1.0, -1.0, -1.0, 0.0]).requires_grad_()
        found = ppo.importance_weights(trainer, table([-1.0, -3.0, -0.5, -2000.0]), 2.0)
        assert found.tolist() == pytest.approx([1.0, 2.0, math.exp(-0.5), 2.0])
        assert not found.requires_grad


class TestFromLogits:
    logits = torch.randn(6, 11, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    labels = torch.tensor([0, 10, 3, 3, 7, 1])

    @pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
    def test_token_logprobs(self, temperature):
        found = ppo.token_logprobs(self.logits, self.labels, temperature)
        whole = torch.log_softmax(self.logits / temperature, dim=-1)
        assert torch.allclose(found, whole[torch.arange(6), self.labels], atol=1e-12)

    def test_chunks_change_nothing(self, monkeypatch):
        def made() -> list[torch.Tensor]:
            logits = self.logits.clone().requires_grad_()
            found = ppo.token_logprobs(logits, self.labels, 0.7), ppo.entropy(logits)
            (found[0].sum() + found[1].sum()).backward()
            return [*found, logits.grad]

        whole = made()
        monkeypatch.setattr(common, "CHUNK_ELEMENTS", 22)
        for one, other in zip(made(), whole, strict=True):
            assert torch.allclose(one, other, atol=1e-12)

    def test_low_precision_logits_are_divided_in_fp32(self):
        low = self.logits.to(torch.bfloat16)
        found = ppo.token_logprobs(low, self.labels, 0.7)
        assert found.dtype == torch.float32
        assert torch.equal(found, ppo.token_logprobs(low.float(), self.labels, 0.7))
        assert ppo.entropy(low).dtype == torch.float32

    def test_entropy(self):
        expected = torch.distributions.Categorical(logits=self.logits).entropy()
        assert torch.allclose(ppo.entropy(self.logits), expected, atol=1e-12)
        assert float(ppo.entropy(torch.zeros(1, 8))) == pytest.approx(math.log(8))

    def test_gradcheck(self):
        logits = self.logits[:2, :4].clone().requires_grad_()
        labels = torch.tensor([3, 0])
        assert torch.autograd.gradcheck(lambda x: ppo.token_logprobs(x, labels, 0.7), logits)
        assert torch.autograd.gradcheck(ppo.entropy, logits)

    @pytest.mark.parametrize("temperature", [0.0, -1.0])
    def test_temperature_must_be_positive(self, temperature):
        with pytest.raises(ValueError, match="temperature"):
            ppo.token_logprobs(self.logits, self.labels, temperature)
