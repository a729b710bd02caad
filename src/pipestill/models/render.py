"""What a model reads and writes, as token ids: one definition for training and inference.

Three styles. ``prefix`` is a distilled student's: ``predict: `` or ``explain: `` before the input
(Hsieh et al. 2023, arXiv 2305.02301, section 3.2). ``plain`` is a tuned model's: the instruction,
where there is one, then the input. ``chat`` renders a conversation by the tokenizer's template.

Encoder-decoder: the encoder reads the input as its tokenizer closes it; the decoder writes the
target and the end mark. Decoder-only: the model reads the input and a newline (in a chat: what the
template writes up to the reply) and goes on with the target and the end mark.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipestill.errors import UserError
from pipestill.models import chat

PREFIXES = {"predict": "predict: ", "explain": "explain: "}
NEWLINE = "\n"
# Stands between label and rationale where both share one target; what precedes it is the answer.
SEPARATOR = " because:"
STYLES = ("prefix", "plain", "chat")


@dataclass(frozen=True)
class Prompt:
    """Input ids of one row; `truncated` where the text was longer than the limit."""

    ids: list[int]
    truncated: bool


@dataclass(frozen=True)
class Renderer:
    """Renders inputs and targets for one tokenizer; lengths count tokens, end mark included.

    `instruction` stands before every input (``plain``), or is the system message of conversations
    that have none (``chat``).
    """

    tokenizer: Any
    is_encoder_decoder: bool
    max_input_tokens: int
    max_output_tokens: int
    style: str = "prefix"
    instruction: str = ""

    def prompts(self, task: str, texts: Sequence[str]) -> list[Prompt]:
        """Input ids of `texts`; in the style ``prefix`` under the prefix of `task`.

        A text that is too long loses its end, never the prefix and never the mark (end mark or
        newline) that closes it; a conversation loses its oldest turns.

        Args:
            task: ``predict`` or ``explain``.
            texts: the inputs; `pipestill.models.chat.Conversation` where there are messages.
        """
        if not texts:
            return []
        if self.style == "chat":
            return [self._conversation(text) for text in texts]
        end = "" if self.is_encoder_decoder else NEWLINE
        rows = self.tokenizer([self._opening(task) + text + end for text in texts]).input_ids
        if not self.is_encoder_decoder:
            rows = [self._without_end_mark(row) for row in rows]
        return [self._cut(row) for row in rows]

    def targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Target ids of `texts` with the end mark, never cut."""
        if not texts:
            return []
        if self.style == "chat" and not self.is_encoder_decoder:
            texts = [self.frame.before + text + self.frame.after for text in texts]
        special, end = self.is_encoder_decoder, self.end
        rows = self.tokenizer(list(texts), add_special_tokens=special).input_ids
        return [row if row and row[-1] == end else [*row, end] for row in rows]

    @property
    def end(self) -> int:
        """The id that closes every target."""
        if self.style == "chat" and not self.is_encoder_decoder:
            return self.frame.end
        end: int = self.tokenizer.eos_token_id
        return end

    @cached_property
    def frame(self) -> chat.Frame:
        """What the chat template writes around a reply."""
        return chat.frame_of(self.tokenizer)

    def messages(self, text: str) -> list[chat.Message]:
        """The messages of a conversation, with the system message that holds by default."""
        return chat.messages_of(text, self.instruction)

    def whole_length(self, text: str) -> int:
        """Tokens of a conversation that nothing is cut from.

        Raises:
            UserError: ``CHAT_TEMPLATE``.
        """
        return len(self._chat_ids(chat.prompt_text(self.tokenizer, self.messages(text))))

    def answer_part(self, text: str) -> str:
        """What stands before the separator: the answer of a label-then-rationale student."""
        return text.split(SEPARATOR, 1)[0].strip()

    def rationale_part(self, text: str) -> str:
        """What follows the separator, empty where there is none."""
        return text.partition(SEPARATOR)[2].strip()

    def _opening(self, task: str) -> str:
        if self.style == "prefix":
            return PREFIXES[task]
        return f"{self.instruction}\n\n" if self.instruction else ""

    def _conversation(self, text: str) -> Prompt:
        """Oldest exchanges go first; one turn that is too long alone loses its middle."""
        messages: list[chat.Message] | None = self.messages(text)
        truncated = False
        while messages is not None:
            row = self._chat_ids(chat.prompt_text(self.tokenizer, messages))
            if len(row) <= self.max_input_tokens:
                return Prompt(row, truncated)
            messages, truncated = chat.without_oldest(messages), True
        head = self.max_input_tokens // 4
        return Prompt(row[:head] + row[head - self.max_input_tokens :], True)

    def _chat_ids(self, text: str) -> list[int]:
        # A template writes a decoder's own marks; an encoder's input is closed by its tokenizer.
        ids: list[int] = self.tokenizer(text, add_special_tokens=self.is_encoder_decoder).input_ids
        return ids

    def _without_end_mark(self, row: list[int]) -> list[int]:
        return row[:-1] if len(row) > 1 and row[-1] == self.tokenizer.eos_token_id else row

    def _cut(self, row: list[int]) -> Prompt:
        if len(row) <= self.max_input_tokens:
            return Prompt(row, False)
        tail = self._closing(row)
        return Prompt(row[: self.max_input_tokens - len(tail)] + tail, True)

    def _closing(self, row: list[int]) -> list[int]:
        if self.is_encoder_decoder:
            return row[-1:] if row[-1] == self.tokenizer.eos_token_id else []
        closing: list[int] = self.tokenizer(NEWLINE, add_special_tokens=False).input_ids
        return closing


