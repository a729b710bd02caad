"""One trainer in a process of its own, for `benchmarks.training`.

    python benchmarks/training_peers.py SYSTEM FOLDER

Reads lines ``mode seed steps`` from stdin, trains one epoch over rows that the seed draws from
those in FOLDER, and prints one JSON line: CPU seconds of the training alone, tokens that carried
loss, and the most memory of the process beyond what it had before. Nothing but the system ``ours``
imports this project's library, so that a peer's interpreter needs none of it.
"""

import ctypes
import gc
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

IGNORED, RATE = -100, 1e-4
Pairs = list[tuple[list[int], list[int]]]


def main() -> None:
    system, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    spec = json.loads((folder / "spec.json").read_text())
    work = {"ours": Ours, "hf": Seq2Seq, "two_passes": TwoPasses, "trl": Sft}[system](spec)
    print("ready", flush=True)
    for line in sys.stdin:
        mode, seed, steps = line.split()
        spec["steps"] = int(steps)
        print(json.dumps(measured(work.prepared(mode, int(seed)))), flush=True)


def measured(run: Callable[[], int]) -> dict[str, float]:
    """`run` returns the tokens that carried loss."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier runs freed goes back to the system
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    began = time.process_time()
    tokens = run()
    spent = time.process_time() - began
    return {"cpu": spent, "tokens": tokens, "peak": memory("VmHWM") - before}


def memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def build(spec: dict[str, Any], kind: str) -> Any:
    """The model of the comparison, with the same first weights in every process."""
    import transformers

    names = {
        "t5": (transformers.T5Config, transformers.T5ForConditionalGeneration),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }
    config, model = names[kind]
    torch.manual_seed(0)
    return model(config(**spec["models"][kind])).train()


def drawn_rows(spec: dict[str, Any], kind: str, seed: int) -> list[dict[str, list[int]]]:
    """The rows of a round: the same for all systems, other ones in the next round."""
    count = spec["batch"][kind] * spec["steps"]
    return random.Random(seed).sample(spec["rows"][kind], count)  # noqa: S311


def tasks_of(mode: str) -> list[str]:
    return ["label", "rationale"] if "both" in mode else ["label"]


def pairs_of(spec: dict[str, Any], rows: list[dict[str, list[int]]], tasks: list[str]) -> Pairs:
    prefixes = spec["prefixes"]
    return [(prefixes.get(task, []) + row["prompt"], row[task]) for row in rows for task in tasks]


def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


def seq2seq_batch(pairs: Pairs) -> dict[str, torch.Tensor]:
    """Padded to the longest of the batch."""
    sources, targets = [list(column) for column in zip(*pairs, strict=True)]
    mask = padded([[1] * len(ids) for ids in sources], 0)
    labels = padded(targets, IGNORED)
    return {"input_ids": padded(sources, 0), "attention_mask": mask, "labels": labels}


def loss_tokens(pairs: Pairs) -> int:
    return sum(len(target) for _, target in pairs)


class Ours:
    """This library's loop. Modes: label, both, both@0.25 (a fraction of the rationales), chat."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec

    def prepared(self, mode: str, seed: int) -> Callable[[], int]:
        from benchmarks.training_data import encoded
        from pipestill.config import TrainConfig
        from pipestill.training.forward import Shape
        from pipestill.training.loop import fit
        from pipestill.training.step import Job

        name, _, fraction = mode.partition("@")
        kind = "llama" if name.startswith("chat") else "t5"
        rows = drawn_rows(self.spec, kind, seed)
        tasks = tasks_of(name)
        data = encoded(rows, tasks, self.spec["prefixes"] if kind == "t5" else {})
        model, batch = build(self.spec, kind), self.spec["batch"][kind]
        if name == "chat_checkpointed":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        config = TrainConfig(
            train_steps=len(rows) // batch, batch_size=batch, checkpoint_interval=10**6
        )
        lengths = [sum(map(len, row.values())) for row in rows]
        job = Job(
            model=model,
            train=data,
            validation=None,
            lengths=lengths,
            shape=Shape(kind == "t5", 0, 0, "cpu"),
            config=config,
            alpha=0.5 if len(tasks) > 1 else 1.0,
            rate=RATE,
            seed=seed,
            rationale_fraction=float(fraction or 1),
        )

        labels, targets = int(data.label_length.sum()), int(data.target_length.sum())
        computed = labels + round(job.rationale_fraction * (targets - labels))

        def run() -> int:
            fit(job, None)
            return computed

        return run


