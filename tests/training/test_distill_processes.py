"""Two processes (gloo, CPU) distil as one does."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.training import two_distilled
from tests.training.distilling import folder_of, written
from tests.training.test_distributed import environment

RUNS = (
    "response", "feature/hidden_mse", "feature/cka", "feature/attention", "feature/minilm",
    "relation/rkd", "relation/ranking", "self/ema", "self/context", "self/born_again",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pair", "runs"), [(("t5_tied", "llama"), RUNS), (("llama", "llama"), RUNS[:2])]
)
def test_two_processes_distil_like_one(tmp_path, pair, runs):
    """A step's 5 rows do not divide by 2; samples alone depend on the number of processes."""
    rows = str(written(tmp_path))
    names = folder_of(pair[1], tmp_path / "t", 2), folder_of(pair[0], tmp_path / "s", 1)
    two_distilled.main(rows, *names, str(tmp_path / "one"), *runs)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", two_distilled.__file__, rows, *names]
    command += [str(tmp_path / "two"), *runs, "on_policy"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for run in runs:
        place = run.replace("/", "-")
        told, other = (
            json.loads((tmp_path / count / place / "summary.json").read_text())
            for count in ("one", "two")
        )
        for name, value in told.items():
            if name.endswith("_loss") or name in ("teacher_tokens", "label_tokens"):
                assert other[name] == pytest.approx(value, rel=1e-4), (run, name)
        mine, theirs = (
            load_file(tmp_path / count / place / "model.safetensors") for count in ("one", "two")
        )
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            torch.testing.assert_close(theirs[name], value, rtol=0, atol=3e-4, msg=f"{run} {name}")
    sampled = json.loads((tmp_path / "two" / "on_policy" / "summary.json").read_text())
    assert sampled["on_policy_loss"] > 0
