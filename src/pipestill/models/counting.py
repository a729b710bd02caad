"""Counts the parameters of a model that lies in a local folder, without loading its weights."""

import json
import struct
from pathlib import Path
from typing import Any

from pipestill.errors import UserError


def local_folder(reference: str) -> Path | None:
    """The folder of a pocket model or of a path that holds a ``config.json``."""
    from pipestill.pocket import resolve

    folder = resolve(reference) or Path(reference)
    return folder if (folder / "config.json").is_file() else None


def read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError("MODEL_CONFIG", f"{folder}/config.json is not JSON ({error})") from error
    return config if isinstance(config, dict) else {}


def count_parameters(folder: Path) -> int | None:
    """Parameters in a folder's safetensors files, from their headers; else from its config.

    Raises:
        UserError: ``WEIGHTS_BROKEN`` where a file is no safetensors file.
    """
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return sum(_header_parameters(file) for file in files)
    return _config_parameters(folder)


def _header_parameters(file: Path) -> int:
    """A safetensors file starts with 8 bytes of header length, then a JSON header."""
    try:
        with file.open("rb") as source:
            (length,) = struct.unpack("<Q", source.read(8))
            if length > file.stat().st_size:
                raise ValueError("the header is longer than the file")
            header = json.loads(source.read(length))
        total = 0
        for name, tensor in header.items():
            if name != "__metadata__":
                elements = 1
                for extent in tensor["shape"]:
                    elements *= extent
                total += elements
    except (struct.error, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(
            "WEIGHTS_BROKEN", f"{file}: not a safetensors file ({error})", "copy the model again"
        ) from error
    return total


def _config_parameters(folder: Path) -> int | None:
    """Builds the model without memory (meta device); None for a type transformers does not know."""
    import torch
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        two_stacks = getattr(config, "is_encoder_decoder", False)
        kind = "AutoModelForSeq2SeqLM" if two_stacks else "AutoModelForCausalLM"
        with torch.device("meta"):
            model = getattr(transformers, kind).from_config(config)
    except (ValueError, KeyError, OSError):
        return None
    return int(model.num_parameters())
