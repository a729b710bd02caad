"""A tuned policy and its start answer the same held-out prompts, greedily and by sampling.

Sampled answers carry the reward–KL figures, because KL can only be estimated on a policy's own
samples; greedy answers are what a server gives, and what a judge is shown. Prompts that have chosen
the checkpoint in training are left out where enough others remain.
"""

import dataclasses
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipestill.config import PolicyConfig, TeacherConfig, TuneEvalConfig
from pipestill.errors import UserError
from pipestill.evaluation.latency import percentiles, time_rows
from pipestill.models.student import Student
from pipestill.models.teacher import teacher_reference
from pipestill.records import Example, read_jsonl, write_jsonl
from pipestill.rlhf.collect import Question, Reward, parts_of_answers
from pipestill.rlhf.comparison import ARMS, comparisons, described, of
from pipestill.rlhf.policy import Policy, evaluate_answers
from pipestill.rlhf.policy_eval import answer_all
from pipestill.rlhf.policy_judge import judge_answers
from pipestill.rlhf.policy_train import questions_of, reward_of
from pipestill.rlhf.rollout import sample, uniform
from pipestill.rlhf.scoring import RewardModel
from pipestill.training.distributed import ALONE
from pipestill.training.forward import computing, shape_of

FRESH = 30  # prompts that must remain for those that chose the checkpoint to be left out
OTHER_SEED = 1_000_003  # added to the training seed, so that no answer of training is seen again

Rows = list[dict[str, Any]]


def evaluate_policy(
    model_path: str | Path,
    start_path: str | Path,
    reward_model_path: str | Path,
    prompts_path: str | Path,
    predictions_path: str | Path,
    *,
    config: TuneEvalConfig,
    policy: PolicyConfig,
    judge: TeacherConfig | None = None,
    state_dir: str = "",
) -> dict[str, Any]:
    """Runs both models, scores their answers and writes one row per prompt, arm and mode.

    The start reads the prompts of the tuned policy (style, instruction, limits).

    Args:
        model_path: folder that `policy_train` wrote.
        start_path: what the policy started from, see `pipestill.models.teacher`.
        reward_model_path: folder that `reward_model_train` wrote.
        prompts_path: JSONL of `Example`, held out.
        predictions_path: JSONL, written: id, arm, mode, input_text, output_text, reward
            (normalised), prompt_tokens, output_tokens, ended, kl (log π − log π_start of the whole
            answer, in nats; 0 for the start's), nll (of the whole answer under the start, in nats),
            latency_ms (greedy rows that were timed).
        config: rows, sizes, timed rows.
        policy: temperature, seed, and how many rows have chosen the checkpoint.
        judge: asked which greedy answer is better; None for no judge.
        state_dir: folder of the judge's journal.

    Returns:
        ``rows``, ``left_out``, ``notes``, ``arms``, ``comparisons``, ``judge`` (empty without one),
        ``latency_rows``, ``config``, ``cpu_seconds``.

    Raises:
        UserError: ``NO_EVALUATION_ROWS``, ``REWARD_MODEL_EXPECTED``, what loading a model and
            asking a judge raise.
    """
    begun = time.process_time()
    rows, left_out, notes = fresh_rows(prompts_path, config.eval_rows, policy)
    tuned = Student.load(str(model_path))
    base = Student.load(teacher_reference(start_path), asked_like=tuned.info)
    pair = _pair(tuned, base, policy.temperature)
    limit = tuned.renderer.max_output_tokens
    drawn = dataclasses.replace(
        policy, target_sequence_length=limit, train_seed=policy.train_seed + OTHER_SEED
    )
    questions = questions_of(rows, pair)
    reward = reward_of(RewardModel.load(reward_model_path), pair)
    found = [
        *_sampled(pair, questions, drawn, reward),
        *_greedy(pair, questions, limit, reward, config.eval_batch_size),
    ]
    students = {"base": base, "tuned": tuned}
    texts = [question.text for question in questions[: config.latency_rows]]
    spent = time_rows(
        {arm: _one_by_one(student, limit) for arm, student in students.items()}, texts
    )
    for row in found:
        times = spent[row["arm"]]
        timed = row["mode"] == "greedy" and row["place"] < len(times)
        row["latency_ms"] = times[row["place"]] if timed else None
    judged = {}
    if judge is not None:
        judged = judge_answers(rows, of(found, "base", "greedy"), of(found, "tuned", "greedy"),
                               config=judge, state_dir=state_dir)  # fmt: skip
    arms = {
        arm: {
            **described(found, arm),
            **percentiles(spent[arm]),
            "params": students[arm].parameters,
            "bytes": students[arm].bytes,
        }
        for arm in ARMS
    }
    compared = comparisons(found)
    write_jsonl(predictions_path, [{k: v for k, v in row.items() if k not in ("place", "ids")}
                                   for row in found])  # fmt: skip
    _tell(arms, compared, judged, len(rows))
    return {
        "rows": len(rows),
        "left_out": left_out,
        "notes": notes,
        "objective": tuned.info["objective"],
        "seed": int(tuned.info.get("seed", 0)),
        "arms": arms,
        "comparisons": compared,
        "judge": judged,
        "latency_rows": len(texts),
        "config": {
            "start": str(base.info.get("base_model") or teacher_reference(start_path)),
            "temperature": policy.temperature,
            "answer tokens": limit,
            "instruction": str(tuned.info.get("instruction", "")) or "none",
            "evaluation": {"eval_rows": config.eval_rows, "latency_rows": config.latency_rows},
        },
        "cpu_seconds": round(time.process_time() - begun, 2),
    }


