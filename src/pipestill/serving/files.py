"""Which files belong to a served model: weights, configuration and text, nothing that can run."""

from pathlib import PurePath

_SUFFIXES = (".safetensors", ".json", ".jsonl", ".txt", ".md", ".model", ".jinja")


def is_model_file(path: str | PurePath) -> bool:
    """Whether a file may travel with a model: pickles (.bin, .pt, .pkl) and code may not."""
    name = PurePath(path).name
    return not name.startswith(".") and name.endswith(_SUFFIXES)
