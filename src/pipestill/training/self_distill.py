"""Self-distillation: the teacher is the student itself, earlier or better informed.

``ema``: a moving average of the student's weights (Tarvainen & Valpola 2017, arXiv 1703.01780).
``context``: the same average with demonstrations before the input, which the student does not see
(self-distillation fine-tuning, SDFT; context distillation, Askell et al. 2021, arXiv 2112.00861).
``born_again``: the generation before (Furlanello et al. 2018, arXiv 1805.04770); its turns are made
by `pipestill.training.distill`.
"""

import copy
import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from pipestill.models.render import Renderer
from pipestill.records import Labelled
from pipestill.training.batches import Encoded
from pipestill.training.distributed import whole
from pipestill.training.step import Job
from pipestill.training.teacher_states import with_prompts


def average_of(model: Any) -> Any:
    """A module whose ``model`` is a copy of `model`, frozen, in eval mode for good.

    Its weights are buffers: checkpoints hold those, and no optimiser takes them.
    """
    import torch

    class Average(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.model = inner
            super().train(False)

        def train(self, mode: bool = True) -> Any:  # the student's mode is none of its business
            return self

    return Average(_with_buffers(copy.deepcopy(model)))


def follow(job: Job, decay: float) -> None:
    """average ← decay·average + (1 − decay)·weights, after an update."""
    import torch

    weights = dict(job.model.named_parameters())
    with torch.no_grad():
        for name, value in job.model.distillation.average.model.named_buffers():
            if name in weights:
                value.lerp_(whole(weights[name].detach()).to(value.dtype), 1 - decay)


def with_demonstrations(
    data: Encoded, rows: Sequence[Labelled], renderer: Renderer, shots: int, seed: int
) -> tuple[Encoded, int]:
    """`data` with `shots` other rows and their answers before every input.

    The demonstrations of a row follow from the seed and its id; a row never shows itself. Where
    they do not fit into the prompt, the row gets fewer, because a cut would take its own end.

    Returns:
        The data, and how many rows have fewer than `shots`.
    """
    shown = [_demonstrated(row, rows, renderer, shots, seed) for row in rows]
    fewer = sum(count < min(shots, len(rows) - 1) for _, count in shown)
    texts = [
        dataclasses.replace(row, input_text=text)
        for row, (text, _) in zip(rows, shown, strict=True)
    ]
    return with_prompts(data, texts, renderer), fewer


def _demonstrated(
    row: Labelled, rows: Sequence[Labelled], renderer: Renderer, shots: int, seed: int
) -> tuple[str, int]:
    """The input behind as many demonstrations as fit, and their number."""
    others = [other for other in rows if other.id != row.id]
    dice = random.Random(f"{seed} {row.id}")  # noqa: S311
    chosen = dice.sample(others, min(shots, len(others)))
    for count in range(len(chosen), 0, -1):
        parts = [f"{other.input_text}\n{other.output_text}\n\n" for other in chosen[:count]]
        text = "".join(parts) + row.input_text
        (prompt,) = renderer.prompts("predict", [text])
        if not prompt.truncated:
            return text, count
    return row.input_text, 0


def _with_buffers(model: Any) -> Any:
    """Turns every parameter into a buffer, in place; tied ones stay tied."""
    import torch

    made: dict[int, Any] = {}
    for module in list(model.modules()):
        for name, weight in list(module._parameters.items()):
            if weight is None:
                continue
            del module._parameters[name]
            module.register_buffer(name, made.setdefault(id(weight), weight.detach().clone()))
    # Models ask their first parameter for their type and device.
    anchor = torch.empty(
        0, dtype=next(iter(made.values())).dtype, device=next(iter(made.values())).device
    )
    model.register_parameter("anchor", torch.nn.Parameter(anchor, requires_grad=False))
    return model
