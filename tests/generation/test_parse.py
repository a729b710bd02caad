"""Reading labels out of raw answers: golden strings, and no exception on any text."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipestill.generation.parse import PARSERS, cut, parse
from pipestill.generation.prompts import load_prompt, prompt_names

CHOICES = "Where?\nAnswer Choices:\n(a) bus depot\n(b) Beach\n(c) wooded area"
PROMPTS = {name: load_prompt(name) for name in prompt_names()}


@pytest.mark.parametrize(
    ("raw", "label"),
    [
        ("Because. So the answer is (c) wooded area.", "wooded area"),
        ("Because. So the answer is (c) wooded area.\n\nQ: And?\nA: No. So the answer is (a) x.",
         "wooded area"),
        ("Because. So the answer is (b).", "Beach"),
        ("Because. So the answer is beach.", "beach"),
        ("Because. So the answer is (a) Bus depot", "Bus depot"),
        ("Because. So the answer is (a) bus depot or (c) wooded area.", None),
        ("Because. So the answer is either (a) bus depot or (b) beach.", None),
        ("Because. So the answer is (a) train.", None),
        ("Because. So the answer is (a) bus de", None),
        ("Because. So the answer is (z).", None),
        ("Because. So the answer is ", None),
        ("Because.", None),
        ("", None),
        ("So the answer is (b). So the answer is (c).", None),
        ("Q: So the answer is (b).", None),
    ],
)  # fmt: skip
def test_choices(raw: str, label: str | None) -> None:
    parsed = parse(raw, PROMPTS["cqa.v1"], CHOICES)
    assert parsed.label == label
    assert bool(parsed.reason) is (label is None)
    if label:
        assert parsed.rationale == "Because."


@pytest.mark.parametrize(
    ("raw", "label"),
    [
        ("Not at once.\nAnswer: contradiction\n\nPremise: x\nHypothesis: y", "contradiction"),
        ("Not at once.\nAnswer: Neutral.", "neutral"),
        ("Not at once.\nAnswer:\nneutral", "neutral"),
        ("Not at once.\nAnswer: neu", None),
        ("Not at once.\nAnswer: neutral\nAnswer: entailment", None),
        ("Not at once. The Answer: neutral", None),
        ("Not at once.\n\nPremise: a\nAnswer: neutral", None),
    ],
)
def test_answer_lines(raw: str, label: str | None) -> None:
    assert parse(raw, PROMPTS["esnli.v1"]).label == label


@pytest.mark.parametrize(
    ("raw", "label"),
    [
        ("2 rounds. The answer is (84 / 2).\n\nQ: There", "(84 / 2)"),
        ("2 rounds. The answer is ((15 * 19) + (62 * 19)).\n\nQ", "((15 * 19) + (62 * 19))"),
        ("2 rounds. The answer is 17 + 15 + 2", "17 + 15 + 2"),
        ("2 rounds. The answer is (9 + 6", None),
        ("2 rounds. The answer is (some - 8).", None),
        ("2 rounds. The answer is (4 / 0).", None),
        ("2 rounds.", None),
    ],
)
def test_equations(raw: str, label: str | None) -> None:
    assert parse(raw, PROMPTS["svamp.v1"]).label == label


def test_an_answer_that_ran_into_the_length_limit_may_be_half_a_label() -> None:
    generic = PROMPTS["generic.v1"]
    raw = "It is. So the answer is the bucket of wat"
    assert parse(raw, generic, truncated=True).reason == "cut off"
    assert parse(raw, generic).label == "the bucket of wat"
    assert parse(raw + "er.", generic, truncated=True).label == "the bucket of water"
    assert parse(raw + "er.\n\nQ: wh", generic, truncated=True).label == "the bucket of water"


def test_reasons_tell_the_cases_apart() -> None:
    prompt = PROMPTS["esnli.v1"]
    assert parse("x", prompt).reason == "no answer marker"
    assert parse("\nAnswer: a\nAnswer: b", prompt).reason == "several answer markers"
    assert parse("x\nAnswer: maybe", prompt).reason == "answer outside the labels"
    assert parse("x\nAnswer: maybe", prompt).rationale == "x"


def test_cut_takes_the_earliest_stop_and_half_a_stop_at_the_end() -> None:
    assert cut("one Q: two\n\nQ: three", ("\n\nQ:", "Q:")) == "one "
    assert cut("one\n\nQ", ("\n\nQ:",)) == "one"
    assert cut("one\n", ("\n\nQ:",)) == "one"
    # A stop string of plain letters may begin inside of an answer, so its half is left alone.
    assert cut("plan Q", ("Q:",)) == "plan Q"


@given(
    raw=st.one_of(
        st.text(max_size=200),
        st.lists(
            st.sampled_from(
                ["So the answer is", "The answer is", "\nAnswer:", "\n\nQ:", "Q:", "(a)", "(b) x",
                 " ", ".", "\n", "yes", "1 + 2", "(1", "/ 0", "neutral", "\x00", "\ud800", "é"]
            ),
            max_size=12,
        ).map("".join),
    ),
    name=st.sampled_from(sorted(PROMPTS)),
    text=st.sampled_from(["", "plain", CHOICES, "Answer Choices:\n(a) \n(b) x"]),
    truncated=st.booleans(),
)  # fmt: skip
@example("Answer:(a)", "anli.v1", "Answer Choices:\n(a) \n(b) x", False)  # a choice without text
def test_no_text_raises(raw: str, name: str, text: str, truncated: bool) -> None:
    prompt = PROMPTS[name]
    parsed = parse(raw, prompt, text, truncated=truncated)
    assert (parsed.label is None) is bool(parsed.reason)
    assert parsed.label != ""
    if prompt.labels and parsed.label is not None and "Choices" not in text:
        assert parsed.label in prompt.labels


def test_every_parser_is_used_by_a_prompt() -> None:
    assert {prompt.parser for prompt in PROMPTS.values()} == set(PARSERS)
