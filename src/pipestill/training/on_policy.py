"""On-policy distillation: the student writes, the teacher scores every token of it.

Of a step's rows a share, drawn by seed and step, is answered by the student at the moment
(Agarwal et al. 2023, arXiv 2306.13649, algorithm 1); the others use the stored text. With N tokens
in the step, stored and sampled together,

    L = (Σ_stored [(1 − w)·CE + w·τ²·D] + Σ_sampled τ²·D) / N,

so every token weighs the same. Samples carry no cross-entropy: they are nobody's label. They are
drawn from the student's own distribution at the temperature alone (no top-p, no top-k), and no
gradient flows through the drawing. Token ids go to the teacher as they are, never as text.
"""

import dataclasses
import hashlib
import random
from collections.abc import Sequence
from functools import partial
from typing import Any

from pipestill.config import DistillConfig
from pipestill.training.batches import Encoded, flatten, gather
from pipestill.training.distill_response import KD, Divergence, response_sums, response_work
from pipestill.training.distill_step import Part, Work
from pipestill.training.distributed import share
from pipestill.training.forward import computing, vocabulary
from pipestill.training.step import Job
from pipestill.training.teacher_states import Teacher

SAMPLED = "on_policy_loss"


def on_policy_works(
    job: Job,
    rows: Sequence[int],
    step: int,
    *,
    teacher: Teacher,
    how: Divergence,
    config: DistillConfig,
    end: int,
    limit: int,
) -> list[Work]:
    """The works of a step: the rows of stored text, and the rows that are sampled.

    Args:
        job: the job.
        rows: the rows of the step.
        step: counts from 1.
        teacher: the teacher; it shares the student's vocabulary.
        how: the divergence.
        config: the settings.
        end: the id that closes an answer.
        limit: tokens of a sample, at most.
    """
    chosen = sampled_rows(rows, config.on_policy_fraction, job.seed, step)
    works = []
    stored = [row for row in rows if row not in set(chosen)]
    if stored:
        works.append(response_work(job, stored, teacher, how, config))
    if chosen:
        sequences = [s for row in chosen for s in job.train.of_row[row]]
        answers = sample(
            job,
            sequences,
            step,
            temperature=config.sample_temperature,
            limit=limit,
            end=end,
            size=teacher.size,
        )
        works.append(_sampled(job, sequences, answers, teacher, how, config))
    total = sum(next(iter(work.terms.values())).count for work in works)
    return [_over(work, total) for work in works]


def sampled_rows(rows: Sequence[int], fraction: float, seed: int, step: int) -> list[int]:
    """The rows of a step that the student answers itself."""
    dice = random.Random(f"{seed} {step} on-policy")  # noqa: S311
    return sorted(dice.sample(list(rows), round(fraction * len(rows))))


def sample(
    job: Job,
    sequences: Sequence[int],
    step: int,
    *,
    temperature: float,
    limit: int,
    end: int,
    size: int,
) -> list[list[int]]:
    """The student's answers as ids, each up to and with its end mark, in every process.

    An answer that does not end in `limit` tokens has no end mark, so the teacher's opinion on
    stopping there is not asked. An answer that is empty is its end mark alone.

    Args:
        job: the job.
        sequences: of ``job.train``, whose inputs are answered.
        step: with the job's seed and this process's rank it decides what is drawn.
        temperature: divides the student's logits.
        limit: tokens of an answer, at most.
        end: the id that closes an answer.
        size: ids from here on (rows of a padded vocabulary) are never drawn.
    """
    import torch

    mine, _ = share(sequences, job.world)
    device = torch.device(job.shape.device)
    training = job.model.training
    job.model.eval()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(_seed(job.seed, step, job.world.rank))
        with computing(job.shape):
            output = job.run(
                _generated, *_prompts(job, mine), _settings(job, temperature, limit, end, size)
            )
    job.model.train(training)
    return _gathered([_until(row, end) for row in output.tolist()], sequences, job)


