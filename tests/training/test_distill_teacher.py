"""The teacher's side: prompts and positions, stores, vocabularies."""

import pytest
import torch

from pipestill.errors import UserError
from pipestill.generation.logits_store import StoredRow, write_store
from pipestill.losses.cross_tokenizer import uld
from pipestill.losses.sparse import top_k
from pipestill.models.loading import load
from pipestill.models.teacher import write_reference
from pipestill.training.distill_response import Stored, teacher_states
from pipestill.training.forward import batch_labels, collate, reading_head
from pipestill.training.teacher_states import (
    load_teacher,
    paired,
    shared_ids,
    teacher_for,
    vocabulary_digest,
)
from tests.training.distilling import folder_of, gradients, made, run, settings
from tests.training.tiny import make_model, make_tokenizer

ROWS = [0, 3, 5, 7, 8, 9, 11, 12]
PAIRS = [("t5_tied", "t5_untied"), ("llama", "gpt2"), ("t5_tied", "llama"), ("gpt2", "t5_untied")]


class Kept:
    """A store in memory."""

    def __init__(self, rows, tau, k, digest):
        self._rows, self.tau, self.k, self.vocabulary_digest = rows, tau, k, digest

    def rows(self, ids):
        return [self._rows[name] for name in ids]


def folders(tmp_path, student, teacher):
    return folder_of(student, tmp_path / "s", 1), folder_of(teacher, tmp_path / "t", 2)


