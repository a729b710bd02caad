"""Feature-based terms: what student and teacher compute inside, layer by layer.

``(1 - w)·CE + feature_weight·feature``; w is ``kd_weight``. Layers are paired by ``layer_map``
(`pipestill.losses.feature.layer_maps`), the feature is the mean over the pairs, and of each pair
the mean over its positions in the step: the target's in the decoder, the input's in the encoder.
The encoders are compared where both models have one and read the same tokens.

Hidden states are compared after dividing each by its root mean square, because the residual stream
of T5 grows by orders of magnitude over the layers. Where widths differ, the student's state goes
through a learned projection without bias, which is trained along and dropped at export. Attention
maps are those between target positions (all input positions in the encoder). MiniLM's relations are
those of the last layer's queries, keys and values before any rotation, and need no layer map.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipestill.config import DistillConfig
from pipestill.errors import UserError
from pipestill.losses.common import head_nll, rows_per_chunk
from pipestill.losses.feature import (
    Pairs,
    attention_kl,
    cka,
    cosine,
    hidden_mse,
    layer_maps,
    minilm,
)
from pipestill.losses.relation import gather_examples
from pipestill.models.shrink import stacks_of
from pipestill.training.batches import Encoded
from pipestill.training.distill_step import LABEL, Part, Term, Work, attach
from pipestill.training.forward import (
    batch_labels,
    collate,
    computing,
    reading_head,
    vocabulary,
)
from pipestill.training.inside import Inside, qkv_of, run_inside
from pipestill.training.step import Job
from pipestill.training.teacher_states import Teacher

FEATURE = "feature_loss"
POSITION = {"hidden_mse": hidden_mse, "cosine": cosine}  # (N, H), (N, H) → (N,)
KINDS = {"attention": "attentions", "minilm": "qkv"}  # of `pipestill.training.inside`

Works = Callable[[Job, Sequence[int], int], list[Work]]


@dataclass(frozen=True)
class Feature:
    """What is compared: `maps` says which layers, by stack."""

    variant: str
    maps: Mapping[str, Pairs]
    teacher: Teacher

    @property
    def pairs(self) -> int:
        return sum(len(pairs) for pairs in self.maps.values())


def feature_works(
    model: Any, teacher: Teacher, job: Job, variant: str, config: DistillConfig
) -> Works:
    """What makes the work of a step; attaches projections to the model where they are needed.

    Raises:
        UserError: ``CONFIG_VALUE`` (layer_map), ``MINILM_LAYERS``.
    """
    stacks = _stacks(model, teacher, job)
    text = "uniform" if variant == "minilm" else config.layer_map
    maps = _maps(model, teacher.model, stacks, text)
    if variant == "minilm":
        maps = {stack: pairs[-1:] for stack, pairs in maps.items()}
    teacher = dataclasses.replace(
        teacher, shape=dataclasses.replace(teacher.shape, may_split=False)
    )
    feature = Feature(variant, maps, teacher)
    if variant in POSITION:
        _attach_projections(model, feature, job.seed)
    if variant == "attention":
        for one in (model, teacher.model):
            one.set_attn_implementation("eager")  # the others never hold the probabilities
    if variant == "minilm":
        for one in (model, teacher.model):
            for stack in stacks:
                qkv_of(one, stack)

    def works(job: Job, rows: Sequence[int], step: int) -> list[Work]:
        data = job.train
        sequences = [s for row in rows for s in data.of_row[row]]
        tokens = float(data.target_length[sequences].sum())
        counts = {"decoder": tokens, "encoder": float(data.source_length[sequences].sum())}
        whole = variant == "cka"
        terms = {
            LABEL: Term(1 - config.kd_weight, tokens),
            FEATURE: Term(config.feature_weight, 1.0, whole),
        }
        compute = partial(
            feature_sums,
            job=job,
            data=data,
            feature=feature,
            counts=counts,
            examples=len(sequences),
        )
        return [Work(data, sequences, terms, compute, teacher.tokens)]

    return works


def feature_sums(
    model: Any,
    part: Part,
    *,
    job: Job,
    data: Encoded,
    feature: Feature,
    counts: Mapping[str, float],
    examples: int,
) -> dict[str, Any]:
    """The sum of the cross-entropy, and this part's share of the feature term."""
    import torch

    shape = dataclasses.replace(job.shape, may_split=False)
    batch = collate(data, part.sequences, shape)
    stacks, kind = list(feature.maps), KINDS.get(feature.variant, "hidden_states")
    mine = run_inside(model, batch, shape, stacks, kind)
    teacher = feature.teacher
    with torch.no_grad():
        others = teacher.batch(part.sequences)
        theirs = run_inside(teacher.of(model), others, teacher.shape, stacks, kind)
    with computing(shape):
        rows = rows_per_chunk(vocabulary(model))
        nll = head_nll(reading_head(model), mine.states, batch_labels(batch), rows)
    total: Any = 0.0
    for stack, pairs in feature.maps.items():
        for pair in pairs:
            if feature.variant == "cka":
                total = total + _cka(mine, theirs, stack, pair, part) * (part.count / examples)
            else:
                total = total + _sum(model, feature, mine, theirs, stack, pair) / counts[stack]
    return {LABEL: nll.sum(), FEATURE: total / feature.pairs}


