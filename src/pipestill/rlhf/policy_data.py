"""What a policy is trained with: its rows, and what rewards its answers."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipestill.config import PolicyConfig
from pipestill.errors import UserError
from pipestill.models.chat import Conversation
from pipestill.records import Example, Preference, read_jsonl
from pipestill.rlhf.collect import Question, Reward
from pipestill.rlhf.policy import Policy
from pipestill.rlhf.policy_settings import DIRECT, SAMPLED
from pipestill.rlhf.scoring import RewardModel


@dataclass(frozen=True)
class Given:
    """The rows of a run, with a digest of the files that they came from."""

    prompts: list[Example]
    evaluation: list[Example]
    preferences: list[Preference]
    digest: str

    @classmethod
    def read(
        cls,
        prompts_path: str | Path,
        evaluation_path: str | Path,
        preferences_path: str | Path,
        config: PolicyConfig,
    ) -> "Given":
        """Reads what the objective needs.

        Raises:
            UserError: ``TRAIN_EMPTY``, ``ROW_UNREADABLE``.
        """
        direct = config.policy_objective in DIRECT
        prompts = [] if direct else list(read_jsonl(prompts_path, Example))
        evaluation = list(read_jsonl(evaluation_path, Example))
        pairs = list(read_jsonl(preferences_path, Preference)) if direct else []
        for rows, path in (
            (pairs if direct else prompts, preferences_path if direct else prompts_path),
            (evaluation, evaluation_path),
        ):
            if not rows:
                raise UserError(
                    "TRAIN_EMPTY",
                    f"{path}: no rows",
                    "look at the counts of the steps before this one",
                )
        ranked = sorted(evaluation, key=lambda row: hashlib.sha256(row.id.encode()).digest())
        digest = hashlib.sha256(Path(evaluation_path).read_bytes())
        digest.update(Path(preferences_path if direct else prompts_path).read_bytes())
        return cls(prompts, ranked[: config.rlhf_eval_rows], pairs, digest.hexdigest())

    @property
    def style(self) -> str:
        """``chat`` where a row has messages, else ``plain``."""
        rows: list[Any] = [*self.prompts, *self.evaluation, *self.preferences]
        return "chat" if any(row.messages for row in rows) else "plain"

    @property
    def counts(self) -> dict[str, int]:
        """For the summary."""
        return {
            "prompt_rows": len(self.prompts),
            "preference_rows": len(self.preferences),
            "evaluation_rows": len(self.evaluation),
        }


def questions_of(rows: Sequence[Example], policy: Policy) -> list[Question]:
    """Rows as the policy reads them."""
    texts = [Conversation(r.input_text, r.messages) if r.messages else r.input_text for r in rows]
    prompts = policy.renderer.prompts("predict", texts)
    return [
        Question(row.id, text, prompt.ids, row)
        for row, text, prompt in zip(rows, texts, prompts, strict=True)
    ]


def reward_of(model: RewardModel, policy: Policy) -> Reward:
    """A reward model's normalised reward.

    Where both tokenizers are the same, it reads the tokens that were sampled, never their text
    tokenised anew, which may be other tokens; its prompts it renders itself, because it may be of
    the other architecture. A model with another tokenizer is given texts: it cannot see whether an
    answer was cut off, which ``missing_eos_penalty`` does.
    """
    same = _same_tokens(model, policy)
    asked: dict[str, list[int]] = {}

    def reward(questions: Sequence[Question], responses: Sequence[Sequence[int]]) -> list[float]:
        texts = [question.text for question in questions]
        if not same:
            tokenizer = policy.renderer.tokenizer
            answers = tokenizer.batch_decode(list(responses), skip_special_tokens=True)
            return [float(x) for x in model.score_texts(texts, answers)]
        new = {q.id: q.text for q in questions if q.id not in asked}
        prompts = model.renderer.prompts("predict", list(new.values()))
        asked.update(zip(new, (prompt.ids for prompt in prompts), strict=True))
        return [float(x) for x in model.score([asked[q.id] for q in questions], responses)]

    return reward


def reward_from(
    path: str | Path, given: Reward | None, policy: Policy, config: PolicyConfig
) -> Reward | None:
    if given is not None:
        return given
    if not str(path):
        if config.policy_objective in SAMPLED:
            raise UserError(
                "REWARD_MODEL_EXPECTED",
                f"policy_objective {config.policy_objective} needs a reward model, found none",
                "give the folder that reward_model_train wrote, or learn from pairs: dpo",
            )
        return None
    return reward_of(RewardModel.load(path), policy)


def _same_tokens(model: RewardModel, policy: Policy) -> bool:
    own, other = model.renderer, policy.renderer
    return own.end == other.end and own.tokenizer.get_vocab() == other.tokenizer.get_vocab()
