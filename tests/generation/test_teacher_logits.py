"""What the teacher answers and thinks: right to rounding, and the same however it was made."""

import dataclasses
import hashlib
from pathlib import Path

import pytest
import torch

from pipestill.config import TeacherLogitsConfig
from pipestill.data.source import POCKET
from pipestill.errors import UserError, WorkError
from pipestill.generation import logits_shard as shards
from pipestill.generation import logits_store as stores
from pipestill.generation import teacher_logits as library
from pipestill.generation.teacher_answers import Answer, fitting
from pipestill.models.loading import load, load_tokenizer
from pipestill.models.render import renderer_for
from pipestill.models.student import Student
from pipestill.models.teacher import write_reference
from pipestill.pocket import __file__ as POCKET_FILE
from pipestill.records import Example, Labelled, read_jsonl, write_jsonl
from pipestill.training.teacher_states import vocabulary_digest
from tests.training.tiny import make_folder, make_rows

CONFIG = TeacherLogitsConfig(
    top_k=5, max_output_tokens=8, teacher_eval_batch_size=4, precision="fp32"
)
SMALL_SHARDS = 400  # bytes: some rows each


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two architectures, which share a vocabulary, and a folder that names each as the teacher."""
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for kind in ("t5_untied", "llama"):
        path = make_folder(kind, folder / kind)
        talkative(path)
        write_reference(folder / f"{kind}.teacher", path, load(path).fingerprint)
        made[kind] = (path, str(folder / f"{kind}.teacher"))
    return made


def talkative(path: str) -> None:
    """Random models like to write nothing but padding: their last layer loses that row."""
    model = load(path, precision="fp32").model
    with torch.no_grad():
        model.get_output_embeddings().weight[:2] = 0
    model.save_pretrained(path)


def examples(count=14):
    """Every third has no gold label."""
    return [
        Example(
            id=row.id,
            input_text=row.input_text,
            output_text=row.output_text if i % 3 else None,
            source_row=i,
        )
        for i, row in enumerate(make_rows(count))
    ]


def run(folder, rows, teacher, student, config=CONFIG, state="", **more):
    write_jsonl(folder / "train.jsonl", rows)
    summary = library.teacher_logits(
        folder / "train.jsonl",
        teacher,
        folder / "rows.jsonl",
        folder / "store",
        student_reference=student,
        state_dir=str(state),
        config=config,
        **more,
    )
    found = {row.id: row for row in read_jsonl(folder / "rows.jsonl", Labelled)}
    return summary, found, stores.open_store(folder / "store")


def files(store):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in store.folder.iterdir()}


def direct(model_path, row: Labelled, text: str, tau: float) -> tuple[list[int], torch.Tensor]:
    """Target ids and (n, V) log-probabilities of the tokenizer's ids, by a plain forward pass."""
    loaded = load(model_path, precision="fp32")
    renderer = renderer_for(loaded, 1024, 8, {"style": "plain"})
    (prompt,), (target,) = renderer.prompts("predict", [row.input_text]), renderer.targets([text])
    with torch.no_grad():
        if loaded.is_encoder_decoder:
            logits = loaded.model(
                input_ids=torch.tensor([prompt.ids]), labels=torch.tensor([target])
            ).logits[0]
        else:
            ids = torch.tensor([prompt.ids + target])
            logits = loaded.model(input_ids=ids).logits[0, len(prompt.ids) - 1 : -1]
    known = len(loaded.tokenizer)  # the model pads its vocabulary beyond that
    assert known < logits.shape[-1]
    return target, torch.log_softmax(logits[:, :known] / tau, -1)


@pytest.mark.parametrize("kind", ["t5_untied", "llama"])
@pytest.mark.parametrize(("targets", "tau"), [("label", 2.0), ("teacher", 1.0)])
def test_the_store_holds_what_the_teacher_gives(tmp_path, models, kind, targets, tau):
    path, teacher = models[kind]
    config = dataclasses.replace(CONFIG, targets=targets, tau=tau)
    summary, rows, store = run(
        tmp_path, examples(), teacher, path, config, shard_bytes=SMALL_SHARDS
    )
    assert len(store.shards) > 1
    assert (summary["top_k"], store.k, store.tau, store.targets) == (5, 5, tau, targets)
    mass = []
    for found in store.rows(list(rows)):
        row = rows[found.id]
        text = row.output_text if targets == "label" else row.teacher_label
        tokens, wanted = direct(path, row, text, tau)
        assert found.tokens.tolist() == tokens
        largest = wanted.topk(5).values
        assert torch.allclose(found.logprobs.float(), largest, rtol=1e-3, atol=1e-4)
        at_ids = wanted.gather(1, found.ids.long())
        assert torch.allclose(at_ids, largest, rtol=0, atol=1e-4)
        label = wanted.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert torch.allclose(found.label_logprobs.float(), label, rtol=1e-3, atol=1e-4)
        mass += largest.exp().sum(1).tolist()
        own = float(label.exp().mean()) if targets == "teacher" else 0.0
        assert row.agreement == pytest.approx(own, abs=1e-3)
    assert summary["mean_mass"] == pytest.approx(sum(mass) / len(mass), abs=1e-3)
    assert summary["tokens"] == len(mass) == store.tokens
    assert summary["bytes_per_token"] == pytest.approx(store.bytes_per_token, abs=0.01)


