"""The student's `rationale_fraction`, `packing` and `compile`: wired, checked, and exact."""

import dataclasses

import pytest
import torch

from pipestill.errors import UserError
from pipestill.models.render import renderer_for
from pipestill.records import Example, write_jsonl
from pipestill.training import compiling
from pipestill.training.step import accumulate, validate
from pipestill.training.student import make_job, train_student
from pipestill.training.supervised import tune
from tests.training.test_supervised import CONFIG as TUNING
from tests.training.tiny import config, make_folder, make_loaded, make_rows

ROWS = make_rows(12, every=4)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return make_folder("llama", tmp_path_factory.mktemp("models") / "llama")


def step(kind: str, packing: str, fraction: float):
    loaded = make_loaded(kind, torch.float64)
    chosen = config(packing=packing, rationale_fraction=fraction)
    job = make_job(loaded, renderer_for(loaded, 128, 64), ROWS, ROWS[:5], "dss", 3, chosen)
    sums = accumulate(job, range(len(ROWS)))
    gradients = {name: weight.grad for name, weight in loaded.model.named_parameters()}
    return job, sums, gradients, validate(job)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_label_and_explanation_of_a_row_packed_together_give_the_unpacked_step(kind, fraction):
    job, sums, packed, scores = step(kind, "on", fraction)
    plain_job, plain_sums, plain, plain_scores = step(kind, "off", fraction)
    assert job.shape.packed > 0 == plain_job.shape.packed
    assert job.rationale_fraction == fraction
    mine, other = (
        {name: value for name, value in dataclasses.asdict(found).items() if name != "terms"}
        for found in (sums, plain_sums)
    )
    assert mine == other
    for name, (value, count) in sums.terms.items():
        wanted = plain_sums.terms[name]
        assert (float(value), count) == pytest.approx((float(wanted[0]), wanted[1]), abs=1e-6)
    assert scores == pytest.approx(plain_scores, abs=1e-6)
    for name, gradient in plain.items():
        torch.testing.assert_close(packed[name], gradient, rtol=0, atol=1e-9, msg=name)


def test_an_encoder_decoder_is_told_that_it_is_not_packed(capsys):
    assert step("t5_tied", "on", 1.0)[0].shape.packed == 0
    assert capsys.readouterr().err.count("packing is off") == 1


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"rationale_fraction": 0.0}, "above 0 to 1"),
        ({"rationale_fraction": 1.5}, "above 0 to 1"),
        ({"rationale_fraction": -0.25}, "above 0 to 1"),
        ({"packing": "yes"}, "auto, on, off"),
        ({"compile": "fast"}, "auto, on, off"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path, changes, allowed):
    (name,) = changes
    with pytest.raises(UserError, match=rf"CONFIG_VALUE\] {name}: found .*{allowed}"):
        train_student(tmp_path, tmp_path / "s", run="dss:0", state_dir="", config=config(**changes))


def test_a_run_uses_all_three(tmp_path, decoder, monkeypatch, capsys):
    write_jsonl(tmp_path / "rows.jsonl", make_rows(24, every=0))
    asked = []
    real = compiling.compile_blocks

    def eager(model, mode, device):
        asked.append(mode)
        return real(model, mode, device, backend="eager")

    monkeypatch.setattr(compiling, "compile_blocks", eager)
    found = {}
    for name, fraction, switch in (("plain", 1.0, "off"), ("part", 0.25, "on")):
        chosen = config(
            student_model_reference=decoder,
            rationale_fraction=fraction,
            packing=switch,
            compile=switch,
        )
        found[name] = train_student(
            tmp_path / "rows.jsonl", tmp_path / name, run="dss:0", state_dir="", config=chosen
        )
    assert asked == ["off", "on"]
    assert found["part"]["rationale_tokens"] == found["plain"]["rationale_tokens"]  # stand for all
    assert found["part"]["input_tokens"] < 0.7 * found["plain"]["input_tokens"]
    assert "off:" not in capsys.readouterr().err


def test_tuning_settles_packing_once(tmp_path, capsys):
    rows = [Example(id=f"e{i}", input_text="abc", output_text="red") for i in range(12)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    base = make_folder("t5_tied", tmp_path / "base")
    changes = {"packing": "on", "compile": "on", "train_steps": 1}
    chosen = dataclasses.replace(TUNING, large_model_reference=base, **changes)
    tune(tmp_path / "rows.jsonl", "", tmp_path / "m", state_dir="", config=chosen)
    told = capsys.readouterr().err
    assert told.count("packing is off") == told.count("compile is off") == 1