def with_targets(data: Encoded, sequences: Sequence[int], targets: Sequence[list[int]]) -> Encoded:
    """The inputs of `sequences` with other targets, one row a sequence."""
    import torch

    target, start, length = flatten(targets)
    chosen = torch.tensor(sequences)
    return dataclasses.replace(
        data,
        source_start=data.source_start[chosen],
        source_length=data.source_length[chosen],
        target=target,
        target_start=start,
        target_length=length,
        label_length=length,
        of_row=[[i] for i in range(len(targets))],
    )


def _sampled(
    job: Job,
    sequences: Sequence[int],
    answers: Sequence[list[int]],
    teacher: Teacher,
    how: Divergence,
    config: DistillConfig,
) -> Work:
    data = with_targets(job.train, sequences, answers)
    theirs = dataclasses.replace(teacher, data=with_targets(teacher.data, sequences, answers))
    whole = dataclasses.replace(job, train=data)
    work = response_work(whole, range(len(answers)), theirs, how, config)
    # All of a token's weight is the divergence's: as if kd_weight were 1.
    weight = config.tau**2 if config.scale_by_tau2 else 1.0
    term = dataclasses.replace(work.terms[KD], weight=weight)
    compute = partial(_sampled_sums, job=whole, data=data, teacher=theirs, how=how)
    return dataclasses.replace(work, terms={SAMPLED: term}, compute=compute)


def _sampled_sums(model: Any, part: Part, **given: Any) -> dict[str, Any]:
    return {SAMPLED: response_sums(model, part, **given)[KD]}


def _over(work: Work, total: float) -> Work:
    """The same work with every term weighed by its tokens' share of the step."""
    terms = {
        name: dataclasses.replace(term, weight=term.weight * term.count / total)
        for name, term in work.terms.items()
    }
    return dataclasses.replace(work, terms=terms)


def _prompts(job: Job, sequences: Sequence[int]) -> tuple[Any, Any]:
    """Input ids and mask; padded on the left for decoders, which write on."""
    import torch

    data, chosen = job.train, torch.tensor(sequences)
    ids, real = gather(
        data.source, data.source_start[chosen], data.source_length[chosen], job.shape.pad
    )
    if not job.shape.is_encoder_decoder:
        places = torch.arange(ids.shape[1]) - (ids.shape[1] - data.source_length[chosen])[:, None]
        ids, real = ids.gather(1, places % ids.shape[1]), places >= 0
    return ids.to(job.shape.device), real.long().to(job.shape.device)


def _settings(job: Job, temperature: float, limit: int, end: int, size: int) -> Any:
    from transformers import GenerationConfig

    padding = list(range(size, vocabulary(job.model)))
    return GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        num_beams=1,
        max_new_tokens=limit,
        eos_token_id=end,
        pad_token_id=job.shape.pad,
        decoder_start_token_id=job.shape.start if job.shape.is_encoder_decoder else None,
        suppress_tokens=padding or None,
        use_cache=True,
    )


def _generated(model: Any, ids: Any, mask: Any, settings: Any) -> Any:
    """(n, T) the new ids. Sharded models write on until the longest answer of all has ended."""
    import torch.distributed as dist

    several = dist.is_available() and dist.is_initialized()
    output = model.generate(
        input_ids=ids, attention_mask=mask, generation_config=settings, synced_gpus=several
    )
    return output[:, 1:] if model.config.is_encoder_decoder else output[:, ids.shape[1] :]


def _until(row: list[int], end: int) -> list[int]:
    return row[: row.index(end) + 1] if end in row else row


def _gathered(mine: list[list[int]], sequences: Sequence[int], job: Job) -> list[list[int]]:
    """The answers of all processes in the order of `sequences`."""
    if job.world.size == 1:
        return mine
    import torch.distributed as dist

    everyone: list[Any] = [None] * job.world.size
    dist.all_gather_object(everyone, mine)
    size = job.world.size
    found: list[list[int]] = [everyone[i % size][i // size] for i in range(len(sequences))]
    return found


def _seed(seed: int, step: int, rank: int) -> int:
    digest = hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
