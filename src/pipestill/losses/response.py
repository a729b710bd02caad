"""Response-based distillation: divergences between the student's and the teacher's distributions.

Every divergence takes LOGITS (N, V) of N positions and gives N values in nats. Both distributions
are soft-maxed at the temperature tau; the factor tau² that keeps the gradient's size (Hinton et
al. 2015, arXiv 1503.02531, section 2) is the caller's. In the formulas p is the teacher, q the
student.

An id whose logit is -inf on either side (a mask, a padded vocabulary) is left out of both
distributions, which are normalised over the ids that remain. So no value is infinite, and no
gradient is NaN.
"""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pipestill.losses.common import token_nll

Head = Callable[[Tensor], Tensor]

# Stands for the logit -inf: its probability is exactly 0, and unlike -inf its differences and
# products with 0 are numbers.
EXCLUDED = -1e30


class Divergence(Protocol):
    """An entry of `DIVERGENCES`. Each function reads the parameters that it has."""

    def __call__(
        self, student: Tensor, teacher: Tensor, *, tau: float, beta: float, skew: float
    ) -> Tensor: ...


def forward_kl(student: Tensor, teacher: Tensor, *, tau: float = 1.0) -> Tensor:
    """KL(p‖q), the teacher's. Hinton et al. 2015, arXiv 1503.02531; its CE form less H(p).

    Args:
        student: (N, V) logits of any float type; gradients flow into them.
        teacher: (N, V) logits; detach them, or run the teacher without gradients.
        tau: temperature above 0.

    Returns:
        (N,) nats in fp32 (float64 stays float64).

    Raises:
        ValueError: tau is not above 0.
    """
    return _kl(*reversed(_log_probs(student, teacher, tau)))


def reverse_kl(student: Tensor, teacher: Tensor, *, tau: float = 1.0) -> Tensor:
    """KL(q‖p), the student's. MiniLLM, Gu et al. 2023, arXiv 2306.08543, section 2.

    Arguments, result and errors as in `forward_kl`.
    """
    return _kl(*_log_probs(student, teacher, tau))


def jsd(student: Tensor, teacher: Tensor, *, tau: float = 1.0, beta: float = 0.5) -> Tensor:
    """Generalised Jensen–Shannon: β·KL(p‖m) + (1−β)·KL(q‖m), m = β·p + (1−β)·q.

    GKD, Agarwal et al. 2023, arXiv 2306.13649, section 2. At the ends it is 0 for all inputs;
    there, as in common practice, β = 0 means `forward_kl` and β = 1 `reverse_kl`, the limits of
    JSD/β and JSD/(1−β).

    Args and errors as in `forward_kl`; also ValueError for a β outside 0 to 1.
    """
    _check_share("beta", beta)
    log_q, log_p = _log_probs(student, teacher, tau)
    if beta == 0:
        return _kl(log_p, log_q)
    if beta == 1:
        return _kl(log_q, log_p)
    mixture = _log_mixture(log_p, log_q, beta)
    return beta * _kl(log_p, mixture) + (1 - beta) * _kl(log_q, mixture)


def skew_kl(student: Tensor, teacher: Tensor, *, tau: float = 1.0, skew: float = 0.1) -> Tensor:
    """KL(p‖λ·p + (1−λ)·q), λ = `skew`. DistiLLM, Ko et al. 2024, arXiv 2402.03898, section 3.

    Args and errors as in `forward_kl`; also ValueError for a skew outside 0 to 1.
    """
    _check_share("skew", skew)
    log_q, log_p = _log_probs(student, teacher, tau)
    return _kl(log_p, _log_mixture(log_p, log_q, skew))


def skew_reverse_kl(
    student: Tensor, teacher: Tensor, *, tau: float = 1.0, skew: float = 0.1
) -> Tensor:
    """KL(q‖λ·q + (1−λ)·p), λ = `skew`. DistiLLM, Ko et al. 2024, arXiv 2402.03898, section 3.

    Args and errors as in `skew_kl`.
    """
    _check_share("skew", skew)
    log_q, log_p = _log_probs(student, teacher, tau)
    return _kl(log_q, _log_mixture(log_q, log_p, skew))


def tvd(student: Tensor, teacher: Tensor, *, tau: float = 1.0) -> Tensor:
    """Total variation distance ½·Σ|p − q|, 0 to 1. f-DISTILL, Wen et al. 2023, arXiv 2307.15190.

    Arguments, result and errors as in `forward_kl`.
    """
    log_q, log_p = _log_probs(student, teacher, tau)
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": lambda student, teacher, *, tau, beta, skew: forward_kl(
        student, teacher, tau=tau
    ),
    "reverse_kl": lambda student, teacher, *, tau, beta, skew: reverse_kl(
        student, teacher, tau=tau
    ),
    "jsd": lambda student, teacher, *, tau, beta, skew: jsd(student, teacher, tau=tau, beta=beta),
    "skew_kl": lambda student, teacher, *, tau, beta, skew: skew_kl(
        student, teacher, tau=tau, skew=skew
    ),
    "skew_reverse_kl": lambda student, teacher, *, tau, beta, skew: skew_reverse_kl(
        student, teacher, tau=tau, skew=skew
    ),
    "tvd": lambda student, teacher, *, tau, beta, skew: tvd(student, teacher, tau=tau),
}


