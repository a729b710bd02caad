"""Distillation from stored top-k teacher log-probabilities, with a bucket for all other ids.

The k largest log-probabilities alone are no distribution: their truncated KL can be negative, and
renormalising them teaches a teacher that is surer than it is. Here the rest of the mass makes one
more bucket, on both sides. A divergence over k+1 buckets never exceeds the one over all V ids
(data-processing inequality), is never negative, and reaches it at k = V.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pipestill.losses.common import token_nll
from pipestill.losses.response import DIVERGENCES, Divergence, Head, in_chunks, wide


def top_k(logits: Tensor, labels: Tensor, k: int, tau: float) -> tuple[Tensor, Tensor, Tensor]:
    """What is stored of a teacher's distribution: true log-soft-max at tau, not renormalised.

    Args:
        logits: (N, V) of the teacher, any float type.
        labels: (N,), 0 <= label < V.
        k: ids to keep of each position, 1 to V.
        tau: temperature above 0; the store is of use at this one only.

    Returns:
        ids (N, k) int32, their log-probabilities (N, k) in falling order, and the label's own (N,),
        both in fp32 (float64 stays float64).

    Raises:
        ValueError: k is not from 1 to V, or tau not above 0.
    """
    size = logits.shape[-1]
    if not 1 <= k <= size:
        raise ValueError(f"k is {k}; it has to be from 1 to the vocabulary's {size}")
    if not tau > 0:
        raise ValueError(f"tau is {tau}; it has to be above 0")
    scaled = wide(logits) / tau
    total = scaled.logsumexp(-1)
    largest, ids = scaled.topk(k, dim=-1)
    label = scaled.gather(-1, labels[:, None]).squeeze(-1)
    return ids.to(torch.int32), largest - total[:, None], label - total


def tail_kl(student_logits: Tensor, ids: Tensor, logprobs: Tensor, *, tau: float = 1.0) -> Tensor:
    """Σ_K p(log p − log q) + p_tail·(log p_tail − log q_tail), p_tail = 1 − Σ_K p; q likewise.

    The forward KL over k+1 buckets: 0 <= tail_kl <= `forward_kl`, equal at k = V. Arguments and
    result as in `tail_divergence`.
    """
    return tail_divergence(student_logits, ids, logprobs, "forward_kl", tau=tau)


def tail_divergence(
    student_logits: Tensor,
    ids: Tensor,
    logprobs: Tensor,
    divergence: str | Divergence,
    *,
    tau: float = 1.0,
    beta: float = 0.5,
    skew: float = 0.1,
) -> Tensor:
    """Any divergence of `pipestill.losses.response` over the k stored ids and the rest.

    Ids whose student logit is -inf are left out of both sides. Where log-probabilities rounded to
    bf16 sum to slightly more than 1, the teacher's buckets are normalised to 1.
    The teacher's tail is 1 − Σ p, known to the rounding of the store only: the forward divergences
    weigh it by itself and do not notice, the reverse KL takes its logarithm.

    Args:
        student_logits: (N, V), any float type; V covers every stored id.
        ids: (N, k), any integer type; no id twice in a row.
        logprobs: (N, k) log-soft-max of the teacher at `tau`, any float type.
        divergence: a name of `DIVERGENCES`, or an entry of it.
        tau: temperature that the log-probabilities were stored at; divides the student's logits
            only.
        beta: of ``jsd``.
        skew: of the skewed divergences.

    Returns:
        (N,) nats in fp32 (float64 stays float64), differentiable in `student_logits`.

    Raises:
        KeyError: no such divergence.
        ValueError: tau is not above 0, beta or skew not from 0 to 1.
    """
    if not tau > 0:
        raise ValueError(f"tau is {tau}; it has to be above 0")
    function = DIVERGENCES[divergence] if isinstance(divergence, str) else divergence
    student = _student_buckets(wide(student_logits) / tau, ids.long())
    teacher = _teacher_buckets(logprobs.to(student.dtype))
    return function(student, teacher, tau=1.0, beta=beta, skew=skew)


def chunked_tail_and_nll(
    student_head: Head,
    student_states: Tensor,
    ids: Tensor,
    logprobs: Tensor,
    labels: Tensor,
    divergence: Callable[[Tensor, Tensor, Tensor], Tensor],
    rows: int,
) -> tuple[Tensor, Tensor]:
    """A divergence from the store, and the cross-entropy, without N×V logits of the student.

    Args:
        student_head: (n, D) states → (n, V) logits; a pure function of the states and weights.
        student_states: (N, D), what the student's LM head reads.
        ids: (N, k).
        logprobs: (N, k).
        labels: (N,), 0 <= label < V.
        divergence: (n, V) student logits, (n, k) ids, (n, k) log-probabilities → (n,), as
            ``partial(tail_divergence, divergence="jsd", tau=2.0)``.
        rows: states of one chunk, see `pipestill.losses.common.rows_per_chunk`.

    Returns:
        The divergences (N,) and the negative log-likelihoods (N,) at temperature 1.
    """

    def values(states: Tensor, kept: Tensor, stored: Tensor, wanted: Tensor) -> Tensor:
        logits = student_head(states)
        return torch.stack([divergence(logits, kept, stored), token_nll(logits, wanted)])

    distance, nll = in_chunks(values, (student_states, ids, logprobs, labels), rows)
    return distance, nll


def _student_buckets(logits: Tensor, ids: Tensor) -> Tensor:
    """(N, k+1) logits whose soft-max is q over the k ids and the rest.

    The rest is the log-sum-exp of its own logits: 1 − Σ_K q would lose a small tail to rounding.
    """
    rest = logits.scatter(-1, ids, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logits.gather(-1, ids), rest], dim=-1)


def _teacher_buckets(logprobs: Tensor) -> Tensor:
    """(N, k+1) log-probabilities; a tail below what their type can tell from 0 counts as that."""
    tail = -torch.expm1(logprobs.logsumexp(-1, keepdim=True))
    least = torch.finfo(logprobs.dtype).eps
    return torch.cat([logprobs, tail.clamp(min=least).log()], dim=-1)
