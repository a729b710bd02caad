"""LoRA (Hu et al. 2021, arXiv 2106.09685): small trained matrices beside frozen weights.

The adapters go into the model in place, so training sees an ordinary model of which few weights
learn. At export they are added to the weights they stand beside: what is served is an ordinary
model again. The adapters themselves are kept as safetensors too.
"""

from pathlib import Path
from typing import Any

from pipestill.errors import UserError

HIGHER_RATE = (
    10.0  # adapters learn well at ten times the rate of full tuning (Schulman et al. 2025)
)


def add(model: Any, *, rank: int, alpha: float, dropout: float, seed: int) -> Any:
    """Freezes `model` and puts adapters beside all its linear layers but the LM head.

    Args:
        model: a transformers model; changed in place, and usable as before.
        rank: width of the adapters.
        alpha: the adapters' output is scaled by alpha / rank.
        dropout: share of the adapters' inputs that is dropped in training.
        seed: of the adapters' first values; the model's outputs do not change by them.

    Returns:
        The peft model around `model`, which `save` and `merge` take.

    Raises:
        UserError: ``LORA_NO_LAYERS``.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    names = target_modules(model)
    if not names:
        raise UserError(
            "LORA_NO_LAYERS",
            f"{type(model).__name__} has no linear layers that adapters could stand beside",
            "set method to full",
        )
    both = bool(model.config.is_encoder_decoder)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=names,
        fan_in_fan_out=_transposed(model),
        task_type="SEQ_2_SEQ_LM" if both else "CAUSAL_LM",
    )
    device = model.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def target_modules(model: Any) -> list[str]:
    """The names of the linear layers, without their place in the stack: ``q``, ``wi``, ``o_proj``.

    The LM head is left out, because T5 and many others share its weights with the embedding.
    """
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, layer in model.named_modules()
            if _is_linear(layer) and layer is not head
        }
    )


def trainable(model: Any) -> int:
    """How many weights learn."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def save(adapted: Any, folder: str | Path) -> None:
    """Writes the adapters as ``adapter_model.safetensors`` with peft's ``adapter_config.json``."""
    adapted.save_pretrained(str(folder), safe_serialization=True)
    Path(folder, "README.md").unlink(missing_ok=True)  # a form to fill in, not a description


def merge(adapted: Any) -> Any:
    """The plain model with the adapters added to its weights."""
    return adapted.merge_and_unload(safe_merge=True)


def _is_linear(layer: Any) -> bool:
    import torch

    return isinstance(layer, torch.nn.Linear) or type(layer).__name__ == "Conv1D"


def _transposed(model: Any) -> bool:
    """GPT-2 keeps its weights as (in, out)."""
    return any(type(layer).__name__ == "Conv1D" for layer in model.modules())
