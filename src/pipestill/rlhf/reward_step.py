"""The reward model's objective as a plug of the training loop, and the look before the first step.

Both answers of a pair go through one forward pass; parts of a step are cut by tokens, between
pairs, and the loss is divided by the pairs of the whole step, so the parts change no gradient.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipestill.losses.reward import bradley_terry
from pipestill.models.heads import rewards
from pipestill.models.render import Renderer
from pipestill.rlhf.reward_data import Pairs, collate_pairs, ids_of, pair_batches
from pipestill.training.audit import ROWS_SHOWN, Audit, Sample, Segment
from pipestill.training.batches import Encoded
from pipestill.training.distributed import all_sum, share
from pipestill.training.flops import Costs, costs_of, flops_of_step
from pipestill.training.step import Job, Objective, Sums, budget

MANY_CUT = 0.05  # a share of cut prompts or answers that is worth a note


def reward_objective(backbone: Any, margins: Any, centering: float) -> Objective:
    """Bradley–Terry over the pairs of `Job.train`; the best weights are those of least held-out
    −log σ(r_c − r_r), without margin and centring.

    Args:
        backbone: the model under the head, from which the cost of a step is read.
        margins: (P,) margins of the training pairs.
        centering: weight of (r_c + r_r)².
    """
    costs = costs_of(backbone)
    return Objective(
        accumulate=lambda job, rows, step: accumulate(job, rows, margins, centering, costs),
        validate=validate,
    )


def accumulate(
    job: Job,
    rows: Sequence[int],
    margins: Any,
    centering: float,
    costs: Costs,
    tokens_per_forward: int = 0,
) -> Sums:
    """Adds the gradients of one step over the pairs `rows`, in as many parts as fit.

    `tokens_per_forward` bounds a process's pass (0: what suits the device).
    """
    import torch

    data, shape = job.train, job.shape
    sums: Any = torch.zeros(3, device=shape.device)
    tokens = (tokens_per_forward or budget(shape)) * job.world.size
    for part in pair_batches(data, rows, tokens):
        mine, factor = share(part, job.world)
        chosen, rejected = _pair_rewards(job, data, mine)
        margin = margins[mine].to(chosen.device)
        loss = bradley_terry(chosen, rejected, margin=margin, centering=centering).sum()
        (loss * (factor / len(rows))).backward()
        if factor:
            gap = (chosen - rejected).detach()
            sums += torch.stack([loss.detach(), (gap > 0).float().sum(), gap.sum()])
    names = ("reward_loss", "reward_accuracy", "reward_gap")
    terms = {name: (sums[i], float(len(rows))) for i, name in enumerate(names)}
    sequences = torch.tensor([s for row in rows for s in data.of_row[row]])
    answers, read = int(data.target_length[sequences].sum()), data.source_length[sequences]
    flops = _flops(costs, data, sequences)
    return Sums(terms, label_count=answers, input_count=int(read.sum()), flops=flops)


def validate(job: Job) -> dict[str, float]:
    """Mean −log σ(r_c − r_r) and the share of pairs in the right order."""
    import torch

    data = job.validation
    if data is None:
        return {}
    sums = torch.zeros(2, dtype=torch.float64, device=job.shape.device)
    job.model.eval()
    with torch.no_grad():
        pairs = range(len(data.of_row))
        for part in pair_batches(data, pairs, budget(job.shape) * job.world.size):
            mine, factor = share(part, job.world)
            chosen, rejected = _pair_rewards(job, data, mine)
            if factor:
                right = (chosen > rejected).double() + 0.5 * (chosen == rejected).double()
                sums += torch.stack([bradley_terry(chosen, rejected).double().sum(), right.sum()])
    job.model.train()
    loss, right = (all_sum(sums, job.world) / max(1, len(data.of_row))).tolist()
    return {"val_reward_loss": loss, "val_reward_accuracy": right}


def audit_pairs(pairs: Pairs, renderer: Renderer, beside: str | Path) -> Audit:
    """Takes some pairs apart, from the tensors that are trained, and prints what is worth a note.

    In ``<beside>.audit.txt`` stands every answer after its prompt, the token where the reward is
    read between the marks. `beside` is empty for no files.
    """
    found, data = Audit(), pairs.data
    cut = {"prompts": data.cut_inputs / len(pairs), "answers": pairs.cut_answers / len(pairs) / 2}
    setting = {"prompts": "prompt_sequence_length", "answers": "target_sequence_length"}
    found.notes += [
        f"Note: {share:.0%} of the {name} are longer than {setting[name]} and lose a part."
        for name, share in cut.items()
        if share > MANY_CUT
    ]
    found.facts |= {"pairs": len(pairs), "identical_pairs": pairs.identical}
    ranked = sorted(range(len(pairs)), key=lambda p: hashlib.sha256(pairs.ids[p].encode()).digest())
    for pair in ranked[:ROWS_SHOWN]:
        for side, task in enumerate(("preferred answer", "other answer")):
            prompt, answer = ids_of(data, 2 * pair + side)
            parts = ((prompt + answer[:-1], False), (answer[-1:], True))
            segments = tuple(Segment(renderer.tokenizer.decode(i), loss) for i, loss in parts)
            size = len(prompt) + len(answer)
            found.samples.append(Sample(pairs.ids[pair], task, size, 1, segments))
    print(*found.notes, sep="\n", end="\n" if found.notes else "", flush=True)
    if beside:
        found.write(beside)
    return found


def _pair_rewards(job: Job, data: Encoded, pairs: Sequence[int]) -> tuple[Any, Any]:
    """(n,) rewards of the preferred answers, and of the others."""
    shape = job.shape
    batch = collate_pairs(data, pairs, shape.pad, shape.device)
    found = job.run(rewards, *batch, shape.autocast)
    return found[: len(pairs)], found[len(pairs) :]


def _flops(costs: Costs, data: Encoded, sequences: Any) -> float:
    """Operations of a step; the LM head does not run, and an encoder reads a pair's prompt once."""
    answers = float(data.target_length[sequences].sum())
    found = flops_of_step(costs, data, sequences) - costs.head * answers
    read = data.source_length[sequences[::2]].double()
    spared = costs.encoder * float(read.sum()) + costs.encoder_pair * float((read * read).sum())
    return found - spared
