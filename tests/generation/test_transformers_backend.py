"""The backend `transformers` on tiny models from disk: shared prefix, limits, stops, samples."""

import random
from pathlib import Path

import pytest

from pipestill.config import TeacherConfig
from pipestill.errors import UserError
from pipestill.generation import transformers_backend
from pipestill.generation.ask import Answer, ask
from pipestill.generation.transformers_backend import common_length, end_ids, stop_check
from tests.generation.helpers import rows, save_tiny, tiny_tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: save_tiny(folder / kind, kind) for kind in ("llama", "gpt2", "t5")}


def _ask(
    model: str, count: int = 7, samples: int = 1, state_dir: str = "", **changes: object
) -> list[Answer]:
    values: dict = {"model_reference": model, "prompt": "generic.v1", "max_new_tokens": 8}
    config = TeacherConfig(**values | {"shots": 2, "samples": samples} | changes)
    return ask(rows(count), config=config, state_dir=state_dir, samples=samples, shots=config.shots)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("prompt", ["generic.v1", "esnli.v1"])
def test_the_shared_prefix_changes_no_answer(
    models: dict[str, str],
    kind: str,
    prompt: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shared = _ask(models[kind], prompt=prompt)
    assert "tokens computed once for all rows" in capsys.readouterr().out
    monkeypatch.setattr(transformers_backend, "LEAST_SHARED_TOKENS", 10**6)
    plain = _ask(models[kind], prompt=prompt, batch_size=1)
    assert "shared prefix: none" in capsys.readouterr().out
    assert [answer.raw for answer in shared] == [answer.raw for answer in plain]
    assert len({answer.raw for answer in shared}) > 1
    assert [a.prompt_tokens for a in shared] == [a.prompt_tokens for a in plain]
    assert all(a.cached_prompt_tokens > 100 for a in shared)
    assert all(a.cached_prompt_tokens == 0 for a in plain)
    assert all(a.prompt_tokens - a.cached_prompt_tokens < 90 for a in shared)


def test_answers_do_not_depend_on_batches_and_come_in_order(models: dict[str, str]) -> None:
    whole = _ask(models["llama"], samples=2, batch_size=32)
    small = _ask(models["llama"], samples=2, batch_size=3)
    assert [(a.id, a.sample, a.raw) for a in whole] == [(a.id, a.sample, a.raw) for a in small]
    assert [a.id for a in whole[::2]] == [row.id for row in rows(7)]
    assert any(a.raw != b.raw for a, b in zip(whole[::2], whole[1::2], strict=True))


def test_an_encoder_decoder_may_be_the_teacher(models: dict[str, str]) -> None:
    answers = _ask(models["t5"])
    assert all(a.raw is not None and a.cached_prompt_tokens == 0 for a in answers)
    assert [a.raw for a in answers] == [a.raw for a in _ask(models["t5"], batch_size=2)]


def test_a_full_journal_needs_no_model(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _ask(models["gpt2"], state_dir=str(tmp_path))
    monkeypatch.setattr(transformers_backend, "load", None)
    again = _ask(models["gpt2"], state_dir=str(tmp_path))
    assert all(answer.from_journal for answer in again)
    assert [answer.raw for answer in again] == [answer.raw for answer in first]


def test_a_prompt_that_is_too_long_fails_alone(models: dict[str, str]) -> None:
    long = rows(3)[1].__class__(id="long", input_text="word " * 2000, source_row=0)
    config = TeacherConfig(model_reference=models["llama"], prompt="generic.v1", max_new_tokens=8)
    answers = ask([rows(1)[0], long, rows(2)[1]], config=config, state_dir="", samples=1, shots=1)
    assert [answer.raw is None for answer in answers] == [False, True, False]
    assert answers[1].error is not None
    assert "prompt too long: " in answers[1].error
    assert "and up to 8 new ones, model has 1024" in answers[1].error


def test_no_shots_and_no_instruction(models: dict[str, str]) -> None:
    answers = _ask(models["llama"], prompt="cqa.v1", shots=0)
    assert all(a.raw is not None and a.cached_prompt_tokens == 0 for a in answers)


def test_a_budget_stops_between_batches(models: dict[str, str], tmp_path: Path) -> None:
    from pipestill.errors import WorkError

    full = _ask(models["llama"])
    each = max(a.prompt_tokens for a in full) + 8
    with pytest.raises(WorkError, match=r"BUDGET_REACHED.*4 of 7 calls not made"):
        _ask(models["llama"], state_dir=str(tmp_path), budget_tokens=3 * each + 10, batch_size=2)
    rest = _ask(models["llama"], state_dir=str(tmp_path))
    assert sum(a.from_journal for a in rest) == 3
    assert [a.raw for a in rest] == [a.raw for a in full]


def test_an_absent_model_is_named() -> None:
    with pytest.raises(UserError, match="MODEL_NOT_FOUND"):
        _ask("./no/such/folder")


def test_stop_check_agrees_with_looking_at_the_whole_text() -> None:
    tokenizer = tiny_tokenizer()
    stops = ["\n\nQ:", "é!"]
    stopped = stop_check(tokenizer, stops)
    draw = random.Random(5)
    pieces = [[token] for token in range(3, 60)]
    pieces += [
        tokenizer(text)["input_ids"][1:] for text in ["\n\nQ:", "é!", "\n\nQ", "é", "Q:"] * 5
    ]
    hits = 0
    for _ in range(60):
        ids: list[int] = []
        for token in (token for _ in range(12) for token in draw.choice(pieces)):
            ids.append(token)
            text = tokenizer.decode(ids, skip_special_tokens=True)
            wanted = any(stop in text for stop in stops)
            assert stopped(ids) is wanted
            if wanted:
                hits += 1
                break
    assert hits > 5
    assert stop_check(tokenizer, [])([5]) is False


def test_common_length_leaves_a_token_of_the_prompt() -> None:
    assert common_length([1, 2, 3], [1, 2, 3, 4]) == 3
    assert common_length([1, 2, 3], [1, 2, 9, 4]) == 2
    assert common_length([1, 2, 3], [1, 2, 3]) == 2
    assert common_length([], [1]) == common_length([1], []) == 0


def test_a_token_over_the_seam_is_not_torn() -> None:
    """The prefix ends in line ends, which are tokenised differently before a word than alone."""
    tokenizer = tiny_tokenizer()
    prefix, query = "So it is.\n\n", "Q: why\nA:"
    alone = tokenizer(prefix)["input_ids"]
    joint = tokenizer(prefix + query)["input_ids"]
    assert joint[: len(alone)] != alone
    assert common_length(alone, joint) == len(alone) - 1


def test_every_end_mark_ends_a_text(models: dict[str, str]) -> None:
    from pipestill.models.loading import load

    loaded = load(models["llama"])
    loaded.model.generation_config.eos_token_id = [7, 9]
    assert end_ids(loaded.model, loaded.tokenizer) == {2, 7, 9}
