"""Tiny models that are trained for a moment to give one known answer, and a prompt to ask with."""

from pathlib import Path
from typing import Any

import torch

from pipestill.records import Example, write_jsonl

PROMPT = """
name: tiny
version: 1
source: written for this test
query: "Q: {input}\\nA:"
answer: " {rationale} So the answer is {label}.\\n\\n"
stop: ["\\n\\nQ:"]
parser: so_the_answer_is
labels: ["yes", "no"]
examples:
  - {input: "a", rationale: "It is so.", label: "yes"}
  - {input: "b", rationale: "It is not so.", label: "no"}
"""


def rows(count: int = 24) -> list[Example]:
    """Every third gold answer is no; rationales are there as well."""
    return [
        Example(
            id=f"r{at}",
            input_text=f"is {at} fine",
            output_text="no" if at % 3 == 0 else "yes",
            rationale=f"{at} is what it is",
            source_row=at,
        )
        for at in range(count)
    ]


def inputs(folder: Path, count: int = 24) -> dict[str, str]:
    """Held-out rows, a prompt file, and recorded answers of which every fourth is wrong."""
    import json

    items = rows(count)
    write_jsonl(folder / "evaluation.jsonl", items)
    (folder / "tiny.yaml").write_text(PROMPT, encoding="utf-8")
    flip = {"yes": "no", "no": "yes"}
    said = [
        flip[row.output_text] if at % 4 == 0 else row.output_text for at, row in enumerate(items)
    ]
    texts = [f" Row {at} says so. So the answer is {word}." for at, word in enumerate(said)]
    (folder / "recorded.json").write_text(json.dumps(texts), encoding="utf-8")
    names = {"evaluation": "evaluation.jsonl", "prompt": "tiny.yaml", "recorded": "recorded.json"}
    return {name: str(folder / file) for name, file in names.items()}


def tokenizer(closes: bool) -> Any:
    """Bytes as tokens, so that every text can be written."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: at for at, token in enumerate(["<pad>", "</s>", *letters])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    if closes:
        inner.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>")


def t5_that_says(word: str) -> Any:
    """A T5 of 20,000 parameters whose answer is `word`, whatever it is asked."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.set_num_threads(1)
    torch.manual_seed(3)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=258, d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
            dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
            relative_attention_num_buckets=8,
        )
    )  # fmt: skip
    target = torch.tensor(tokenizer(closes=True)([word])["input_ids"])
    source = torch.randint(2, 258, (1, 12))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimiser.zero_grad()
        model(input_ids=source, labels=target).loss.backward()
        optimiser.step()
    return model.eval()


def student(folder: Path, objective: str, seed: int, word: str) -> str:
    """A trained student's folder with a training log."""
    from pipestill.models.student import save_student

    log = "".join(
        f'{{"step": {step}, "label_loss": {2 / step}, "val_label_loss": {3 / step}}}\n'
        for step in range(10, 60, 10)
    )
    save_student(
        t5_that_says(word),
        tokenizer(closes=True),
        folder,
        {"objective": objective, "seed": seed},
        train_log=log,
    )
    return str(folder)


def base(folder: Path, word: str = "maybe") -> str:
    """An untrained base: a plain folder without `pipestill.json`."""
    t5_that_says(word).save_pretrained(folder)
    tokenizer(closes=True).save_pretrained(folder)
    return str(folder)


def teacher(folder: Path) -> str:
    """A decoder with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(5)
    config = GPT2Config(
        vocab_size=258, n_embd=16, n_layer=1, n_head=2, n_positions=256, bos_token_id=1,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer(closes=False).save_pretrained(folder)
    return str(folder)
