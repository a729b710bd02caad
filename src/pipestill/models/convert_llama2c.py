"""Converts a checkpoint of llama2.c into a folder that every Hugging Face program can load.

    python -m pipestill.models.convert_llama2c stories260K.bin tok512.bin stories260k/

It reads the legacy layout (version 0) of https://github.com/karpathy/llama2.c: a header of seven
integers and the weights as float32. The tokenizer gives the same ids as llama2.c's own encoder.
Nothing is unpickled.
"""

import argparse
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipestill.errors import PipestillError, UserError

MAGIC_OF_NEWER_LAYOUTS = 0x616B3432
SPECIAL = {0: "<unk>", 1: "<s>", 2: "</s>"}
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Header:
    """The seven integers at the beginning; `shared` where head and embedding are one matrix."""

    dim: int
    hidden_dim: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    positions: int
    shared: bool

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


def convert(checkpoint: Path, tokenizer: Path, target: Path) -> None:
    """Writes `target`: config.json, model.safetensors, tokenizer.json and their settings.

    Raises:
        UserError: ``LLAMA2C_UNREADABLE``, ``LLAMA2C_HEADER``, ``LLAMA2C_SIZE``,
            ``LLAMA2C_TOKENIZER``.
    """
    header, tensors = read_checkpoint(checkpoint)
    pieces = read_pieces(tokenizer)
    if len(pieces) != header.vocab:
        raise UserError(
            "LLAMA2C_TOKENIZER",
            f"{tokenizer}: {len(pieces)} tokens, but {checkpoint} has {header.vocab}",
            "give the tokenizer that the model was trained with",
        )
    _model(header, tensors).save_pretrained(target)
    _tokenizer(pieces, header.positions).save_pretrained(target)


def read_checkpoint(path: Path) -> tuple[Header, dict[str, Array]]:
    """The header, and the weights under the names that `LlamaForCausalLM` gives them."""
    data = _read(path)
    header = _header(path, data)
    shapes = _shapes(header)
    expected = 28 + 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    if len(data) != expected:
        raise UserError(
            "LLAMA2C_SIZE",
            f"{path}: {len(data)} bytes, but its header asks for {expected}",
            "the file is torn or of another layout; export version 0",
        )
    numbers, place = np.frombuffer(data, dtype="<f4", offset=28), 0
    stacked: dict[str, Array] = {}
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        stacked[name] = numbers[place : place + size].reshape(shape).astype(np.float32)
        place += size
    return header, _named(header, stacked)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            "LLAMA2C_UNREADABLE", f"{path}: {error.strerror or error}", "correct the path"
        ) from error


