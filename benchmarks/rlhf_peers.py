"""One system in a process of its own, for `benchmarks.rlhf`.

    python benchmarks/rlhf_peers.py SYSTEM FOLDER

Reads lines ``mode seed`` from stdin, runs one iteration of policy optimisation (rollout, scoring,
updates) on prompts that the seed draws, and prints one JSON line: CPU seconds and sampled tokens.
Nothing but the system ``ours`` imports this project's library.
"""

import copy
import gc
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

RATE, CLIP, VALUE_CLIP, VALUE_COEFF, KL, LAMBDA = 1e-5, 0.2, 0.2, 0.1, 0.05, 0.95
MICRO = 8  # rows of one pass of the plain implementation


def main() -> None:
    system, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    spec = json.loads((folder / "spec.json").read_text())
    work = {"ours": Ours, "plain": Plain, "trl": Trl}[system](spec)
    print("ready", flush=True)
    for line in sys.stdin:
        mode, seed = line.split()
        run = work.prepared(mode, int(seed))
        gc.collect()
        began = time.process_time()
        tokens = run()
        print(json.dumps({"cpu": time.process_time() - began, "tokens": tokens}), flush=True)


def build(spec: dict[str, Any], kind: str, seed: int = 0) -> Any:
    """The model of the comparison, with the same first weights in every process."""
    import transformers

    names = {
        "t5": (transformers.T5Config, transformers.T5ForConditionalGeneration),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }
    config, model = names[kind]
    torch.manual_seed(seed)
    return model(config(**spec["models"][kind])).eval()


def drawn_prompts(spec: dict[str, Any], seed: int, count: int) -> list[list[int]]:
    return random.Random(seed).sample(spec["prompts"], count)  # noqa: S311


