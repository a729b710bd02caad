"""Run by several processes at once: trains a tiny model, and the first process writes the result.

``python -m torch.distributed.run … tests/training/two.py KIND OBJECTIVE OUT STATE STOP``
"""

import json
import sys
from pathlib import Path

from safetensors.torch import save_file

from pipestill.models.render import renderer_for
from pipestill.training.distributed import current, join, leave
from pipestill.training.loop import fit
from pipestill.training.resume import weights_of
from pipestill.training.student import make_job
from tests.training.tiny import config, make_loaded, make_rows


class Stop(Exception):
    """Stands for a kill between two steps."""


def train(
    kind: str, objective: str, out: str, state: str = "", stop: str = "0", batch: str = "5"
) -> None:
    """Arguments are texts because they come from a command line."""
    loaded = make_loaded(kind)
    rows = make_rows(31)
    settings = config(
        train_steps=10, batch_size=int(batch), evaluation_interval=2, checkpoint_interval=2
    )
    renderer = renderer_for(loaded, 128, 64)
    job = make_job(loaded, renderer, rows[:24], rows[24:], objective, 1, settings)

    def on_step(progress):
        if progress.step == int(stop):
            raise Stop

    try:
        progress, resumed = fit(job, state or None, on_step)
    except Stop:
        return
    if current().is_main:
        Path(out).mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().clone() for name, value in weights_of(job.model).items()}
        save_file(weights, f"{out}/weights.safetensors")
        told = {"log": progress.log, "resumed": resumed, "best": progress.best_step}
        Path(out, "log.json").write_text(json.dumps(told))


if __name__ == "__main__":
    join()
    train(*sys.argv[1:])
    leave()
