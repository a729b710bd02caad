"""Feature-based distillation: hidden states, attention maps and self-attention relations.

Values come in fp32 (float64 stays float64). `hidden_mse` and `cosine` need states of one width;
the others compare models of different widths and numbers of heads as they are.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from pipestill.losses.response import forward_kl, wide

Pairs = list[tuple[int, int]]


def hidden_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference over the width. FitNets, Romero et al. 2014, arXiv 1412.6550.

    States of an un-normalised residual stream (T5) are large: give those after the last norm.

    Args:
        student: (N, H) states at the positions that count, projected to H where need be.
        teacher: (N, H).

    Returns:
        (N,).
    """
    return (wide(student) - wide(teacher)).square().mean(-1)


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 − cosine similarity, 0 to 2. DistilBERT, Sanh et al. 2019, arXiv 1910.01108.

    Arguments and result as in `hidden_mse`.
    """
    return 1 - cosine_similarity(wide(student), wide(teacher), dim=-1)


def cka(student: Tensor, teacher: Tensor) -> Tensor:
    """1 − linear CKA: 1 − ‖YᵀX‖² / (‖XᵀX‖·‖YᵀY‖), columns centred over the N positions.

    Kornblith et al. 2019, arXiv 1905.00414, section 3. Free of rotation and scale of either side,
    so it needs no projection. N should be several times the width: at N <= 1 + H nearly any two
    sets of states agree.

    Args:
        student: (N, H_s) states at the positions that count.
        teacher: (N, H_t).

    Returns:
        Scalar, 0 to 1; 1 where one side is constant.
    """
    x, y = _centred(student), _centred(teacher)
    norms = (x.T @ x).norm() * (y.T @ y).norm()
    return 1 - (y.T @ x).square().sum() / torch.where(norms > 0, norms, 1.0)


def mmd(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of the inner products of the positions, each over its width.

    Neuron selectivity transfer with the polynomial kernel of degree 1, Huang & Wang 2017, arXiv
    1707.01219, between the positions of a sequence.

    Args:
        student: (B, T, H_s).
        teacher: (B, T, H_t).
        mask: (B, T), True at positions that count.

    Returns:
        Scalar; 0 where no position counts.
    """
    s, t = (wide(h) @ wide(h).transpose(1, 2) / h.shape[-1] for h in (student, teacher))
    return _mean((s - t)[_pairs(mask)].square())


