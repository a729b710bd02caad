"""What a student reads and writes, as tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipestill.errors import UserError
from pipestill.models.render import Renderer, renderer_for
from tests.training.tiny import make_loaded, make_tokenizer

CLOSING, OPEN = make_tokenizer(True), make_tokenizer(False)
texts = st.text(st.characters(blacklist_categories=("Cs",)), max_size=60)


def test_an_encoder_decoder_reads_prefix_input_and_end_mark():
    (prompt,) = Renderer(CLOSING, True, 128, 64).prompts("predict", ["red dog"])
    assert CLOSING.decode(prompt.ids) == "predict: red dog</s>"
    assert not prompt.truncated


def test_a_decoder_reads_prefix_input_and_newline():
    (prompt,) = Renderer(OPEN, False, 128, 64).prompts("explain", ["red dog"])
    assert OPEN.decode(prompt.ids) == "explain: red dog\n"


def test_a_decoder_s_prompt_never_ends_in_an_end_mark():
    (prompt,) = Renderer(CLOSING, False, 128, 64).prompts("predict", ["red"])
    assert CLOSING.decode(prompt.ids) == "predict: red\n"


@given(texts, st.integers(12, 30), st.booleans())
def test_a_cut_keeps_prefix_and_closing_mark(text, limit, both):
    tokenizer = CLOSING if both else OPEN
    (prompt,) = Renderer(tokenizer, both, limit, 64).prompts("predict", [text])
    whole = tokenizer("predict: " + text + ("" if both else "\n")).input_ids
    assert prompt.truncated == (len(whole) > limit)
    assert len(prompt.ids) == min(len(whole), limit)
    shown = tokenizer.decode(prompt.ids)
    assert shown.startswith("predict:")
    assert shown.endswith("</s>" if both else "\n")


@given(texts, st.booleans())
def test_targets_end_once(text, both):
    (ids,) = Renderer(CLOSING if both else OPEN, both, 128, 64).targets([text])
    assert ids.count(1) == 1 + text.count("</s>")
    assert ids[-1] == 1


@pytest.mark.parametrize("both", [True, False])
def test_nothing_in_nothing_out(both):
    renderer = Renderer(CLOSING, both, 128, 64)
    assert renderer.prompts("predict", []) == renderer.targets([]) == []


def test_answer_and_rationale_part():
    renderer = Renderer(CLOSING, True, 128, 64)
    assert renderer.answer_part("red because: it is") == "red"
    assert renderer.answer_part("red") == "red"
    assert renderer.rationale_part("red because: it is because: so") == "it is because: so"
    assert renderer.rationale_part("red") == ""


def test_limits_respect_the_positions_a_decoder_has():
    renderer = renderer_for(make_loaded("gpt2"), 1024, 100)  # 256 positions
    assert (renderer.max_input_tokens, renderer.max_output_tokens) == (156, 100)
    assert renderer_for(make_loaded("t5_tied"), 1024, 100).max_input_tokens == 1024


def test_no_room_is_refused_with_the_figures():
    with pytest.raises(UserError, match=r"CONTEXT_TOO_SMALL.*256.*252"):
        renderer_for(make_loaded("gpt2"), 1024, 252)


def test_a_tokenizer_without_an_end_mark_is_refused():
    loaded = make_loaded("gpt2")
    loaded.tokenizer.eos_token = None
    with pytest.raises(UserError, match="TOKENIZER_INCOMPLETE"):
        renderer_for(loaded, 128, 64)