def _header(path: Path, data: bytes) -> Header:
    if len(data) < 28:
        raise UserError("LLAMA2C_HEADER", f"{path}: {len(data)} bytes, shorter than a header")
    dim, hidden, layers, heads, kv_heads, vocab, positions = struct.unpack("<7i", data[:28])
    if dim == MAGIC_OF_NEWER_LAYOUTS:
        raise UserError(
            "LLAMA2C_HEADER", f"{path}: a newer layout of llama2.c", "export it as version 0"
        )
    found = {"dim": dim, "hidden_dim": hidden, "n_layers": layers, "n_heads": heads,
             "n_kv_heads": kv_heads, "vocab_size": abs(vocab), "seq_len": positions}  # fmt: skip
    wrong = [f"{name} {value}" for name, value in found.items() if not 0 < value < 1 << 20]
    if wrong or dim % heads or heads % kv_heads or (dim // heads) % 2:
        raise UserError(
            "LLAMA2C_HEADER",
            f"{path}: no header of llama2.c ({', '.join(wrong) or f'{heads} heads of {dim}'})",
            "give a .bin file that llama2.c wrote in its legacy layout",
        )
    return Header(dim, hidden, layers, heads, kv_heads, abs(vocab), positions, vocab > 0)


def _shapes(header: Header) -> dict[str, tuple[int, ...]]:
    """The arrays in the order of the file; two tables of rotations are part of it, and unused."""
    layers, dim, hidden = header.layers, header.dim, header.hidden_dim
    kv = header.kv_heads * header.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "embed": (header.vocab, dim),
        "input_layernorm": (layers, dim),
        "self_attn.q_proj": (layers, dim, dim),
        "self_attn.k_proj": (layers, kv, dim),
        "self_attn.v_proj": (layers, kv, dim),
        "self_attn.o_proj": (layers, dim, dim),
        "post_attention_layernorm": (layers, dim),
        "mlp.gate_proj": (layers, hidden, dim),
        "mlp.down_proj": (layers, dim, hidden),
        "mlp.up_proj": (layers, hidden, dim),
        "norm": (dim,),
        "cosines": (header.positions, header.head_dim // 2),
        "sines": (header.positions, header.head_dim // 2),
    }
    return shapes if header.shared else shapes | {"head": (header.vocab, dim)}


def _named(header: Header, stacked: dict[str, Array]) -> dict[str, Array]:
    named = {
        "model.embed_tokens.weight": stacked["embed"],
        "model.norm.weight": stacked["norm"],
        "lm_head.weight": stacked["embed"] if header.shared else stacked["head"],
    }
    for name, array in stacked.items():
        if name in ("embed", "norm", "head", "cosines", "sines"):
            continue
        for layer in range(header.layers):
            weight = array[layer]
            if name in ("self_attn.q_proj", "self_attn.k_proj"):
                weight = _half_split(weight, header.head_dim)
            named[f"model.layers.{layer}.{name}.weight"] = weight
    return named


def _half_split(weight: Array, head_dim: int) -> Array:
    """llama2.c rotates neighbours (2i, 2i+1), Hugging Face rotates the halves (i, i + d/2)."""
    rows, columns = weight.shape
    pairs = weight.reshape(rows // head_dim, head_dim // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))


def _model(header: Header, tensors: dict[str, Array]) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=header.vocab,
        hidden_size=header.dim,
        intermediate_size=header.hidden_dim,
        num_hidden_layers=header.layers,
        num_attention_heads=header.heads,
        num_key_value_heads=header.kv_heads,
        max_position_embeddings=header.positions,
        rms_norm_eps=1e-5,
        tie_word_embeddings=header.shared,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
    # These models begin every text with <s>, so a new <s> ends the one before.
    model.generation_config.eos_token_id = [2, 1]
    return model


def read_pieces(path: Path) -> list[tuple[str, float]]:
    """The tokens and their scores; byte tokens are written as ``<0x0A>``.

    Raises:
        UserError: ``LLAMA2C_UNREADABLE``, ``LLAMA2C_TOKENIZER``.
    """
    data, place = _read(path), 4
    pieces: list[tuple[str, float]] = []
    try:
        while place < len(data):
            score, length = struct.unpack_from("<fi", data, place)
            piece = data[place + 8 : place + 8 + length]
            if length < 0 or len(piece) != length:
                raise ValueError(f"token {len(pieces)} is cut off")
            pieces.append((SPECIAL.get(len(pieces), piece.decode("utf-8")), score))
            place += 8 + length
        if len({piece for piece, _ in pieces}) != len(pieces) or len(pieces) < 259:
            raise ValueError("tokens are missing or double")
    except (struct.error, ValueError) as error:
        raise UserError(
            "LLAMA2C_TOKENIZER", f"{path}: no tokenizer of llama2.c ({error})", "give tokenizer.bin"
        ) from error
    return pieces


def _tokenizer(pieces: list[tuple[str, float]], positions: int) -> Any:
    """A byte-pair tokenizer whose merges are the pairs that make a token, best score first."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {piece: place for place, (piece, _) in enumerate(pieces)}
    merges = []
    for piece, score in pieces[259:]:
        for seam in range(1, len(piece)):
            left, right = piece[:seam], piece[seam:]
            if left in vocab and right in vocab:
                merges.append((-score, vocab[left], vocab[right], (left, right)))
    bpe = models.BPE(
        vocab=vocab,
        merges=[pair for *_, pair in sorted(merges)],
        unk_token=SPECIAL[0],
        byte_fallback=True,
    )
    fast = Tokenizer(bpe)
    fast.normalizer = normalizers.Prepend(" ")
    fast.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        unk_token=SPECIAL[0],
        model_max_length=positions,
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the module's own text."""
    parser = argparse.ArgumentParser(
        prog="python -m pipestill.models.convert_llama2c",
        description="llama2.c checkpoint and tokenizer → Hugging Face folder",
    )
    parser.add_argument("checkpoint", type=Path, help="weights, legacy layout (.bin)")
    parser.add_argument("tokenizer", type=Path, help="tokenizer (.bin)")
    parser.add_argument("target", type=Path, help="folder to write")
    given = parser.parse_args(arguments)
    try:
        convert(given.checkpoint, given.tokenizer, given.target)
    except PipestillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"written: {given.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
