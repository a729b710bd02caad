"""A number for every token instead of a word: reward and value heads on language models.

One convention for both architectures. Of a response of T tokens there are T + 1 hidden states:
state t has read the prompt and the first t tokens. So state t predicts token t (0-based), which is
where PPO reads the value of that position, and the state after the last token, which has read the
end mark too, is where a reward is read. Encoder-decoder: the encoder reads the prompt, the decoder
the start mark and the response. Decoder-only: the model reads prompt and response in one row.

Hidden states are those after the final norm and before anything that belongs to the LM head.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

HEAD_FILE = "reward_head.safetensors"


@dataclass(frozen=True)
class Tokens:
    """Rows of token ids, (B, L), and which of them are real, (B, L) bool.

    Padding may stand on any side and in any amount: it changes no result.
    """

    ids: Any
    mask: Any

    @property
    def lengths(self) -> Any:
        """(B,) real tokens of every row."""
        return self.mask.sum(1)

    def take(self, rows: Any) -> "Tokens":
        """The given rows, in that order; a row may be taken more than once."""
        return Tokens(self.ids[rows], self.mask[rows])

    def real_first(self) -> "Tokens":
        """The same rows with all padding on the right, where every model's positions are right."""
        order = (~self.mask).to(torch.uint8).argsort(dim=1, stable=True)
        return Tokens(self.ids.gather(1, order), self.mask.gather(1, order))


def padded(rows: Sequence[Sequence[int]], pad: int, device: Any = "cpu") -> Tokens:
    """`Tokens` of lists of ids, padded on the right."""
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.full(mask.shape, pad)
    ids[mask] = torch.tensor([token for row in rows for token in row], dtype=torch.long)
    return Tokens(ids.to(device), mask.to(device))


class ScalarHead(torch.nn.Module):  # type: ignore[misc]
    """A linear layer from a hidden state to one number, computed in its own (full) precision.

    Starts at N(0, 1/√(d+1)) for rewards (Stiennon et al. 2020, arXiv 2009.01325, as in their code)
    or at zeros for values, which PPO then learns from nothing; the bias starts at zero.
    """

    def __init__(self, width: int, *, zeros: bool = False, seed: int = 0) -> None:
        """Takes the width d of the states, and the seed of the first weights."""
        super().__init__()
        dice = torch.Generator().manual_seed(seed)
        first = torch.zeros(1, width)
        if not zeros:
            first.normal_(0.0, 1 / math.sqrt(width + 1), generator=dice)
        self.weight = torch.nn.Parameter(first)
        self.bias = torch.nn.Parameter(torch.zeros(1))

    def forward(self, states: Any) -> Any:
        """(…, d) states → (…) numbers."""
        with torch.autocast(states.device.type, enabled=False):
            wide = states.to(self.weight.dtype)
            return torch.nn.functional.linear(wide, self.weight, self.bias)[..., 0]


class WithHead(torch.nn.Module):  # type: ignore[misc]
    """A language model and a scalar head that train as one model. The LM head stays unused.

    The backbone stays in eval mode also while it learns, so that dropout is off: the two answers of
    a pair, and old and new policy, have to be read by one and the same network.
    """

    def __init__(self, backbone: Any, head: ScalarHead) -> None:
        """Takes a transformers model (adapters may stand in it) and a head of its width."""
        super().__init__()
        self.backbone = backbone
        self.head = head.to(backbone.device)

    @property
    def device(self) -> Any:
        """Where the model lies."""
        return self.head.weight.device

    @property
    def config(self) -> Any:
        """The backbone's configuration."""
        return self.backbone.config

    def train(self, mode: bool = True) -> "WithHead":
        """Sets the mode of all but the backbone, see above."""
        super().train(mode)
        self.backbone.eval()
        return self

    def save_pretrained(self, folder: str | Path, safe_serialization: bool = True) -> None:
        """Writes the backbone as `save_pretrained` does, and ``reward_head.safetensors``."""
        from safetensors.torch import save_file

        self.backbone.save_pretrained(folder, safe_serialization=safe_serialization)
        weights = {name: value.detach().cpu() for name, value in self.head.state_dict().items()}
        save_file(weights, str(Path(folder) / HEAD_FILE))


