"""Batch prediction: the server's answers, every row once, whatever is killed when."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from pipestill.errors import UserError, WorkError
from pipestill.generation.journal import Journal
from pipestill.models.student import Student, save_student
from pipestill.serving import batch
from pipestill.serving.batch import model_digest, predict_shard
from pipestill.serving.batch_collect import collect_predictions
from pipestill.serving.engine import Engine
from pipestill.training.distributed import World
from tests.training.tiny import make_loaded

OPTIONS = {"batch_size": 1, "max_output_tokens": 6}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model whose answers differ from row to row, so that an answer in a wrong place shows."""
    loaded = make_loaded("llama")
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in loaded.model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.3)
    folder = tmp_path_factory.mktemp("model") / "llama"
    limits = {"max_input_tokens": 128, "max_output_tokens": 64}
    save_student(loaded.model, loaded.tokenizer, folder, {"objective": "label_only", **limits})
    return str(folder)


def lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def asked(count, seed=0):
    dice = random.Random(seed)
    return [
        {"id": f"row-{n}", "input_text": " ".join(dice.choices("abcdefgh", k=dice.randint(1, 20)))}
        for n in range(count)
    ]


def run(source, folder, model, name="out", **options):
    out, rejects = folder / f"{name}.jsonl", folder / f"{name}.rejects.jsonl"
    summary = predict_shard(
        source, str(out), str(rejects), model_reference=model, **{**OPTIONS, **options}
    )
    return summary, out, rejects


def test_answers_are_the_server_s(model, tmp_path):
    rows = asked(9)
    summary, out, rejects = run(write(tmp_path / "in.jsonl", rows), tmp_path, model, explain=True)
    engine = Engine(lambda: Student.load(model), max_batch=1, max_wait_ms=0, max_queue=64)
    engine.start()
    while engine.problem:
        time.sleep(0.01)
    texts = [row["input_text"] for row in rows]
    served = [engine.submit([text], max_output_tokens=6, explain=True).result() for text in texts]
    engine.stop()
    found = lines(out)
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    for line, (answer,) in zip(found, served, strict=True):
        assert {name: line[name] for name in answer} == answer
    assert len({row["output_text"] for row in found}) == 9
    assert rejects.read_text() == ""
    assert summary["rows_answered"] == summary["rows_read"] == 9
    assert summary["output_tokens"] == sum(row["output_tokens"] for row in found)
    assert summary["tokens_per_second"] > 0
    assert not Path(f"{out}.state").exists()


def test_bad_rows_are_set_aside_with_their_reason(model, tmp_path):
    good = [json.dumps(row) for row in asked(3)]
    bad = ["{oops", '"text"', '{"input_text": " "}', '{"input_text": 7}', '{"id": "x"}',
           '{"id": [], "input_text": "a"}', json.dumps({"input_text": "a b " * 900}),
           '{"messages": [{"role": "user", "content": "hi"}]}',
           '{"messages": [{"role": "user", "content": "hi"}, {"role": "bot", "content": "a"}]}',
           '{"input_text": "a\\u0000"}']  # fmt: skip
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join([good[0], *bad, *good[1:]]), encoding="utf-8")
    summary, out, rejects = run(str(source), tmp_path, model, max_rejected_fraction=1)
    assert [row["id"] for row in lines(out)] == ["row-0", "row-1", "row-2"]
    found = lines(rejects)
    reasons = ["broken_json", "not_an_object", "empty_input", "wrong_type", "missing_field",
               "wrong_type", "too_long", "wrong_type", "bad_role", "nul_byte"]  # fmt: skip
    assert [row["reason"] for row in found] == reasons
    assert [row["line"] for row in found] == list(range(2, 12))
    assert "not tuned for chat" in found[7]["detail"]
    assert (summary["rows_rejected"], summary["rows"]) == (10, 13)
    with pytest.raises(UserError, match=r"BATCH_REJECTED.*10 of 13.*in.jsonl:2 .*not valid JSON"):
        run(str(source), tmp_path, model)


