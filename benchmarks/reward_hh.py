"""What a small reward model learns of real human preferences, against length alone.

    python -m benchmarks.reward_hh HELPFUL.json [--model pocket-base] [--seeds 0 1 2]

HELPFUL.json holds pairs of dialogues with scores (Bai et al. 2022, arXiv 2204.05862, as cleaned in
github.com/Linear95/DSP). Pairs are split by prompt and their sides swapped by `preference_prep`'s
own code; then every seed trains a reward model and prints its accuracy on the held-out pairs, its
95 % interval, and the paired difference to two models that see lengths alone. For the 260k-weight
Llama of llama2.c convert it first: python -m pipestill.models.convert_llama2c.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from pipestill.config import PreferenceConfig, RewardConfig
from pipestill.data.preferences import prepare
from pipestill.rlhf.reward import train_reward_model


def main() -> None:
    """Reads the arguments, runs every seed, prints a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="helpful.json, a list of text and score")
    parser.add_argument("--model", default="pocket-base")
    parser.add_argument("--method", default="full")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16, help="pairs a step")
    parser.add_argument("--rate", type=float, default=3e-4, help="0 = the recommended one")
    parser.add_argument("--prompt-tokens", type=int, default=48)
    parser.add_argument("--target-tokens", type=int, default=320)
    parser.add_argument("--held-out", type=float, default=0.3, help="share of the prompts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        train, held_out = prepared(given, Path(name))
        for seed in given.seeds:
            config = settings(given, seed)
            out = Path(name) / f"reward-{seed}"
            found = train_reward_model(train, held_out, out, state_dir="", config=config)
            print("\n".join(told(given.model, seed, found)), flush=True)


def prepared(given: argparse.Namespace, folder: Path) -> tuple[str, str]:
    """Training and held-out pairs."""
    names = ("train", "held", "prompts", "held_prompts", "rejects")
    files = {name: str(folder / f"{name}.jsonl") for name in names}
    prepare(
        given.source,
        "",
        config=PreferenceConfig(
            eval_fraction=given.held_out, target_sequence_length=given.target_tokens
        ),
        tokenizer_reference=given.model,
        preferences_path=files["train"],
        preference_evaluation_path=files["held"],
        prompts_path=files["prompts"],
        prompt_evaluation_path=files["held_prompts"],
        rejects_path=files["rejects"],
    )
    return files["train"], files["held"]


def settings(given: argparse.Namespace, seed: int) -> RewardConfig:
    """The settings of one seed."""
    return RewardConfig(
        reward_model_reference=given.model,
        reward_method=given.method,
        reward_model_train_steps=given.steps,
        reward_batch_size=given.batch,
        reward_model_learning_rate=given.rate,
        prompt_sequence_length=given.prompt_tokens,
        target_sequence_length=given.target_tokens,
        evaluation_interval=max(1, given.steps // 10),
        train_seed=seed,
    )


def told(model: str, seed: int, found: dict[str, Any]) -> list[str]:
    """What one run found, in words."""
    result = found["evaluation"]

    def share(name: str, signed: str = "") -> str:
        low, high = result[f"{name}_ci95"]
        middle = result.get(name, 0.0)
        return f"{middle:{signed}.3f} [{low:{signed}.3f}, {high:{signed}.3f}]"

    return [
        f"{model}, seed {seed}: {found['train_pairs']} training pairs, {result['pairs']} held out, "
        f"best step {found['best_step']} of {found['steps']}, rate {found['learning_rate']:.2g}, "
        f"{found['cpu_seconds']:.0f} s CPU",
        f"  accuracy      {share('accuracy')}",
        f"  longer answer {share('longer_accuracy')}; difference "
        f"{share('difference_to_longer', '+')}: {result['against_longer']}",
        f"  length model  {share('length_model_accuracy')}; difference "
        f"{share('difference_to_length_model', '+')}: {result['against_length_model']}",
        f"  ece {result['ece']:.3f}, nll {result['nll']:.3f} (a coin: 0.693), correlation of "
        f"reward and length {result['length_correlation']:+.2f}, within pairs "
        f"{result['length_correlation_in_pairs']:+.2f}",
        f"  right where the longer is preferred {result['accuracy_where_longer_is_preferred']:.3f}"
        f", where the shorter is {result['accuracy_where_shorter_is_preferred']:.3f}",
    ]


if __name__ == "__main__":
    main()
