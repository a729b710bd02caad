"""Turns a model reference into a model and a tokenizer, and nothing else into either.

A reference is the name of a pocket model, a `save_pretrained` folder here or in a bucket
(``gs://bucket/folder``) or a hub name (with ``@revision`` where wanted). Weights come from
safetensors only: pickled weights and code that travels with a model are never run.
"""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipestill.errors import UserError

POCKET_NAMES = ("pocket-teacher", "pocket-base")
LISTED = "`pipestill models` lists known models; a local folder or a hub name is allowed as well"


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, in eval mode, on the best device there is.

    `fingerprint` is sha256 over configuration, tokenizer and weights of a local folder, and
    ``name@commit`` of a hub model. `bytes` is the size of the safetensors files on disk.
    `stored_dtype` is the torch dtype that the files are written in, whatever the model computes in;
    None where the configuration does not say.
    """

    model: Any
    tokenizer: Any
    is_encoder_decoder: bool
    fingerprint: str
    parameters: int
    bytes: int
    stored_dtype: Any = None


def resolve_reference(reference: str) -> str:
    """The folder (pocket and local models) or the hub name that `reference` stands for.

    Raises:
        UserError: ``MODEL_NOT_FOUND``, ``MODEL_INCOMPLETE`` (a folder that lacks a file),
            ``MODEL_PICKLED`` or ``MODEL_REMOTE`` (addresses other than ``gs://``); of a bucket, as
            `pipestill.cloud.storage.download_folder`.
    """
    if reference.startswith("gs://"):
        return str(_checked_folder(_bucket_folder(reference), reference))
    if "://" in reference:
        raise _remote(reference)
    if reference in POCKET_NAMES:
        return str(_checked_folder(_pocket_folder(reference), reference))
    folder = Path(reference).expanduser()
    if reference and folder.is_dir():
        return str(_checked_folder(folder, reference))
    if _looks_like_a_path(reference):
        raise UserError(
            "MODEL_NOT_FOUND", f"model {reference!r}: no such folder", f"correct the path; {LISTED}"
        )
    return reference


def load_tokenizer(reference: str) -> Any:
    """The tokenizer of `reference`, with a pad token (the end mark where the model has none).

    Padding by the end mark is safe here because every mask is made from lengths, not from ids.

    Raises:
        UserError: as `resolve_reference`; ``MODEL_NOT_FOUND`` where the hub has no such model.
    """
    from transformers import AutoTokenizer

    source, revision = _split_revision(resolve_reference(reference))
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False, **_revision(revision)
        )
    except Exception as error:
        raise _load_error(reference, error) from error
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load(reference: str, *, precision: str = "auto") -> Loaded:
    """Loads model and tokenizer in eval mode on the best device there is.

    Args:
        reference: pocket name, local folder or hub name.
        precision: ``fp32``, ``bf16`` or ``auto`` (bf16 on a GPU that has it, else fp32; fp16 is not
            offered because T5 overflows in it).

    Raises:
        UserError: as `resolve_reference`; ``PRECISION_UNKNOWN``, ``MODEL_NOT_FINITE``.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    _quiet_off_terminal()
    dtype = choose_dtype(precision)
    tokenizer = load_tokenizer(reference)
    source, revision = _split_revision(resolve_reference(reference))
    options = {"trust_remote_code": False, **_revision(revision)}
    try:
        config = AutoConfig.from_pretrained(source, **options)
        both, stored = bool(config.is_encoder_decoder), config.dtype  # loading overwrites the type
        auto = AutoModelForSeq2SeqLM if both else AutoModelForCausalLM
        model = auto.from_pretrained(
            source, config=config, use_safetensors=True, dtype=dtype, **options
        )
    except Exception as error:
        raise _load_error(reference, error) from error
    _check_finite(model, reference)
    model = model.to(best_device()).eval()
    fingerprint, size = _identity(source, config)
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        is_encoder_decoder=both,
        fingerprint=fingerprint,
        parameters=sum(p.numel() for p in model.parameters()),
        bytes=size,
        stored_dtype=stored,
    )


def _check_finite(model: Any, reference: str) -> None:
    """Refuses weights with NaN or infinity, whose answers would be nonsense without a word."""
    import torch

    for name, weight in model.named_parameters():
        # One pass and no copy: a sum is finite only where all its terms are.
        if not torch.isfinite(weight.detach().sum(dtype=torch.float32)):
            raise UserError(
                "MODEL_NOT_FINITE",
                f"model {reference!r}: its weights {name} hold NaN or infinity",
                "take an earlier checkpoint of it, or train it again",
            )


