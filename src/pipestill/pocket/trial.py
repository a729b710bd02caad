"""Does the rationale help here? ``python -m pipestill.pocket.trial`` runs the comparison again.

Three arms start from the same base and see the same rows in the same order for the same number of
steps: labels alone; labels and rationales (the mean of the two cross entropies); and labels with
the rationales dealt to the wrong rows, which shows what the second task is worth when it says
nothing about its row. It is a plain loop on purpose, to check the full pipeline against.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipestill.pocket import POCKET, world
from pipestill.pocket.batches import IGNORED, padded

ARMS = ("label", "dss", "shuffled")
# Chosen for each arm on rows that are not the held-out ones (``--tune``).
RATES = {"label": 5e-4, "dss": 1.5e-3, "shuffled": 1e-3}
STEPS, BATCH, ALPHA = 200, 16, 0.5
EVAL_BATCH = 100
Triple = tuple[str, str, str]  # note, label, rationale


def triples(cases: Sequence[world.Case]) -> list[Triple]:
    """Rows with the true label and rationale."""
    return [(case.note, case.label, case.rationale) for case in cases]


def taught(cases: Sequence[world.Case], shots: int) -> list[Triple]:
    """Rows as the pocket teacher answers them, mistakes included; answers out of form are left."""
    from pipestill.pocket import measure, prompt

    model, tok = measure.load(POCKET["pocket-teacher"], seq2seq=False)
    texts = [prompt.filled(shots, case.note) for case in cases]
    rows: list[Triple] = []
    for start in range(0, len(texts), measure.BATCH):
        answers = measure.continuations(model, tok, texts[start : start + measure.BATCH])
        for case, answer in zip(cases[start:], answers, strict=False):
            found = measure.ANSWER.search(answer)
            if found:
                rows.append((case.note, found[1], answer[: found.start()].strip()))
    return rows


def deal_wrongly(rows: list[Triple], seed: int) -> list[Triple]:
    """Give every row the rationale of another row."""
    order = list(range(len(rows)))
    world.dice(seed).shuffle(order)
    donor = {order[i]: order[(i + 1) % len(order)] for i in range(len(order))}
    return [(note, label, rows[donor[i]][2]) for i, (note, label, _) in enumerate(rows)]


def loss(model: Any, tok: Any, prefix: str, pairs: Sequence[tuple[str, str]]) -> Any:
    """Mean cross entropy of one task's targets."""
    source = padded(tok([f"{prefix}: {note}" for note, _ in pairs]).input_ids, 0)
    labels = padded(tok([target for _, target in pairs]).input_ids, IGNORED)
    return model(input_ids=source, attention_mask=(source != 0).long(), labels=labels).loss


def train(model: Any, tok: Any, rows: list[Triple], arm: str, seed: int,
          steps: int, batch: int, rate: float) -> None:  # fmt: skip
    """Fine-tune one arm; the order of rows depends on the seed alone."""
    import torch

    rng = world.dice(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    queue: list[Triple] = []
    model.train()
    for step in range(steps):
        while len(queue) < batch:
            queue += rng.sample(rows, len(rows))
        chosen, queue = queue[:batch], queue[batch:]
        total = loss(model, tok, "predict", [(note, label) for note, label, _ in chosen])
        if arm != "label":
            why = loss(model, tok, "explain", [(note, text) for note, _, text in chosen])
            total = ALPHA * total + (1 - ALPHA) * why
        optimizer.param_groups[0]["lr"] = rate * min((step + 1) / 20, 1 - step / steps)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def accuracy(model: Any, tok: Any, rows: list[Triple]) -> float:
    """Share of rows whose greedy answer is the label."""
    import torch

    model.eval()
    right = 0
    for start in range(0, len(rows), EVAL_BATCH):
        part = rows[start : start + EVAL_BATCH]
        source = padded(tok([f"predict: {note}" for note, _, _ in part]).input_ids, 0)
        with torch.no_grad():
            out = model.generate(
                input_ids=source, attention_mask=(source != 0).long(),
                max_new_tokens=6, do_sample=False,
            )  # fmt: skip
        answers = tok.batch_decode(out, skip_special_tokens=True)
        right += sum(a.strip() == label for a, (_, label, _) in zip(answers, part, strict=True))
    return right / len(rows)


def run_arm(rows: list[Triple], arm: str, seed: int,
            options: argparse.Namespace) -> tuple[float, float]:  # fmt: skip
    """Train and score one arm with one seed; also the processor seconds of training and scoring."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    torch.manual_seed(seed)
    tok = AutoTokenizer.from_pretrained(options.base)
    model = AutoModelForSeq2SeqLM.from_pretrained(options.base, dtype=torch.float32)
    if arm == "shuffled":
        rows = deal_wrongly(rows, seed)
    begun = time.process_time()
    rate = options.rate or RATES[arm]
    train(model, tok, rows, arm, seed, options.steps, options.batch, rate)
    return accuracy(model, tok, options.scored), time.process_time() - begun


def main() -> None:
    """Print one line per arm and seed, then the means."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=POCKET["pocket-base"])
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", type=int, default=world.TRAIN_ROWS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rate", type=float, help="one rate for all arms, not their own")
    parser.add_argument("--labels", choices=("true", "teacher"), default="true")
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--tune", action="store_true", help="score on other rows, to choose a rate")
    options = parser.parse_args()
    options.scored = triples(world.tuning() if options.tune else world.splits()[2])
    torch.set_num_threads(1)
    cases = world.splits()[1][: options.rows]
    rows = triples(cases) if options.labels == "true" else taught(cases, options.shots)
    for arm in options.arms:
        scores = []
        for seed in options.seeds:
            score, seconds = run_arm(rows, arm, seed, options)
            scores.append(score)
            print(f"{arm} seed {seed} accuracy {score:.3f} in {seconds:.0f} s", flush=True)
        print(f"{arm} mean {sum(scores) / len(scores):.3f}", flush=True)


if __name__ == "__main__":
    main()
