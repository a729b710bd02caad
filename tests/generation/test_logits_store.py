"""The store of teacher probabilities: what goes in comes out, and what was changed is found."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipestill.errors import UserError
from pipestill.generation import logits_shard as shards
from pipestill.generation import logits_store as stores
from pipestill.losses.response import forward_kl
from pipestill.losses.sparse import tail_kl, top_k

FACTS = {"tau": 1.0, "targets": "teacher", "vocabulary_digest": "d" * 64}


def made_row(name: str, length: int, k: int, vocabulary: int, seed: int = 0) -> shards.StoredRow:
    dice = torch.Generator().manual_seed(seed)
    logits = torch.randn(length, vocabulary, generator=dice) * 3
    tokens = torch.randint(vocabulary, (length,), generator=dice)
    ids, logprobs, label = top_k(logits, tokens, k, 1.0)
    return shards.StoredRow(tokens.int(), ids, logprobs, label, name)


def made_store(folder, rows=7, k=4, vocabulary=50, **changes) -> stores.Store:
    made = [made_row(f"r{i}", 1 + i % 3, k, vocabulary, i) for i in range(rows)]
    return stores.write_store(
        folder, made, **{**FACTS, "k": k, "vocabulary_size": vocabulary, **changes}
    )


def equal(found: shards.StoredRow, wanted: shards.StoredRow) -> bool:
    same = (found.id, found.tokens.tolist(), found.ids.tolist()) == (
        wanted.id, wanted.tokens.tolist(), wanted.ids.tolist(),
    )  # fmt: skip
    halves = (shards.half(wanted.logprobs).float(), shards.half(wanted.label_logprobs).float())
    return same and all(map(torch.equal, found[2:4], halves))


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=12),
    k=st.integers(1, 6),
    shard_bytes=st.integers(1, 400),
    vocabulary=st.sampled_from([6, 300, 70_000]),
)
def test_rows_come_out_as_they_went_in(tmp_path_factory, lengths, k, shard_bytes, vocabulary):
    folder = tmp_path_factory.mktemp("store")
    rows = [made_row(f"ü{i}", n, k, vocabulary, i) for i, n in enumerate(lengths)]
    facts = {**FACTS, "k": k, "vocabulary_size": vocabulary}
    stores.write_store(folder, iter(rows), **facts, shard_bytes=shard_bytes)
    store = stores.open_store(folder)
    back = list(reversed(rows))
    assert all(map(equal, store.rows([row.id for row in back]), back))
    assert (len(store), store.tokens, store.k) == (len(rows), sum(lengths), k)
    most = max(max(lengths), shard_bytes // shards.token_bytes(k, vocabulary))
    assert all(shard["tokens"] <= most for shard in store.shards)


def test_small_vocabularies_take_two_bytes_an_id(tmp_path):
    small = made_store(tmp_path / "small", k=4, vocabulary=50)
    large = made_store(tmp_path / "large", k=4, vocabulary=70_000)
    header = 600  # of the file: names, shapes and row ids
    assert small.bytes - small.tokens * (4 * 4 + 4) < header
    assert 0 < large.bytes - large.tokens * (4 * 6 + 6) < header
    assert small.bytes_per_token == small.bytes / small.tokens
    assert small.rows(["r1"])[0].ids.dtype == large.rows(["r1"])[0].ids.dtype == torch.int32


def test_what_is_far_below_the_range_stays_finite(tmp_path):
    row = shards.StoredRow(
        torch.tensor([1]), torch.tensor([[0, 1]]), torch.tensor([[0.0, -1e9]]),
        torch.tensor([-torch.inf]), "r",
    )  # fmt: skip
    facts = {**FACTS, "k": 2, "vocabulary_size": 2}
    (found,) = stores.write_store(tmp_path, [row], **facts).rows(["r"])
    assert found.logprobs.isfinite().all()
    assert found.label_logprobs.isfinite().all()
    student = torch.zeros(1, 2)
    assert tail_kl(student, found.ids, found.logprobs).isfinite().all()


def test_a_loss_from_the_store_is_that_of_the_logits_to_rounding(tmp_path):
    teacher, student = torch.randn(9, 40) * 2, torch.randn(9, 40)
    tokens = torch.randint(40, (9,))
    ids, logprobs, label = top_k(teacher, tokens, 40, 2.0)
    facts = {**FACTS, "k": 40, "vocabulary_size": 40, "tau": 2.0}
    row = shards.StoredRow(tokens.int(), ids, logprobs, label, "r")
    (found,) = stores.write_store(tmp_path, [row], **facts).rows(["r"])
    wanted = forward_kl(student, teacher, tau=2.0)
    assert torch.allclose(tail_kl(student, found.ids, found.logprobs, tau=2.0), wanted, atol=3e-3)


@pytest.mark.parametrize("place", [200, -1])
def test_a_changed_byte_is_found_and_the_shard_named(tmp_path, place):
    made_store(tmp_path, rows=9, shard_bytes=100)
    shard = tmp_path / shards.shard_name(1)
    data = bytearray(shard.read_bytes())
    data[place] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"STORE_CHANGED.*shard-00001"):
        stores.open_store(tmp_path).rows([f"r{i}" for i in range(9)])


def test_other_shards_are_still_read(tmp_path):
    made_store(tmp_path, rows=9, shard_bytes=100)
    shard = tmp_path / shards.shard_name(1)
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    assert stores.open_store(tmp_path).rows(["r0"])[0].id == "r0"


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_torn_or_missing_shard_is_found_at_once(tmp_path, harm):
    made_store(tmp_path, rows=9, shard_bytes=100)
    shard = tmp_path / shards.shard_name(2)
    if harm == "cut":
        shard.write_bytes(shard.read_bytes()[:-3])
    else:
        shard.unlink()
    with pytest.raises(UserError, match=r"STORE_CHANGED.*shard-00002"):
        stores.open_store(tmp_path)


def test_a_store_without_its_last_file_is_refused(tmp_path):
    made_store(tmp_path)
    (tmp_path / stores.STORE_FILE).unlink()
    with pytest.raises(UserError, match="STORE_MISSING"):
        stores.open_store(tmp_path)
    (tmp_path / stores.STORE_FILE).write_text('{"k": 4}')
    with pytest.raises(UserError, match="STORE_UNREADABLE"):
        stores.open_store(tmp_path)


def test_a_shard_name_cannot_leave_the_folder(tmp_path):
    made_store(tmp_path / "other")
    made_store(tmp_path / "store")
    path = tmp_path / "store" / stores.STORE_FILE
    about = json.loads(path.read_text())
    about["shards"][0]["file"] = "../other/shard-00000.safetensors"
    path.write_text(json.dumps(about))
    (tmp_path / "store" / "shard-00000.safetensors").unlink()
    with pytest.raises(UserError, match="STORE_CHANGED"):
        stores.open_store(tmp_path / "store")


def test_an_unknown_row_is_named(tmp_path):
    with pytest.raises(UserError, match=r"STORE_NO_ROW.*'nobody'"):
        made_store(tmp_path).rows(["r0", "nobody"])


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("STORE_TAU", {"tau": 2.0}),
        ("STORE_TARGETS", {"targets": "label"}),
        ("STORE_TOKENIZER", {"vocabulary_digest": "e" * 64}),
    ],
)
def test_a_store_for_something_else_is_refused(tmp_path, code, changes):
    store = made_store(tmp_path)
    stores.check_store(store, **FACTS)
    with pytest.raises(UserError, match=code):
        stores.check_store(store, **{**FACTS, **changes})


def test_an_empty_store_opens_and_says_so(tmp_path):
    store = stores.write_store(tmp_path, [], **FACTS, k=0, vocabulary_size=0)
    assert (len(store), store.bytes_per_token) == (0, 0.0)
    with pytest.raises(UserError, match="STORE_EMPTY"):
        stores.check_store(store, **FACTS)
    with pytest.raises(UserError, match="STORE_NO_ROW"):
        store.rows(["r0"])
