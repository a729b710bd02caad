"""One distiller in a process of its own, for `benchmarks.distillation`.

    python benchmarks/distillation_peers.py SYSTEM FOLDER

Reads lines ``mode seed steps`` from stdin and prints one JSON line for each, as
`benchmarks.training_peers` does: CPU seconds, tokens that carried loss, peak memory. Nothing but
the systems ``kl`` and ``ours`` imports this project's library.
"""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.training_peers import (
    IGNORED,
    RATE,
    Pairs,
    common,
    loss_tokens,
    measured,
    padded,
    plain_tokenizer,
)

NOT_DUE = 2  # a step at which the shares of the gradient norm are not measured
LONG_RUN = 10**6


def main() -> None:
    system, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    spec = json.loads((folder / "spec.json").read_text())
    work = {"kl": Divergences, "ours": Ours, "trl": Trl}[system](spec)
    print("ready", flush=True)
    for line in sys.stdin:
        mode, seed, steps = line.split()
        spec["steps"] = int(steps)
        print(json.dumps(measured(work.prepared(mode, int(seed)))), flush=True)


def llama(spec: dict[str, Any], name: str) -> Any:
    """``student`` or ``teacher``, with the same weights in every process."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(len(name))
    return LlamaForCausalLM(LlamaConfig(**spec["models"][name]))


def pairs_of(spec: dict[str, Any], seed: int) -> Pairs:
    """The rows of a round: the same for all systems."""
    import random

    count = spec["batch"] * spec["steps"]
    rows = random.Random(seed).sample(spec["rows"], count)  # noqa: S311
    return [(row["prompt"], row["label"]) for row in rows]


class Divergences:
    """Forward KL through both LM heads, forward and backward. Modes: chunked@V and naive@V."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec

    def prepared(self, mode: str, seed: int) -> Callable[[], int]:
        from pipestill.losses.common import rows_per_chunk
        from pipestill.losses.response import chunked_divergence, forward_kl

        name, _, words = mode.partition("@")
        size, width = int(words), self.spec["kl"]["width"]
        torch.manual_seed(seed)
        count = self.spec["kl"]["positions"][words]
        states, weight = torch.randn(count, width), torch.randn(size, width) * width**-0.5
        theirs, other = torch.randn(count, width), torch.randn(size, width) * width**-0.5
        for tensor in (states, weight):
            tensor.requires_grad_()

        def chunked() -> Any:
            heads = (lambda part: part @ weight.T), (lambda part: part @ other.T)
            rows = rows_per_chunk(size)
            return chunked_divergence(heads[0], states, heads[1], theirs, forward_kl, rows)

        def naive() -> Any:
            with torch.no_grad():
                wanted = torch.log_softmax(theirs @ other.T, -1)
            found = torch.log_softmax(states @ weight.T, -1)
            kl = torch.nn.functional.kl_div(found, wanted, reduction="none", log_target=True)
            return kl.sum(-1)

        def run() -> int:
            {"chunked": chunked, "naive": naive}[name]().mean().backward()
            return count

        return run


class Ours:
    """This library's loop, forward KL. Modes: online, stored, and online_measured.

    ``stored`` reads the k largest log-probabilities from a store on disk, made beforehand.
    ``online_measured`` also measures every term's share of the gradient norm, in every step; a run
    does that in the steps that it logs.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.teacher = llama(spec, "teacher").eval().requires_grad_(False)
        self.size = spec["models"]["teacher"]["vocab_size"]

    def prepared(self, mode: str, seed: int) -> Callable[[], int]:
        from benchmarks.training_data import encoded
        from pipestill.config import DistillConfig, TrainConfig
        from pipestill.training.distill_response import KD, divergence_of, response_work
        from pipestill.training.distill_step import LABEL, Plan, accumulate
        from pipestill.training.flops import costs_of
        from pipestill.training.forward import Shape
        from pipestill.training.loop import fit
        from pipestill.training.step import Job, Objective
        from pipestill.training.teacher_states import Teacher

        pairs, model = pairs_of(self.spec, seed), llama(self.spec, "student").train()
        rows = [{"prompt": prompt, "label": label} for prompt, label in pairs]
        data, shape = encoded(rows, ["label"]), Shape(False, 0, 0, "cpu")
        teacher: Any = Teacher(self.teacher, shape, data, self.size)
        if mode == "stored":
            teacher = self._stored(teacher)
        config = DistillConfig(kd_weight=1.0)
        how = divergence_of("forward_kl", config)
        plan = Plan(
            lambda job, chosen, step: [response_work(job, chosen, teacher, how, config)],
            (LABEL, KD),
            costs_of(model),
        )

        def add(job: Job, chosen: Any, step: int) -> Any:
            if mode != "online_measured":  # as in the middle of a long run
                long = dataclasses.replace(job.config, train_steps=LONG_RUN)
                job, step = dataclasses.replace(job, config=long), NOT_DUE
            return accumulate(plan, job, chosen, step)

        batch = self.spec["batch"]
        settings = TrainConfig(
            train_steps=len(pairs) // batch, batch_size=batch, checkpoint_interval=LONG_RUN
        )
        job = Job(
            model=model,
            train=data,
            validation=None,
            lengths=[len(a) + len(b) for a, b in pairs],
            shape=shape,
            config=settings,
            alpha=1.0,
            rate=RATE,
            seed=seed,
            objective=Objective(add, plan.objective.validate),
        )

        def run() -> int:
            progress, _ = fit(job, None)
            print(f"kd {progress.log[-1]['kd_loss']:.6f}", file=sys.stderr)
            return loss_tokens(pairs)

        return run

    def _stored(self, teacher: Any) -> Any:
        """The same rows' probabilities, on disk."""
        from pipestill.generation.logits_shard import SHARD_BYTES
        from pipestill.generation.logits_store import close_store
        from pipestill.generation.teacher_forced import write_shards
        from pipestill.training.distill_response import Stored

        names = [str(i) for i in range(len(teacher.data.of_row))]
        folder = Path(tempfile.mkdtemp(dir=self.spec["scratch"]))
        shards = write_shards(
            teacher, names, folder, k=self.spec["top_k"], tau=1.0, batch_size=8,
            shard_bytes=SHARD_BYTES,
        )  # fmt: skip
        facts = {"tau": 1.0, "targets": "label", "vocabulary_digest": "none"}
        store = close_store(
            folder, shards, k=self.spec["top_k"], vocabulary_size=self.size, **facts
        )
        return Stored(store, names, self.size)


