"""Memory is measured in processes of its own; failures of one arm stay with it."""

import pytest
import torch

from pipestill.evaluation import footprint
from pipestill.evaluation.footprint import peak_memory
from pipestill.evaluation.one_request import Asked, open_arms, time_arms
from tests.evaluation import tiny

pytestmark = pytest.mark.skipif(
    not (footprint.STATUS.is_file() or torch.cuda.is_available()), reason="needs Linux's /proc"
)
MIB = 2**20


def large(folder, width: int) -> str:
    """A decoder whose weights are what its memory consists of: 12 · width² · 4 bytes a layer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=258, n_embd=width, n_layer=2, n_head=2, n_positions=64, bos_token_id=1,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    tiny.tokenizer(closes=False).save_pretrained(folder)
    return str(folder)


def weights(width: int) -> int:
    return 2 * 12 * width * width * 4


@pytest.mark.slow
def test_memory_grows_with_the_weights_and_failures_stay_alone(tmp_path, capsys):
    ballast = torch.ones(64 * MIB)  # 256 MiB of this process, which no fork inherits
    arms = [
        Asked(arm="small", reference=large(tmp_path / "s", 64), max_new_tokens=3),
        Asked(arm="gone", reference=str(tmp_path / "gone"), max_new_tokens=3),
        Asked(arm="big", reference=large(tmp_path / "b", 1024), max_new_tokens=3),
    ]
    found = peak_memory(arms, "is 3 fine")
    del ballast
    assert found["gone"] is None
    assert "gone: memory not measured: [MODEL_NOT_FOUND]" in capsys.readouterr().out
    assert 0 < found["small"] < weights(1024) / 2
    # At the most the file as it is read, and the weights.
    assert weights(1024) <= found["big"] <= 2.5 * weights(1024)


def test_a_measurement_that_dies_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(footprint.sys, "executable", "/bin/false")
    arm = Asked(arm="a", reference=str(tmp_path), max_new_tokens=1)
    assert peak_memory([arm], "x") == {"a": None}
    assert "a: memory not measured: exit code 1" in capsys.readouterr().out
    assert peak_memory([], "x") == {}


def test_an_arm_is_opened_once_for_all_its_shots(tmp_path):
    files = tiny.inputs(tmp_path, 3)
    reference = tiny.teacher(tmp_path / "gpt2")
    arms = [
        Asked(
            arm=f"{shots}", reference=reference, max_new_tokens=4, prompt=files["prompt"],
            shots=shots,
        )
        for shots in (0, 2)
    ]  # fmt: skip
    callers = open_arms(arms)
    lengths = {arm: answer("is 1 fine")[0][0][1].prompt_tokens for arm, answer in callers.items()}
    assert lengths["0"] == len("Q: is 1 fine\nA:")
    assert lengths["2"] > lengths["0"] + 50
    assert callers["0"]("is 1 fine")[0][0][1].cached_prompt_tokens == 0


@pytest.mark.parametrize("together", [True, False])
def test_arms_that_fail_are_not_timed_and_the_others_are(tmp_path, capsys, together):
    base, other = tiny.base(tmp_path / "base"), tiny.base(tmp_path / "other", "no")
    arms = [
        Asked(arm="base", reference=base, max_new_tokens=4),
        Asked(arm="gone", reference=str(tmp_path / "gone"), max_new_tokens=4),
        Asked(arm="fails", reference=other, max_new_tokens=0),
    ]
    sizes = {} if together else {base: 10**10}
    spent = time_arms(arms, ["is 1 fine", "is 2 fine"], sizes)
    assert set(spent) == {"base"}
    assert len(spent["base"]) == 2
    assert min(spent["base"]) > 0
    told = capsys.readouterr().out
    assert "gone: not timed: [MODEL_NOT_FOUND]" in told
    assert "fails: not timed" in told
