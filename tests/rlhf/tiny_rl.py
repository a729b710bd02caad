"""Models and preference rows small enough for tests of reward models and policies."""

import dataclasses
import random
from pathlib import Path

from pipestill.config import RewardConfig
from pipestill.models.heads import ScalarHead, WithHead, width_of
from pipestill.models.render import Renderer
from pipestill.records import Preference, write_jsonl
from pipestill.rlhf.reward_data import Pairs, encode_pairs
from tests.training.tiny import make_folder, make_loaded

KINDS = ("t5_untied", "llama")
WANTED = "green"  # the answers of `make_preferences` that hold it are preferred
OTHERS = ("red", "blue", "then", "names", "because")
CONFIG = RewardConfig(
    reward_model_train_steps=6,
    reward_batch_size=4,
    evaluation_interval=2,
    checkpoint_interval=2,
    reward_model_learning_rate=1e-3,
    prompt_sequence_length=64,
    target_sequence_length=24,
    precision="fp32",
)


def make_preferences(count: int, seed: int = 0, chat: bool = False) -> list[Preference]:
    """Pairs of answers of which one holds `WANTED` at a random place; both have random lengths."""
    dice = random.Random(seed)
    rows = []
    for i in range(count):
        words = [dice.choices(OTHERS, k=dice.randint(2, 6)) for _ in range(2)]
        choice = dice.randrange(2)
        words[choice][dice.randrange(len(words[choice]))] = WANTED
        asked = f"{i} " + " ".join(dice.choices("abcdefgh", k=dice.randint(2, 8)))
        rows.append(
            Preference(
                id=f"p{seed}-{i}",
                input_text=f"user: {asked}\nassistant:" if chat else asked,
                candidate_0=" ".join(words[0]),
                candidate_1=" ".join(words[1]),
                choice=choice,
                messages=[{"role": "user", "content": asked}] if chat else None,
            )
        )
    return rows


def one_pair(first: str, second: str, choice: int = 0) -> Preference:
    return Preference(
        id="x", input_text="a b", candidate_0=first, candidate_1=second, choice=choice
    )


def make_renderer(kind: str, limit: int = 24) -> Renderer:
    loaded = make_loaded(kind)
    return Renderer(loaded.tokenizer, loaded.is_encoder_decoder, 64, limit, "plain")


def make_reward_model(kind: str) -> WithHead:
    backbone = make_loaded(kind).model
    return WithHead(backbone, ScalarHead(width_of(backbone), seed=3))


def make_pairs(kind: str, count: int, seed: int = 0) -> Pairs:
    return encode_pairs(make_preferences(count, seed), make_renderer(kind))


def make_files(folder: Path, count: int = 40, held_out: int = 20) -> tuple[Path, Path]:
    """Training and evaluation pairs as files."""
    train, evaluation = folder / "preferences.jsonl", folder / "evaluation.jsonl"
    write_jsonl(train, make_preferences(count))
    write_jsonl(evaluation, make_preferences(held_out, seed=1))
    return train, evaluation


def config(**changes) -> RewardConfig:
    return dataclasses.replace(CONFIG, **changes)


__all__ = ["make_folder", "make_loaded"]  # what tests take from here
