"""Compiled blocks compute what plain ones do; on a CPU nothing is compiled."""

import json
import subprocess
import sys

import pytest
import torch

from pipestill.errors import UserError
from pipestill.training.compiling import compile_blocks
from pipestill.training.step import Job, accumulate
from tests.training import two, two_compiled
from tests.training.test_distributed import assert_same, environment
from tests.training.tiny import config, make_data, make_loaded, make_rows


def gradients(kind: str, compiled: bool) -> tuple[int, dict[str, torch.Tensor]]:
    loaded = make_loaded(kind)
    data, shape = make_data(loaded, make_rows(4))
    count = compile_blocks(loaded.model, "on", "cpu", backend="eager") if compiled else 0
    job = Job(loaded.model, data, None, [1] * 4, shape, config(), 0.5, 1e-3, 0)
    accumulate(job, range(4))
    return count, {name: weight.grad.clone() for name, weight in loaded.model.named_parameters()}


@pytest.mark.parametrize(("kind", "blocks"), [("t5_tied", 4), ("gpt2", 2), ("llama", 2)])
def test_compiled_blocks_have_the_same_gradients(kind, blocks):
    count, found = gradients(kind, compiled=True)
    assert count == blocks
    _, wanted = gradients(kind, compiled=False)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6, msg=name)


def test_a_cpu_is_told_that_it_gains_nothing(capsys):
    model = make_loaded("gpt2").model
    assert compile_blocks(model, "auto", "cpu") == compile_blocks(model, "off", "cuda") == 0
    assert capsys.readouterr().err == ""
    assert compile_blocks(model, "on", "cpu") == 0
    assert "needs a GPU" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"COMPILE_MODE.*'fast'"):
        compile_blocks(model, "fast", "cpu")


@pytest.mark.slow
def test_sharded_blocks_are_compiled_too(tmp_path):
    """Sharding makes a twin of the model; what was compiled before it would not be in the twin."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [two_compiled.__file__, "llama", "dss", str(tmp_path / "compiled")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        counts = json.loads((tmp_path / f"compiled.{rank}.json").read_text())
        assert counts["runs"] >= 10 * 2  # steps × blocks of a stack
    two.train("llama", "dss", str(tmp_path / "plain"))
    assert_same(tmp_path / "compiled", tmp_path / "plain")
