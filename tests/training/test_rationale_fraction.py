"""A fraction of the rationales a step: unbiased, determined by the seed, and all of them at 1."""

import dataclasses

import pytest
import torch

from pipestill.training.step import Job, accumulate, chosen_rationales
from tests.training.tiny import config, make_data, make_loaded, make_rows

ROWS = make_rows(8, every=0)


def make_job(fraction: float, seed: int = 0, kind: str = "t5_tied") -> Job:
    loaded = make_loaded(kind, torch.float64)
    data, shape = make_data(loaded, ROWS)
    job = Job(loaded.model, data, None, [1] * 8, shape, config(), 0.4, 1e-3, seed)
    return dataclasses.replace(job, rationale_fraction=fraction)


def drawn(job: Job) -> tuple[frozenset[int], float]:
    sequences = [s for found in job.train.of_row for s in found]
    kept, weight = chosen_rationales(job, sequences, range(8))
    labels = {s for s in sequences if job.train.label_length[s]}
    assert labels <= set(kept)  # a label is never left out
    return frozenset(kept) - labels, weight


def gradient(job: Job) -> torch.Tensor:
    job.model.zero_grad()
    accumulate(job, range(8))
    return torch.cat([weight.grad.flatten() for weight in job.model.parameters()])


@pytest.mark.parametrize("kind", ["t5_tied", "llama"])
def test_the_mean_gradient_of_all_draws_is_the_full_gradient(kind):
    """A quarter of eight rationales has four possible draws, each as likely as the others."""
    draws = {}
    for seed in range(60):
        job = make_job(0.25, seed, kind)
        found, weight = drawn(job)
        assert (len(found), weight) == (2, 4.0)
        draws.setdefault(found, job)
    assert len(draws) == 4
    mean = torch.stack([gradient(job) for job in draws.values()]).mean(0)
    full = gradient(make_job(1.0, kind=kind))
    torch.testing.assert_close(mean, full, rtol=0, atol=1e-9)
    one = gradient(next(iter(draws.values())))
    assert float((one - full).abs().max()) > 1e-3  # a single draw is not


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.75])
def test_every_rationale_is_drawn_as_often(fraction):
    times = dict.fromkeys(range(16), 0)
    for seed in range(400):
        found, weight = drawn(make_job_lightly(fraction, seed))
        assert weight == pytest.approx(8 / len(found))
        for s in found:
            times[s] += 1
    share = [count / 400 for count in times.values() if count]
    assert len(share) == 8
    assert all(abs(value - max(1, round(fraction * 8)) / 8) < 0.09 for value in share)


def test_the_draw_depends_on_seed_and_rows_alone():
    assert drawn(make_job(0.25, 3)) == drawn(make_job(0.25, 3))
    assert len({drawn(make_job_lightly(0.25, seed))[0] for seed in range(9)}) > 1
    assert drawn(make_job(1.0))[1] == 1.0


def test_the_reported_sums_stand_for_all_rationales():
    whole, part = (accumulate(make_job(fraction), range(8)) for fraction in (1.0, 0.5))
    assert part.rationale_count == whole.rationale_count
    for name, within in (("label_loss", {"abs": 1e-9}), ("rationale_loss", {"rel": 0.3})):
        found, wanted = (float(sums.terms[name][0]) for sums in (part, whole))
        assert found == pytest.approx(wanted, **within)
    assert part.input_count < whole.input_count
    assert part.flops < whole.flops


LIGHT = make_job(1.0)


def make_job_lightly(fraction: float, seed: int) -> Job:
    return dataclasses.replace(LIGHT, rationale_fraction=fraction, seed=seed)
