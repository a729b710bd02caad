"""The training log as TensorBoard scalars, beside the model and where Vertex looks for them."""

import os
from pathlib import Path
from typing import Any

from pipestill.training.progress import Progress

VERTEX_FOLDER = "AIP_TENSORBOARD_LOG_DIR"


class Scalars:
    """Writes every new entry of the log; pass `after_step` to `pipestill.training.loop.fit`.

    A resumed run goes on in the same folders: what an earlier process wrote past the checkpoint is
    marked as void, and nothing is doubled.
    """

    def __init__(self, *folders: str | Path) -> None:
        """Takes the folders; the one that Vertex names in the environment is added."""
        vertex = os.environ.get(VERTEX_FOLDER, "")
        self._folders = [str(folder) for folder in folders] + ([_mounted(vertex)] if vertex else [])
        self._writers: list[tuple[Any, int]] = []
        self._written = 0

    def __enter__(self) -> "Scalars":
        return self

    def __exit__(self, *_: Any) -> None:
        for writer, _first in self._writers:
            writer.close()

    def after_step(self, progress: Progress) -> None:
        """Writes what the log has gained since the last call."""
        if not self._writers:
            self._writers = [_open(folder, progress.step) for folder in self._folders]
        for entry in progress.log[self._written :]:
            for writer, first in self._writers:
                if entry["step"] >= first:
                    _write(writer, entry)
        if len(progress.log) > self._written:
            self._written = len(progress.log)
            for writer, _first in self._writers:
                writer.flush()


def _open(folder: str, step: int) -> tuple[Any, int]:
    """A writer, and the first step it is to write: all of them into a new folder."""
    from torch.utils.tensorboard import SummaryWriter

    used = any(Path(folder).glob("events.*")) if "://" not in folder else False
    return SummaryWriter(folder, purge_step=step if used else None), step if used else 0


def _write(writer: Any, entry: dict[str, Any]) -> None:
    for name, value in entry.items():
        if name != "step" and isinstance(value, int | float):
            writer.add_scalar(tag_of(name), value, entry["step"])


def tag_of(name: str) -> str:
    """``val_label_loss`` → ``validation/label_loss``; what has no group is about the optimiser."""
    if name.startswith("val_"):
        return f"validation/{name.removeprefix('val_')}"
    return f"train/{name}" if name.endswith("_loss") else f"optimiser/{name}"


def _mounted(folder: str) -> str:
    """The mounted path of a bucket where there is one."""
    mounted = folder.replace("gs://", "/gcs/", 1)
    return mounted if folder.startswith("gs://") and Path("/gcs").is_dir() else folder
