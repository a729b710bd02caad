"""Rows that join and leave at any step get the tokens that they get alone."""

import contextlib
import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipestill.models.student import Student
from pipestill.serving.decode import ends_of
from pipestill.serving.engine import PROBE, Engine, NotReadyError
from pipestill.serving.flow import flow_of
from tests.serving.test_engine import END, Echo, texts_of, until

LIMIT = 10
TEXTS = [
    "the refund is due",
    "a late order was sent back and paid in full",
    "order",
    "paid in full",
]


def written(student, prompts, seed):
    """Tokens of all prompts, which join at random steps."""
    dice, ends = random.Random(seed), ends_of(student)
    flow, new = flow_of(student), {i: [] for i in range(len(prompts))}
    todo, rows = list(new), []
    dice.shuffle(todo)
    while todo or rows:
        tokens = flow.step() if rows else []
        joining = [todo.pop() for _ in range(min(len(todo), dice.randrange(3)))]
        if joining:
            tokens += flow.add([prompts[i] for i in joining])
        rows += joining
        for row, token in zip(rows, tokens, strict=True):
            new[row].append(token)
        going = [p for p, r in enumerate(rows) if new[r][-1] not in ends and len(new[r]) < LIMIT]
        if rows and len(going) < len(rows):
            flow.keep(going)
            rows = [rows[place] for place in going]
    return new


@pytest.mark.parametrize("seed", range(4))
def test_tokens_do_not_depend_on_who_joins_when(student_folder, seed):
    student = Student.load(str(student_folder))
    check(student, TEXTS * 2, seed)


@pytest.mark.parametrize("name", ["pocket-base", "pocket-teacher"])
def test_pocket_models_flow(name):
    student = Student.load(name)
    texts = [f"Ada brings back a mattress. The receipt is {n} days old." for n in (3, 63)]
    check(student, [*texts, "It looks shiny.", "explain"], 5)


def check(student, texts, seed):
    prompts = [prompt.ids for prompt in student.renderer.prompts("predict", texts)]
    found = written(student, prompts, seed)
    for place, text in enumerate(texts):
        (expected,) = student.answer([text], batch_size=1, max_new_tokens=LIMIT)
        said = student.renderer.tokenizer.decode(found[place], skip_special_tokens=True)
        assert said.strip() == expected.text
        assert len(found[place]) == expected.output_tokens


