"""A task, a teacher and a student base small enough to travel inside the package.

They let the whole job run on a laptop with no account, hub or accelerator. They show that the
pieces fit together; they are no measure of what distillation does for models of a useful size.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent

DATA_DIR: Path = _HERE / "data"
POCKET: dict[str, Path] = {
    name: _HERE / "models" / name for name in ("pocket-teacher", "pocket-base")
}


def resolve(reference: str) -> Path | None:
    """The folder of an embedded model, or ``None`` when the reference names something else."""
    return POCKET.get(reference)
