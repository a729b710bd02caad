"""What a student reads and writes, as token ids: one definition for training and inference.

Encoder-decoder: the encoder reads ``prefix + input`` as its tokenizer closes it; the decoder
writes the target and the end mark. Decoder-only: the model reads ``prefix + input + newline`` and
goes on with the target and the end mark. Prefixes are those of Hsieh et al. 2023 (arXiv
2305.02301, section 3.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipestill.errors import UserError

PREFIXES = {"predict": "predict: ", "explain": "explain: "}
NEWLINE = "\n"
# Stands between label and rationale where both share one target; what precedes it is the answer.
SEPARATOR = " because:"


@dataclass(frozen=True)
class Prompt:
    """Input ids of one row; `truncated` where the text was longer than the limit."""

    ids: list[int]
    truncated: bool


@dataclass(frozen=True)
class Renderer:
    """Renders inputs and targets for one tokenizer; lengths count tokens, end mark included."""

    tokenizer: Any
    is_encoder_decoder: bool
    max_input_tokens: int
    max_output_tokens: int

    def prompts(self, task: str, texts: Sequence[str]) -> list[Prompt]:
        """Input ids of `texts` under the prefix of `task` (``predict`` or ``explain``).

        A text that is too long loses its end, never the prefix and never the mark (end mark or
        newline) that closes it.
        """
        if not texts:
            return []
        end = "" if self.is_encoder_decoder else NEWLINE
        rows = self.tokenizer([PREFIXES[task] + text + end for text in texts]).input_ids
        if not self.is_encoder_decoder:
            rows = [self._without_end_mark(row) for row in rows]
        return [self._cut(row) for row in rows]

    def targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Target ids of `texts` with the end mark, never cut."""
        if not texts:
            return []
        special = self.is_encoder_decoder
        rows = self.tokenizer(list(texts), add_special_tokens=special).input_ids
        end = self.tokenizer.eos_token_id
        return [row if row and row[-1] == end else [*row, end] for row in rows]

    def answer_part(self, text: str) -> str:
        """What stands before the separator: the answer of a label-then-rationale student."""
        return text.split(SEPARATOR, 1)[0].strip()

    def rationale_part(self, text: str) -> str:
        """What follows the separator, empty where there is none."""
        return text.partition(SEPARATOR)[2].strip()

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


def renderer_for(loaded: Any, max_input_tokens: int, max_output_tokens: int) -> Renderer:
    """A renderer whose limits also respect the positions that the model has.

    Args:
        loaded: a `pipestill.models.loading.Loaded`.
        max_input_tokens: wanted limit of the input, in tokens.
        max_output_tokens: wanted limit of the target, in tokens.

    Raises:
        UserError: ``TOKENIZER_INCOMPLETE`` (no end mark), ``CONTEXT_TOO_SMALL``.
    """
    tokenizer, both = loaded.tokenizer, loaded.is_encoder_decoder
    if tokenizer.eos_token_id is None:
        raise UserError(
            "TOKENIZER_INCOMPLETE",
            "the student's tokenizer has no end mark (eos_token), so its answers would never end",
            "set eos_token in the model's tokenizer_config.json",
        )
    positions = getattr(loaded.model.config, "max_position_embeddings", None)
    if positions:
        room = positions if both else positions - max_output_tokens
        max_input_tokens = min(max_input_tokens, room)
        max_output_tokens = min(max_output_tokens, positions)
    smallest = max(len(tokenizer(prefix).input_ids) for prefix in PREFIXES.values()) + 2
    if max_input_tokens < smallest:
        raise UserError(
            "CONTEXT_TOO_SMALL",
            f"{max_input_tokens} input tokens are left for the student (positions of the model: "
            f"{positions or 'unlimited'}, max_output_tokens: {max_output_tokens}), allowed: at "
            f"least {smallest}",
            "raise max_context_length or lower max_output_tokens",
        )
    return Renderer(tokenizer, both, max_input_tokens, max_output_tokens)
