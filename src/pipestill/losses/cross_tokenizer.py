"""Distillation between different vocabularies, whose ids mean nothing to each other."""

import torch
from torch import Tensor

from pipestill.losses.response import in_chunks, wide


def uld(student_logits: Tensor, teacher_logits: Tensor, *, tau: float = 1.0) -> Tensor:
    """Universal logit distillation: Σ_i |sort(q)_i − sort(p)_i|, the shorter padded with zeros.

    Boizard et al. 2024, arXiv 2402.12030, section 3: the Wasserstein distance of probabilities
    where all ids are equally far apart. Which token is likely is lost, how sure the teacher is
    remains; so use it beside the cross-entropy. The positions of both have to be paired already.
    Logits of -inf count as probability 0.

    Args:
        student_logits: (N, V_s), any float type.
        teacher_logits: (N, V_t).
        tau: temperature above 0.

    Returns:
        (N,), 0 to 2, in fp32 (float64 stays float64), differentiable in `student_logits`.

    Raises:
        ValueError: tau is not above 0.
    """
    if not tau > 0:
        raise ValueError(f"tau is {tau}; it has to be above 0")
    student, teacher = (
        torch.softmax(wide(logits) / tau, dim=-1).sort(dim=-1, descending=True).values
        for logits in (student_logits, teacher_logits)
    )
    common = min(student.shape[-1], teacher.shape[-1])
    ends = student[:, common:].sum(-1) + teacher[:, common:].sum(-1)
    return (student[:, :common] - teacher[:, :common]).abs().sum(-1) + ends


def chunked_uld(
    student_logits: Tensor, teacher_logits: Tensor, rows: int, *, tau: float = 1.0
) -> Tensor:
    """`uld` on `rows` positions at a time: the sorted copies of one chunk exist at once.

    With LM heads instead of logits, give `uld` to `pipestill.losses.response.chunked_divergence`.

    Args:
        rows: positions of one chunk. The other arguments, result and errors as in `uld`.
    """

    def values(student: Tensor, teacher: Tensor) -> Tensor:
        return uld(student, teacher, tau=tau)

    return in_chunks(values, (student_logits, teacher_logits), rows)
