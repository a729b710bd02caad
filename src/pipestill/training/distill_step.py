"""One step of distillation: a weighted sum of terms, exact over micro-batches and processes.

A step is one or two pieces of work (stored text; the student's own samples). Each gives the SUMS of
its terms over a micro-batch; a term's loss is its sum over the step by its count in the step, so
that the terms of tokens do not depend on how the step is cut. A term `whole` compares the examples
of a micro-batch with each other: it depends on the cut by its nature, so its micro-batches are made
as large as memory allows, and its examples are gathered across the processes.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipestill.training.batches import Encoded
from pipestill.training.distributed import World, share
from pipestill.training.flops import Costs, flops_of_step
from pipestill.training.loop import log_interval
from pipestill.training.step import (
    LIKELIHOOD,
    TOKENS_PER_FORWARD,
    Job,
    Objective,
    Sums,
    budget,
    micro_batches,
)

LABEL = "label_loss"  # the cross-entropy, to which other terms are balanced
BALANCE_DECAY = 0.9


@dataclass(frozen=True)
class Term:
    """A term of the loss: weight · sum / count. `whole`: see the module's text."""

    weight: float
    count: float
    whole: bool = False


@dataclass(frozen=True)
class Part:
    """This process's share of a micro-batch of `count` examples.

    Where there are too few, the share is an example that another process counts: `counted` is then
    False, and the share is computed only to keep step with the others.
    """

    sequences: list[int]
    count: int
    counted: bool
    world: World


@dataclass(frozen=True)
class Work:
    """Sequences of `data`, and the terms that ``compute(model, part)`` sums over some of them.

    `repeats` is how many sequences of the model's pass one of them stands for. `teacher_tokens`
    says how many tokens the teacher reads for some of them.
    """

    data: Encoded
    sequences: list[int]
    terms: Mapping[str, Term]
    compute: Callable[[Any, Part], dict[str, Any]]
    teacher_tokens: Callable[[Sequence[int]], int]
    repeats: int = 1


@dataclass(frozen=True)
class Plan:
    """What every step does. `names` are all terms that occur, the cross-entropy first.

    `balanced`: terms are weighed to the gradient norm of the cross-entropy, see `factors`.
    `costs` are the student's; the teacher's work does not count as useful.
    """

    works: Callable[[Job, Sequence[int], int], list[Work]]
    names: tuple[str, ...]
    costs: Costs
    balanced: bool = False
    updated: Callable[[Job, int], None] | None = None

    @property
    def objective(self) -> Objective:
        """The plan as what `pipestill.training.loop.fit` minimises, validated by likelihood."""
        return Objective(partial(accumulate, self), LIKELIHOOD.validate, self.updated)


def accumulate(
    plan: Plan, job: Job, rows: Sequence[int], step: int, tokens_per_forward: int = 0
) -> Sums:
    """Adds the gradients of one step to the model's, see `pipestill.training.step.Objective`.

    At the steps of the log, the norm of every term's gradient is measured on the first micro-batch
    of each work and logged as its share of their sum (``label_share``, ``kd_share``). That is done
    where one process trains alone: a sharded gradient exists only within the backward pass.
    """
    measure = Measure(plan, job, step)
    found: dict[str, list[Any]] = {}
    own, label_tokens, inputs, flops = 0, 0, 0, 0.0
    for work in plan.works(job, rows, step):
        for name, term in work.terms.items():
            found[name] = [0.0, term.count]
        for part in _parts(work, job, tokens_per_forward):
            sums = job.run(work.compute, part)
            scaled = {
                name: value * (work.terms[name].weight / max(1.0, work.terms[name].count))
                for name, value in sums.items()
            }
            factors = measure(work, scaled)
            loss = sum(value * factors[name] for name, value in scaled.items())
            (loss * (job.world.size if part.counted else 0.0)).backward()
            for name, value in sums.items():
                found[name][0] += value.detach() * _logged(work.terms[name], part)
            own += work.teacher_tokens(part.sequences) if part.counted else 0
        label_tokens += int(work.terms[LABEL].count) if LABEL in work.terms else 0
        inputs += int(work.data.source_length[work.sequences].sum())
        flops += flops_of_step(plan.costs, work.data, work.sequences)
    terms = {name: (value, count) for name, (value, count) in found.items()}
    told = {**terms, **measure.shares(), "teacher_tokens": (float(own), 1.0)}
    return Sums(told, label_count=label_tokens, input_count=inputs, flops=flops)


