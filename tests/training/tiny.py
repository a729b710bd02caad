"""Models and rows small enough for tests, made on the spot from fixed seeds."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import torch

from pipestill.config import TrainConfig
from pipestill.models.loading import Loaded
from pipestill.models.render import Renderer
from pipestill.records import Labelled
from pipestill.training.batches import Encoded, encode
from pipestill.training.forward import Shape, shape_of
from pipestill.training.objectives import OBJECTIVES

torch.set_num_threads(1)
KINDS = ("t5_tied", "t5_untied", "gpt2", "llama")
COLOURS = ("red", "green", "blue")
CONFIG = TrainConfig(
    train_steps=6,
    batch_size=4,
    evaluation_interval=2,
    checkpoint_interval=2,
    learning_rate=1e-3,
    precision="fp32",
    max_output_tokens=64,
)


def make_rows(count: int, every: int = 2, seed: int = 0) -> list[Labelled]:
    """Rows with labels of one to three words; every `every`-th has no rationale."""
    dice = random.Random(seed)
    rows = []
    for i in range(count):
        words = dice.choices(COLOURS, k=dice.randint(1, 3))
        rationale = f"row {i} names " + " then ".join(words) * dice.randint(1, 3)
        rows.append(
            Labelled(
                id=f"r{i}",
                input_text=" ".join(dice.choices("abcdefgh", k=dice.randint(3, 12))),
                output_text=" ".join(words),
                label_source="gold",
                rationale=None if every and i % every == 1 else rationale,
            )
        )
    return rows


def make_tokenizer(closes: bool) -> Any:
    """A byte-level BPE tokenizer; `closes`: adds the end mark itself, as T5's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(["predict: explain: red green blue because: names then"] * 3, trainer)
    if closes:
        inner.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>")


def make_model(kind: str) -> Any:
    """A model with random weights of about 30,000 parameters."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    torch.manual_seed(1)
    ends = {"pad_token_id": 0, "eos_token_id": 1}
    if kind.startswith("t5"):
        tied = kind == "t5_tied"
        return T5ForConditionalGeneration(
            T5Config(
                vocab_size=300, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
                relative_attention_num_buckets=8, dropout_rate=0.0, decoder_start_token_id=0,
                feed_forward_proj="relu" if tied else "gated-gelu",
                tie_word_embeddings=tied, **ends,
            )
        )  # fmt: skip
    if kind == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=1,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **ends,
            )
        )  # fmt: skip
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
            bos_token_id=1, **ends,
        )
    )  # fmt: skip


def make_loaded(kind: str, dtype: torch.dtype = torch.float32) -> Loaded:
    model = make_model(kind).to(dtype).eval()
    both = bool(model.config.is_encoder_decoder)
    size = sum(p.numel() for p in model.parameters())
    return Loaded(model, make_tokenizer(both), both, "none", size, 0)


def make_folder(kind: str, folder: Path) -> str:
    """The same model as a `save_pretrained` folder."""
    loaded = make_loaded(kind)
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return str(folder)


def make_data(
    loaded: Loaded, rows: list[Labelled], objective: str = "dss", seed: int = 0
) -> tuple[Encoded, Shape]:
    renderer = Renderer(loaded.tokenizer, loaded.is_encoder_decoder, 128, 64)
    return encode(rows, OBJECTIVES[objective](rows, seed), renderer), shape_of(loaded)


def config(**changes: Any) -> TrainConfig:
    return dataclasses.replace(CONFIG, **changes)
