"""Print the numbers of the model card: ``python -m pipestill.pocket.measure``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipestill.pocket import POCKET, corpus, prompt, world
from pipestill.pocket.batches import padded

ANSWER = re.compile(r"So the answer is (\w+)\.")
BATCH = 50


def load(folder: Path, *, seq2seq: bool) -> tuple[Any, Any]:
    """A model in full floats, ready to answer, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    auto = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def continuations(model: Any, tok: Any, texts: list[str]) -> list[str]:
    """Greedy continuations of the teacher, up to the next question."""
    import torch

    batch = tok(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        out = model.generate(**batch, max_new_tokens=48, do_sample=False)
    answers = tok.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    return [answer.split("\nQ:")[0] for answer in answers]


def teacher_scores(model: Any, tok: Any, shots: int, cases: list[world.Case]) -> tuple[float, ...]:
    """Shares of right answers, of answers in the asked form, and of wholly true rationales."""
    right = formed = true = 0
    for start in range(0, len(cases), BATCH):
        part = cases[start : start + BATCH]
        texts = [prompt.filled(shots, case.note) for case in part]
        for text, case in zip(continuations(model, tok, texts), part, strict=True):
            found = ANSWER.search(text)
            formed += found is not None
            right += found is not None and found[1] == case.label
            true += text.strip().startswith(case.rationale)
    return right / len(cases), formed / len(cases), true / len(cases)


def base_score(model: Any, tok: Any, pairs: list[corpus.Pair]) -> float:
    """Share of texts the base completes exactly."""
    import torch

    source = padded(tok([pair[0] for pair in pairs]).input_ids, 0)
    mask = (source != 0).long()
    with torch.no_grad():
        out = model.generate(input_ids=source, attention_mask=mask, max_new_tokens=44)
    answers: list[str] = tok.batch_decode(out, skip_special_tokens=True)
    return sum(a == pair[1] for a, pair in zip(answers, pairs, strict=True)) / len(pairs)


def main() -> None:
    """Measure both models."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, default=POCKET["pocket-teacher"])
    parser.add_argument("--base", type=Path, default=POCKET["pocket-base"])
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 2, 5, 8])
    options = parser.parse_args()
    torch.set_num_threads(1)
    base, tok = load(options.base, seq2seq=True)
    print(f"base: {base.num_parameters()} parameters")
    makers: tuple[Callable[..., corpus.Pair], ...] = (
        corpus.desk_pair, corpus.stated_rule_pair, corpus.number_pair, corpus.fact_pair,
    )  # fmt: skip
    for maker in makers:
        rng = world.dice(99)
        pairs = [maker(rng) for _ in range(2 * options.rows)]
        for head in ("predict", "explain", "find"):
            part = [pair for pair in pairs if pair[0].startswith(head)]
            if part:
                score = base_score(base, tok, part)
                print(f"base: {maker.__name__} {head} {score:.3f} of {len(part)}", flush=True)
    teacher, tok = load(options.teacher, seq2seq=False)
    print(f"teacher: {teacher.num_parameters()} parameters")
    cases = world.splits()[2][: options.rows]
    for shots in options.shots:
        right, formed, true = teacher_scores(teacher, tok, shots, cases)
        print(f"teacher: {shots} shots, {len(cases)} rows: right {right:.3f}, "
              f"in form {formed:.3f}, rationale true {true:.3f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