def _parts(work: Work, job: Job, tokens_per_forward: int) -> Iterator[Part]:
    whole = any(term.whole for term in work.terms.values())
    tokens = tokens_per_forward or (TOKENS_PER_FORWARD if whole else budget(job.shape))
    tokens = max(1, tokens * job.world.size // work.repeats)
    for part in micro_batches(work.data, work.sequences, tokens):
        mine, factor = share(part, job.world)
        yield Part(mine, len(part), factor > 0, job.world)


def _logged(term: Term, part: Part) -> float:
    """The factor of a sum in this process's log entry, which is added up over the processes."""
    return 1.0 / part.world.size if term.whole else float(part.counted)


class Measure:
    """The gradient norms of a step's terms, and the factors that follow from them."""

    def __init__(self, plan: Plan, job: Job, step: int) -> None:
        self._plan, self._job = plan, job
        due = step == 1 or step % log_interval(job.config) == 0 or step == job.config.train_steps
        self._due = due and job.world.size == 1
        self._norms: dict[str, float] = {}
        self._factors = dict.fromkeys(plan.names, 1.0)
        if plan.balanced:
            for name, value in zip(
                plan.names, job.model.distillation.balance.tolist(), strict=True
            ):
                self._factors[name] = value or 1.0

    def __call__(self, work: Work, terms: Mapping[str, Any]) -> dict[str, float]:
        """The factor of every term; called with the weighted terms of every micro-batch."""
        new = [name for name in terms if name not in self._norms]
        if self._due and new:
            for name in new:
                self._norms[name] = gradient_norm(self._job.model, terms[name])
            if self._plan.balanced:
                self._balance(new)
        return self._factors

    def shares(self) -> dict[str, tuple[float, float]]:
        """Every measured term's share of the norms, as terms of the log; empty where not due."""
        norms = {name: norm * self._factors[name] for name, norm in self._norms.items()}
        total = sum(norms.values())
        if not total:
            return {}
        return {
            f"{n.removesuffix('_loss')}_share": (norm / total, 1.0) for n, norm in norms.items()
        }

    def _balance(self, names: Sequence[str]) -> None:
        """Moves the factors, a moving average kept in the model's buffer; 0 means none yet."""
        wanted = self._norms.get(LABEL, 0.0)
        kept = self._job.model.distillation.balance
        for name in names:
            norm = self._norms[name]
            if name == LABEL or not wanted or not norm or not math.isfinite(wanted / norm):
                continue
            place = self._plan.names.index(name)
            old, new = float(kept[place]), wanted / norm
            kept[place] = BALANCE_DECAY * old + (1 - BALANCE_DECAY) * new if old else new
            self._factors[name] = float(kept[place])


def several_backwards() -> Any:
    """While inside, compiled layers keep what a second backward pass through one graph reads."""
    import torch._functorch.config as compiled

    return compiled.patch(donated_buffer=False)


def gradient_norm(model: Any, term: Any) -> float:
    """The length of a term's gradient over the student's own weights; the graph is kept."""
    import torch

    if not term.requires_grad:
        return 0.0
    weights = [w for name, w in model.named_parameters() if trained(name, w)]
    gradients = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
    norms = [gradient.norm() for gradient in gradients if gradient is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0


def trained(name: str, weight: Any) -> bool:
    """Whether a parameter is the student's own: no projection, nothing frozen."""
    return bool(weight.requires_grad) and not name.startswith("distillation.")


def attach(model: Any, **parts: Any) -> None:
    """Gives the model a submodule ``distillation`` that holds `parts`; tensors become buffers.

    So optimiser, checkpoints and best weights hold them. `detach` takes it off before export.
    """
    import torch

    if not hasattr(model, "distillation"):
        model.add_module("distillation", torch.nn.Module())
    for name, part in parts.items():
        if isinstance(part, torch.Tensor):
            model.distillation.register_buffer(name, part.to(model.device))
        else:
            model.distillation.add_module(name, part.to(model.device))


def detach(model: Any) -> Any:
    """Takes the submodule off and returns it; None where there is none."""
    extra = getattr(model, "distillation", None)
    if extra is not None:
        del model.distillation
    return extra
