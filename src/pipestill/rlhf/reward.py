"""Trains a reward model on preference pairs. What the component `reward_model_train` calls.

Bradley–Terry (Ouyang et al. 2022, arXiv 2203.02155, eq. 1) with the margin of the rows and a
centring term. Three parts of the pairs, no prompt in two of them: the training pairs teach, a tenth
of them set aside selects the checkpoint, and the evaluation pairs only measure.
"""

import dataclasses
import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipestill.config import RewardConfig, refuse_out_of_range
from pipestill.errors import UserError
from pipestill.losses.reward import normalisation
from pipestill.models import lora
from pipestill.models.loading import load
from pipestill.records import Preference, read_jsonl
from pipestill.rlhf.reward_data import Pairs, encode_pairs, hold_out, ids_of
from pipestill.rlhf.reward_evaluation import evaluate, flat
from pipestill.rlhf.reward_job import adapted, exported, load_precision, make_job, reward_renderer
from pipestill.rlhf.reward_step import audit_pairs
from pipestill.rlhf.scoring import OBJECTIVE, RewardModel
from pipestill.training import checkpoint as checkpoints
from pipestill.training.distributed import join
from pipestill.training.launch import over_processes
from pipestill.training.progress import Progress
from pipestill.training.student import fit_logged, size_of, use_threads, write

METHODS = ("full", "lora")
VALIDATION_FRACTION = 0.1  # of the training prompts; their pairs select the checkpoint
NORMALISING_PAIRS = 5000  # training pairs whose answers give mean and std, at most


@over_processes
def train_reward_model(
    preferences_path: str | Path,
    evaluation_path: str | Path,
    model_path: str | Path,
    *,
    state_dir: str,
    config: RewardConfig,
    keep_checkpoints: bool = False,
) -> dict[str, Any]:
    """Trains a reward model, measures it and writes its folder, the training log in it.

    `pipestill.rlhf.scoring.RewardModel.load` reads the folder. Beside it lie ``<folder>.audit.txt``
    and ``.audit.json``, and ``<folder>.tensorboard``.

    Args:
        preferences_path: JSONL of `Preference`.
        evaluation_path: the same, held out; "" for no evaluation.
        model_path: folder to write: safetensors of the backbone (LoRA merged) and of the head,
            tokenizer, `pipestill.json` with ``normalisation`` and ``evaluation``.
        state_dir: folder that outlives the run; empty for no checkpoints.
        config: the settings. The recommended rate is that of tuning a model of this size on as many
            examples a step as there are pairs; ten times that with LoRA.
        keep_checkpoints: leave the checkpoints in place after success.

    Returns:
        Losses, steps, sizes, counts and digests; ``eval_…`` is flat, ``evaluation`` all of it.

    Raises:
        UserError: ``CONFIG_VALUE``, ``TRAIN_EMPTY``, ``PREFERENCE_CHOICE``, ``CHAT_TEMPLATE``,
            ``LORA_NO_LAYERS``, and what loading a model raises.
        WorkError: ``LOSS_NOT_FINITE``.
    """
    _check(config)
    use_threads()
    world = join()
    rows = list(read_jsonl(preferences_path, Preference))
    held_out = list(read_jsonl(evaluation_path, Preference)) if str(evaluation_path) else []
    digest = hashlib.sha256(Path(preferences_path).read_bytes()).hexdigest()
    loaded = load(config.reward_model_reference, precision=load_precision(config))
    renderer = reward_renderer(loaded, rows, config)
    learning, selecting = hold_out(rows, VALIDATION_FRACTION)
    train, validation = encode_pairs(learning, renderer), encode_pairs(selecting, renderer)
    if not len(train):
        raise UserError(
            "TRAIN_EMPTY",
            f"{preferences_path}: no pairs to train on ({train.identical} are identical after "
            "cutting)",
            "give more pairs, or raise target_sequence_length",
        )
    with_lora = adapted(loaded, config)
    job = make_job(loaded, train, validation, config)
    trained = lora.trainable(job.model)
    audit_pairs(train, renderer, model_path if world.is_main else "")
    # The model counts, not the path that it lies at.
    named = dataclasses.replace(config, reward_model_reference=loaded.fingerprint)
    facts = named, OBJECTIVE, digest, loaded.fingerprint
    folder = checkpoints.run_folder(state_dir, *facts)
    progress, resumed = fit_logged(job, folder, model_path)
    summary = {
        "objective": OBJECTIVE,
        "run": f"{OBJECTIVE}:{config.train_seed}",
        "seed": config.train_seed,
        "method": config.reward_method,
        **counts(train, validation),
        **outcome(progress),
        "parameters": loaded.parameters,
        "trained_parameters": trained,
        "learning_rate": job.rate,
        "precision": "fp32" if job.shape.autocast is None else "bf16",
        "resumed_from_step": resumed,
        "base_model": config.reward_model_reference,
        "base_fingerprint": loaded.fingerprint,
        "rows_digest": digest,
        "style": renderer.style,
        "instruction": config.instruction,
    }
    if not world.is_main:
        return summary
    model = exported(job.model, with_lora)
    summary |= measured(RewardModel(model, renderer), train, encode_pairs(held_out, renderer))
    # A reward is compared with numbers measured just now, so its weights are kept to the last bit.
    exact = dataclasses.replace(loaded, model=model, stored_dtype=None)
    write(exact, renderer, model_path, summary, progress)
    if folder and not keep_checkpoints:
        checkpoints.remove(folder)
    return {**summary, "bytes": size_of(model_path)}