def test_answers_are_the_teachers_own_and_gold_labels_stay(tmp_path, models):
    path, teacher = models["llama"]
    given = examples()
    summary, rows, _ = run(tmp_path, given, teacher, path)
    student = Student.load(path, {"style": "plain", "max_output_tokens": 8})
    answers = student.answer([r.input_text for r in given], batch_size=1, max_new_tokens=8)
    limit = [student.renderer]
    for example, answer in zip(given, answers, strict=True):
        row = rows[example.id]
        wanted = fitting(Answer(answer.text, answer.output_tokens), limit, 8).text
        assert row.teacher_label == wanted
        assert row.output_text == (example.output_text or wanted)
        assert row.label_source == ("gold" if example.output_text else "teacher")
        assert row.source_row == example.source_row
    assert (summary["rows"], summary["gold_rows"]) == (14, 9)
    assert summary["answered"] + summary["empty_answers"] == 14


def test_a_restart_after_a_cut_ends_the_same(tmp_path, models, monkeypatch):
    """The step is stopped after two shards; the second run makes only those that are missing."""
    path, teacher = models["t5_untied"]
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    _, rows, whole = run(tmp_path / "whole", examples(), teacher, path, shard_bytes=SMALL_SHARDS)
    write, written = shards.write_shard, []

    def failing(*arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(arguments[0].name)
        return write(*arguments)

    arguments = (examples(), teacher, path, CONFIG, tmp_path / "state")
    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", failing)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", *arguments, shard_bytes=SMALL_SHARDS)
    assert not (tmp_path / "cut" / "store" / stores.STORE_FILE).exists()
    # Of the two that are kept, one is torn: it has to be made again.
    (kept,) = (tmp_path / "state" / "teacher_logits").iterdir()
    torn = kept / shards.shard_name(1)
    torn.write_bytes(torn.read_bytes()[:-5])
    made = []
    monkeypatch.setattr(shards, "write_shard", lambda *a: made.append(a[0].name) or write(*a))
    asked = []
    monkeypatch.setattr(Student, "answer", lambda *a, **b: asked.append(a))
    _, again, store = run(tmp_path / "cut", *arguments, shard_bytes=SMALL_SHARDS)
    assert files(store) == files(whole)
    assert again == rows
    assert not asked  # all answers had been kept
    assert made == [shard["file"] for shard in store.shards[1:]]
    assert not list((tmp_path / "state" / "teacher_logits").iterdir())


def test_the_order_of_rows_changes_nothing(tmp_path, models):
    path, teacher = models["t5_untied"]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    _, rows, store = run(tmp_path / "a", examples(), teacher, path, shard_bytes=SMALL_SHARDS)
    turned = examples()[::-1]
    _, others, other = run(tmp_path / "b", turned, teacher, path, shard_bytes=SMALL_SHARDS)
    assert list(others) == list(rows)[::-1]  # the file keeps its own order
    assert others == rows
    assert files(other) == files(store)


def test_a_teacher_of_another_architecture_writes_the_students_tokens(tmp_path, models):
    """Same vocabulary, T5 teacher, Llama student: targets as the Llama is trained on."""
    _, teacher = models["t5_untied"]
    path, _ = models["llama"]
    _, rows, store = run(tmp_path, examples(6), teacher, path)
    renderer = renderer_for(load(path), 1024, 8, {"style": "plain"})
    for found in store.rows(list(rows)):
        assert found.tokens.tolist() == renderer.targets([rows[found.id].teacher_label])[0]
    assert store.vocabulary_digest == vocabulary_digest(load_tokenizer(path))


def test_another_vocabulary_is_said_and_nothing_is_stored(tmp_path, models, capsys):
    _, teacher = models["llama"]
    summary, rows, store = run(tmp_path, examples(4), teacher, "pocket-base")
    assert "different vocabularies" in capsys.readouterr().out
    assert (store.k, store.tokens, summary["top_k"], summary["mean_mass"]) == (0, 0, 0, -1.0)
    assert all(row.teacher_label is not None for row in rows.values())