def store_of(tmp_path, student, teacher, k, tau):
    """Ids of the training rows, and every one of them as the teacher scores it."""
    plan, job, loaded = made(tmp_path, student, teacher, "response", tau=tau)
    size = shared_ids(loaded.tokenizer, loaded.tokenizer)
    (work,) = plan.works(job, range(len(job.ids)), 1)
    source = work.compute.keywords["teacher"]
    found = {}
    for s, name in enumerate(job.ids):
        batch = source.batch([s])
        with torch.no_grad():
            logits = reading_head(source.model)(teacher_states(source.model, source, [s]))
        labels = batch_labels(batch)
        found[name] = StoredRow(
            labels.int(), *top_k(logits[:, :size], labels, k or size, tau), name
        )
    digest = vocabulary_digest(loaded.tokenizer)
    return found, Kept(found, tau, k, digest), job, size


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("objective", ["response", "response/jsd", "response/skew_kl"])
def test_a_store_of_all_ids_is_the_online_teacher(tmp_path, pair, objective):
    names = folders(tmp_path, *pair)
    _, store, job, size = store_of(tmp_path, *names, 0, 2.0)
    online, job, _ = made(tmp_path, *names, objective, tau=2.0)
    terms, expected = gradients(online, job, ROWS, 10**6)
    source = Stored(store, job.ids, size)
    plan, job, _ = made(tmp_path, *names, objective, source, tau=2.0)
    told, found = gradients(plan, job, ROWS, 10**6)
    assert told["kd_loss"] == pytest.approx(terms["kd_loss"], abs=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


def test_a_small_store_gives_no_more_than_the_whole(tmp_path):
    names = folders(tmp_path, "t5_tied", "llama")
    values = []
    for k in (4, 32, 0):
        _, store, job, size = store_of(tmp_path, *names, k, 1.0)
        plan, job, _ = made(tmp_path, *names, "response", Stored(store, job.ids, size))
        values.append(gradients(plan, job, ROWS, 10**6)[0]["kd_loss"])
    assert 0 <= values[0] <= values[1] <= values[2]
    assert values[0] < values[2]


def test_a_run_from_a_store_on_disk(tmp_path):
    """Also in micro-batches, whose rows are sorted by length."""
    student, teacher = folders(tmp_path, "t5_tied", "llama")
    found, kept, _, size = store_of(tmp_path, student, teacher, 0, 1.0)
    write_store(
        tmp_path / "store", found.values(), k=size, tau=1.0, targets="teacher",
        vocabulary_digest=kept.vocabulary_digest, vocabulary_size=size,
    )  # fmt: skip
    online = run(tmp_path, student, teacher, "response")
    stored = run(
        tmp_path, student, teacher, "response", teacher_source="stored",
        store=str(tmp_path / "store"),
    )  # fmt: skip
    assert stored["learns_from"] == "store"
    assert stored["teacher_tokens"] == 0
    assert stored["teacher_fingerprint"] == online["teacher_fingerprint"]
    assert stored["kd_loss"] == pytest.approx(online["kd_loss"], rel=1e-2)  # fp16 on disk
    for more, code in (
        ({"tau": 2.0}, "STORE_TAU"),
        ({"targets": "label"}, "STORE_TARGETS"),
    ):
        with pytest.raises(UserError) as caught:
            run(
                tmp_path, student, teacher, "response", teacher_source="stored",
                store=str(tmp_path / "store"), **more,
            )  # fmt: skip
        assert caught.value.code == code


def test_a_store_of_other_targets_is_refused(tmp_path):
    names = folders(tmp_path, "t5_tied", "llama")
    found, store, job, size = store_of(tmp_path, *names, 4, 1.0)
    name = job.ids[ROWS[2]]
    changed = found[name]._replace(tokens=found[name].tokens + 1)
    bad = Kept({**found, name: changed}, 1.0, 4, store.vocabulary_digest)
    plan, job, _ = made(tmp_path, *names, "response", Stored(bad, job.ids, size))
    with pytest.raises(UserError) as caught:
        gradients(plan, job, ROWS)
    assert caught.value.code == "STORE_OTHER_TEXT"
    assert name in caught.value.message


@pytest.mark.parametrize("pair", PAIRS)
def test_positions_align_one_to_one(tmp_path, pair):
    names = folders(tmp_path, *pair)
    plan, job, _ = made(tmp_path, *names, "response")
    (work,) = plan.works(job, ROWS, 1)
    teacher = work.compute.keywords["teacher"]
    mine = collate(job.train, ROWS, job.shape)
    theirs = teacher.batch(ROWS)
    assert batch_labels(mine).tolist() == batch_labels(theirs).tolist()
    assert (job.train.target[job.train.target_start + job.train.target_length - 1] == 1).all()


def mismatched(folder, seed=3):
    """A Llama whose tokenizer counts the same bytes in another order."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {"<pad>": 0, "</s>": 1}
    vocabulary |= {sign: i + 2 for i, sign in enumerate(sorted(alphabet, reverse=True))}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    make_model("llama").save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(folder)
    return str(folder)


def test_another_vocabulary_is_never_silent(tmp_path, capsys):
    student, teacher = folder_of("t5_tied", tmp_path / "s"), mismatched(tmp_path / "t")
    with pytest.raises(UserError) as caught:
        run(tmp_path, student, teacher, "response")
    assert caught.value.code == "TOKENIZER_MISMATCH"
    assert student in caught.value.message
    assert teacher in caught.value.message
    assert "uld" in caught.value.hint
    assert "sequence" in caught.value.hint
    found = run(tmp_path, student, teacher, "response", cross_tokenizer="uld")
    assert found["learns_from"] == "uld"
    assert "different vocabularies" in capsys.readouterr().err
    found = run(tmp_path, student, teacher, "response", cross_tokenizer="sequence")
    assert found["learns_from"] == "text"
    assert "different vocabularies" in capsys.readouterr().err
    assert run(tmp_path, student, teacher, "relation/ranking", cross_tokenizer="uld")[
        "relation_loss"
    ]
    assert (
        run(tmp_path, student, teacher, "relation/pkt", cross_tokenizer="uld")["relation_loss"] > 0
    )
    for objective in ("feature", "on_policy"):
        with pytest.raises(UserError) as caught:
            run(tmp_path, student, teacher, objective, cross_tokenizer="uld")
        assert caught.value.code == "TOKENIZER_MISMATCH"
    with pytest.raises(UserError) as caught:
        run(tmp_path, student, teacher, "response", cross_tokenizer="sequence", targets="label")
    assert caught.value.code == "CONFIG_VALUE"


def test_uld_pairs_positions_by_index_up_to_the_shorter(tmp_path):
    student, teacher = folder_of("llama", tmp_path / "s"), mismatched(tmp_path / "t")
    plan, job, loaded = made(tmp_path, student, teacher, "response", cross_tokenizer="uld")
    terms, _ = gradients(plan, job, ROWS, 10**6)
    apart, _ = gradients(plan, job, ROWS, 1)
    assert terms["kd_loss"] == pytest.approx(apart["kd_loss"], rel=1e-5)
    (work,) = plan.works(job, ROWS, 1)
    other = work.compute.keywords["teacher"]
    total, count = 0.0, 0
    for s in ROWS:
        sides = []
        for model, data in ((loaded.model, job.train), (load(teacher).model, other.data)):
            start, length = int(data.source_start[s]), int(data.source_length[s])
            begin, size = int(data.target_start[s]), int(data.target_length[s])
            ids = torch.cat(
                [data.source[start : start + length], data.target[begin : begin + size]]
            )
            with torch.no_grad():
                logits = model(input_ids=ids.long()[None]).logits[0]
            sides.append(logits[length - 1 : length + size - 1])
        common = min(map(len, sides))
        total += float(uld(sides[0][:common], sides[1][:common]).sum())
        count += common
    assert max(map(len, sides)) > common
    assert terms["kd_loss"] == pytest.approx(total / count, rel=1e-5)
    mine, theirs = paired(job.train, other.data, ROWS)
    assert len(mine) == len(theirs) == count


def test_padding_rows_of_the_models_do_not_count(tmp_path):
    """300 rows against 320: the tokenizer's ids alone are compared, wherever the mass lies."""
    student = folder_of("llama", tmp_path / "s")
    plain, wide = folder_of("llama", tmp_path / "t", 2), str(tmp_path / "wide")
    expected = gradients(*made(tmp_path, student, plain, "response")[:2], ROWS)[0]["kd_loss"]
    model = load(plain).model
    model.resize_token_embeddings(320, mean_resizing=False)
    with torch.no_grad():
        model.lm_head.weight[294:] += 5
    model.save_pretrained(wide)
    make_tokenizer(False).save_pretrained(wide)
    found = gradients(*made(tmp_path, student, wide, "response")[:2], ROWS)[0]["kd_loss"]
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_prepared_teacher_is_found_by_its_folder(tmp_path):
    student, teacher = folders(tmp_path, "llama", "llama")
    write_reference(tmp_path / "prepared", teacher, "x")
    found = run(tmp_path, student, str(tmp_path / "prepared"), "response")
    assert found["teacher"] == teacher
    assert found["teacher_fingerprint"] == load(teacher).fingerprint


def test_teachers_that_end_otherwise_are_refused(tmp_path):
    student, teacher = folders(tmp_path, "llama", "llama")
    _, job, loaded = made(tmp_path, student, teacher, "response")
    origin = load_teacher(teacher, settings(), 32)
    origin.renderer.tokenizer.eos_token = "<pad>"
    with pytest.raises(UserError) as caught:
        teacher_for(origin, loaded, job.train, [], None)
    assert caught.value.code == "TEACHER_END"