def renderer_for(
    loaded: Any, max_input_tokens: int, max_output_tokens: int, info: Mapping[str, Any] = {}
) -> Renderer:
    """A renderer whose limits also respect the positions that the model has.

    Args:
        loaded: a `pipestill.models.loading.Loaded`.
        max_input_tokens: wanted limit of the input, in tokens.
        max_output_tokens: wanted limit of the target, in tokens.
        info: a model's description; ``style`` and ``instruction`` are read from it.

    Raises:
        UserError: ``TOKENIZER_INCOMPLETE`` (no end mark), ``CONTEXT_TOO_SMALL``, ``STYLE_UNKNOWN``.
    """
    tokenizer, both = loaded.tokenizer, loaded.is_encoder_decoder
    if tokenizer.eos_token_id is None:
        raise UserError(
            "TOKENIZER_INCOMPLETE",
            "the student's tokenizer has no end mark (eos_token), so its answers would never end",
            "set eos_token in the model's tokenizer_config.json",
        )
    style, instruction = str(info.get("style", "prefix")), str(info.get("instruction", ""))
    if style not in STYLES:
        raise UserError("STYLE_UNKNOWN", f"style: found {style!r}, allowed: {', '.join(STYLES)}")
    if style == "chat":
        chat.ensure_template(tokenizer)
    positions = getattr(loaded.model.config, "max_position_embeddings", None)
    if positions:
        room = positions if both else positions - max_output_tokens
        max_input_tokens = min(max_input_tokens, room)
        max_output_tokens = min(max_output_tokens, positions)
    renderer = Renderer(tokenizer, both, max_input_tokens, max_output_tokens, style, instruction)
    smallest = _smallest(renderer)
    if max_input_tokens < smallest:
        raise UserError(
            "CONTEXT_TOO_SMALL",
            f"{max_input_tokens} input tokens are left for the student (positions of the model: "
            f"{positions or 'unlimited'}, max_output_tokens: {max_output_tokens}), allowed: at "
            f"least {smallest}",
            "raise max_context_length or lower max_output_tokens",
        )
    return renderer


def _smallest(renderer: Renderer) -> int:
    """Tokens around the shortest input, and two for the input itself."""
    if renderer.style == "chat":
        messages = renderer.messages("")
        return len(renderer._chat_ids(chat.prompt_text(renderer.tokenizer, messages))) + 2
    openings = {renderer._opening(task) for task in PREFIXES}
    return max(len(renderer.tokenizer(opening).input_ids) for opening in openings) + 2
