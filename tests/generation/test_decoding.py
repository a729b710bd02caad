"""The decode loop gives the tokens of plain generation, with and without a shared prefix."""

from typing import Any

import pytest
import torch

from pipestill.generation.decoding import (
    Prefix,
    Rules,
    compute_prefix,
    decode_batch,
    decode_batch_seq2seq,
    fits,
)
from tests.generation.helpers import tiny_model

NEW = 12
END = 2


def _rules(**changes: Any) -> Rules:
    values: dict = {
        "max_new_tokens": NEW,
        "end_ids": frozenset({END}),
        "stopped": lambda ids: False,
    }
    return Rules(**values | changes)


def _prompts(shared: int, lengths: list[int]) -> tuple[list[int], list[list[int]]]:
    stream = torch.Generator().manual_seed(3)

    def draw(count: int) -> list[int]:
        return torch.randint(3, 400, (count,), generator=stream).tolist()

    prefix = draw(shared)
    return prefix, [prefix + draw(count) for count in lengths]


def _plain(model: Any, prompts: list[list[int]], new: int = NEW) -> list[list[int]]:
    """One row at a time, nothing cached or padded, by the library's own generation."""
    found = []
    for ids in prompts:
        tokens = torch.tensor([ids])
        out = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=new,
            pad_token_id=0,
        )[0].tolist()
        new_ids = out[1:] if model.config.is_encoder_decoder else out[len(ids) :]
        found.append(new_ids[: new_ids.index(END)] if END in new_ids else new_ids)
    return found


def _batched(
    model: Any, prompts: list[list[int]], size: int, prefix: Prefix | None, rules: Rules
) -> list[list[int]]:
    found = []
    for start in range(0, len(prompts), size):
        part = prompts[start : start + size]
        seeds = list(range(start, start + len(part)))
        found += decode_batch(model, part, rules, seeds=seeds, prefix=prefix)
    return found


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "wide_mistral"])
def test_greedy_tokens_are_those_of_plain_generation(kind: str, size: int) -> None:
    model = tiny_model(kind)
    ids, prompts = _prompts(90, [3, 17, 1, 5, 5, 30, 2, 11])
    wanted = _plain(model, prompts)
    prefix = compute_prefix(model, ids)
    assert prefix is not None
    assert fits(prefix, prompts, NEW)
    assert _batched(model, prompts, size, prefix, _rules()) == wanted
    assert _batched(model, prompts, size, None, _rules()) == wanted
    # The prefix is intact after use.
    assert _batched(model, prompts, size, prefix, _rules()) == wanted
    assert len({tuple(row) for row in wanted}) == len(wanted)


def test_rows_that_end_leave_the_batch_without_disturbing_the_others() -> None:
    model = tiny_model("llama")
    ids, prompts = _prompts(40, [3, 9, 4, 9, 20, 6])
    wanted = _plain(model, prompts)
    # Every row ends at another place: by an end id, or by a rule about its text.
    end = wanted[2][4]
    expected = [row[: row.index(end)] if end in row else row for row in wanted]
    lengths = {tuple(row[:2]): 3 + 2 * place for place, row in enumerate(expected)}

    def stopped(new: list[int]) -> bool:
        return len(new) >= lengths.get(tuple(new[:2]), 99)

    rules = _rules(end_ids=frozenset({end}), stopped=stopped)
    found = _batched(model, prompts, 6, compute_prefix(model, ids), rules)
    assert found == [row[: 3 + 2 * place] for place, row in enumerate(expected)]
    assert len({len(row) for row in found}) > 3


def test_a_cache_that_cannot_be_shared_is_not_shared() -> None:
    model = tiny_model("mistral")  # its window of 64 is shorter than the prefix
    ids, prompts = _prompts(80, [3, 9, 4])
    assert compute_prefix(model, ids) is None
    assert compute_prefix(model, []) is None
    short, others = _prompts(40, [3, 9, 4])
    prefix = compute_prefix(model, short)
    assert prefix is not None
    assert prefix.reach == 64
    assert not fits(prefix, others, 16)
    assert fits(prefix, [others[0], others[2]], 16)
    assert not fits(prefix, [[5, *others[0][1:]]], 1)
    assert not fits(prefix, [list(prefix.ids)], 1)
    # Without it the windows slide as in plain generation.
    assert _batched(model, prompts, 1, None, _rules()) == _plain(model, prompts)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_encoder_decoder_tokens_are_those_of_plain_generation(size: int) -> None:
    model = tiny_model("t5")
    _, prompts = _prompts(10, [3, 17, 1, 5, 30])
    wanted = _plain(model, prompts)
    found = []
    for start in range(0, 5, size):
        part = prompts[start : start + size]
        found += decode_batch_seq2seq(model, part, _rules(), seeds=[0] * len(part))
    assert found == wanted


def test_samples_do_not_depend_on_their_neighbours() -> None:
    model = tiny_model("gpt2")
    ids, prompts = _prompts(50, [3, 9, 4, 12, 7, 7])
    rules = _rules(temperature=1.0)
    alone = _batched(model, prompts, 1, None, rules)
    assert _batched(model, prompts, 4, compute_prefix(model, ids), rules) == alone
    assert alone != _plain(model, prompts)
    twice = decode_batch(model, [prompts[0]] * 3, rules, seeds=[5, 6, 5], prefix=None)
    assert twice[0] == twice[2] != twice[1]


def test_sampling_follows_the_models_distribution() -> None:
    from pipestill.generation.decoding import _choose

    logits = torch.tensor([[0.0, 1.0, -50.0, 2.0]])
    streams = [torch.Generator().manual_seed(1)]
    drawn = torch.cat([_choose(logits, 0.5, streams) for _ in range(4000)])
    seen = torch.bincount(drawn, minlength=4) / 4000
    assert torch.allclose(seen, torch.softmax(logits[0] / 0.5, -1).float(), atol=0.03)
    assert _choose(logits, 0.0, streams).tolist() == [3]
