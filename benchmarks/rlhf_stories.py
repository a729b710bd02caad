"""PPO from real pretrained weights: ``python -m benchmarks.rlhf_stories``.

The 260,000-parameter Llama of llama2.c, trained on TinyStories, is converted and tuned by PPO for
``short`` (fewer words a sentence) or ``name`` (stories that speak of Tom). The reward is computed
from the text; held-out openings are answered by base and policy. Printed are, with 95 % intervals,
what the preference measures, and what it has cost: KL to the base, perplexity under the base
(fluency), different bigrams, share of stories that end. Takes about four minutes of one core each.
"""

import argparse
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipestill.config import PolicyConfig
from pipestill.models.convert_llama2c import convert
from pipestill.records import Example, write_jsonl
from pipestill.rlhf.policy_train import train_policy

ROOT = Path(__file__).resolve().parents[1]
WHO = ("a little girl", "a little boy", "a big dog", "a small cat", "an old man", "a bird",
       "a happy bear", "a rabbit", "a brave mouse", "a kind woman")  # fmt: skip
OPENINGS = (
    "Once upon a time, there was {who}.", "One day, {who} went to the park.",
    "{who} liked to play with a ball.", "In a small house lived {who}.",
    "One sunny day, {who} found a box.", "{who} was very sad.",
    "There was {who} in the forest.", "{who} wanted to fly.",
    "Every morning, {who} looked at the sky.", "Long ago, {who} had a red car.",
    "{who} saw a big tree.", "At night, {who} heard a loud noise.",
    "One day, {who} was lost.", "{who} loved to eat cake.",
    "It was raining and {who} was cold.", "{who} had many friends.",
    "Near the lake lived {who}.", "{who} did not want to share.",
    "Today {who} was very tired.", "{who} ran up the hill.",
)  # fmt: skip
HELD_OUT = 0.4  # of the openings
CONFIG = PolicyConfig(
    policy_objective="ppo",
    kl_coeff=0.2,
    kl_bound=25.0,
    missing_eos_penalty=0.0,
    reinforcement_learning_train_steps=120,
    reinforcement_learning_rate=2e-4,
    rollout_batch_size=64,
    target_sequence_length=64,
    prompt_sequence_length=64,
    evaluation_interval=10,
    checkpoint_interval=10**6,
    rlhf_eval_rows=80,
    precision="fp32",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preference", default="short,name")
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    data = Path(os.environ.get("PIPESTILL_SHARED", ROOT.parent / "shared")) / "data"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stories = data / "model_stories260K"
        convert(stories / "stories260K.bin", stories / "tok512.bin", folder / "base")
        for preference in given.preference.split(","):
            for seed in range(given.seeds):
                told(preference, seed, folder)


def told(preference: str, seed: int, folder: Path) -> None:
    """One run, and its lines."""
    from transformers import AutoTokenizer

    learn, measure = prompts()
    write_jsonl(folder / "learn.jsonl", learn)
    write_jsonl(folder / "measure.jsonl", measure)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    settings = PolicyConfig(
        **{**vars(CONFIG), "large_model_reference": str(folder / "base"), "train_seed": seed}
    )

    def reward(_: Any, responses: Sequence[Sequence[int]]) -> list[float]:
        texts = tokenizer.batch_decode(list(responses), skip_special_tokens=True)
        return [REWARDS[preference](text) for text in texts]

    began = time.process_time()
    found = train_policy(
        folder / "learn.jsonl", folder / "measure.jsonl", "", "", folder / "policy",
        state_dir="", config=settings, samples_path=folder / "samples.jsonl", reward=reward,
    )  # fmt: skip
    spent = time.process_time() - began
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    print(f"\n{preference}, seed {seed}: {found['steps']} steps, best {found['best_step']}, "
          f"{spent:.0f} CPU s, alarms: {found['alarm_codes'] or 'none'}")  # fmt: skip
    for name, measured in MEASURED[preference].items():
        for side in ("base", "tuned"):
            values = [measured(row[f"{side}_answer"]) for row in rows]
            print(f"  {name:24s} {side:6s} {interval(values)}")
        pairs = [measured(row["tuned_answer"]) - measured(row["base_answer"]) for row in rows]
        print(f"  {'':24s} change {interval(pairs)}")
    print(f"  KL, nats an answer              {found['kl']:.2f} ± {1.96 * found['kl_se']:.2f}")
    for name in ("perplexity", "distinct_2", "eos_share", "length"):
        print(f"  {name:24s} base {found['base_' + name]:.3f} tuned {found[name]:.3f}")
    for row in rows[:2]:
        print(f"  - {row['input_text']} | {row['base_answer']!r}\n    | {row['tuned_answer']!r}")


def prompts() -> tuple[list[Example], list[Example]]:
    """Openings to learn on, and others, of which the policy has seen none, to measure on."""
    cut = round(len(OPENINGS) * (1 - HELD_OUT))
    rows = [
        Example(id=f"{i}-{j}", input_text=_capital(opening.format(who=who)))
        for i, opening in enumerate(OPENINGS)
        for j, who in enumerate(WHO)
    ]
    return rows[: cut * len(WHO)], rows[cut * len(WHO) :]


def words_a_sentence(text: str) -> float:
    """Mean words of the sentences, the last and perhaps unfinished one with them."""
    sentences = [part for part in re.split(r"[.!?]+", text) if part.strip()]
    return len(text.split()) / max(1, len(sentences))


def speaks_of_tom(text: str) -> float:
    return float(bool(re.search(r"\bTom\b", text)))


def interval(values: Sequence[float]) -> str:
    """Mean with its 95 % interval."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = 1.96 * math.sqrt(variance / len(values))
    return f"{mean:7.3f}  [{mean - half:.3f}, {mean + half:.3f}]"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


REWARDS = {
    "short": lambda text: 4.0 - words_a_sentence(text) / 2 if text.strip() else 0.0,
    "name": lambda text: 3.0 * speaks_of_tom(text),
}
MEASURED: dict[str, dict[str, Any]] = {
    "short": {"words a sentence": words_a_sentence},
    "name": {"share that speak of Tom": speaks_of_tom},
}


if __name__ == "__main__":
    main()
