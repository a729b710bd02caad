"""Trains a policy against a reward model or on preferences. What `policy_train` calls."""

import dataclasses
import hashlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipestill.config import PolicyConfig
from pipestill.errors import UserError
from pipestill.models import lora
from pipestill.models.student import plain_greedy
from pipestill.records import write_jsonl
from pipestill.rlhf.alarms import alarms
from pipestill.rlhf.collect import Question, Reward
from pipestill.rlhf.policy import Policy, drop_value_head, make_policy
from pipestill.rlhf.policy_data import Given, reward_from
from pipestill.rlhf.policy_data import questions_of as questions_of
from pipestill.rlhf.policy_data import reward_of as reward_of
from pipestill.rlhf.policy_eval import Answer, answer_all, figures
from pipestill.rlhf.policy_loop import Problem, optimise
from pipestill.rlhf.policy_settings import DIRECT
from pipestill.rlhf.policy_settings import check as check
from pipestill.rlhf.preference_step import PAST_BOUND, preference_job
from pipestill.rlhf.reward_data import encode_pairs, hold_out
from pipestill.training import checkpoint as checkpoints
from pipestill.training.distributed import ALONE, join
from pipestill.training.launch import over_processes
from pipestill.training.learning_rate import chosen
from pipestill.training.progress import Progress
from pipestill.training.resume import copy_into, gathered, weights_of
from pipestill.training.student import fit_logged, size_of, use_threads, write
from pipestill.training.tensorboard import Scalars

# Of the rate for supervised tuning: 1e-5 at 250 million weights, as policies of that size use.
RATE_SHARE = 0.1
VALIDATION_FRACTION = 0.1  # of the preference prompts; their pairs select the checkpoint


@over_processes
def train_policy(
    prompts_path: str | Path,
    prompt_evaluation_path: str | Path,
    preferences_path: str | Path,
    reward_model_path: str | Path,
    model_path: str | Path,
    *,
    state_dir: str,
    config: PolicyConfig,
    samples_path: str | Path = "",
    keep_checkpoints: bool = False,
    reward: Reward | None = None,
) -> dict[str, Any]:
    """Trains a policy and writes its folder, an ordinary student's, the training log in it.

    PPO, RLOO and GRPO sample answers to the prompts and have them scored; DPO, cDPO and IPO learn
    from the preference pairs and are only measured on the held-out prompts. TensorBoard scalars lie
    in ``<folder>.tensorboard``. With LoRA the folder holds the merged model, and ``adapter/``.

    Several processes (one a GPU) hold the whole policy each and share prompts and gradients; the
    direct objectives are sharded.

    Args:
        prompts_path: JSONL of `Example`, answers not needed.
        prompt_evaluation_path: the same, held out; of them ``rlhf_eval_rows`` are used.
        preferences_path: JSONL of `Preference`, read by the direct objectives alone; may be "".
        reward_model_path: what `train_reward_model` wrote; "" where `reward` is given, or where a
            direct objective is to be measured without rewards. A model with the policy's tokenizer
            scores the very tokens that were sampled; another one is given their text.
        model_path: folder to write (see `pipestill.models.student.save_student`).
        state_dir: folder that outlives the run; empty for no checkpoints.
        config: the settings.
        samples_path: JSONL to write: answers before and after to the same held-out prompts.
        keep_checkpoints: leave the checkpoints in place after success.
        reward: a function instead of a reward model, in one process only.

    Returns:
        A flat summary: rewards and KL before and after, steps, tokens, seconds, digests, alarms.

    Raises:
        UserError: ``CONFIG_VALUE``, ``TRAIN_EMPTY``, ``REWARD_MODEL_EXPECTED``,
            ``PREFERENCE_CHOICE``, ``CHAT_TEMPLATE``, and what loading a model raises.
        WorkError: ``LOSS_NOT_FINITE``, ``REWARD_NOT_FINITE``.
    """
    check(config)
    use_threads()
    world = join()
    given = Given.read(prompts_path, prompt_evaluation_path, preferences_path, config)
    policy = make_policy(config, given.style, value_head=config.policy_objective == "ppo")
    judge = reward_from(reward_model_path, reward, policy, config)
    held_out = questions_of(given.evaluation, policy)
    rate = _rate(policy, config)
    # The fingerprint says which model it is, wherever its folder lies.
    named = dataclasses.replace(config, large_model_reference=policy.loaded.fingerprint)
    facts = given.digest, _digest(reward_model_path)
    folder = checkpoints.run_folder(state_dir, named, "policy", *facts)
    trained = lora.trainable(policy.model)
    if config.policy_objective in DIRECT:
        progress, resumed = _direct(
            policy, given, held_out, judge, config, rate, folder, model_path
        )
    else:
        assert judge is not None
        prompts = questions_of(given.prompts, policy)
        problem = Problem(policy, prompts, held_out, config, judge, rate)
        progress, resumed = _sampled(problem, folder, model_path)
    summary = {
        "run": f"{config.policy_objective}:{config.train_seed}",
        "objective": config.policy_objective,
        "seed": config.train_seed,
        "method": config.method,
        **given.counts,
        "steps": progress.step,
        "best_step": progress.best_step,
        "learning_rate": rate,
        "parameters": policy.loaded.parameters,
        "trained_parameters": trained,
        "precision": "fp32" if policy.shape.autocast is None else "bf16",
        "answer_tokens": progress.label_tokens,
        "seconds": round(progress.seconds, 3),
        "cpu_seconds": round(progress.cpu_seconds, 3),
        "resumed_from_step": resumed,
        "base_model": config.large_model_reference,
        "base_fingerprint": policy.loaded.fingerprint,
        "rows_digest": given.digest,
        "style": policy.renderer.style,
        "instruction": config.instruction,
    }
    if not world.is_main:
        return summary
    summary |= _measured(policy, held_out, judge, config, progress, samples_path)
    _write(policy, model_path, summary, progress)
    if folder and not keep_checkpoints:
        checkpoints.remove(folder)
    return {**summary, "bytes": size_of(model_path)}