def fresh_rows(
    path: str | Path, most: int, policy: PolicyConfig
) -> tuple[list[Example], int, list[str]]:
    """Held-out rows, those that chose the checkpoint left out where `FRESH` others remain.

    Returns:
        Rows in the order of a hash of their id, the number left out, and notes for the reader.

    Raises:
        UserError: ``NO_EVALUATION_ROWS``.
    """
    ranked = sorted(
        read_jsonl(path, Example), key=lambda row: hashlib.sha256(row.id.encode()).digest()
    )
    if not ranked:
        raise UserError(
            "NO_EVALUATION_ROWS",
            f"{path}: no held-out prompts",
            "look at the counts of preference_prep",
        )
    fresh = ranked[policy.rlhf_eval_rows :]  # policy_train takes the first in the same order
    if len(fresh) < FRESH:
        note = (
            f"All {len(ranked)} held-out prompts are counted, also those that chose the checkpoint:"
            " the reward of the tuned policy is a little flattered."
        )
        return ranked[: most or None], 0, [note]
    return fresh[: most or None], len(ranked) - len(fresh), []


def _pair(tuned: Student, base: Student, temperature: float) -> Policy:
    """Both models as the training of policies knows them."""
    base.loaded.model.eval()
    return Policy(
        loaded=tuned.loaded,
        renderer=tuned.renderer,
        shape=shape_of(tuned.loaded),
        ends=sorted(tuned.loaded.model.generation_config.eos_token_id),
        temperature=temperature,
        reference=base.loaded.model,
        adapted=None,
    )


def _sampled(
    pair: Policy, questions: Sequence[Question], drawn: PolicyConfig, reward: Reward
) -> Rows:
    rows = []
    for arm in ARMS:
        answers = answer_all(pair, questions, drawn, reward, ALONE, base=arm == "base")
        for place, answer in enumerate(answers):
            row = _row(pair, questions, place, arm, "sampled", answer.ids)
            rows.append({**row, "reward": answer.reward, "kl": answer.kl,
                         "nll": answer.reference_nll})  # fmt: skip
    return rows


def _greedy(
    pair: Policy, questions: Sequence[Question], limit: int, reward: Reward, batch_size: int
) -> Rows:
    import torch

    rows: Rows = []
    for arm in ARMS:
        model = pair.model if arm == "tuned" else pair.reference
        found: dict[int, list[int]] = {}
        order = sorted(range(len(questions)), key=lambda i: -len(questions[i].ids))
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            with computing(pair.shape):
                answers = sample(
                    model, [questions[i].ids for i in part], 1, uniform(len(part), limit, 0),
                    ends=pair.ends, temperature=0.0, pad=pair.shape.pad, start=pair.shape.start,
                )  # fmt: skip
            found |= dict(zip(part, answers.responses, strict=True))
        responses = [found[i] for i in range(len(questions))]
        rewards = reward(questions, responses)
        with torch.no_grad():
            logs = [_logprobs(pair, questions, responses, by) for by in (model, pair.reference)]
        for place, ids in enumerate(responses):
            own, ref = (values[place] for values in logs)
            row = _row(pair, questions, place, arm, "greedy", ids)
            rows.append({**row, "reward": float(rewards[place]), "kl": own - ref, "nll": -ref})
    return rows


def _logprobs(
    pair: Policy, questions: Sequence[Question], responses: Sequence[list[int]], model: Any
) -> list[float]:
    """Log-probability of every whole answer under a model at temperature 1."""
    found = [0.0] * len(responses)
    for part in parts_of_answers(pair.shape, [q.ids for q in questions], responses):
        sums = evaluate_answers(model, part.batch, pair.shape, 1.0).logprobs.double().sum(1)
        for row, value in zip(part.rows, sums.tolist(), strict=True):
            found[row] = value
    return found


def _row(
    pair: Policy, questions: Sequence[Question], place: int, arm: str, mode: str, ids: list[int]
) -> dict[str, Any]:
    question = questions[place]
    return {
        "id": question.id,
        "arm": arm,
        "mode": mode,
        "input_text": str(question.text),
        "output_text": pair.renderer.tokenizer.decode(ids, skip_special_tokens=True).strip(),
        "prompt_tokens": len(question.ids),
        "output_tokens": len(ids),
        "ended": ids[-1] in pair.ends,
        "place": place,
        "ids": ids,
    }


def _one_by_one(student: Student, limit: int) -> Any:
    return lambda text: student.answer([text], batch_size=1, max_new_tokens=limit)


def _tell(
    arms: Mapping[str, Any], compared: Mapping[str, Any], judged: Mapping[str, Any], rows: int
) -> None:
    gap = compared["reward"]
    low, high = gap["ci95"]
    print(
        f"evaluate: reward {arms['base']['reward']:.3f} → {arms['tuned']['reward']:.3f} "
        f"({gap['difference']:+.3f}, 95 % CI {low:+.3f} to {high:+.3f}) on {rows} held-out prompts,"
        f" KL {compared['kl']['value']:.2f} nats an answer",
        flush=True,
    )
    if judged:
        print(
            f"evaluate: the judge prefers the tuned policy in {judged['win_rate']:.1%} of "
            f"{judged['judged']} pairs (ties count a half), kappa between the two orders "
            f"{judged['kappa']:.2f}"
        )
