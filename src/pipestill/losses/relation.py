"""Relation-based distillation: how examples, or answers to one input, lie to each other.

All but `ranking` read one embedding (N, D) an example, of any width on either side, and give a
scalar in fp32 (float64 stays float64). A relation needs the examples of the whole batch: see
`gather_examples`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from pipestill.losses.response import forward_kl, wide

PKT_EPSILON = 1e-7  # of the authors' code; part of the value


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between pairwise distances, each over its mean. The scale of either is free.

    Park et al. 2019, arXiv 1904.05068 (distance-wise loss). The mean is over the distances above 0,
    the loss over all N² pairs, as in the authors' code.

    Args:
        student: (N, D_s).
        teacher: (N, D_t).
    """
    return smooth_l1_loss(_distances(student), _distances(teacher))


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the cosines of the angles of all N³ triples.

    Park et al. 2019, arXiv 1904.05068 (angle-wise loss). Memory and time grow with N³: 64
    examples make 1 MiB, 512 make 512 MiB.

    Args:
        student: (N, D_s).
        teacher: (N, D_t).
    """
    return smooth_l1_loss(_angles(student), _angles(teacher))


def rkd(
    student: Tensor, teacher: Tensor, *, distance_weight: float = 25.0, angle_weight: float = 50.0
) -> Tensor:
    """Weighted sum of `rkd_distance` and `rkd_angle`; 1 : 2 as in the paper."""
    distance = distance_weight * rkd_distance(student, teacher)
    return distance + angle_weight * rkd_angle(student, teacher)


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the Gram matrices with rows of length 1.

    Tung & Mori 2019, arXiv 1907.09682, section 3.

    Args:
        student: (N, D_s).
        teacher: (N, D_t).
    """
    rows = [torch.nn.functional.normalize(wide(e) @ wide(e).T, dim=1) for e in (student, teacher)]
    return (rows[0] - rows[1]).square().mean()


def pkt(student: Tensor, teacher: Tensor) -> Tensor:
    """KL between conditional similarities: (cos + 1)/2, each row over its sum.

    Probabilistic knowledge transfer, Passalis & Tefas 2018, arXiv 1803.10837, with the cosine
    kernel; the mean over all N² entries, as in the authors' code.

    Args:
        student: (N, D_s).
        teacher: (N, D_t).
    """
    q, p = _similarities(student), _similarities(teacher)
    return (p * ((p + PKT_EPSILON) / (q + PKT_EPSILON)).log()).mean()


def ranking(student_scores: Tensor, teacher_scores: Tensor, *, tau: float = 1.0) -> Tensor:
    """KL between soft-maxed scores of the k answers to one input, the mean over the inputs.

    ListNet's top-one probabilities, Cao et al. 2007 (ICML), as KL instead of the
    cross-entropy, so that equal scores give 0.

    Args:
        student_scores: (B, k), such as mean log-probabilities of the answers; -inf for an answer
            that is missing.
        teacher_scores: (B, k), likewise.
        tau: temperature above 0.

    Returns:
        Scalar in nats; 0 where there are no inputs.

    Raises:
        ValueError: tau is not above 0.
    """
    values = forward_kl(student_scores, teacher_scores, tau=tau)
    return values.sum() / max(1, len(values))


def gather_examples(embeddings: Tensor, group: Any = None) -> Tensor:
    """The embeddings of all processes, in the order of their ranks.

    This process's own part keeps its gradient, the others' are constants. So the gradients of a
    loss over the result add up over the processes to those of the loss in one process; where they
    are averaged instead (DDP, FSDP), multiply the loss by the number of processes.

    Args:
        embeddings: (n, D); n may differ from process to process, D and the type may not.
        group: process group; all processes where None.

    Returns:
        (N, D), N the sum of all n. Without torch.distributed, `embeddings` itself.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return embeddings
    own = torch.tensor([len(embeddings)], device=embeddings.device)
    sizes = [torch.zeros_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, own, group=group)
    lengths = [int(size) for size in sizes]
    # Collectives want equal shapes, so the shorter parts are padded and cut again.
    padded = embeddings.new_zeros(max(lengths), *embeddings.shape[1:])
    padded[: len(embeddings)] = embeddings.detach()
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded, group=group)
    cut = [part[:length] for part, length in zip(parts, lengths, strict=True)]
    cut[dist.get_rank(group)] = embeddings
    return torch.cat(cut)


def _distances(embeddings: Tensor) -> Tensor:
    """(N, N) Euclidean distances over the mean of those above 0."""
    # The product form of the distance is inexact for near pairs, and so is its gradient.
    mode = "donot_use_mm_for_euclid_dist"
    distances = torch.cdist(wide(embeddings), wide(embeddings), compute_mode=mode)
    apart = (distances > 0).sum().clamp(min=1)
    mean = distances.sum() / apart
    return distances / torch.where(mean > 0, mean, 1.0)


def _angles(embeddings: Tensor) -> Tensor:
    """(N, N, N): at example i, the cosine of the angle between the directions to j and to k."""
    values = wide(embeddings)
    towards = values[None, :, :] - values[:, None, :]
    length = towards.norm(dim=-1, keepdim=True)
    # A direction of length 0 becomes 0 with gradient 0, not 0/0.
    units = towards / length.masked_fill(length == 0, torch.inf)
    return units @ units.transpose(1, 2)


def _similarities(embeddings: Tensor) -> Tensor:
    values = wide(embeddings)
    units = values / (values.norm(dim=1, keepdim=True) + PKT_EPSILON)
    kernel = (units @ units.T + 1) / 2
    return kernel / kernel.sum(dim=1, keepdim=True)
