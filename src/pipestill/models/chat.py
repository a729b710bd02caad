"""Conversations as a chat model reads them: through its tokenizer's own template.

A tokenizer without a template gets `PLAIN_TEMPLATE`, which writes ``user:`` and ``assistant:``
lines. What a model has to write is everything that its template puts after the prompt, so the mark
that closes a turn (``<|im_end|>``, ``</s>``) is trained, and the prompt of training is the prompt
of serving by construction; `pipestill.training.audit` checks both on real rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipestill.errors import UserError

Message = Mapping[str, str]

PLAIN_TEMPLATE = (
    "{%- if bos_token is defined and bos_token %}{{ bos_token }}{% endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ message['content'] }}{{ '\\n\\n' }}"
    "{%- else -%}{{ message['role'] }}{{ ': ' }}{{ message['content'] }}{{ '\\n' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}assistant:{%- endif -%}"
)
PROBE = ({"role": "user", "content": "Hello"},)
REPLY = "Xyzzy."  # a reply that no template writes by itself


class Conversation(str):
    """A conversation in plain text that also carries its messages.

    Everything that wants a text (reports, journals, digests) sees one; a renderer of chats reads
    `messages`: mappings with ``role`` (system, user, assistant) and ``content``, a user's last.
    """

    messages: tuple[Message, ...]

    def __new__(cls, text: str, messages: Sequence[Message]) -> "Conversation":
        """Joins the two forms of one conversation."""
        made = super().__new__(cls, text)
        made.messages = tuple(messages)
        return made


@dataclass(frozen=True)
class Frame:
    """What a template writes around a reply, and the token that ends the turn.

    `before` stands between the prompt and the reply (often nothing), `after` closes the turn
    without trailing white space; `end` is the id that generation stops at.
    """

    before: str
    after: str
    end: int


def messages_of(text: str, default_context: str = "") -> list[Message]:
    """The messages of a `Conversation`; a plain text is one user turn.

    `default_context` is the system message of conversations that have none.
    """
    messages = list(text.messages) if isinstance(text, Conversation) else [_user(text)]
    if default_context and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": default_context}, *messages]
    return messages


def prompt_text(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The text up to where the model's own reply begins.

    Raises:
        UserError: ``CHAT_TEMPLATE`` where the template cannot render the conversation.
    """
    return _render(tokenizer, messages, True)


def whole_text(tokenizer: Any, messages: Sequence[Message], reply: str) -> str:
    """The conversation with the reply, as the template writes it."""
    return _render(tokenizer, [*messages, {"role": "assistant", "content": reply}], False)


def frame_of(tokenizer: Any) -> Frame:
    """What the tokenizer's template writes around a reply.

    Raises:
        UserError: ``CHAT_TEMPLATE`` where a reply changes the prompt before it, so that training
            and serving could not see the same tokens.
    """
    prompt, whole = prompt_text(tokenizer, PROBE), whole_text(tokenizer, PROBE, REPLY)
    if not whole.startswith(prompt) or whole.count(REPLY) != 1:
        raise UserError(
            "CHAT_TEMPLATE",
            "the tokenizer's chat template does not continue its own prompt: with a reply the text "
            f"begins {whole[: len(prompt)]!r}, without one it is {prompt!r}",
            "use the model's own template, or one that writes the assistant's mark before a reply",
        )
    before, _, after = whole[len(prompt) :].partition(REPLY)
    after = after.rstrip()
    end = _closing_id(tokenizer, after)
    return Frame(before, after, tokenizer.eos_token_id if end is None else end)


def ensure_template(tokenizer: Any) -> None:
    """Gives a tokenizer that has no chat template the plain one; it is saved with the model."""
    if not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_TEMPLATE


def without_oldest(messages: Sequence[Message]) -> list[Message] | None:
    """The conversation without its oldest exchange; None where only the last turn is left.

    The system message stays, and a user's turn stays first.
    """
    head = [message for message in messages[:1] if message["role"] == "system"]
    turns = list(messages[len(head) :])
    if len(turns) < 3:
        return None
    return [*head, *turns[2:]]


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _render(tokenizer: Any, messages: Sequence[Message], open_end: bool) -> str:
    try:
        return _apply(tokenizer, messages, open_end)
    except Exception as error:  # templates raise errors of their own, in any class
        folded = _folded(messages)
        if folded is None:
            raise _refused(error) from error
    try:  # some templates know no system role: its text then opens the first user turn
        return _apply(tokenizer, folded, open_end)
    except Exception as error:
        raise _refused(error) from error


def _apply(tokenizer: Any, messages: Sequence[Message], open_end: bool) -> str:
    text: str = tokenizer.apply_chat_template(
        [dict(message) for message in messages], tokenize=False, add_generation_prompt=open_end
    )
    return text


def _folded(messages: Sequence[Message]) -> list[Message] | None:
    if len(messages) < 2 or messages[0]["role"] != "system":
        return None
    first = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return [{**messages[1], "content": first}, *messages[2:]]


def _refused(error: Exception) -> UserError:
    first = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return UserError(
        "CHAT_TEMPLATE",
        f"the tokenizer's chat template refuses a conversation ({first})",
        "correct chat_template in the model's tokenizer files, or set task to text",
    )


def _closing_id(tokenizer: Any, after: str) -> int | None:
    """The special token that `after` ends with, None where it ends with none."""
    ids = tokenizer(after, add_special_tokens=False).input_ids if after else []
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return ids[-1] if ids and ids[-1] in special | set(tokenizer.all_special_ids) else None
