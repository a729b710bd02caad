"""``kill -9`` at random moments: ``python -m benchmarks.kill_test [--kills 20] [--seed 0]``.

Trains a tiny T5 once without a disturbance, and once more in a process that is killed by SIGKILL
again and again, each time a random while after its start (so also while it loads, resumes or writes
a checkpoint), and started anew. Then the weights are compared bit by bit and the rows of
`train_log.jsonl` counted. One thread, CPU; each attempt is a forked process of its own.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from pipestill.config import TrainConfig
from pipestill.records import Labelled, write_jsonl
from pipestill.training.student import train_student

STEPS, INTERVAL = 800, 5
WORDS = ("red", "green", "blue", "because", "names", "then", "predict:", "explain:")


@dataclass(frozen=True)
class Found:
    """What came out. `torn` checkpoints are those that a later attempt found and passed over."""

    kills: int
    same_weights: bool
    same_losses: bool
    lost_rows: int
    doubled_rows: int
    resumed: int  # attempts that went on from a checkpoint
    torn: int
    seconds: float


def kill_runs(folder: Path, kills: int, seed: int) -> Found:
    """Both runs in `folder`, the second killed `kills` times."""
    begun = time.perf_counter()
    torch.set_num_threads(1)
    model = make_model(folder / "model")
    write_jsonl(folder / "rows.jsonl", make_rows(64))
    os.waitpid(start(folder, model, "whole"), 0)
    dice = random.Random(seed)  # noqa: S311
    # The smaller of two: what a busy moment made slow would let attempts live to the end.
    names = ("measured", "measured_again")
    longest = 1.8 * min(_seconds_to_second_checkpoint(folder, model, name) for name in names)
    done = 0
    while done < kills and not _finished(folder):
        attempt = start(folder, model, "killed")
        time.sleep(dice.uniform(0.0, longest))
        os.kill(attempt, signal.SIGKILL)
        os.waitpid(attempt, 0)
        done += 1
    os.waitpid(start(folder, model, "killed"), 0)
    return _compared(folder, done, time.perf_counter() - begun)


def start(folder: Path, model: str, name: str) -> int:
    """Starts a training process; returns its number."""
    child = os.fork()
    if child:
        return child
    try:
        log = (folder / f"{name}.log").open("a", buffering=1)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.stdout = sys.stderr = log  # somebody may have put other objects there
        summary = train_student(
            folder / "rows.jsonl",
            folder / name,
            run="dss:0",
            state_dir=str(folder / f"{name}.state"),
            config=TrainConfig(
                student_model_reference=model,
                train_steps=STEPS,
                batch_size=4,
                checkpoint_interval=INTERVAL,
                evaluation_interval=40,
                enable_early_stopping=False,
                precision="fp32",
            ),
        )
        print(f"resumed from step {summary['resumed_from_step']}", flush=True)
    except BaseException as error:
        print(f"failed: {error!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(0)


def make_model(folder: Path) -> str:
    """A T5 of 12,000 random weights with a tokenizer of single words, dropout on."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    names = ["<pad>", "</s>", "<unk>", *WORDS]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    ends: dict[str, Any] = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **ends).save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(names), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        dropout_rate=0.1, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)


def make_rows(count: int) -> list[Labelled]:
    dice = random.Random(0)  # noqa: S311
    rows = []
    for i in range(count):
        words = dice.choices(WORDS[:3], k=3)
        rows.append(
            Labelled(
                id=f"r{i}",
                input_text=" ".join(words),
                output_text=words[0],
                label_source="gold",
                rationale=f"names {words[0]} then {words[1]}",
            )
        )
    return rows


def _seconds_to_second_checkpoint(folder: Path, model: str, name: str) -> float:
    """How long an attempt lives before it has gained something; it counts as no kill."""
    begun = time.perf_counter()
    attempt = start(folder, model, name)
    marker = f"checkpoints/*/step-{2 * INTERVAL:06d}/state.json"
    while not list((folder / f"{name}.state").glob(marker)):
        time.sleep(0.005)
    os.kill(attempt, signal.SIGKILL)
    os.waitpid(attempt, 0)
    return time.perf_counter() - begun


def _finished(folder: Path) -> bool:
    return (folder / "killed" / "pipestill.json").exists()


def _compared(folder: Path, kills: int, seconds: float) -> Found:
    whole, killed = (
        (folder / name / "model.safetensors").read_bytes() for name in ("whole", "killed")
    )
    entries, wanted = (_log(folder / name) for name in ("killed", "whole"))
    steps = Counter(entry["step"] for entry in entries)
    log = (folder / "killed.log").read_text()
    return Found(
        kills=kills,
        same_weights=whole == killed,
        same_losses=entries == wanted,
        lost_rows=len({entry["step"] for entry in wanted} - steps.keys()),
        doubled_rows=sum(count - 1 for count in steps.values()),
        resumed=log.count("going on from step"),
        torn=log.count("passed over"),
        seconds=round(seconds, 1),
    )


def _log(folder: Path) -> list[dict[str, Any]]:
    """The training log without its times."""
    lines = (folder / "train_log.jsonl").read_text().splitlines()
    times = ("tokens_per_second", "model_flops_per_second", "mfu")
    return [{k: v for k, v in json.loads(line).items() if k not in times} for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = kill_runs(Path(folder), given.kills, given.seed)
    for item in fields(found):
        print(f"{item.name.replace('_', ' ')}: {getattr(found, item.name)}")


if __name__ == "__main__":
    main()
