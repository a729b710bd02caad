"""CPU time of one DSS training step, as ratios: ``python -m benchmarks.dss_step``.

Compared on a T5 of one million weights with random weights, 32 examples a step, one thread, fp32,
lengths as in question answering with explanations (input 20 to 100 tokens, label 2 to 4, rationale
20 to 60): the step of this library (both tasks in one forward pass), the step of standard
fine-tuning (labels only), and the DSS step as two forward passes, one a task, each padded to its
own longest row and with the model's own loss over all positions, as the paper's code does it.
All three take the same rows in turn, so that a busy machine slows them alike.
"""

import dataclasses
import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from transformers import T5Config, T5ForConditionalGeneration

from pipestill.config import TrainConfig
from pipestill.training.batches import Encoded, gather, order
from pipestill.training.forward import Shape
from pipestill.training.step import Job, accumulate

ROWS, BATCH, ROUNDS, VOCABULARY = 256, 32, 7, 4096
ALPHA, IGNORED = 0.5, -100


def build_model() -> Any:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCABULARY, d_model=96, d_kv=24, d_ff=384, num_layers=4, num_decoder_layers=2,
        num_heads=4, dropout_rate=0.0, tie_word_embeddings=True, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).train()


def build_data(both: bool) -> tuple[Encoded, list[int]]:
    """Rows of random tokens; with `both` every row has a rationale to explain as well."""
    dice = random.Random(0)  # noqa: S311
    ranges = ((20, 100), (2, 4), (20, 60))
    lengths = [tuple(dice.randint(*pair) for pair in ranges) for _ in range(ROWS)]
    pairs = [(n, k) for n, label, rationale in lengths for k in ((label, rationale)[: both + 1])]
    source, target = (torch.tensor(column) for column in zip(*pairs, strict=True))
    width = 2 if both else 1
    data = Encoded(
        source=torch.randint(2, VOCABULARY, (int(source.sum()),), dtype=torch.int32),
        source_start=source.cumsum(0) - source,
        source_length=source,
        target=torch.randint(2, VOCABULARY, (int(target.sum()),), dtype=torch.int32),
        target_start=target.cumsum(0) - target,
        target_length=target,
        label_length=torch.where(torch.arange(len(pairs)) % width == 0, target, 0),
        of_row=[list(range(i * width, i * width + width)) for i in range(ROWS)],
        cut_inputs=0,
        cut_rationales=0,
    )
    return data, [sum(found) for found in lengths]


def two_passes(model: Any, data: Encoded, rows: list[int]) -> None:
    """The DSS step as two forward passes."""
    for task, share in ((0, ALPHA), (1, 1 - ALPHA)):
        chosen = torch.tensor([data.of_row[row][task] for row in rows])
        ids, real = gather(data.source, data.source_start[chosen], data.source_length[chosen], 0)
        labels, kept = gather(data.target, data.target_start[chosen], data.target_length[chosen], 0)
        labels = labels.masked_fill(~kept, IGNORED)
        loss = model(input_ids=ids, attention_mask=real.long(), labels=labels).loss
        (share * loss).backward()


def cpu_seconds(model: Any, step: Callable[[], Any]) -> float:
    model.zero_grad(set_to_none=True)
    begun = time.process_time()
    step()
    return time.process_time() - begun


def best_seconds(model: Any, step: Callable[[], Any]) -> float:
    """The least of three: what other processes add is never negative."""
    return min(cpu_seconds(model, step) for _ in range(3))


def main() -> None:
    torch.set_num_threads(1)
    model, shape = build_model(), Shape(True, 0, 0, "cpu")
    (data, lengths), (labels, _) = build_data(both=True), build_data(both=False)
    dss = Job(model, data, None, lengths, shape, TrainConfig(), ALPHA, 0.0, 0)
    label = dataclasses.replace(dss, train=labels)
    accumulate(dss, range(BATCH))
    over_label, over_one, spent = [], [], []
    for rows in order(lengths, BATCH, ROUNDS, 0):
        one = best_seconds(model, lambda rows=rows: accumulate(dss, rows))
        alone = best_seconds(model, lambda rows=rows: accumulate(label, rows))
        two = best_seconds(model, lambda rows=rows: two_passes(model, data, rows))
        over_label.append(one / alone)
        over_one.append(two / one)
        spent.append(one)
    weights = sum(p.numel() for p in model.parameters())
    print(f"{weights:,} weights, {BATCH} examples a step, {median(spent) * 1e3:.0f} ms a DSS step")
    print(f"DSS step / label-only step: {median(over_label):.2f}")
    print(f"two-pass DSS step / DSS step: {median(over_one):.2f}")


if __name__ == "__main__":
    main()