def test_models_with_windows_or_absolute_positions_do_not_flow():
    from types import SimpleNamespace

    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        MistralConfig,
        MistralForCausalLM,
    )

    size = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "sliding_window": 4}
    bart = {"vocab_size": 20, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    models = [
        MistralForCausalLM(MistralConfig(**size, **heads)),
        BartForConditionalGeneration(BartConfig(**bart, encoder_ffn_dim=8, decoder_ffn_dim=8)),
    ]
    for model in models:
        both = model.config.is_encoder_decoder
        loaded = SimpleNamespace(model=model.eval(), is_encoder_decoder=both)
        tokenizer = SimpleNamespace(pad_token_id=0)
        student = SimpleNamespace(loaded=loaded, renderer=SimpleNamespace(tokenizer=tokenizer))
        assert flow_of(student) is None


class Letters(Echo):
    """Writes the text itself, as a flow; `joined` holds the texts of each joining."""

    def __init__(self):
        super().__init__()
        self.rows, self.joined = [], []

    def flow(self):
        return self

    def clear(self):
        self.rows = []

    def add(self, prompts):
        texts = [self.decode(ids) for ids in prompts]
        if "poison" in texts:
            raise RuntimeError("out of memory")
        if texts != [PROBE]:
            self.joined.append(texts)
        self.rows += [iter([*ids, END]) for ids in prompts]
        return [next(row) for row in self.rows[-len(prompts) :]]

    def step(self):
        self.step_gate.wait(10)
        self.steps += 1
        return [next(row) for row in self.rows]

    def keep(self, places):
        self.rows = [self.rows[place] for place in places]


@contextlib.contextmanager
def letters_engine(**changes):
    letters = Letters()
    options = {"max_batch": 4, "max_wait_ms": 20, "max_queue": 8, "retry_s": 0.02, **changes}
    generate = Letters.generate
    engine = Engine(lambda: letters, flow=Letters.flow, generate=generate, **options)
    engine.start()
    until(lambda: engine.problem is None)
    yield engine, letters
    letters.step_gate.set()
    engine.stop()
    assert engine.waiting == 0


def ask(engine, *texts, **wanted):
    return engine.submit(texts, **{"max_output_tokens": 30, **wanted})


def test_a_short_request_overtakes_a_long_one():
    with letters_engine() as (engine, letters):
        letters.step_gate.clear()
        long = ask(engine, "a" * 19)
        until(lambda: letters.joined == [["a" * 19]])
        short = ask(engine, "b")
        pieces = []
        streamed = ask(engine, "xyz", on_text=pieces.append)
        letters.step_gate.set()
        assert texts_of(short) == ["b"]
        assert texts_of(streamed) == ["xyz"] == ["".join(pieces)]
        assert texts_of(long) == ["a" * 19]
        assert letters.joined[0] == ["a" * 19]  # and was not read again


def test_a_large_request_joins_as_there_is_room():
    with letters_engine() as (engine, letters):
        many = [f"m{'x' * n}" for n in range(11)]
        small = [ask(engine, "s") for _ in range(3)]
        large = ask(engine, *many, explain=True)
        found = large.result(10)
        assert [answer["output_text"] for answer in found] == many
        assert [answer["rationale"] for answer in found] == [f"because {text}" for text in many]
        assert [texts_of(one) for one in small] == [["s"]] * 3
        assert max(map(len, letters.joined)) <= 4


def test_rows_join_only_within_the_limit_of_tokens():
    with letters_engine(max_batch_tokens=30) as (engine, letters):
        futures = [ask(engine, "abcdef", max_output_tokens=9) for _ in range(5)]
        assert [texts_of(future) for future in futures] == [["abcdef"]] * 5
        assert max(map(len, letters.joined)) <= 2  # 2 x (6 + 9) tokens


def test_a_failure_costs_those_under_way_and_nobody_else():
    with letters_engine() as (engine, letters):
        letters.step_gate.clear()
        running = ask(engine, "abcdef")
        until(lambda: letters.joined == [["abcdef"]])
        poison = ask(engine, "poison")
        letters.step_gate.set()
        for future in (running, poison):
            with pytest.raises(NotReadyError, match="RuntimeError"):
                future.result(10)
        assert texts_of(ask(engine, "next")) == ["next"]
        assert engine.problem is None


def test_a_model_that_breaks_turns_the_health_red_until_it_answers():
    with letters_engine() as (engine, letters):
        works, letters.add = letters.add, lambda prompts: 1 / 0
        with pytest.raises(NotReadyError, match="ZeroDivisionError"):
            ask(engine, "a").result(10)
        until(lambda: engine.problem == "the model no longer answers (ZeroDivisionError)")
        letters.add = works
        until(lambda: engine.problem is None)
        assert texts_of(ask(engine, "next")) == ["next"]


def test_a_cancelled_row_leaves_at_the_next_step():
    with letters_engine(max_batch=1) as (engine, letters):
        letters.step_gate.clear()
        long = ask(engine, "a" * 19)
        until(lambda: letters.joined == [["a" * 19]])
        waits = ask(engine, "b")
        assert long.cancel()
        steps = letters.steps
        letters.step_gate.set()
        assert texts_of(waits) == ["b"]
        assert letters.steps <= steps + 3


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.text(string.ascii_letters, max_size=8), min_size=1, max_size=6),
            st.integers(1, 3),
            st.booleans(),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_every_request_gets_its_own_answers(requests):
    with letters_engine(max_queue=64, max_wait_ms=1) as (engine, _):
        futures = [ask(engine, *t, max_output_tokens=n, explain=e) for t, n, e in requests]
        for future, (texts, limit, explain) in zip(futures, requests, strict=True):
            found = future.result(10)
            assert [answer["output_text"] for answer in found] == [t[:limit] for t in texts]
            assert ["rationale" in answer for answer in found] == [explain] * len(texts)
