"""The teacher `transformers`: any causal or encoder-decoder model that Hugging Face can load.

For decoder-only models the keys and values of the few-shot prefix are computed once and reused for
every row. Prompts are always tokenised whole; the shared part is what the tokens of the prefix and
of the whole prompts have in common, so a token that reaches over the seam is never torn.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from pipestill.config import TeacherConfig
from pipestill.errors import WorkError
from pipestill.generation.decoding import (
    Ids,
    Prefix,
    Rules,
    compute_prefix,
    decode_batch,
    decode_batch_seq2seq,
    fits,
)
from pipestill.generation.teacher import Batch, Completion, Decoding, Failure, Request, clean
from pipestill.models.loading import (
    Loaded,
    folder_fingerprint,
    load,
    load_tokenizer,
    resolve_reference,
)

# A shorter common beginning (a start mark, a word) is not worth a cache.
LEAST_SHARED_TOKENS = 8


class TransformersTeacher:
    """A local model. It is loaded when the first answer is asked for, not before."""

    def __init__(self, config: TeacherConfig, decoding: Decoding) -> None:
        self._config, self._decoding = config, decoding
        self._prefixes: dict[str, Prefix | None] = {}

    @functools.cached_property
    def _loaded(self) -> Loaded:
        return load(self._config.model_reference, precision="auto")

    @functools.cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._config.model_reference)

    @functools.cached_property
    def fingerprint(self) -> str:
        folder = Path(resolve_reference(self._config.model_reference))
        # The same digest without loading the weights: a full journal may need no model at all.
        return folder_fingerprint(folder) if folder.is_dir() else self._loaded.fingerprint

    def subject(self, request: Request) -> str:
        return request.prefix + request.query

    def most_prompt_tokens(self, request: Request) -> int:
        return len(self._ids(request.prefix + request.query))

    def answer(self, requests: Iterable[Request]) -> Iterator[Batch]:
        pending = iter(requests)
        while batch := list(itertools.islice(pending, max(self._config.batch_size, 1))):
            yield self._answer_batch(batch)

    def _ids(self, text: str) -> Ids:
        ids: Ids = self._tokenizer(text)["input_ids"]
        return ids

    def _answer_batch(self, batch: Sequence[Request]) -> Batch:
        began = time.perf_counter()
        prompts = [self._ids(request.prefix + request.query) for request in batch]
        if not self._loaded.is_encoder_decoder:
            prompts = [_without_end(ids, self._tokenizer.eos_token_id) for ids in prompts]
        results: list[Completion | Failure | None] = [self._too_long(ids) for ids in prompts]
        fitting = [place for place, result in enumerate(results) if result is None]
        for places, prefix in self._split(batch, prompts, fitting):
            chosen = [prompts[place] for place in places]
            new = self._decode(chosen, [batch[place].seed for place in places], prefix)
            for place, ids in zip(places, new, strict=True):
                shared = len(prefix.ids) if prefix else 0
                results[place] = self._completion(ids, len(prompts[place]), shared)
        share = (time.perf_counter() - began) * 1000 / len(batch)
        return [
            (request, _timed(result, share))
            for request, result in zip(batch, results, strict=True)
            if result is not None
        ]

    def _too_long(self, ids: Ids) -> Failure | None:
        loaded = self._loaded
        limit = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
        room = 0 if loaded.is_encoder_decoder else self._decoding.max_new_tokens
        if not ids:
            return Failure(reason="prompt is empty")
        if limit is None or len(ids) + room <= limit:
            return None
        return Failure(
            reason=f"prompt too long: {len(ids)} tokens"
            + (f" and up to {room} new ones" if room else "")
            + f", model has {limit}"
        )

    def _split(
        self, batch: Sequence[Request], prompts: Sequence[Ids], places: Sequence[int]
    ) -> list[tuple[list[int], Prefix | None]]:
        """The rows that start from each shared prefix, and the rows that start from nothing."""
        groups: dict[str, list[int]] = {}
        for place in places:
            groups.setdefault(batch[place].prefix, []).append(place)
        split: list[tuple[list[int], Prefix | None]] = []
        for text, group in groups.items():
            prefix = self._prefix(text, [prompts[place] for place in group])
            usable = [
                place
                for place in group
                if prefix and fits(prefix, [prompts[place]], self._decoding.max_new_tokens)
            ]
            # Padding counts against a sliding window, so the group must fit together as well.
            if prefix and not fits(
                prefix, [prompts[place] for place in usable], self._decoding.max_new_tokens
            ):
                usable = []
            split.append((usable, prefix))
            split.append(([place for place in group if place not in usable], None))
        return [(group, prefix) for group, prefix in split if group]

    def _prefix(self, text: str, prompts: Sequence[Ids]) -> Prefix | None:
        """The cached state of a prefix text, computed at its first use."""
        if self._loaded.is_encoder_decoder:
            return None
        if text not in self._prefixes:
            ids = self._ids(text) if text else []
            size = min(common_length(ids, prompt) for prompt in prompts)
            prefix = None
            if size >= LEAST_SHARED_TOKENS:
                prefix = compute_prefix(self._loaded.model, ids[:size])
            self._prefixes = {text: prefix}
            if text:
                print(_prefix_line(prefix, size), flush=True)
        return self._prefixes[text]

    def _decode(self, prompts: list[Ids], seeds: list[int], prefix: Prefix | None) -> list[Ids]:
        model = self._loaded.model
        try:
            if self._loaded.is_encoder_decoder:
                return decode_batch_seq2seq(model, prompts, self._rules, seeds=seeds)
            return decode_batch(model, prompts, self._rules, seeds=seeds, prefix=prefix)
        except torch.OutOfMemoryError as error:
            raise WorkError(
                "TEACHER_MEMORY",
                f"the teacher ran out of memory with {len(prompts)} rows at once",
                "lower teacher_batch_size; finished calls stay in the journal",
            ) from error

    @functools.cached_property
    def _rules(self) -> Rules:
        return Rules(
            max_new_tokens=self._decoding.max_new_tokens,
            end_ids=end_ids(self._loaded.model, self._tokenizer),
            stopped=stop_check(self._tokenizer, self._decoding.stop),
            temperature=self._decoding.temperature,
        )

    def _completion(self, ids: Ids, prompt_tokens: int, cached: int) -> Completion:
        text = clean(self._tokenizer.decode(ids, skip_special_tokens=True))
        places = [place for stop in self._decoding.stop if (place := text.find(stop)) >= 0]
        full = len(ids) >= self._decoding.max_new_tokens and not places
        return Completion(
            text=text[: min(places)] if places else text,
            prompt_tokens=prompt_tokens,
            output_tokens=len(ids),
            cached_prompt_tokens=cached,
            finish_reason="length" if full else "stop",
        )


def common_length(prefix: Sequence[int], prompt: Sequence[int]) -> int:
    """How many first ids both have in common, at least one of the prompt left over."""
    size = min(len(prefix), len(prompt) - 1)
    same = itertools.takewhile(lambda place: prefix[place] == prompt[place], range(max(size, 0)))
    return sum(1 for _ in same)


def end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every id that ends a text, by the model's generation settings and the tokenizer."""
    listed = model.generation_config.eos_token_id
    ids = list(listed) if isinstance(listed, list | tuple) else [listed]
    return frozenset(int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None)