class Seq2Seq:
    """HF's Seq2SeqTrainer on batches in random order, each padded to its own longest row."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec

    def prepared(self, mode: str, seed: int) -> Callable[[], int]:
        from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

        rows, tasks = drawn_rows(self.spec, "t5", seed), tasks_of(mode)
        pairs = pairs_of(self.spec, rows, tasks)
        arguments = Seq2SeqTrainingArguments(
            output_dir=self.spec["scratch"],
            per_device_train_batch_size=self.spec["batch"]["t5"] * len(tasks),
            seed=seed,
            **common(),
        )
        trainer = Seq2SeqTrainer(
            model=build(self.spec, "t5"),
            args=arguments,
            train_dataset=pairs,
            data_collator=seq2seq_batch,
        )

        def run() -> int:
            trainer.train()
            return loss_tokens(pairs)

        return run


class TwoPasses:
    """The step of the paper's code: one forward pass a task, dynamic padding, the model's loss."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec

    def prepared(self, mode: str, seed: int) -> Callable[[], int]:
        rows = drawn_rows(self.spec, "t5", seed)
        model, batch = build(self.spec, "t5"), self.spec["batch"]["t5"]
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)

        def run() -> int:
            for start in range(0, len(rows), batch):
                for task in ("label", "rationale"):
                    pairs = pairs_of(self.spec, rows[start : start + batch], [task])
                    (0.5 * model(**seq2seq_batch(pairs)).loss).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            return loss_tokens(pairs_of(self.spec, rows, ["label", "rationale"]))

        return run


class Sft:
    """TRL's SFTTrainer. Modes: chat (its defaults in fp32) and chat_best.

    Off GPUs TRL 1.16 scores all positions, not only those with loss, which costs it most of its
    time. ``chat_best`` makes it score those with loss, as on a GPU, and drops its checkpointing.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        import trl.trainer.utils as utils  # fails here, at the start, where it is not installed

        self.spec, self.utils, self.compact = spec, utils, utils._use_triton

    def prepared(self, mode: str, seed: int) -> Callable[[], int]:
        from datasets import Dataset, disable_progress_bars
        from trl import SFTConfig, SFTTrainer

        disable_progress_bars()
        pairs = pairs_of(self.spec, drawn_rows(self.spec, "llama", seed), ["label"])
        rows = [{"input_ids": a + b, "labels": [IGNORED] * len(a) + b} for a, b in pairs]
        best = mode == "chat_best"
        changed = {"gradient_checkpointing": False} if best else {}
        self.utils._use_triton = (lambda _: True) if best else self.compact
        trainer = SFTTrainer(
            model=build(self.spec, "llama"),
            args=SFTConfig(
                output_dir=self.spec["scratch"],
                per_device_train_batch_size=self.spec["batch"]["llama"],
                seed=seed,
                **common(),
                **changed,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=plain_tokenizer(self.spec["models"]["llama"]["vocab_size"]),
        )

        def run() -> int:
            trainer.train()
            return loss_tokens(pairs)

        return run


def common() -> dict[str, Any]:
    """One epoch in fp32 on the CPU; nothing is saved, logged or reported."""
    return {
        "num_train_epochs": 1,
        "learning_rate": RATE,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }


def plain_tokenizer(size: int) -> Any:
    """TRL wants a tokenizer; the rows are ids already, so it only pads."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    marks = {"pad_token": "<pad>", "eos_token": "</s>"}
    inner = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": size - 1}, unk_token=None))
    return PreTrainedTokenizerFast(tokenizer_object=inner, **marks)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main()