def outline(reference: str) -> Loaded:
    """Configuration and tokenizer of a model without its weights, which are not even read.

    The model has every layer, on the ``meta`` device: it has shapes and computes nothing.

    Raises:
        UserError: as `load`.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    tokenizer = load_tokenizer(reference)
    source, revision = _split_revision(resolve_reference(reference))
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **_revision(revision))
        both = bool(config.is_encoder_decoder)
        auto = AutoModelForSeq2SeqLM if both else AutoModelForCausalLM
        with torch.device("meta"):
            model = auto.from_config(config)
    except Exception as error:
        raise _load_error(reference, error) from error
    size = sum(p.numel() for p in model.parameters())
    return Loaded(model, tokenizer, both, "", size, 0)


def _quiet_off_terminal() -> None:
    """Keeps the loader's progress bars out of logs, where every change would be a line."""
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def best_device() -> str:
    """``cuda`` where there is a GPU, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_dtype(precision: str) -> Any:
    """The torch dtype that `precision` (auto, fp32 or bf16) means on this machine.

    Raises:
        UserError: ``PRECISION_UNKNOWN``.
    """
    import torch

    if precision == "auto":
        on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if on_gpu else torch.float32
    known = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if precision not in known:
        raise UserError(
            "PRECISION_UNKNOWN",
            f"precision: found {precision!r}, allowed: auto, fp32, bf16",
            "fp16 is left out on purpose: T5 overflows in it",
        )
    return known[precision]


def folder_fingerprint(folder: Path) -> str:
    """sha256 over configuration, tokenizer and weight files: names and contents, sorted by name."""
    digest = hashlib.sha256()
    named = [folder / "config.json", folder / "tokenizer.json", *folder.glob("*.safetensors")]
    for path in sorted(item for item in named if item.is_file()):
        with path.open("rb") as source:
            digest.update(path.name.encode() + b"\0")
            digest.update(hashlib.file_digest(source, "sha256").digest())
    return digest.hexdigest()


def _checked_folder(folder: Path, reference: str) -> Path:
    """The folder, if it can be loaded without pickle.

    A file that holds only a pointer is caught by the loader itself.
    """
    pickled = sorted(p.name for p in folder.glob("*.bin") if p.name.startswith("pytorch_model"))
    weights = any(folder.glob("*.safetensors"))
    if pickled and not weights:
        raise UserError(
            "MODEL_PICKLED",
            f"model {reference!r}: weights only as pickle ({pickled[0]}), allowed: safetensors",
            "load it where you trust it and call model.save_pretrained(folder) to convert",
        )
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    missing += [] if weights else ["*.safetensors"]
    if missing:
        raise UserError(
            "MODEL_INCOMPLETE",
            f"model {reference!r}: the folder lacks {' and '.join(missing)}",
            "give a folder that model.save_pretrained and tokenizer.save_pretrained wrote",
        )
    return folder


def _pocket_folder(name: str) -> Path:
    from pipestill import pocket

    folder: Path | None = pocket.resolve(name)
    if folder is None or not folder.is_dir():
        raise UserError(
            "MODEL_NOT_FOUND",
            f"model {name!r}: its files are missing from this installation",
            "install pipestill again, or make them: python -m pipestill.pocket.train",
        )
    return folder


def _bucket_folder(reference: str) -> Path:
    """A local copy, made once per contents; of weights only safetensors are copied."""
    from pipestill.cloud.storage import download_folder
    from pipestill.serving.files import is_model_file

    return download_folder(reference, is_model_file)


def _looks_like_a_path(reference: str) -> bool:
    return reference.startswith((".", "/", "~")) or reference.count("/") > 1 or not reference


def _remote(reference: str) -> UserError:
    scheme = reference.split("://")[0]
    return UserError(
        "MODEL_REMOTE",
        f"model {reference!r}: weights are not read from {scheme}:// addresses",
        "give a local folder, gs://BUCKET/FOLDER or a plain hub name",
    )


def _split_revision(source: str) -> tuple[str, str]:
    if Path(source).is_dir():
        return source, ""
    name, _, revision = source.partition("@")
    return name, revision


def _revision(revision: str) -> dict[str, str]:
    return {"revision": revision} if revision else {}


def _load_error(reference: str, error: Exception) -> UserError:
    """One line for whatever the loader raised: the first line of its message says what."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    if Path(reference).is_dir() or reference in POCKET_NAMES or "://" in reference:
        return UserError(
            "MODEL_UNREADABLE",
            f"model {reference!r}: {type(error).__name__}: {first}",
            "check that the folder was written by save_pretrained and is complete",
        )
    return UserError(
        "MODEL_NOT_FOUND",
        f"model {reference!r}: neither a pocket model, nor a folder, nor reachable on the hub "
        f"({type(error).__name__}: {first})",
        f"{LISTED}; without a network, give a local folder",
    )


def _identity(source: str, config: Any) -> tuple[str, int]:
    """Fingerprint and bytes on disk of what was loaded."""
    folder = Path(source)
    if folder.is_dir():
        return folder_fingerprint(folder), _safetensors_bytes(folder)
    commit = getattr(config, "_commit_hash", None) or "unknown"
    return f"{source}@{commit}", _cached_bytes(source, commit)


def _cached_bytes(name: str, commit: str) -> int:
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json", revision=commit)
    return _safetensors_bytes(Path(cached).parent) if isinstance(cached, str) else 0


def _safetensors_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
