"""One whole PPO update against an independent implementation, written from the papers' equations.

The reference takes one answer at a time, unpadded, in plain loops, in the style of CleanRL: rewards
(Ziegler et al. 2019, eq. 2), advantages (Schulman et al. 2015, eq. 16, as its recursion), whitening
over all tokens, the clipped losses (Schulman et al. 2017, eq. 7 and 9), the gradient's clipping and
Adam (Kingma and Ba 2015, algorithm 1). It shares the model class with the code under test, and the
sampled answers; nothing else.
"""

import copy
import math

import pytest
import torch

from pipestill.rlhf import collect as collecting
from pipestill.rlhf.collect import collect, minibatches
from pipestill.rlhf.ppo_step import iterate
from pipestill.training.distributed import ALONE
from tests.rlhf.policies import config, count_reward, disturb, make, optimizer_of, questions

RATE, EPS = 2e-3, 1e-5


class Reference:
    """PPO for one rollout, by the book."""

    def __init__(self, model, value_weight, value_bias, frozen, settings, decoder_start):
        self.model, self.frozen, self.settings = model, frozen, settings
        self.head = torch.nn.Linear(value_weight.shape[1], 1, dtype=torch.float64)
        with torch.no_grad():
            self.head.weight.copy_(value_weight)
            self.head.bias.copy_(value_bias)
        self.start = decoder_start
        self.first = [torch.zeros_like(w) for w in self.weights()]
        self.second = [torch.zeros_like(w) for w in self.weights()]
        self.time = 0

    def weights(self):
        return [*self.model.parameters(), *self.head.parameters()]

    def forward(self, model, prompt, response):
        """Log-probabilities and last states of the positions that predict the response."""
        if model.config.is_encoder_decoder:
            out = model(
                input_ids=torch.tensor([prompt]),
                decoder_input_ids=torch.tensor([[self.start, *response[:-1]]]),
                output_hidden_states=True,
            )
            logits, states = out.logits[0], out.decoder_hidden_states[-1][0]
        else:
            out = model(input_ids=torch.tensor([prompt + response]), output_hidden_states=True)
            begin = len(prompt) - 1
            logits = out.logits[0, begin : begin + len(response)]
            states = out.hidden_states[-1][0, begin : begin + len(response)]
        logits = logits / self.settings.temperature
        chance = torch.log_softmax(logits, -1)
        return chance[range(len(response)), response], states

    def targets(self, prompts, responses, scores, kl_coeff):
        self.old, self.ref, self.values, self.gains, self.returns = [], [], [], [], []
        for prompt, response, score in zip(prompts, responses, scores, strict=True):
            with torch.no_grad():
                old, states = self.forward(self.model, prompt, response)
                ref, _ = self.forward(self.frozen, prompt, response)
                values = self.head(states)[:, 0]
            rewards = [-kl_coeff * float(a - b) for a, b in zip(old, ref, strict=True)]
            rewards[-1] += score
            gain, gains = 0.0, []
            for t in reversed(range(len(response))):
                ahead = float(values[t + 1]) if t + 1 < len(response) else 0.0
                delta = rewards[t] + self.settings.gamma * ahead - float(values[t])
                gain = delta + self.settings.gamma * self.settings.gae_lambda * gain
                gains.insert(0, gain)
            self.old.append(old)
            self.ref.append(ref)
            self.values.append(values)
            self.gains.append(torch.tensor(gains, dtype=torch.float64))
            self.returns.append(self.gains[-1] + values)
        flat = torch.cat(self.gains)
        mean, variance = flat.mean(), flat.var(correction=0)
        self.gains = [(g - mean) / torch.sqrt(variance + 1e-8) for g in self.gains]

    def update(self, prompts, responses, chosen):
        settings, tokens = self.settings, sum(len(responses[i]) for i in chosen)
        for weight in self.weights():
            weight.grad = None
        total = 0.0
        for i in chosen:
            new, states = self.forward(self.model, prompts[i], responses[i])
            ratio = torch.exp(new - self.old[i])
            held = torch.clamp(ratio, 1 - settings.clip, 1 + settings.clip)
            objective = torch.minimum(ratio * self.gains[i], held * self.gains[i])
            values = self.head(states)[:, 0]
            near = self.values[i] + torch.clamp(
                values - self.values[i], -settings.value_clip, settings.value_clip
            )
            worst = torch.maximum((values - self.returns[i]) ** 2, (near - self.returns[i]) ** 2)
            total = total - objective.sum() + settings.value_coeff * 0.5 * worst.sum()
        (total / tokens).backward()
        self.adam()

    def adam(self):
        self.time += 1
        grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in self.weights()]
        norm = math.sqrt(sum(float((g * g).sum()) for g in grads))
        shrink = min(1.0, self.settings.max_grad_norm / (norm + 1e-6))
        with torch.no_grad():
            for w, g, m, v in zip(self.weights(), grads, self.first, self.second, strict=True):
                g = g * shrink
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                m_hat, v_hat = m / (1 - 0.9**self.time), v / (1 - 0.999**self.time)
                w -= RATE * m_hat / (v_hat.sqrt() + EPS)


