"""The tokenizer both pocket models share.

Tiny models compare numbers well only when a number is one symbol, so the splitter cuts digits in
pairs (every world number is below 100), and each word of the world is given a token. Bytes remain
as a fallback: any text round-trips, ordinary English costs about three letters a token.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipestill.pocket import desks, words, world

PAD, EOS = "<pad>", "</s>"
MASKS = tuple(f"<extra_id_{index}>" for index in range(8))
SPLIT = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}{1,2}|\n| ?[^\s\p{L}\p{N}]|[^\S\n]+(?!\S)|\s"
VOCABULARY = 3072
MAX_LENGTH = 1024


def world_words() -> list[str]:
    """Every word and number that must be one token, with its leading space and without."""
    lists: list[tuple[str, ...]] = [words.NAMES, words.CITIES, words.PAYMENTS, words.DESK_NOUNS]
    lists += [words.DESK_MARKS, words.DESK_OUTCOMES, words.DESK_VERBS, world.LABELS]
    found = [*itertools.chain(*lists), *world.LIMITS, *world.STATES]
    found += " ".join(itertools.chain(*words.DESK_CLASSES)).split()
    found += " ".join(sentences()).split()
    found += " ".join(desks.WORDINGS).replace("{", " ").replace("}", " ").split()
    plain = [bare for word in found if (bare := word.strip(".,:?")).isalpha()]
    return [*dict.fromkeys(plain), *(str(number) for number in range(100))]


def sentences() -> list[str]:
    """Enough generated notes to hold every fixed word of the pretraining texts."""
    from pipestill.pocket import corpus

    rng = world.dice(0)
    makers = (corpus.fact_pair, corpus.stated_rule_pair, corpus.number_pair)
    texts = [" ".join(maker(rng)) for maker in makers for _ in range(1000)]
    cases = [world.sample(rng) for _ in range(100)]
    return [*texts, *(f"{case.note} {case.rationale}" for case in cases)]


def training_text() -> Iterator[str]:
    """Word counts for the merges: world words weigh most, common English the more, the earlier."""
    for word in world_words():
        yield from itertools.repeat(f" {word}", 400)
        yield from itertools.repeat(word, 200)
    for rank, word in enumerate(words.ENGLISH):
        yield from itertools.repeat(f" {word}", 200 - rank // 8)
        yield from itertools.repeat(f" {word.capitalize()}", 10)
        for suffix in words.SUFFIXES:
            yield f" {word}{suffix}"
    for text in ("predict", "explain", "Q", "A", "So", "answer", "days", "euros", "kilos", "It"):
        yield from itertools.repeat(f"{text} {text}", 400)


def build() -> Any:
    """Train the byte-level pair encoder; the same words always give the same tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, EOS, *MASKS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    return tokenizer


def save(folder: Path, *, seq2seq: bool) -> Any:
    """Write the files for one model; only an encoder-decoder closes every text with its end mark.

    A decoder must be free to go on from a prompt, so its side adds nothing.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    inner = build()
    if seq2seq:
        inner.post_processor = processors.TemplateProcessing(
            single=f"$A {EOS}",
            pair=f"$A {EOS} $B {EOS}",
            special_tokens=[(EOS, inner.token_to_id(EOS))],
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        eos_token=EOS,
        additional_special_tokens=list(MASKS) if seq2seq else [],
        padding_side="right" if seq2seq else "left",
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
    portable(folder / "tokenizer_config.json")
    return tokenizer


def portable(path: Path) -> None:
    """Keep to the keys that the library's releases 4 and 5 both read."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("backend", "is_local", "local_files_only"):
        config.pop(key, None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if "extra_special_tokens" in config:
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
