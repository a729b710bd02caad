"""A step on XLA's CPU device, four chips simulated, gives the weights of an ordinary step."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipestill.training import xla

SCRIPT = """
import torch
from pipestill.training.loop import fit
from pipestill.training.step import Job
from tests.training.tiny import config, make_data, make_loaded, make_rows
loaded = make_loaded("t5_tied")
data, shape = make_data(loaded, make_rows(8))
job = Job(loaded.model, data, None, [1] * 8, shape, config(train_steps=1), 0.5, 1e-3, 0)
fit(job, None)
torch.save({name: value.clone() for name, value in loaded.model.state_dict().items()}, "OUT")
"""


def test_it_is_used_only_where_asked_for(monkeypatch):
    monkeypatch.delenv("PJRT_DEVICE", raising=False)
    assert not xla.wanted()
    monkeypatch.setenv("PJRT_DEVICE", "TPU")
    assert xla.wanted()


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("torch_xla"), reason="torch_xla is not installed")
def test_a_step_on_four_simulated_chips_is_an_ordinary_step(tmp_path):
    import torch

    weights = []
    for device in ("", "CPU"):
        out = tmp_path / f"weights{device}"
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        if device:
            environment |= {"PJRT_DEVICE": device, "CPU_NUM_DEVICES": "4"}
        command = [sys.executable, "-c", SCRIPT.replace("OUT", str(out))]
        subprocess.run(command, env=environment, check=True)
        weights.append(torch.load(out, weights_only=True))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-5)
