"""Conversations as tokens: prompts, targets and the mark that ends a turn."""

import pytest

from pipestill.data.convert_chat import chat_messages
from pipestill.errors import UserError
from pipestill.models import chat
from pipestill.models.chat import Conversation
from pipestill.models.render import Renderer, renderer_for
from tests.models.chatml import CHATML, HISTORY, INST, chat_tokenizer
from tests.training.tiny import make_loaded, make_tokenizer


def renderer(tokenizer, limit: int = 256, instruction: str = "", both: bool = False) -> Renderer:
    return Renderer(tokenizer, both, limit, 64, "chat", instruction)


def conversation(messages=HISTORY) -> Conversation:
    return Conversation("plain", messages)


def shown(found: Renderer, text: str) -> str:
    return found.tokenizer.decode(found.prompts("predict", [text])[0].ids)


def test_chatml_prompt_and_target():
    found = renderer(chat_tokenizer())
    assert shown(found, conversation()) == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nred or blue?<|im_end|>\n"
        "<|im_start|>assistant\nred<|im_end|>\n<|im_start|>user\nand now?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    (target,) = found.targets(["blue"])
    assert found.tokenizer.decode(target) == "blue<|im_end|>"
    assert target[-1] == found.end == found.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert found.end != found.tokenizer.eos_token_id


def test_prompt_and_target_are_the_whole_conversation():
    """Token for token what the template writes for the whole conversation."""
    found = renderer(chat_tokenizer())
    (prompt,) = found.prompts("predict", [conversation()])
    (target,) = found.targets(["blue"])
    whole = chat.whole_text(found.tokenizer, HISTORY, "blue")
    ids = found.tokenizer(whole, add_special_tokens=False).input_ids
    newline = found.tokenizer("\n", add_special_tokens=False).input_ids
    assert prompt.ids + target + newline == ids


def test_a_template_without_a_mark_before_the_reply():
    found = renderer(chat_tokenizer(INST))
    text = shown(found, conversation(HISTORY))
    assert text.startswith("[INST] Be short.\n\nred or blue? [/INST] red </s>")
    (target,) = found.targets(["blue"])
    assert found.tokenizer.decode(target) == " blue </s>"
    assert found.end == found.tokenizer.eos_token_id


@pytest.mark.parametrize("template", [CHATML, INST, chat.PLAIN_TEMPLATE])
def test_a_plain_text_is_one_user_turn(template):
    found = renderer(chat_tokenizer(template))
    alone = Conversation("x", [{"role": "user", "content": "hello"}])
    assert found.prompts("predict", ["hello"]) == found.prompts("predict", [alone])


def test_the_plain_template_writes_what_the_converter_writes():
    tokenizer = make_tokenizer(False)
    chat.ensure_template(tokenizer)
    row = {"context": "Be short.", "messages": [
        {"author": "user", "content": "hi"}, {"author": "assistant", "content": "hello"},
        {"author": "user", "content": "bye"}, {"role": "model", "content": "ciao"}]}  # fmt: skip
    found = renderer(tokenizer)
    for made in chat_messages(row):
        text = Conversation(made["input_text"], made["messages"])
        assert shown(found, text) == made["input_text"]
        (target,) = found.targets([made["output_text"]])
        assert tokenizer.decode(target) == f" {made['output_text']}</s>"


def test_the_default_context_is_for_conversations_that_have_none():
    found = renderer(chat_tokenizer(), instruction="Default.")
    assert "Default." not in shown(found, conversation())
    assert shown(found, "hello").startswith("<|im_start|>system\nDefault.<|im_end|>\n")


def test_a_long_conversation_loses_its_oldest_turns():
    found = renderer(chat_tokenizer())
    whole = len(found.prompts("predict", [conversation()])[0].ids)
    shorter = renderer(found.tokenizer, whole - 1)
    (prompt,) = shorter.prompts("predict", [conversation()])
    assert prompt.truncated
    text = found.tokenizer.decode(prompt.ids)
    assert text.startswith("<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nand now?")
    assert text.endswith("<|im_start|>assistant\n")
    (cut,) = renderer(found.tokenizer, 20).prompts("predict", ["word " * 50])
    assert (len(cut.ids), cut.truncated) == (20, True)
    assert found.tokenizer.decode(cut.ids).endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_an_encoder_reads_the_conversation_and_the_end_mark():
    found = renderer(chat_tokenizer(closes=True), both=True)
    assert shown(found, conversation()).endswith("<|im_start|>assistant\n</s>")
    assert found.tokenizer.decode(found.targets(["blue"])[0]) == "blue</s>"


def test_a_template_that_does_not_continue_its_own_prompt_is_refused():
    broken = CHATML.replace(
        "<|im_start|>assistant\\n' }}{%- endif", "<|im_start|>bot\\n' }}{%- endif"
    )
    with pytest.raises(UserError, match="CHAT_TEMPLATE"):
        renderer(chat_tokenizer(broken)).targets(["x"])


def test_a_template_that_refuses_is_one_line():
    with pytest.raises(UserError, match=r"CHAT_TEMPLATE.*nope") as error:
        renderer(chat_tokenizer("{{ raise_exception('nope') }}")).prompts("predict", ["x"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_style_and_instruction_come_from_the_description(style):
    loaded = make_loaded("llama")
    found = renderer_for(loaded, 128, 64, {"style": style, "instruction": "Name it."})
    text = shown(found, "aaa")
    assert text.startswith("Name it.\n\n")
    assert text.endswith("aaa\n" if style == "plain" else "user: aaa\nassistant:")
    assert bool(loaded.tokenizer.chat_template) == (style == "chat")
    with pytest.raises(UserError, match="STYLE_UNKNOWN"):
        renderer_for(loaded, 128, 64, {"style": "shout"})
