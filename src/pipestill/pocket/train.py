"""Make the pocket models again: ``python -m pipestill.pocket.train {tokenizer,teacher,base}``.

One thread is used. The tokenizer takes a few seconds, the base 6,000 steps (8 minutes of a core),
the teacher 3,000 (about 15). The shipped weights went on from such a run with ``--start``; the
stages are listed in ``models/README.md``. A seed and a step count fix the data, and the result on
one machine and library version.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipestill.pocket import tokenizer
from pipestill.pocket.batches import Batch, base_batches, teacher_batches

WARMUP = 200
# The usual start of 0.02 suits wide models; at this width attention stays blind for very long.
WIDER = 3.5


def build_teacher(vocabulary: int) -> Any:
    """A decoder of about 2.4 million parameters in Llama's shape."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=tokenizer.MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed" not in name:
                weight.mul_(WIDER)
    return model


def build_base(vocabulary: int) -> Any:
    """An encoder-decoder of about 1.6 million parameters in T5's shape.

    One decoder layer, so that tables are learned in the encoder: with two, a student wrote true
    rationales from tables its answers could not reach.
    """
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=vocabulary,
        d_model=128,
        d_kv=32,
        d_ff=512,
        num_layers=5,
        num_decoder_layers=1,
        num_heads=4,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
        dropout_rate=0.0,
        feed_forward_proj="relu",
        tie_word_embeddings=True,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5ForConditionalGeneration(config)


def scaled_groups(model: Any, rate: float) -> list[dict[str, Any]]:
    """One rate per tensor, in proportion to its size at the start, as T5's own optimizer has it.

    With a single rate the small query weights of this shape move far too fast for the rest, and
    copying a field takes four times as many steps to learn.
    """
    groups = []
    for parameter in model.parameters():
        size = float(parameter.detach().pow(2).mean().sqrt())
        groups.append({"params": [parameter], "peak": rate * min(max(size, 0.01), 1.0)})
    return groups


def fit(model: Any, batches: Iterator[Batch], steps: int, groups: list[dict[str, Any]],
        save: Callable[[], None]) -> None:  # fmt: skip
    """Train with warm-up and a cosine, saving now and then so that a stopped run is of use."""
    import torch

    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.99), weight_decay=0.0)
    begun, total = time.monotonic(), 0.0
    model.train()
    for step in range(1, steps + 1):
        scale = min(1.0, step / WARMUP) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * scale
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**next(batches)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += float(loss.detach())
        if step % 100 == 0:
            print(f"{step} loss {total / 100:.4f} {time.monotonic() - begun:.0f}s", flush=True)
            total = 0.0
        if step % 500 == 0 or step == steps:
            save()


def store(model: Any, folder: Path) -> None:
    """Save in half the size; readers load it as full floats."""
    import torch

    whole = {name: value.clone() for name, value in model.state_dict().items()}
    model.to(torch.bfloat16).save_pretrained(folder)
    model.to(torch.float32).load_state_dict(whole)


def keep_tokenizer(start: Path, out: Path) -> Any:
    """Weights that go on training must keep the tokens they were made with."""
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(start)
    tok.save_pretrained(out)
    tokenizer.portable(out / "tokenizer_config.json")
    return tok


def run(what: str, out: Path, steps: int | None, seed: int, start: Path | None = None) -> None:
    """Build, train and store one of the two models with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    seq2seq = what == "base"
    tok = tokenizer.save(out, seq2seq=seq2seq) if start is None else keep_tokenizer(start, out)
    build, auto = (
        (build_base, AutoModelForSeq2SeqLM) if seq2seq else (build_teacher, AutoModelForCausalLM)
    )
    model = auto.from_pretrained(start, dtype=torch.float32) if start else build(len(tok))
    print(what, sum(p.numel() for p in model.parameters()), "parameters", flush=True)
    if seq2seq:
        batches, groups = base_batches(tok, seed, 40), scaled_groups(model, 1e-2)
    else:
        batches = teacher_batches(tok, seed, 12)
        groups = [{"params": list(model.parameters()), "peak": 1e-3}]
    fit(model, batches, steps or (6000 if seq2seq else 3000), groups, lambda: store(model, out))


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("tokenizer", "teacher", "base"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=Path, help="go on from these weights")
    options = parser.parse_args()
    if options.what == "tokenizer":
        tokenizer.save(options.out, seq2seq=False)
        return
    run(options.what, options.out, options.steps, options.seed, options.start)


if __name__ == "__main__":
    main()
