"""Run by several processes at once: trains a tiny policy; the first process writes the result.

``python -m torch.distributed.run … tests/rlhf/two_policies.py KIND OBJECTIVE OUT STATE STOP``
"""

import json
import sys
from pathlib import Path

from safetensors.torch import save_file

from pipestill.rlhf.policy_loop import Problem, optimise
from pipestill.rlhf.policy_train import questions_of
from pipestill.training.distributed import current, join, leave
from pipestill.training.resume import weights_of
from tests.rlhf.policies import config, count_reward, make, rows


class Stop(Exception):
    """Stands for a kill between two steps."""


def train(kind: str, objective: str, out: str, state: str = "", stop: str = "0") -> None:
    """Arguments are texts because they come from a command line."""
    settings = config(
        policy_objective=objective, minibatches=2, whiten_rewards=True, kl_target=1.0,
        samples_per_prompt=1 if objective == "ppo" else 2, rollout_batch_size=10,
        reinforcement_learning_train_steps=5,
    )  # fmt: skip
    policy = make(kind, settings)
    prompts, held_out = questions_of(rows(21), policy), questions_of(rows(7, 50), policy)
    problem = Problem(policy, prompts, held_out, settings, count_reward, 3e-3)

    def on_step(progress):
        if progress.step == int(stop):
            raise Stop

    try:
        progress, resumed = optimise(problem, state or None, on_step)
    except Stop:
        return
    if current().is_main:
        Path(out).mkdir(parents=True, exist_ok=True)
        weights = {name: w.detach().clone() for name, w in weights_of(policy.model).items()}
        save_file(weights, f"{out}/weights.safetensors")
        told = {"log": progress.log, "resumed": resumed, "best": progress.best_step}
        Path(out, "log.json").write_text(json.dumps(told))


if __name__ == "__main__":
    join()
    train(*sys.argv[1:])
    leave()
