"""Rows as tensors, and the order of rows."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipestill.errors import UserError
from pipestill.models.render import Renderer
from pipestill.training.batches import encode, gather, order, row_lengths
from pipestill.training.objectives import OBJECTIVES
from tests.training.tiny import KINDS, make_data, make_loaded, make_rows, make_tokenizer

EOS = 1


def target_of(data, s: int) -> list[int]:
    start = int(data.target_start[s])
    return data.target[start : start + int(data.target_length[s])].tolist()


def source_of(data, s: int) -> list[int]:
    start = int(data.source_start[s])
    return data.source[start : start + int(data.source_length[s])].tolist()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 20), st.integers(0, 99)
)
def test_an_epoch_shows_every_row_at_most_once(lengths, batch, seed):
    per_epoch = max(1, len(lengths) // min(batch, len(lengths)))
    steps = list(order(lengths, batch, per_epoch, seed))
    seen = [row for rows in steps for row in rows]
    assert len(steps) == per_epoch
    assert len(seen) == len(set(seen)) == per_epoch * min(batch, len(lengths))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 17), st.integers(0, 99), st.integers(1, 4))
def test_every_row_comes_exactly_once_an_epoch(count, batch, seed, epochs):
    """Also where the rows are no multiple of the batch: none is lost, doubled or left waiting."""
    batch = min(batch, count)
    steps = list(
        order([i * 31 % 7 for i in range(count)], batch, -(-count * epochs // batch), seed)
    )
    assert all(len(set(rows)) == batch for rows in steps)
    seen = [row for rows in steps for row in rows][: count * epochs]
    for row in range(count):
        shown = seen.count(row)
        # The batch across the border of two epochs is not in order, so one row may be early.
        assert abs(shown - epochs) <= (count % batch > 0)
    whole = [row for rows in order([1] * count, batch, count, seed) for row in rows]
    assert all(whole.count(row) == batch for row in range(count))  # `batch` epochs, in full


def test_order_depends_on_the_seed_and_on_nothing_else():
    lengths = list(range(40))
    again = [list(order(lengths, 8, 20, 5)) for _ in range(2)]
    assert again[0] == again[1]
    assert again[0] != list(order(lengths, 8, 20, 6))
    assert again[0][:7] == list(order(lengths, 8, 7, 5))  # more steps do not change the first


def test_a_batch_holds_rows_of_similar_length():
    lengths = [i * 7919 % 1000 for i in range(400)]
    spread = [
        max(found) - min(found)
        for rows in order(lengths, 20, 20, 1)
        if (found := [lengths[row] for row in rows])
    ]
    assert sum(spread) / len(spread) < 300  # without sorting about 900


def test_all_arms_see_the_same_rows_in_the_same_steps():
    rows = make_rows(30)
    steps = list(order(row_lengths(rows), 8, 10, 2))
    for objective in OBJECTIVES:
        data, _ = make_data(make_loaded("t5_tied"), rows, objective)
        assert len(data.of_row) == len(rows)
        assert list(order(row_lengths(rows), 8, 10, 2)) == steps


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_inference_render_alike(kind):
    loaded, rows = make_loaded(kind), make_rows(5, every=0)
    data, _ = make_data(loaded, rows)
    renderer = Renderer(loaded.tokenizer, loaded.is_encoder_decoder, 128, 64)
    for place, task in enumerate(("predict", "explain")):
        prompts = renderer.prompts(task, [row.input_text for row in rows])
        trained = [source_of(data, found[place]) for found in data.of_row]
        assert trained == [prompt.ids for prompt in prompts]


def test_a_label_that_is_too_long_is_refused_by_name():
    rows = [dataclasses.replace(make_rows(1)[0], id="row-7", output_text="red " * 40)]
    renderer = Renderer(make_tokenizer(True), True, 128, 16)
    with pytest.raises(UserError, match=r"LABEL_TOO_LONG.*row-7.*16"):
        encode(rows, OBJECTIVES["label_only"](rows, 0), renderer)


def test_a_long_rationale_is_cut_counted_and_not_taught_to_end_there():
    rows = [dataclasses.replace(make_rows(1)[0], rationale="red " * 40)]
    renderer = Renderer(make_tokenizer(True), True, 128, 16)
    data = encode(rows, OBJECTIVES["dss"](rows, 0), renderer)
    label, rationale = (target_of(data, s) for s in data.of_row[0])
    assert (data.cut_rationales, data.cut_inputs) == (1, 0)
    assert len(rationale) == 16
    assert EOS not in rationale
    assert label[-1] == EOS


@pytest.mark.parametrize("closes", [True, False])
def test_label_then_rationale_counts_its_tokens_in_the_right_mean(closes):
    tokenizer, rows = make_tokenizer(closes), make_rows(6)
    renderer = Renderer(tokenizer, closes, 128, 64)
    data = encode(rows, OBJECTIVES["label_then_rationale"](rows, 0), renderer)
    for row, (s,) in zip(rows, data.of_row, strict=True):
        ids, count = target_of(data, s), int(data.label_length[s])
        label, rest = tokenizer.decode(ids[:count]), tokenizer.decode(ids[count:])
        if row.rationale:
            assert label == row.output_text + " because:"
            assert rest == f" {row.rationale}</s>"
        else:
            assert label == row.output_text + "</s>"
            assert rest == ""


def test_gather_fills_on_the_right():
    import torch

    flat = torch.tensor([5, 6, 7, 8], dtype=torch.int32)
    ids, real = gather(flat, torch.tensor([0, 3]), torch.tensor([3, 1]), 9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert real.tolist() == [[True, True, True], [True, False, False]]