def test_a_store_of_another_tokenizer_is_refused(tmp_path, models):
    path, teacher = models["llama"]
    _, _, store = run(tmp_path, examples(4), teacher, path)
    facts = {"tau": 1.0, "targets": "teacher"}
    mine = vocabulary_digest(load_tokenizer(path))
    stores.check_store(store, **facts, vocabulary_digest=mine)
    other = vocabulary_digest(load_tokenizer("pocket-base"))
    with pytest.raises(UserError, match="STORE_TOKENIZER"):
        stores.check_store(store, **facts, vocabulary_digest=other)


@pytest.mark.parametrize(("top_k", "kept"), [(0, 0), (100_000, 294)])
def test_k_is_at_most_the_vocabulary_and_may_be_nothing(tmp_path, models, top_k, kept):
    path, teacher = models["llama"]
    config = dataclasses.replace(CONFIG, top_k=top_k)
    summary, _, store = run(tmp_path, examples(4), teacher, path, config)
    assert store.k == kept == summary["top_k"]
    assert summary["mean_mass"] == pytest.approx(1.0 if kept else -1.0, abs=1e-3)


def test_a_teacher_that_was_changed_is_refused(tmp_path, models):
    path, _ = models["llama"]
    write_reference(tmp_path / "teacher", path, "0" * 64)
    with pytest.raises(UserError, match="TEACHER_CHANGED"):
        run(tmp_path, examples(4), str(tmp_path / "teacher"), path)


@pytest.mark.parametrize(
    "changes", [{"targets": "both"}, {"top_k": -1}, {"tau": 0.0}, {"teacher_eval_batch_size": 0}]
)
def test_settings_out_of_range_are_named(tmp_path, models, changes):
    path, teacher = models["llama"]
    with pytest.raises(UserError, match=f"CONFIG_VALUE.*{next(iter(changes))}"):
        run(tmp_path, examples(4), teacher, path, dataclasses.replace(CONFIG, **changes))


def test_a_silent_teacher_and_no_rows_are_errors(tmp_path, models, monkeypatch):
    path, teacher = models["llama"]
    with pytest.raises(UserError, match="TRAIN_EMPTY"):
        run(tmp_path, [], teacher, path)
    silent = {row.id: Answer("", 1) for row in examples(3)}
    monkeypatch.setattr(library, "all_answers", lambda *_, **__: silent)
    with pytest.raises(WorkError, match="TEACHER_SILENT"):
        run(tmp_path, examples(3), teacher, path)


@pytest.mark.parametrize("kind", ["t5_untied", "llama"])
@pytest.mark.parametrize("text", ["red green blue", "ü" * 30, "a b c d e f g h", ""])
def test_an_answer_that_is_too_long_is_cut_to_fit(models, kind, text):
    renderer = renderer_for(load(models[kind][0]), 64, 8, {"style": "plain"})
    found = fitting(Answer(text, 8), [renderer], 8)
    assert len(renderer.targets([found.text])[0]) <= 8
    assert found.cut == (len(renderer.targets([text])[0]) > 8)
    assert found.cut or found.text == text


def test_bf16_gives_the_same_to_its_rounding(tmp_path, models):
    path, teacher = models["t5_untied"]
    for name in ("fp32", "bf16"):
        (tmp_path / name).mkdir()
    config = dataclasses.replace(CONFIG, targets="label", precision="bf16")
    labelled = [row for row in examples() if row.output_text]
    _, rows, store = run(tmp_path / "bf16", labelled, teacher, path, config)
    config = dataclasses.replace(config, precision="fp32")
    _, _, exact = run(tmp_path / "fp32", labelled, teacher, path, config)
    for found, wanted in zip(store.rows(list(rows)), exact.rows(list(rows)), strict=True):
        assert torch.allclose(found.label_logprobs, wanted.label_logprobs, atol=0.3)
        assert not torch.equal(found.label_logprobs, wanted.label_logprobs)


def test_an_address_keeps_no_state_and_says_so(tmp_path, models, monkeypatch, capsys):
    path, teacher = models["llama"]
    monkeypatch.chdir(tmp_path)
    run(tmp_path, examples(3), teacher, path, state="gs://bucket/state")
    assert "begins anew" in capsys.readouterr().out
    assert not (tmp_path / "gs:").exists()


def test_the_pocket_base_teaches_on_pocket_rows(tmp_path):
    source = Path(POCKET_FILE).parent / "data" / POCKET["pocket:train"]
    rows = list(read_jsonl(source, Example))[:12]
    write_reference(tmp_path / "teacher", "pocket-base", load("pocket-base").fingerprint)
    config = dataclasses.replace(CONFIG, top_k=16, max_output_tokens=16)
    summary, found, store = run(tmp_path, rows, str(tmp_path / "teacher"), "pocket-base", config)
    assert len(found) == len(store) == 12
    assert 0 < summary["mean_mass"] <= 1
    assert summary["accuracy"] >= 0