def stop_check(tokenizer: Any, stops: Sequence[str]) -> Callable[[Ids], bool]:
    """Whether new tokens hold a stop string; decoded only where the last token can end one."""
    last = {stop[-1] for stop in stops}

    @functools.cache
    def may_end(token: int) -> bool:
        text = tokenizer.decode([token])
        # A part of a character decodes to a replacement sign.
        return "\ufffd" in text or any(sign in text for sign in last)

    def stopped(ids: Ids) -> bool:
        if not stops or not may_end(ids[-1]):
            return False
        text = tokenizer.decode(ids, skip_special_tokens=True)
        return any(stop in text for stop in stops)

    return stopped


def _prefix_line(prefix: Prefix | None, common: int) -> str:
    if prefix is not None:
        return f"shared prefix: {len(prefix.ids)} tokens computed once for all rows"
    return (
        f"shared prefix: none ({common} common tokens, or a model whose cache cannot be shared); "
        "every row computes its whole prompt"
    )


def _without_end(ids: Ids, end: int | None) -> Ids:
    """Some tokenizers close every text; a prompt that is to be continued must stay open."""
    return ids[:-1] if len(ids) > 1 and ids[-1] == end else ids


def _timed(result: Completion | Failure, latency_ms: float) -> Completion | Failure:
    if isinstance(result, Failure):
        return result
    values = vars(result) | {"latency_ms": latency_ms}
    return Completion(**values)