def _sum(
    model: Any, feature: Feature, mine: Inside, theirs: Inside, stack: str, pair: tuple[int, int]
) -> Any:
    """One pair's comparison, summed over the positions that count."""
    real, variant = mine.real[stack], feature.variant
    if variant in POSITION:
        student, teacher = mine.normed(stack, pair[0]), theirs.normed(stack, pair[1])
        name = _name(stack, pair)
        extra = getattr(model, "distillation", None)
        if extra is not None and name in getattr(extra, "projections", {}):
            student = extra.projections[name](student)
        return POSITION[variant](student, teacher).sum()
    if variant == "attention":
        maps = mine.block(stack, pair[0]), theirs.block(stack, pair[1])
        return attention_kl(*maps, real) * real.sum()
    found = 0.0
    for part in range(3):  # queries, keys, values
        s, t = mine.rows(stack, part), theirs.rows(stack, part)
        heads = relation_heads(s.shape[-1], t.shape[-1], model.config.num_attention_heads)
        found = found + minilm(s, t, real, heads)
    return found * real.sum()


def _cka(mine: Inside, theirs: Inside, stack: str, pair: tuple[int, int], part: Part) -> Any:
    """1 − CKA over the positions of the whole micro-batch."""
    count = None if part.counted else 0
    student, teacher = (
        gather_examples(side.normed(stack, layer)[:count])
        for side, layer in zip((mine, theirs), pair, strict=True)
    )
    return cka(student, teacher)


def relation_heads(student: int, teacher: int, most: int) -> int:
    """How many relation heads both widths divide into, at most the student's own number."""
    common = math.gcd(student, teacher)
    return max(heads for heads in range(1, most + 1) if common % heads == 0)


def _stacks(model: Any, teacher: Teacher, job: Job) -> list[str]:
    """The stacks that can be compared position by position."""
    import torch

    both = model.config.is_encoder_decoder and teacher.model.config.is_encoder_decoder
    mine, theirs = job.train, teacher.data
    same = torch.equal(mine.source_length, theirs.source_length) and torch.equal(
        mine.source, theirs.source
    )
    return ["encoder", "decoder"] if both and same else ["decoder"]


def _maps(model: Any, teacher: Any, stacks: Sequence[str], text: str) -> dict[str, Pairs]:
    counts = [
        {stack: len(found[stack][1]) for stack in stacks}
        for found in (stacks_of(model), stacks_of(teacher))
    ]
    try:
        maps = layer_maps(counts[0], counts[1], text)
    except ValueError as error:
        raise UserError(
            "CONFIG_VALUE",
            f"layer_map: found {text!r}: {error}",
            f"stacks that can be compared here: {', '.join(stacks)}",
        ) from error
    return {stack: pairs for stack, pairs in maps.items() if pairs}


def _attach_projections(model: Any, feature: Feature, seed: int) -> None:
    """A bias-free linear map for every pair whose widths differ."""
    import torch

    mine = model.config.get_text_config().hidden_size
    theirs = feature.teacher.model.config.get_text_config().hidden_size
    if mine == theirs:
        return
    projections = torch.nn.ModuleDict()
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        for stack, pairs in feature.maps.items():
            for pair in pairs:
                projection = torch.nn.Linear(mine, theirs, bias=False)
                torch.nn.init.xavier_uniform_(projection.weight)
                projections[_name(stack, pair)] = projection
    attach(model, projections=projections)


def _name(stack: str, pair: tuple[int, int]) -> str:
    return f"{stack}_{pair[0]}_{pair[1]}"
