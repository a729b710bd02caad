"""The text of an answer while its tokens come: pieces that joined are the whole text, exactly."""

import re
from collections.abc import Sequence
from typing import Any

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # byte fallback of sentence-piece vocabularies
TORN = "\ufffd"  # what a decoder writes for bytes that are no character (yet)


class Pieces:
    """Turns growing token ids into pieces of text that later tokens cannot change.

    Held back are: white space at the end (the whole text is stripped), bytes that no character is
    complete with, a run of byte tokens (one bad byte spoils the whole run), what may become the
    stop string, and, for a tokenizer that tidies spaces before punctuation, the last two words.
    """

    def __init__(self, tokenizer: Any, stop: str = "") -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._special = set(tokenizer.all_special_ids)
        self._tidies = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
        self.told = ""

    def add(self, ids: Sequence[int]) -> str:
        """What is new and certain of the text of `ids`, all tokens so far; often empty."""
        kept = [token for token in ids if token not in self._special]
        while kept and self._is_byte(kept[-1]):
            kept.pop()
        text = self._tokenizer.decode(kept, skip_special_tokens=True)
        return self._tell(self._certain(text.lstrip()))

    def rest(self, whole: str) -> str:
        """What is missing of the whole text, now that it is known."""
        return self._tell(whole)

    def _tell(self, text: str) -> str:
        if not text.startswith(self.told):
            return ""
        piece, self.told = text[len(self.told) :], text if text else self.told
        return piece

    def _certain(self, text: str) -> str:
        text = text.rstrip(TORN)
        if self._stop:
            text = _before_stop(text, self._stop)
        if self._tidies:
            text = text.rsplit(" ", 2)[0] if text.count(" ") > 1 else ""
        return text.rstrip()

    def _is_byte(self, token: int) -> bool:
        return BYTE_TOKEN.fullmatch(self._tokenizer.convert_ids_to_tokens(token) or "") is not None


def _before_stop(text: str, stop: str) -> str:
    """The text up to `stop`, or up to an end that may be its beginning."""
    if stop in text:
        return text[: text.index(stop)]
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return text[:-size]
    return text
