"""Response-based terms: the student's token distributions against the teacher's.

``(1 - w)·CE + w·τ²·KD``, both means over the target tokens of the step (Hinton et al. 2015, arXiv
1503.02531, section 2). The logits of neither model exist for more than a chunk of positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from pipestill.config import DistillConfig
from pipestill.errors import UserError
from pipestill.losses.common import head_nll, rows_per_chunk
from pipestill.losses.cross_tokenizer import uld
from pipestill.losses.response import (
    DIVERGENCES,
    chunked_divergence,
    chunked_divergence_and_nll,
    shared,
)
from pipestill.losses.sparse import chunked_tail_and_nll, tail_divergence
from pipestill.training.batches import Encoded
from pipestill.training.distill_step import LABEL, Part, Term, Work
from pipestill.training.forward import (
    batch_labels,
    batch_states,
    collate,
    computing,
    reading_head,
    vocabulary,
)
from pipestill.training.step import Job
from pipestill.training.teacher_states import Teacher, in_order, paired, paired_length

KD = "kd_loss"


class Store(Protocol):
    """Stored teacher probabilities, see `pipestill.generation.logits_store`."""

    tau: float
    k: int
    vocabulary_digest: str

    def rows(self, ids: Sequence[str]) -> list[tuple[Any, Any, Any]]: ...


@dataclass(frozen=True)
class Stored:
    """The teacher as a store: its probabilities of the target tokens of the rows `ids`."""

    store: Store
    ids: Sequence[str]
    size: int


@dataclass(frozen=True)
class Divergence:
    """A divergence of `pipestill.losses.response.DIVERGENCES` with its settings."""

    name: str
    tau: float
    beta: float
    skew: float

    def online(self, size: int) -> Callable[[Any, Any], Any]:
        """(n, V_s) student logits, (n, V_t) teacher logits → (n,), over `size` shared ids."""
        if not size:
            return partial(uld, tau=self.tau)

        def measured(student: Any, teacher: Any) -> Any:
            both = shared(student, teacher, size)
            return DIVERGENCES[self.name](*both, tau=self.tau, beta=self.beta, skew=self.skew)

        return measured

    def stored(self, size: int) -> Callable[[Any, Any, Any], Any]:
        """(n, V_s) logits, (n, k) ids, (n, k) log-probabilities → (n,)."""

        def measured(student: Any, ids: Any, logprobs: Any) -> Any:
            settings = {"tau": self.tau, "beta": self.beta, "skew": self.skew}
            return tail_divergence(student[..., :size], ids, logprobs, self.name, **settings)

        return measured


def divergence_of(name: str, config: DistillConfig) -> Divergence:
    """The divergence `name` with the settings of a run."""
    return Divergence(name, config.tau, config.jsd_beta, config.skew)


def kd_weight(config: DistillConfig) -> float:
    """w·τ², or w where `scale_by_tau2` is off."""
    return config.kd_weight * (config.tau**2 if config.scale_by_tau2 else 1.0)


def response_work(
    job: Job, rows: Sequence[int], teacher: Teacher | Stored, how: Divergence, config: DistillConfig
) -> Work:
    """The work of a step over the stored text of `rows`."""
    data = job.train
    sequences = [s for row in rows for s in data.of_row[row]]
    count = float(data.target_length[sequences].sum())
    both = count
    if isinstance(teacher, Teacher) and not teacher.size:
        both = float(sum(paired_length(data, teacher.data, s) for s in sequences))
    return Work(
        data=data,
        sequences=sequences,
        terms={LABEL: Term(1 - config.kd_weight, count), KD: Term(kd_weight(config), both)},
        compute=partial(response_sums, job=job, data=data, teacher=teacher, how=how),
        teacher_tokens=teacher.tokens if isinstance(teacher, Teacher) else lambda _: 0,
    )


def response_sums(
    model: Any, part: Part, *, job: Job, data: Encoded, teacher: Teacher | Stored, how: Divergence
) -> dict[str, Any]:
    """The sums of cross-entropy and divergence over the target tokens of `part`."""
    batch = collate(data, part.sequences, job.shape)
    labels = batch_labels(batch)
    with computing(job.shape):
        states, head = batch_states(model, batch, job.shape), reading_head(model)
        if isinstance(teacher, Stored):
            ids, logprobs = stored_targets(teacher, data, part.sequences, labels)
            rows = rows_per_chunk(vocabulary(model))
            values = how.stored(teacher.size)
            kd, nll = chunked_tail_and_nll(head, states, ids, logprobs, labels, values, rows)
        else:
            kd, nll = _online(model, part, data, teacher, how, states, head, labels)
    return {LABEL: nll.sum(), KD: kd.sum()}


def _online(
    model: Any,
    part: Part,
    data: Encoded,
    teacher: Teacher,
    how: Divergence,
    states: Any,
    head: Callable[[Any], Any],
    labels: Any,
) -> tuple[Any, Any]:
    """(M,) divergences and (N,) negative log-likelihoods, with the teacher run beside."""
    other = teacher.of(model)
    given, other_head = teacher_states(other, teacher, part.sequences), reading_head(other)
    rows = rows_per_chunk(max(vocabulary(model), vocabulary(other)))
    values = how.online(teacher.size)
    if teacher.size:
        return chunked_divergence_and_nll(head, states, other_head, given, labels, values, rows)
    mine, its = (index.to(states.device) for index in paired(data, teacher.data, part.sequences))
    kd = chunked_divergence(head, states[mine], other_head, given[its], values, rows)
    return kd, head_nll(head, states, labels, rows)


def teacher_states(model: Any, teacher: Teacher, sequences: Sequence[int]) -> Any:
    """(N, D_t) what the teacher's LM head reads at its target positions, without gradients."""
    import torch

    with torch.no_grad():
        return batch_states(model, teacher.batch(sequences), teacher.shape)


def stored_targets(
    teacher: Stored, data: Encoded, sequences: Sequence[int], labels: Any
) -> tuple[Any, Any]:
    """The stored ids (N, k) and log-probabilities (N, k) of a batch's target tokens.

    Raises:
        UserError: ``STORE_OTHER_TEXT`` where the store was made of other targets.
    """
    import torch

    names = [teacher.ids[s] for s in in_order(data, sequences)]
    found = teacher.store.rows(names)
    tokens = torch.cat([torch.as_tensor(row[0]).long().flatten() for row in found])
    if tokens.tolist() != labels.tolist():
        raise _other_text(names, found, labels.tolist())
    ids = torch.cat([torch.as_tensor(row[1]) for row in found]).long()
    if int(ids.max()) >= teacher.size:
        raise UserError(
            "STORE_VOCABULARY",
            f"the store holds id {int(ids.max())}; the student's tokenizer ends at "
            f"{teacher.size - 1}",
            "run teacher_logits again with this student_model_reference",
        )
    logprobs = torch.cat([torch.as_tensor(row[2]) for row in found]).float()
    return ids.to(labels.device), logprobs.to(labels.device)


def _other_text(names: Sequence[str], found: Sequence[Any], labels: list[int]) -> UserError:
    """Names the first row whose stored tokens are not those that are trained on."""
    start, row = 0, names[0]
    for name, (tokens, *_) in zip(names, found, strict=True):
        wanted = [int(token) for token in tokens]
        if labels[start : start + len(wanted)] != wanted:
            row = name
            break
        start += len(wanted)
    return UserError(
        "STORE_OTHER_TEXT",
        f"row {row}: the store holds probabilities of other target tokens than those trained on",
        "run teacher_logits with the same targets, max_output_tokens and training rows",
    )
