"""A reward model ready to score: on token ids, as a policy writes them, or on texts.

Ids are scored as they are. A response that was sampled is never decoded and tokenised again, which
could change it and would add an end mark that was not sampled.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipestill.errors import UserError
from pipestill.models.heads import HEAD_FILE, WithHead, load_head, padded, rewards
from pipestill.models.loading import load, resolve_reference
from pipestill.models.render import Renderer, renderer_for
from pipestill.models.student import INFO_FILE
from pipestill.rlhf.reward_data import answer_ids
from pipestill.training.step import TOKENS_PER_FORWARD, TOKENS_PER_FORWARD_CPU

OBJECTIVE = "reward_model"

Ids = Sequence[int]


@dataclass(frozen=True)
class RewardModel:
    """Backbone and head, the renderer of its prompts, and what puts its rewards on a known scale.

    `mean` and `std` are those of raw rewards over the answers that it was trained on; `info` is the
    folder's description. A policy has to render its prompts in the same style and instruction, and
    with the same tokenizer.
    """

    model: WithHead
    renderer: Renderer
    mean: float = 0.0
    std: float = 1.0
    info: Mapping[str, Any] | None = None

    @classmethod
    def load(cls, folder: str | Path, *, precision: str = "auto") -> "RewardModel":
        """Loads a folder that `pipestill.rlhf.reward.train_reward_model` wrote.

        Raises:
            UserError: ``REWARD_MODEL_EXPECTED`` where the folder holds something else; as
                `pipestill.models.loading.load`.
        """
        place = resolve_reference(str(folder))
        info = _info(Path(place))
        loaded = load(str(folder), precision=precision)
        limits = int(info["max_input_tokens"]), int(info["max_output_tokens"])
        scale = info["normalisation"]
        return cls(
            model=WithHead(loaded.model, load_head(place)).eval(),
            renderer=renderer_for(loaded, *limits, info),
            mean=float(scale["mean"]),
            std=float(scale["std"]),
            info=info,
        )

    def score(self, prompt_ids: Sequence[Ids], response_ids: Sequence[Ids]) -> Any:
        """(N,) normalised rewards, (raw − mean)/std, on the CPU in float32.

        Args:
            prompt_ids: N prompts, rendered as `renderer` does; equal ones are encoded once.
            response_ids: their responses, end mark included where one was written, no padding.
        """
        return (self.raw(prompt_ids, response_ids) - self.mean) / self.std

    def raw(self, prompt_ids: Sequence[Ids], response_ids: Sequence[Ids]) -> Any:
        """(N,) rewards as the head gives them; their differences are the log-odds of a preference.

        Arguments as of `score`.
        """
        import torch

        found = torch.zeros(len(response_ids))
        with torch.inference_mode():
            for rows in self._batches(prompt_ids, response_ids):
                found[rows] = self._batch(
                    [prompt_ids[i] for i in rows], [response_ids[i] for i in rows]
                )
        return found

    def score_texts(self, prompts: Sequence[str], responses: Sequence[str]) -> Any:
        """(N,) normalised rewards of texts, which are rendered and cut as in training.

        A prompt is a text or a `pipestill.models.chat.Conversation`.
        """
        asked = [prompt.ids for prompt in self.renderer.prompts("predict", prompts)]
        return self.score(asked, [ids for ids, _ in answer_ids(self.renderer, responses)])

    def _batch(self, prompts: Sequence[Ids], responses: Sequence[Ids]) -> Any:
        import torch

        places = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        pad, device = self.renderer.tokenizer.pad_token_id, self.model.device
        of_prompt = torch.tensor([places[tuple(prompt)] for prompt in prompts], device=device)
        asked, said = padded(list(places), pad, device), padded(responses, pad, device)
        return rewards(self.model, asked, said, of_prompt).float().cpu()

    def _batches(self, prompts: Sequence[Ids], responses: Sequence[Ids]) -> Iterator[list[int]]:
        """Row numbers by length, and so that an encoder meets equal prompts in one batch."""
        sizes = [len(a) + len(b) for a, b in zip(prompts, responses, strict=True)]
        if self.renderer.is_encoder_decoder:
            keys: list[Any] = [(len(p), tuple(p), s) for p, s in zip(prompts, sizes, strict=True)]
        else:
            keys = list(sizes)
        on_cpu = self.model.device.type == "cpu"
        tokens = TOKENS_PER_FORWARD_CPU if on_cpu else TOKENS_PER_FORWARD
        part: list[int] = []
        widest = 0
        for row in sorted(range(len(sizes)), key=keys.__getitem__, reverse=True):
            if part and (len(part) + 1) * max(widest, sizes[row]) > tokens:
                yield part
                part, widest = [], 0
            part.append(row)
            widest = max(widest, sizes[row])
        if part:
            yield part


def _info(folder: Path) -> dict[str, Any]:
    """The folder's description, if it is a reward model's."""
    try:
        info: dict[str, Any] = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
        found = f"objective {info['objective']!r}"
        if info["objective"] == OBJECTIVE and (folder / HEAD_FILE).is_file():
            return info
    except (OSError, ValueError, KeyError, TypeError):
        found = f"no readable {INFO_FILE}"
    raise UserError(
        "REWARD_MODEL_EXPECTED",
        f"{folder}: found {found}, allowed: objective {OBJECTIVE!r} with {HEAD_FILE}",
        "give the folder that reward_model_train wrote",
    )
