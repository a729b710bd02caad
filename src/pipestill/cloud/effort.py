"""The effort of one step, and what all estimators share."""

import math
from dataclasses import dataclass, replace
from typing import Any

from pipestill.cloud.machines import Machine
from pipestill.cloud.pipeline_steps import Step
from pipestill.cloud.prices import NOTHING, Range
from pipestill.cloud.workload import Model, Workload
from pipestill.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One step's work. Tokens and operations are of the whole step; `api` is US dollars.

    `counted` is false where the model's size or the component is not known: `seconds` is then
    only what could be counted. `calls` are requests to a teacher.
    """

    rows: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    flops: float = 0.0
    calls: int = 0
    seconds: Range = NOTHING
    api: Range = NOTHING
    counted: bool = True

    def __add__(self, other: "Estimate") -> "Estimate":
        return Estimate(
            rows=max(self.rows, other.rows),
            tokens_in=self.tokens_in + other.tokens_in,
            tokens_out=self.tokens_out + other.tokens_out,
            flops=self.flops + other.flops,
            calls=self.calls + other.calls,
            seconds=self.seconds + other.seconds,
            api=self.api + other.api,
            counted=self.counted and other.counted,
        )


def get(step: Step, work: Workload, name: str, default: Any = "") -> Any:
    """A step's argument, else the pipeline's parameter of that name."""
    return step.arguments.get(name, work.parameters.get(name, default))


def lengths(work: Workload, reference: str, step: Step) -> tuple[float, float]:
    """Mean tokens of inputs and outputs for a model, cut where the run cuts them."""
    from pipestill.config import parse_length

    context = parse_length(get(step, work, "max_context_length", "1024"))
    longest = int(get(step, work, "max_output_tokens", 256))
    source = min(work.mean_tokens(reference, work.rows.inputs), context)
    return source, min(work.mean_tokens(reference, work.rows.outputs) or 8.0, longest)


def preference_lengths(step: Step, work: Workload, reference: str) -> tuple[float, float]:
    source = work.mean_tokens(reference, work.rows.inputs)
    target = work.mean_tokens(reference, work.rows.outputs)
    return (
        min(source, float(get(step, work, "prompt_sequence_length", 512))),
        min(target, float(get(step, work, "target_sequence_length", 64))),
    )


def prompt_of(step: Step, work: Workload) -> Any:
    from pipestill.generation.prompts import load_prompt

    try:
        return load_prompt(str(get(step, work, "teacher_prompt", "refund_desk.v1")))
    except UserError as error:
        work.wrong(str(error))
        return None


def spread(found: Estimate, machine: Machine, batches: float) -> Estimate:
    """The same work by a process a GPU, as far as there are batches for them."""
    processes = max(1, min(machine.processes, math.ceil(batches)))
    return replace(found, seconds=found.seconds * (1 / processes))


def generate(
    machine: Machine, model: Model, rows: float, source: float, target: float, batch: float
) -> Estimate:
    """`rows` answers of `target` tokens to inputs of `source` tokens, by one process."""
    prefill = rows * model.read_flops(source)
    decode = rows * (model.read_flops(source, target) - model.read_flops(source))
    weights = (model.parameters or 0) / (2 if model.two_stacks else 1)
    return Estimate(
        rows=round(rows),
        tokens_in=round(rows * source),
        tokens_out=round(rows * target),
        flops=prefill + decode,
        seconds=machine.generating(prefill, decode, weights, rows * target, batch),
        counted=model.parameters is not None,
    )