def load_head(folder: str | Path) -> ScalarHead:
    """The head that `WithHead.save_pretrained` wrote."""
    from safetensors.torch import load_file

    weights = load_file(str(Path(folder) / HEAD_FILE))
    head = ScalarHead(weights["weight"].shape[1], zeros=True)
    head.load_state_dict(weights)
    return head


def width_of(backbone: Any) -> int:
    """Numbers in a hidden state (of an encoder-decoder, in one of its decoder)."""
    config = backbone.config.get_text_config(decoder=True)
    return int(getattr(config, "d_model", None) or config.hidden_size)


def encode_prompts(backbone: Any, prompts: Tokens) -> Any:
    """(B, P, d) encoder states of the prompts; None for decoder-only models, which have none.

    One run serves all responses to a prompt: pass ``states[of_row]`` with ``prompts.take(of_row)``.
    """
    if not backbone.config.is_encoder_decoder:
        return None
    read = prompts.real_first()
    return backbone.get_encoder()(
        input_ids=read.ids, attention_mask=read.mask.long()
    ).last_hidden_state


def states(backbone: Any, prompts: Tokens, responses: Tokens, encoded: Any = None) -> Any:
    """(B, T, d) hidden states that predict the tokens of the responses: state t predicts token t.

    Args:
        backbone: a transformers model with an LM head.
        prompts: one prompt a row, at least one token each.
        responses: one response a row; T is their padded width. States past a response's own length
            are of no meaning, but finite.
        encoded: from `encode_prompts`, row for row; computed where it is not given.
    """
    return all_states(backbone, prompts, responses, encoded)[:, :-1]


def all_states(backbone: Any, prompts: Tokens, responses: Tokens, encoded: Any = None) -> Any:
    """(B, T + 1, d) hidden states: state t has read the prompt and t tokens of the response.

    Arguments as of `states`.
    """
    if backbone.config.is_encoder_decoder:
        encoded = encode_prompts(backbone, prompts) if encoded is None else encoded
        return _decoder_states(backbone, prompts, responses.real_first(), encoded)
    both = Tokens(
        torch.cat([prompts.ids, responses.ids], 1), torch.cat([prompts.mask, responses.mask], 1)
    ).real_first()
    found = backbone.base_model(
        input_ids=both.ids, attention_mask=both.mask.long(), use_cache=False
    ).last_hidden_state
    reads = torch.arange(responses.ids.shape[1] + 1, device=found.device)
    index = (prompts.lengths[:, None] - 1 + reads).clamp(max=found.shape[1] - 1)
    return found.gather(1, index[..., None].expand(-1, -1, found.shape[-1]))


def rewards(
    model: WithHead,
    prompts: Tokens,
    responses: Tokens,
    of_prompt: Any = None,
    autocast: Any = None,
) -> Any:
    """(B,) what the head says at the state that has read the whole response.

    Args:
        model: backbone and head.
        prompts: (N, P) prompts, each encoded once.
        responses: (B, T) responses with their end marks (a cut one has none).
        of_prompt: (B,) row of `prompts` that each response answers; None where N = B, row for row.
        autocast: the torch dtype that the backbone computes in; None for that of its weights.
    """
    with torch.autocast(prompts.ids.device.type, autocast, enabled=autocast is not None):
        encoded = encode_prompts(model.backbone, prompts)
        if of_prompt is not None:
            prompts = prompts.take(of_prompt)
            encoded = None if encoded is None else encoded[of_prompt]
        read = all_states(model.backbone, prompts, responses, encoded)
    rows = torch.arange(len(read), device=read.device)
    return model.head(read[rows, responses.lengths])


def _decoder_states(backbone: Any, prompts: Tokens, responses: Tokens, encoded: Any) -> Any:
    """The decoder's states over the start mark and the responses."""
    config = backbone.config
    start = config.decoder_start_token_id
    start = config.pad_token_id if start is None else start
    ids = torch.nn.functional.pad(responses.ids, (1, 0), value=start)
    mask = torch.nn.functional.pad(responses.mask, (1, 0), value=True)
    return backbone.get_decoder()(
        input_ids=ids,
        attention_mask=mask.long(),
        encoder_hidden_states=encoded,
        encoder_attention_mask=prompts.real_first().mask.long(),
        use_cache=False,
    ).last_hidden_state