def attention_mse(student_attn: Tensor, teacher_attn: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of attention maps, averaged over the heads first.

    TinyBERT, Jiao et al. 2019, arXiv 1909.10351 (attention based distillation), for any numbers
    of heads.

    Args:
        student_attn: (B, A_s, T, T) attention probabilities.
        teacher_attn: (B, A_t, T, T).
        mask: (B, T), True at positions that count, as query and as key.

    Returns:
        Scalar; 0 where no position counts.
    """
    difference = wide(student_attn).mean(1) - wide(teacher_attn).mean(1)
    return _mean(difference[_pairs(mask)].square())


def attention_kl(student_attn: Tensor, teacher_attn: Tensor, mask: Tensor) -> Tensor:
    """KL of the teacher's attention from the student's, averaged over heads first, then queries.

    MiniLM, Wang et al. 2020, arXiv 2002.10957 (attention transfer), for any numbers of heads. Rows
    are normalised over the keys that count.

    Arguments and result as in `attention_mse`.
    """
    s, t = (_log_map(attention, mask) for attention in (student_attn, teacher_attn))
    return _mean(forward_kl(s[mask.bool()], t[mask.bool()]))


def minilm(student: Tensor, teacher: Tensor, mask: Tensor, heads: int) -> Tensor:
    """KL of one self-attention relation: soft-max(X·Xᵀ/√d) of queries, or keys, or values.

    MiniLMv2, Wang et al. 2020, arXiv 2012.15828 (relation distillation). Call it for the queries,
    the keys and the values of one layer and add up. Both sides are cut anew into `heads` relation
    heads, so their own numbers of heads do not matter.

    Args:
        student: (B, T, H_s) queries, keys or values of all heads side by side.
        teacher: (B, T, H_t), the same of the teacher.
        mask: (B, T), True at positions that count.
        heads: relation heads; divides H_s and H_t.

    Returns:
        Scalar: the mean over relation heads and positions; 0 where no position counts.

    Raises:
        ValueError: a width is not a multiple of `heads`.
    """
    s, t = (_relation(values, mask, heads) for values in (student, teacher))
    rows = mask.bool()[:, None, :].expand(s.shape[:3])
    return _mean(forward_kl(s[rows], t[rows]))


def layer_map(student_layers: int, teacher_layers: int, text: str = "uniform") -> Pairs:
    """Which teacher layer each student layer learns from, as (student, teacher) from 0.

    Args:
        student_layers: number of layers of the student's stack.
        teacher_layers: number of layers of the teacher's.
        text: ``uniform`` (layer i from round((i+1)·teacher/student) − 1, the last from the last) or
            pairs, ``0:1,1:3``.

    Raises:
        ValueError: the text is neither, a layer does not exist, or a pair stands twice.
    """
    if text.strip() == "uniform":
        ratio = teacher_layers / student_layers
        return [(i, max(0, round((i + 1) * ratio) - 1)) for i in range(student_layers)]
    pairs = [_pair(part.strip(), student_layers, teacher_layers) for part in text.split(",")]
    if len(set(pairs)) < len(pairs):
        raise ValueError(f"layer map {text!r} has a pair twice")
    return pairs


def layer_maps(
    student: Mapping[str, int], teacher: Mapping[str, int], text: str = "uniform"
) -> dict[str, Pairs]:
    """The layer map of every stack: of encoder and decoder apart, or of the one there is.

    Args:
        student: number of layers by stack, as ``{"encoder": 2, "decoder": 1}``.
        teacher: the same stacks of the teacher.
        text: ``uniform`` for all stacks; or stack by stack, ``encoder 0:1; decoder uniform``, where
            a stack not named has no pairs; or pairs alone where there is one stack.

    Raises:
        ValueError: stacks differ, the text names none or one twice or an unknown one, or a map is
            bad as in `layer_map`.
    """
    if set(student) != set(teacher):
        raise ValueError(f"stacks differ: student {sorted(student)}, teacher {sorted(teacher)}")
    given = _by_stack(text, list(student))
    return {
        stack: layer_map(student[stack], teacher[stack], given[stack]) if stack in given else []
        for stack in student
    }


def _by_stack(text: str, stacks: list[str]) -> dict[str, str]:
    if text.strip() == "uniform" or (len(stacks) == 1 and not re.match(r"\s*[a-z]+\s", text)):
        return dict.fromkeys(stacks, text)
    given: dict[str, str] = {}
    for part in text.split(";"):
        stack, _, pairs = part.strip().partition(" ")
        if stack not in stacks or stack in given:
            allowed = "; ".join(f"{stack} 0:0" for stack in stacks)
            raise ValueError(
                f"layer map {text!r}: found {part.strip()!r}; write 'uniform', or each stack once, "
                f"as {allowed!r}"
            )
        given[stack] = pairs
    return given


def _pair(part: str, student_layers: int, teacher_layers: int) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)\s*:\s*(\d+)", part, re.ASCII)
    if not found:
        raise ValueError(
            f"layer map: found {part!r}; write 'uniform', or pairs student:teacher, as '0:1,1:3'"
        )
    student, teacher = int(found[1]), int(found[2])
    for side, layer, count in (
        ("student", student, student_layers),
        ("teacher", teacher, teacher_layers),
    ):
        if layer >= count:
            raise ValueError(
                f"layer map: {part!r} names {side} layer {layer}; the {side} has 0 to {count - 1}"
            )
    return student, teacher


def _centred(states: Tensor) -> Tensor:
    """Columns of mean 0, the whole of length 1: products of large states do not overflow."""
    values = wide(states)
    values = values - values.mean(0)
    length = values.norm()
    return values / torch.where(length > 0, length, 1.0)


def _pairs(mask: Tensor) -> Tensor:
    return mask.bool()[:, :, None] & mask.bool()[:, None, :]


def _mean(values: Tensor) -> Tensor:
    return values.sum() / max(1, values.numel())


def _log_map(attention: Tensor, mask: Tensor) -> Tensor:
    """(B, T, T) logits of the mean attention. A probability of 0 is no -inf: gradients stay."""
    mean = wide(attention).mean(1)
    logits = mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
    return logits.masked_fill(~mask.bool()[:, None, :], -torch.inf)


def _relation(values: Tensor, mask: Tensor, heads: int) -> Tensor:
    """(B, heads, T, T) logits, -inf at keys that do not count."""
    width = values.shape[-1]
    if width % heads:
        raise ValueError(f"a width of {width} does not divide into {heads} relation heads")
    split = wide(values).unflatten(-1, (heads, width // heads)).transpose(1, 2)
    logits = split @ split.transpose(2, 3) / (width // heads) ** 0.5
    return logits.masked_fill(~mask.bool()[:, None, None, :], -torch.inf)