class Ours:
    """This library. Modes: ``OBJECTIVE_KIND[_ends]``, for instance ppo_llama_ends."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec

    def prepared(self, mode: str, seed: int) -> Callable[[], int]:
        from pipestill.config import PolicyConfig
        from pipestill.models.heads import ScalarHead, WithHead, width_of
        from pipestill.rlhf.collect import Question, collect
        from pipestill.rlhf.policy import VALUE_HEAD, Policy
        from pipestill.rlhf.ppo_step import iterate
        from pipestill.rlhf.scoring import RewardModel
        from pipestill.training.distributed import ALONE
        from pipestill.training.forward import Shape

        spec, (objective, kind, *ends) = self.spec, mode.split("_")
        model = build(spec, kind)
        reference = copy.deepcopy(model).requires_grad_(False)
        renderer = SimpleNamespace(
            tokenizer=SimpleNamespace(pad_token_id=0), is_encoder_decoder=kind == "t5"
        )
        judge = build(spec, kind, 1)
        scorer: Any = RewardModel(WithHead(judge, ScalarHead(width_of(judge))), renderer)
        if objective == "ppo":
            setattr(model, VALUE_HEAD, ScalarHead(width_of(model), zeros=True))
        size = spec["samples"][kind if objective == "ppo" else "group"]
        config = PolicyConfig(
            policy_objective=objective, samples_per_prompt=size, kl_coeff=KL, kl_bound=1e9,
            rollout_batch_size=spec["answers"], target_sequence_length=spec["limit"],
            ppo_epochs=spec["epochs"] if objective == "ppo" else 1,
        )  # fmt: skip
        shape = Shape(kind == "t5", 0, 0, "cpu")
        closing = spec["ends"] if ends else [spec["eos"]]
        policy = Policy(SimpleNamespace(model=model), renderer, shape, closing, 1.0, reference,
                        None)  # fmt: skip
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, eps=1e-5, fused=True)
        prompts = drawn_prompts(spec, seed, spec["answers"] // size)
        asked = [Question(str(i), "", ids) for i, ids in enumerate(prompts)]

        def reward(questions: Any, responses: Any) -> list[float]:
            if objective != "ppo":
                return even_share(responses)
            return scorer.score([q.ids for q in questions], responses).tolist()

        def run() -> int:
            rollout = collect(policy, asked, config, seed, reward, ALONE)
            iterate(policy, optimizer, rollout, config, seed, KL, ALONE)
            return int(rollout.lengths.sum())

        return run


def even_share(responses: Any) -> list[float]:
    """A reward that costs nothing, for the comparison with TRL."""
    return [sum(token % 2 == 0 for token in row) / len(row) for row in responses]


class Plain:
    """PPO as it is usually put together: `generate`, a copy as reference, a critic of its own.

    Written with care: keys and values are cached, logits are computed at response positions only,
    the reference and the old policy run once without gradients, passes hold eight rows by length.
    Modes: ppo_KIND_ends, and shared_KIND_ends, whose value head stands on the policy's own trunk.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec

    def prepared(self, mode: str, seed: int) -> Callable[[], int]:
        spec, (name, kind, *_) = self.spec, mode.split("_")
        self.kind, self.shared, self.ends = kind, name == "shared", torch.tensor(spec["ends"])
        self.policy, self.judge = build(spec, kind), build(spec, kind, 1)
        self.reference = copy.deepcopy(self.policy).requires_grad_(False)
        width = spec["models"][kind].get("hidden_size") or spec["models"][kind]["d_model"]
        self.head, self.scorer = torch.nn.Linear(width, 1), torch.nn.Linear(width, 1)
        torch.nn.init.zeros_(self.head.weight)
        self.critic = self.policy if self.shared else copy.deepcopy(self.policy)
        weights = [*self.policy.parameters(), *self.head.parameters()]
        weights += [] if self.shared else list(self.critic.parameters())
        optimizer = torch.optim.AdamW(weights, lr=RATE, eps=1e-5, fused=True)
        size = spec["samples"][kind]
        prompts = [p for p in drawn_prompts(spec, seed, spec["answers"] // size)
                   for _ in range(size)]  # fmt: skip

        def run() -> int:
            torch.manual_seed(seed)
            return self.iteration(prompts, weights, optimizer)

        return run

    def iteration(self, prompts: list[list[int]], weights: list[Any], optimizer: Any) -> int:
        width, left = max(map(len, prompts)), self.kind == "llama"
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(prompts):
            place = slice(width - len(row), width) if left else slice(0, len(row))
            ids[i, place], mask[i, place] = torch.tensor(row), 1
        with torch.no_grad():
            out = self.policy.generate(
                input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, top_p=1.0,
                max_new_tokens=self.spec["limit"], eos_token_id=self.spec["ends"], pad_token_id=0,
            )  # fmt: skip
            said = out[:, width:] if left else out[:, 1:]
            ended = torch.isin(said, self.ends).int().cumsum(1)
            real = torch.nn.functional.pad(ended[:, :-1], (1, 0)) == 0
            order = (mask.sum(1) + real.sum(1)).argsort()
            ids, mask, said, real = ids[order], mask[order], said[order], real[order]
            parts = [slice(i, i + MICRO) for i in range(0, len(ids), MICRO)]

            def over(function: Callable[..., Any]) -> Any:
                return torch.cat([function(ids[p], mask[p], said[p], real[p]) for p in parts])

            old = over(lambda *x: self.forward(self.policy, *x)[0])
            values = over(self.values)
            ref = over(lambda *x: self.forward(self.reference, *x)[0])
            scores = over(self.scores)
            rewards = torch.where(real, -KL * (old - ref), 0.0)
            last = real.sum(1) - 1
            rewards[torch.arange(len(last)), last] += scores
            values = torch.where(real, values, 0.0)
            gain, gains = torch.zeros(len(ids)), []
            for t in reversed(range(said.shape[1])):
                ahead = values[:, t + 1] if t + 1 < said.shape[1] else 0.0
                gain = rewards[:, t] + ahead - values[:, t] + LAMBDA * gain
                gains.append(gain)
            advantages = torch.stack(gains[::-1], 1)
            returns = advantages + values
            chosen = advantages[real]
            advantages = (advantages - chosen.mean()) / (chosen.var(correction=0) + 1e-8).sqrt()
        tokens = int(real.sum())
        for _ in range(self.spec["epochs"]):
            for p in parts:
                given = ids[p], mask[p], said[p], real[p]
                new, states = self.forward(self.policy, *given)
                fresh = self.head(states)[..., 0] if self.shared else self.values(*given)
                ratio = (new - old[p]).exp()
                a, v, r, m = advantages[p], values[p], returns[p], real[p]
                loss = torch.maximum(-a * ratio, -a * ratio.clamp(1 - CLIP, 1 + CLIP))
                held = v + (fresh - v).clamp(-VALUE_CLIP, VALUE_CLIP)
                worst = torch.maximum((fresh - r).square(), (held - r).square())
                ((loss + VALUE_COEFF * 0.5 * worst)[m].sum() / tokens).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return tokens

    def inputs(self, ids: Any, mask: Any, said: Any, real: Any) -> dict[str, Any]:
        if self.kind == "t5":
            shifted = said.roll(1, 1)
            shifted[:, 0] = 0
            return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": shifted}
        both = torch.cat([mask, real.long()], 1)
        places = (both.cumsum(1) - 1).clamp(min=0)
        return {"input_ids": torch.cat([ids, said], 1), "attention_mask": both,
                "position_ids": places}  # fmt: skip

    def forward(self, model: Any, ids: Any, mask: Any, said: Any, real: Any) -> tuple[Any, Any]:
        given, count = self.inputs(ids, mask, said, real), said.shape[1]
        more = {} if self.kind == "t5" else {"logits_to_keep": count + 1}
        keep = self.shared and model is self.policy
        out = model(**given, **more, use_cache=False, output_hidden_states=keep)
        logits = out.logits if self.kind == "t5" else out.logits[:, :-1]
        found = logits.log_softmax(-1).gather(-1, said[..., None])[..., 0]
        states = None
        if keep:
            whole = out.decoder_hidden_states if self.kind == "t5" else out.hidden_states
            states = whole[-1] if self.kind == "t5" else whole[-1][:, -count - 1 : -1]
        return found, states

    def trunk(self, model: Any, *given: Any) -> Any:
        """Last states at the positions that predict the answer, and at its last token."""
        inputs = self.inputs(*given)
        if self.kind == "llama":
            return model.model(**inputs, use_cache=False).last_hidden_state
        encoded = model.get_encoder()(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).last_hidden_state
        return model.get_decoder()(
            input_ids=inputs["decoder_input_ids"], encoder_hidden_states=encoded,
            encoder_attention_mask=inputs["attention_mask"], use_cache=False,
        ).last_hidden_state  # fmt: skip

    def values(self, ids: Any, mask: Any, said: Any, real: Any) -> Any:
        states = self.trunk(self.critic, ids, mask, said, real)
        if self.kind == "llama":
            states = states[:, -said.shape[1] - 1 : -1]
        return self.head(states)[..., 0]

    def scores(self, ids: Any, mask: Any, said: Any, real: Any) -> Any:
        states = self.trunk(self.judge, ids, mask, said, real)
        last = real.sum(1) - 1 + (ids.shape[1] if self.kind == "llama" else 0)
        return self.scorer(states[torch.arange(len(last)), last])[:, 0]


class Trl:
    """TRL's GRPOTrainer and RLOOTrainer, one step. Modes: grpo_llama, and grpo_llama_best.

    ``best`` leaves gradient checkpointing off, which is on by default.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        import trl  # fails here, at the start, where it is not installed

        self.spec, self.trl = spec, trl

    def prepared(self, mode: str, seed: int) -> Callable[[], int]:
        from datasets import Dataset, disable_progress_bars

        disable_progress_bars()
        spec, (objective, _, *best) = self.spec, mode.split("_")
        size = spec["samples"]["group"]
        prompts = drawn_prompts(spec, seed, spec["answers"] // size)
        texts = [" ".join(f"w{token}" for token in ids) for ids in prompts]
        sampled: list[int] = []

        def reward(completion_ids: Any, **_: Any) -> list[float]:
            sampled.append(sum(map(len, completion_ids)))
            return even_share(completion_ids)

        name = {"grpo": "GRPO", "rloo": "RLOO"}[objective]
        arguments = getattr(self.trl, f"{name}Config")(
            output_dir=spec["scratch"], max_steps=1, learning_rate=RATE, bf16=False, use_cpu=True,
            report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, seed=seed,
            per_device_train_batch_size=spec["answers"], gradient_accumulation_steps=1,
            num_generations=size, max_completion_length=spec["limit"], beta=KL,
            **({"gradient_checkpointing": False} if best else {}),
        )  # fmt: skip
        trainer = getattr(self.trl, f"{name}Trainer")(
            model=self.saved_model(),
            args=arguments,
            reward_funcs=reward,
            train_dataset=Dataset.from_dict({"prompt": texts}),
            processing_class=word_tokenizer(spec["models"]["llama"]["vocab_size"], spec["eos"]),
        )

        def run() -> int:
            trainer.train()
            return sum(sampled)

        return run

    def saved_model(self) -> Any:
        """From a folder, because the trainers load their reference from where a model came from."""
        from transformers import AutoModelForCausalLM

        folder = f"{self.spec['scratch']}-model"
        if not Path(folder).is_dir():
            build(self.spec, "llama").save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(folder)


def word_tokenizer(size: int, eos: int) -> Any:
    """``w17`` is token 17, so that TRL's text prompts are the ids of the other systems."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))  # noqa: S106
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = {"pad_token": "w0", "eos_token": f"w{eos}"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="left", **marks)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main()