def shared(student_logits: Tensor, teacher_logits: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The logits of the first `size` ids of both: the tokenizer's ids, without the padding.

    Models of one family pad the same vocabulary differently (151,936 and 152,064 ids).

    Args:
        student_logits: (..., V_s), V_s >= size.
        teacher_logits: (..., V_t), V_t >= size.
        size: ids that mean the same to both.

    Raises:
        ValueError: one side has fewer ids than that.
    """
    for side, logits in (("student", student_logits), ("teacher", teacher_logits)):
        if logits.shape[-1] < size:
            raise ValueError(f"the {side} has {logits.shape[-1]} ids, fewer than the {size} shared")
    return student_logits[..., :size], teacher_logits[..., :size]


def chunked_divergence(
    student_head: Head,
    student_states: Tensor,
    teacher_head: Head,
    teacher_states: Tensor,
    divergence: Callable[[Tensor, Tensor], Tensor],
    rows: int,
) -> Tensor:
    """A divergence per position without N×V logits of either: both LM heads run in chunks.

    As in `pipestill.losses.common.head_nll`, the logits of a chunk live only while its values are
    made, and once more in the backward pass.

    Args:
        student_head: (n, D) states → (n, V) logits; a pure function of the states and weights.
        student_states: (N, D), what the student's LM head reads.
        teacher_head: the same of the teacher; runs without gradients.
        teacher_states: (N, D_t).
        divergence: (n, V) student logits, (n, V_t) teacher logits → (n,) values.
        rows: states of one chunk, see `pipestill.losses.common.rows_per_chunk`.

    Returns:
        (N,), differentiable in `student_states` and the student head's weights.
    """

    def values(student: Tensor, teacher: Tensor) -> Tensor:
        return divergence(student_head(student), _frozen(teacher_head, teacher))

    return in_chunks(values, (student_states, teacher_states), rows)


def chunked_divergence_and_nll(
    student_head: Head,
    student_states: Tensor,
    teacher_head: Head,
    teacher_states: Tensor,
    labels: Tensor,
    divergence: Callable[[Tensor, Tensor], Tensor],
    rows: int,
) -> tuple[Tensor, Tensor]:
    """`chunked_divergence`, and the cross-entropy of the labels, from one pass of the heads.

    Args:
        labels: (N,), 0 <= label < V. The other arguments as in `chunked_divergence`.

    Returns:
        The divergences (N,) and the negative log-likelihoods (N,) at temperature 1.
    """

    def values(student: Tensor, teacher: Tensor, wanted: Tensor) -> Tensor:
        logits = student_head(student)
        distance = divergence(logits, _frozen(teacher_head, teacher))
        return torch.stack([distance, token_nll(logits, wanted)])

    distance, nll = in_chunks(values, (student_states, teacher_states, labels), rows)
    return distance, nll


def in_chunks(work: Callable[..., Tensor], inputs: tuple[Tensor, ...], rows: int) -> Tensor:
    """`work` on `rows` positions at a time, recomputed in the backward pass.

    The last chunk is kept instead of recomputed: the backward pass begins with it, so the peak
    stays that of one chunk.

    Args:
        work: n rows of every input → (..., n) values; a pure function.
        inputs: tensors of N rows each.
        rows: rows of one chunk, 1 or more.

    Returns:
        (..., N), joined along the last dimension.
    """
    count = len(inputs[0])
    if count <= rows:
        return work(*inputs)
    whole, rest = divmod(count, rows)
    sizes = [rest] * (rest > 0) + [rows] * whole
    *parts, last = zip(*(value.split(sizes) for value in inputs), strict=True)
    found = [
        checkpoint(work, *part, use_reentrant=False, preserve_rng_state=False) for part in parts
    ]
    return torch.cat([*found, work(*last)], dim=-1)


def _frozen(head: Head, states: Tensor) -> Tensor:
    with torch.no_grad():
        return head(states)


def _log_probs(student: Tensor, teacher: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Log-soft-max of both at tau, over the ids that neither excludes."""
    if not tau > 0:
        raise ValueError(f"tau is {tau}; it has to be above 0")
    excluded = _excluded(student.detach(), teacher.detach())
    return _log_softmax(student, tau, excluded), _log_softmax(teacher, tau, excluded)


def _excluded(student: Tensor, teacher: Tensor) -> Tensor | None:
    """(N, V), True where either logit is -inf; None where there is none.

    Masks cost as much as the soft-max, and most models have none; the least logit of a row costs a
    tenth. An XLA device would have to stop to answer, so there the mask is always made.
    """
    least = torch.minimum(student.amin(-1), teacher.amin(-1))
    if least.device.type != "xla" and not (least == -math.inf).any():
        return None
    return torch.minimum(student, teacher) == -math.inf


def _log_softmax(logits: Tensor, tau: float, excluded: Tensor | None) -> Tensor:
    scaled = wide(logits) if tau == 1 else wide(logits) / tau
    if excluded is not None:
        scaled = scaled.masked_fill(excluded, EXCLUDED)
    return torch.log_softmax(scaled, dim=-1)


def wide(values: Tensor) -> Tensor:
    """fp32, unless it is float64 already."""
    return values if values.dtype == torch.float64 else values.float()


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def _log_mixture(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """log(share·a + (1−share)·b)."""
    if share in (0, 1):
        return log_a if share == 1 else log_b
    return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; it has to be from 0 to 1")