class Trl:
    """TRL's trainers on given targets, forward KL. Modes: gkd, distillation; with _best as below.

    `GKDTrainer` trains offline at lmbda 0. `DistillationTrainer` (1.16) only trains on what the
    student samples; here the given targets stand in for the samples, so that it does the same work
    and no generation is paid for. ``_best`` drops gradient checkpointing, which is on by default,
    and has the LM heads score the positions with loss alone, as on a GPU (gkd scores all of them
    everywhere).
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        import trl.trainer.distillation_trainer as module  # fails here where it is not installed

        self.spec, self.module, self.compact = spec, module, module._use_triton
        self.teacher = llama(spec, "teacher").eval().requires_grad_(False)

    def prepared(self, mode: str, seed: int) -> Callable[[], int]:
        from datasets import disable_progress_bars

        disable_progress_bars()
        pairs = pairs_of(self.spec, seed)
        name, _, best = mode.partition("_")
        self.module._use_triton = (lambda _: True) if best else self.compact
        make = {"gkd": self._gkd, "distillation": self._distillation}[name]
        arguments = {
            **common(),
            "output_dir": self.spec["scratch"],
            "per_device_train_batch_size": self.spec["batch"],
            "seed": seed,
            "beta": 0.0,  # forward KL
            **({"gradient_checkpointing": False} if best else {}),
        }
        trainer = make(pairs, arguments)

        def run() -> int:
            print(f"kd {trainer.train().training_loss:.6f}", file=sys.stderr)
            return loss_tokens(pairs)

        return run

    def _both(self) -> dict[str, Any]:
        size = self.spec["models"]["student"]["vocab_size"]
        return {
            "model": llama(self.spec, "student"),
            "teacher_model": self.teacher,
            "processing_class": plain_tokenizer(size),
        }

    def _gkd(self, pairs: Pairs, arguments: dict[str, Any]) -> Any:
        from datasets import Dataset
        from trl.experimental.gkd import GKDConfig, GKDTrainer

        rows = [{"input_ids": a + b, "labels": [IGNORED] * len(a) + b} for a, b in pairs]

        def batch(found: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
            return {
                "input_ids": padded([row["input_ids"] for row in found], 0),
                "attention_mask": padded([[1] * len(row["input_ids"]) for row in found], 0),
                "labels": padded([row["labels"] for row in found], IGNORED),
            }

        return GKDTrainer(
            args=GKDConfig(lmbda=0.0, **arguments),
            data_collator=batch,
            train_dataset=Dataset.from_list(rows),
            **self._both(),
        )

    def _distillation(self, pairs: Pairs, arguments: dict[str, Any]) -> Any:
        from datasets import Dataset
        from trl import DistillationConfig, DistillationTrainer

        class Given(DistillationTrainer):  # type: ignore[misc, valid-type]
            def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict]:
                self.given = [pairs[int(name)][1] for name in prompts]
                return [pairs[int(name)][0] for name in prompts], None, {}

            def _generate_single_turn(self, *_: Any, **__: Any) -> list[list[int]]:
                return self.given

        return Given(
            args=DistillationConfig(**arguments),
            train_dataset=Dataset.from_list([{"prompt": str(i)} for i in range(len(pairs))]),
            **self._both(),
        )


if __name__ == "__main__":
    main()
