"""The refund desk's preferences: the reason is preferred, and nothing else gives it away."""

import json

import numpy as np
import pytest

from pipestill.models.loading import load_tokenizer
from pipestill.pocket import DATA_DIR, preferences, world
from pipestill.rlhf.reward_evaluation import fit_length_model, length_features, won

NAMES = ("preferences", "prompts", "replies")


def load(name):
    text = (DATA_DIR / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_files_are_what_the_generator_writes(tmp_path):
    preferences.write_preferences(tmp_path)
    for name in NAMES:
        shipped = DATA_DIR / f"{name}.jsonl"
        assert (tmp_path / f"{name}.jsonl").read_bytes() == shipped.read_bytes()


def test_no_note_stands_in_two_files():
    notes = [row["input_text"] for name in NAMES for row in load(name)]
    assert len(set(notes)) == len(notes) == 1800
    assert not set(notes) & world.reserved()


def test_the_preferred_reply_gives_the_reason():
    for row in load("preferences"):
        preferred, other = (row[f"candidate_{side}"] for side in (row["choice"], 1 - row["choice"]))
        assert "late" in preferred or "in time" in preferred
        assert "late" not in other
        assert "in time" not in other
        labels = [{x for x in world.LABELS if x in text} for text in (preferred, other)]
        assert labels[0] == labels[1]
        assert len(labels[0]) == 1


def test_neither_place_nor_length_gives_the_preference_away():
    rows = load("preferences")
    assert np.mean([row["choice"] for row in rows]) == pytest.approx(0.5, abs=0.07)
    tokenizer = load_tokenizer("pocket-base")
    texts = [row[f"candidate_{s}"] for row in rows for s in (row["choice"], 1 - row["choice"])]
    lengths = np.array([len(ids) for ids in tokenizer(texts).input_ids], float).reshape(-1, 2)
    guessed = won(length_features(lengths) @ fit_length_model(lengths)).mean()
    assert guessed < 0.65