def measured(scorer: RewardModel, train: Pairs, held_out: Pairs) -> dict[str, Any]:
    """The normalisation over training answers, and the evaluation where there are pairs for it.

    Both are measured on the model as it will be saved and served.
    """
    chosen_pairs = list(range(len(train)))
    if len(train) > NORMALISING_PAIRS:
        chosen_pairs = random.Random(0).sample(chosen_pairs, NORMALISING_PAIRS)  # noqa: S311
    mean, std = normalisation(_raw(scorer, train, chosen_pairs))
    found: dict[str, Any] = {
        "normalisation": {"mean": mean, "std": std},
        "normalised_on_pairs": len(chosen_pairs),
        "eval_identical_pairs": held_out.identical,
        "eval_cut_answers": held_out.cut_answers,
    }
    if not len(held_out):
        return found
    rewards = _raw(scorer, held_out, range(len(held_out))).view(-1, 2).double().numpy()
    lengths, seen = held_out.lengths.double().numpy(), train.lengths.double().numpy()
    result = evaluate(rewards, lengths, held_out.margins.double().numpy(), seen)
    return {**found, **flat(result), "evaluation": result}


def counts(train: Pairs, validation: Pairs) -> dict[str, Any]:
    """The summary's part about the rows."""
    return {
        "train_pairs": len(train),
        "validation_pairs": len(validation),
        "identical_pairs": train.identical + validation.identical,
        "cut_prompts": train.data.cut_inputs + validation.data.cut_inputs,
        "cut_answers": train.cut_answers + validation.cut_answers,
    }


def outcome(progress: Progress) -> dict[str, Any]:
    """The summary's part about the run; a loss that was not measured is -1."""
    validated = progress.best_step > 0
    return {
        "steps": progress.step,
        "best_step": progress.best_step or progress.step,
        "reward_loss": next(
            (e["reward_loss"] for e in reversed(progress.log) if "reward_loss" in e), -1.0
        ),
        "val_reward_loss": progress.best_loss if validated else -1.0,
        "val_reward_accuracy": progress.best_accuracy if validated else -1.0,
        "seconds": round(progress.seconds, 3),
        "cpu_seconds": round(progress.cpu_seconds, 3),
    }


def _raw(scorer: RewardModel, pairs: Pairs, chosen_pairs: Sequence[int]) -> Any:
    """(2n,) raw rewards, the preferred answer of each pair first."""
    both = [ids_of(pairs.data, s) for p in chosen_pairs for s in (2 * p, 2 * p + 1)]
    return scorer.raw([prompt for prompt, _ in both], [answer for _, answer in both])


def _check(config: RewardConfig) -> None:
    """Refuses settings out of range.

    Raises:
        UserError: ``CONFIG_VALUE``.
    """
    least = {
        "reward_lora_rank": 1,
        "reward_model_train_steps": 1,
        "reward_batch_size": 1,
        "prompt_sequence_length": 1,
        "target_sequence_length": 1,
        "evaluation_interval": 1,
        "checkpoint_interval": 1,
        "centering": 0,
        "reward_model_learning_rate": 0,
    }
    rules = {name: (getattr(config, name) >= n, f"{n} or more") for name, n in least.items()}
    multiplier = config.reward_model_learning_rate_multiplier
    rules["reward_model_learning_rate_multiplier"] = (multiplier > 0, "above 0")
    rules["reward_model_reference"] = (bool(config.reward_model_reference), "a model reference")
    rules["reward_method"] = (config.reward_method in METHODS, ", ".join(METHODS))
    refuse_out_of_range(config, rules)
