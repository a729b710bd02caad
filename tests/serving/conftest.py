"""Tiny random students, saved the way the training step saves them."""

from pathlib import Path

import pytest

WORDS = [
    "the",
    "refund",
    "is",
    "due",
    "a",
    "late",
    "order",
    "was",
    "sent",
    "back",
    "whole",
    "and",
    "paid",
    "in",
    "full",
    "predict",
    "explain",
]


def make_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "</s>", "<unk>", "\n", ":", *WORDS]
    raw = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split(":", "isolated")]
    )
    raw.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def make_student(folder: Path, kind: str, **info) -> Path:
    """Writes a random T5 ("t5") or GPT-2 ("gpt2"); `info` goes into pipestill.json."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

    from pipestill.models.student import save_student

    torch.set_num_threads(1)
    torch.manual_seed(int(info.get("seed", 0)))
    tokenizer = make_tokenizer()
    ends = {"pad_token_id": 0, "eos_token_id": 1}
    if kind == "t5":
        shape = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
        config = T5Config(vocab_size=len(tokenizer), decoder_start_token_id=0, **shape, **ends)
        model = T5ForConditionalGeneration(config)
    else:
        shape = {"n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 4}
        config = GPT2Config(vocab_size=len(tokenizer), bos_token_id=1, **shape, **ends)
        model = GPT2LMHeadModel(config)
    with torch.no_grad():  # wider logits, so that rounding decides no answer
        for parameter in model.parameters():
            parameter.mul_(3)
    facts = {"objective": "dss", "seed": 0, "base_model": "google/flan-t5-small"}
    limits = {"max_input_tokens": 64, "max_output_tokens": 12}
    save_student(model, tokenizer, folder, {**facts, **limits, **info})
    return folder


@pytest.fixture(scope="session")
def t5_student(tmp_path_factory) -> Path:
    return make_student(tmp_path_factory.mktemp("students") / "t5", "t5")


@pytest.fixture(scope="session")
def gpt2_student(tmp_path_factory) -> Path:
    return make_student(tmp_path_factory.mktemp("students") / "gpt2", "gpt2")


@pytest.fixture(scope="session", params=["t5", "gpt2"])
def student_folder(request) -> Path:
    return request.getfixturevalue(f"{request.param}_student")