@pytest.mark.parametrize("kind", ["gpt2", "t5_tied", "t5_untied"])
@pytest.mark.parametrize("parts", [1, 3])
def test_an_update_equals_the_reference(kind, parts, monkeypatch):
    """Four epochs, minibatches in several passes; the policy has left its reference."""
    if parts > 1:
        monkeypatch.setattr(collecting, "budget", lambda _: 30)
    settings = config(
        temperature=5.0 if kind == "t5_untied" else 0.8, kl_coeff=0.05, minibatches=parts,
        ppo_epochs=4, value_clip=0.05,
        rollout_batch_size=12, samples_per_prompt=2, max_grad_norm=0.5,
    )  # fmt: skip
    policy = make(kind, settings, torch.float64)
    policy.ends.extend(range(2, 40))  # so that answers have many lengths
    disturb(policy, 0.02)
    head = policy.model.value_head
    model = copy.deepcopy(policy.model)
    del model.value_head
    peer = Reference(
        model, head.weight.detach(), head.bias.detach(), policy.reference, settings,
        policy.shape.start,
    )  # fmt: skip
    rollout = collect(policy, questions(policy), settings, 1, count_reward, ALONE)
    prompts, responses = [q.ids for q in rollout.questions], rollout.sampled.responses
    assert len({len(row) for row in responses}) > 2
    epochs = range(settings.ppo_epochs if parts > 1 else 1)
    plans = [minibatches(policy, rollout, settings, 1, epoch) for epoch in epochs]
    assert parts == 1 or len(plans[0][0].parts) > 1
    orders = [[[r for part in b.parts for r in part.rows] for b in plan] for plan in plans]

    iterate(policy, optimizer_of(policy, RATE), rollout, settings, 1, settings.kl_coeff, ALONE)

    penalty = settings.missing_eos_penalty
    scores = [
        float(score) - (0.0 if row[-1] in policy.ends else penalty)
        for score, row in zip(torch.tensor(count_reward(None, responses)), responses, strict=True)
    ]
    peer.targets(prompts, responses, scores, settings.kl_coeff)
    for epoch in range(settings.ppo_epochs):
        for chosen in orders[epoch if parts > 1 else 0]:
            peer.update(prompts, responses, chosen)
    wanted = dict(peer.model.named_parameters())
    moved = 0.0
    start = dict(policy.reference.named_parameters())
    for name, weight in policy.model.named_parameters():
        other = wanted.get(name)
        if other is None:
            other = peer.head.weight if name.endswith("weight") else peer.head.bias
        else:
            moved = max(moved, float((weight - start[name]).detach().abs().max()))
        torch.testing.assert_close(weight, other, rtol=0, atol=1e-6)
    assert moved > 1e-3