def test_conversations_and_rows_without_an_id(tmp_path):
    loaded = make_loaded("llama")
    info = {"objective": "tuned", "style": "chat", "max_input_tokens": 90, "max_output_tokens": 6}
    save_student(loaded.model, loaded.tokenizer, tmp_path / "chat", info)
    talk = [("user", "a b"), ("assistant", "c"), ("user", "d")]
    messages = [{"role": role, "content": text} for role, text in talk]
    long = [{"role": "user", "content": "a b c " * 60}]
    rows = [{"messages": messages}, {"input_text": "a b"}, {"messages": long, "id": 7}]
    source = write(tmp_path / "in.jsonl", rows)
    _, out, rejects = run(source, tmp_path, str(tmp_path / "chat"), max_rejected_fraction=0.5)
    found = lines(out)
    assert [(row["id"], row["source_row"]) for row in found] == [("0", 0), ("1", 1)]
    assert found[0]["messages"] == messages
    assert [(row["field"], row["reason"]) for row in lines(rejects)] == [("messages", "too_long")]


def test_a_model_s_digest_follows_its_contents(model, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    assert model_digest(str(copy)) == model_digest(model)
    (copy / "pipestill.json").write_text('{"objective": "dss"}')
    assert model_digest(str(copy)) != model_digest(model)
    assert model_digest("some/hub-name") != model_digest("some/hub-name@v2")


# what is killed


def one_run(source, folder, model, state):
    """A process of its own that answers all rows; returns its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        run(source, folder, model, "killed", state_dir=state, shard="1/2")
        code = 0
    finally:
        os._exit(code)


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_moments_and_still_the_same_bytes(model, tmp_path, seed):
    source = write(tmp_path / "in.jsonl", asked(120, seed))
    _, whole, _ = run(source, tmp_path, model, "whole", shard="1/2")
    dice, kills, resumed = random.Random(seed), 0, []
    while True:
        journal = tmp_path / "state" / "batch_predict" / "1-of-2" / "journal"
        before = size_of(journal)
        child = one_run(source, tmp_path, model, str(tmp_path / "state"))
        while size_of(journal) == before:  # a kill before its first group would only cost time
            if os.waitpid(child, os.WNOHANG)[0]:
                break
            time.sleep(0.002)
        else:
            time.sleep(dice.uniform(0, 0.03))
            if not os.waitpid(child, os.WNOHANG)[0]:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                kills += 1
                resumed.append(size_of(journal))
                continue
        break
    out = tmp_path / "killed.jsonl"
    print(f"{kills} kills, journal bytes after each: {resumed}")
    assert kills >= 2
    assert resumed == sorted(resumed)
    assert out.read_bytes() == whole.read_bytes()
    assert [row["source_row"] for row in lines(out)] == list(range(1, 120, 2))


def size_of(journal):
    return sum(path.stat().st_size for path in journal.glob("*.jsonl"))


def test_a_journal_that_is_torn_anywhere(model, tmp_path):
    source, state = write(tmp_path / "in.jsonl", asked(12)), tmp_path / "state"
    _, whole, _ = run(source, tmp_path, model, "whole", state_dir=str(state))
    (segment,) = state.rglob("segment-*.jsonl")
    text, dice = segment.read_bytes(), random.Random(0)
    for cut in [0, 1, len(text) - 1, *(dice.randrange(len(text)) for _ in range(4))]:
        for path in state.rglob("segment-*.jsonl"):
            path.unlink()
        segment.write_bytes(text[:cut])
        summary, again, _ = run(source, tmp_path, model, "again", state_dir=str(state))
        assert again.read_bytes() == whole.read_bytes()
        kept = (text[:cut] + b"\n").count(b"}\n")  # the last one may lack its line end
        assert summary["rows_resumed"] == kept // 4 * 4  # groups of 4


def test_a_finished_shard_answers_nothing_and_a_changed_setting_everything(
    model, tmp_path, monkeypatch
):
    source, state = write(tmp_path / "in.jsonl", asked(6)), str(tmp_path / "state")
    run(source, tmp_path, model, state_dir=state)
    calls = []
    answer = Student.answer
    monkeypatch.setattr(Student, "answer", lambda *a, **b: calls.append(1) or answer(*a, **b))
    summary, *_ = run(source, tmp_path, model, state_dir=state)
    assert (calls, summary["rows_resumed"]) == ([], 6)
    summary, *_ = run(source, tmp_path, model, state_dir=state, max_output_tokens=5)
    assert (len(calls), summary["rows_resumed"]) == (2, 0)


# shards


def sharded(source, folder, model, count):
    parts = []
    for index in range(count):
        shard = f"{index}/{count}"
        summary, out, bad = run(
            source, folder, model, f"s{index}", shard=shard, max_rejected_fraction=1
        )
        counts = folder / f"s{index}.json"
        counts.write_text(json.dumps(summary))
        parts.append((str(out), str(bad), str(counts)))
    return [list(column) for column in zip(*parts, strict=True)]


def test_shards_make_up_the_input(model, tmp_path):
    rows = asked(10)
    rows[4] = {"id": "bad"}
    source = write(tmp_path / "in.jsonl", rows)
    columns = sharded(source, tmp_path, model, 3)
    out, rejects, copy = (str(tmp_path / name) for name in ("all", "bad", "place/copy.jsonl"))
    summary = collect_predictions(*columns, out, rejects, output_uri=copy)
    _, whole, _ = run(source, tmp_path, model, "whole", max_rejected_fraction=1)
    assert Path(out).read_bytes() == whole.read_bytes() == Path(copy).read_bytes()
    assert [row["source_row"] for row in lines(f"{copy}.rejects.jsonl")] == [4]
    assert summary["reasons"] == {"missing_field": 1}
    assert summary["rows_answered"] + summary["rows_rejected"] == summary["rows_read"] == 10
    assert "rows read                10" in summary["table"]

    for wrong in ([0, 1], [0, 1, 1], [0, 1, 2, 2]):
        picked = [[column[i] for i in wrong] for column in columns]
        with pytest.raises(WorkError, match=r"BATCH_INCOMPLETE.*source row"):
            collect_predictions(*picked, out, rejects)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"batch_size": 0}, "BATCH_SETTING.*batch_size: found 0"),
        ({"max_rejected_fraction": 2}, "BATCH_SETTING.*max_rejected_fraction"),
        ({"shard": "3/3"}, "SHARD.*3/3"),
        ({"model": "/no/such/model"}, "MODEL_NOT_FOUND"),
        ({"source": "/no/such/rows.jsonl"}, "DATA_NOT_FOUND"),
    ],
)
def test_mistakes_are_one_line(model, tmp_path, options, line):
    source = write(tmp_path / "in.jsonl", asked(2))
    given = {"source": source, "folder": tmp_path, "model": model, **options}
    with pytest.raises(UserError, match=line) as error:
        run(**given)
    assert "\n" not in str(error.value)


def test_a_second_process_leaves_the_journal_alone_once_all_is_answered(
    model, tmp_path, monkeypatch
):
    source, steps, find = write(tmp_path / "in.jsonl", asked(9)), [], Journal.find

    def noted(journal, keys):
        steps.append("read")
        return find(journal, keys)

    monkeypatch.setattr(Journal, "find", noted)
    monkeypatch.setattr(batch, "current", lambda: World(rank=1, size=2))
    monkeypatch.setattr(batch, "any_of", lambda *_: steps.append("all meet"))
    run(source, tmp_path, model, "second")
    assert steps == ["all meet", "read", "all meet", "all meet"]  # then the first may remove it


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(model, tmp_path, monkeypatch):
    source = write(tmp_path / "in.jsonl", asked(22))
    _, whole, _ = run(source, tmp_path, model, "whole")
    monkeypatch.setenv("PIPESTILL_PROCESSES", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    summary, both, _ = run(source, tmp_path, model, "both")
    assert both.read_bytes() == whole.read_bytes()
    assert (summary["rows_answered"], summary["rows_resumed"]) == (22, 0)