def _sampled(problem: Problem, folder: str | None, model_path: str | Path) -> tuple[Progress, int]:
    path = Path(model_path)
    if not join().is_main:
        return optimise(problem, folder)
    with Scalars(path.with_name(f"{path.name}.tensorboard")) as scalars:
        return optimise(problem, folder, scalars.after_step)


def _direct(
    policy: Policy,
    given: Given,
    held_out: Sequence[Question],
    reward: Reward | None,
    config: PolicyConfig,
    rate: float,
    folder: str | None,
    model_path: str | Path,
) -> tuple[Progress, int]:
    learning, selecting = hold_out(given.preferences, VALIDATION_FRACTION)
    train, validation = (encode_pairs(rows, policy.renderer) for rows in (learning, selecting))
    if not len(train):
        raise UserError(
            "TRAIN_EMPTY",
            f"no pairs to train on ({train.identical} are identical after cutting)",
            "give more pairs, or raise target_sequence_length",
        )
    start: dict[str, float] = {}

    def look() -> dict[str, float]:
        answers = answer_all(policy, held_out, config, reward, ALONE)
        return figures(answers, start or None)

    start.update(look())
    begun = gathered(weights_of(policy.model), ALONE)
    job = preference_job(policy, train, validation, config, rate, look)
    progress, resumed = fit_logged(job, folder, model_path)
    if progress.best_loss >= PAST_BOUND:  # no evaluation was within the bound: the start is
        copy_into(policy.model, begun)
        progress.best_step = 0
    progress.log.insert(0, {"step": 0, **start})
    return progress, resumed


def _measured(
    policy: Policy,
    held_out: Sequence[Question],
    reward: Reward | None,
    config: PolicyConfig,
    progress: Progress,
    samples_path: str | Path,
) -> dict[str, Any]:
    """The summary's part about base and tuned policy, and the samples of both."""
    policy.model.to(policy.shape.device)  # a sharded run leaves its weights on the CPU
    before, after = (
        answer_all(policy, held_out, config, reward, ALONE, base=base) for base in (True, False)
    )
    start = figures(before, None)
    found = figures(after, start)
    rung = alarms(progress.log, config.kl_bound)
    if samples_path:
        write_jsonl(samples_path, samples(policy, held_out, before, after))
    steps = [entry for entry in progress.log if "kl_coeff" in entry]
    return {
        **{f"base_{name.removeprefix('val_')}": value for name, value in start.items()},
        **{name.removeprefix("val_"): value for name, value in found.items()},
        "kl_coeff": steps[-1]["kl_coeff"] if steps else config.kl_coeff,
        "stopped_early": int(progress.stopped),
        "alarms": len(rung),
        "alarm_codes": ", ".join(dict.fromkeys(alarm["code"] for alarm in rung)),
    }


def samples(
    policy: Policy,
    held_out: Sequence[Question],
    before: Sequence[Answer],
    after: Sequence[Answer],
) -> list[Mapping[str, Any]]:
    """Answers of base and tuned policy to the same prompts; a reward that there is not is None."""
    tokenizer = policy.renderer.tokenizer

    def told(name: str, answer: Answer) -> dict[str, Any]:
        return {
            f"{name}_answer": tokenizer.decode(answer.ids, skip_special_tokens=True).strip(),
            f"{name}_reward": None if math.isnan(answer.reward) else answer.reward,
            f"{name}_tokens": len(answer.ids),
            f"{name}_ended": answer.ended,
        }

    return [
        {
            "id": question.id,
            "input_text": str(question.text),
            **told("base", old),
            **told("tuned", new),
            "kl": new.kl,
        }
        for question, old, new in zip(held_out, before, after, strict=True)
    ]


def _write(
    policy: Policy, model_path: str | Path, summary: Mapping[str, Any], progress: Progress
) -> None:
    """The plain model: value head dropped, adapters merged, greedy to its end mark."""
    loaded = policy.loaded
    drop_value_head(loaded.model)
    with tempfile.TemporaryDirectory() as kept:
        adapter = None
        if policy.adapted is not None:
            adapter = Path(kept) / "adapter"
            lora.save(policy.adapted, adapter)
            loaded = dataclasses.replace(loaded, model=lora.merge(policy.adapted))
        loaded.model.generation_config = plain_greedy(loaded, policy.renderer.end)
        write(loaded, policy.renderer, model_path, summary, progress, adapter)


def _rate(policy: Policy, config: PolicyConfig) -> float:
    rate = chosen(
        config.reinforcement_learning_rate,
        config.reinforcement_learning_rate_multiplier,
        policy.loaded.parameters,
        config.rollout_batch_size,
    )
    if config.reinforcement_learning_rate:
        return rate
    return rate * RATE_SHARE * (lora.HIGHER_RATE if config.method == "lora" else 1.0)


def _digest(folder: str | Path) -> str:
    """Of a reward model's files; "" where there is none."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*")) if str(folder) else []:
        if path.suffix in (".safetensors", ".json"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
