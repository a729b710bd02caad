"""What a step computes: floating-point operations of the model, and the share of a device's peak.

Counted are matrix products, forward and backward, of real tokens alone: padding, recomputation by
gradient checkpointing, and the LM head at positions without loss are no useful work. This is the
6·N·D of Kaplan et al. 2020 (arXiv 2001.08361) with the attention's 12·width·T² (Chowdhery et al.
2022, arXiv 2204.02311, appendix B, which counts the causal mask's other half too), taken apart for
encoder-decoders, whose encoder and decoder see different tokens. A frozen weight costs 4 operations
a token, a trained one 6. Experts of sparse models are not counted.
"""

from dataclasses import dataclass
from typing import Any

from pipestill.training.batches import Encoded

# bf16 without sparsity, a chip: NVIDIA's data sheets; cloud.google.com/tpu/docs/v3. The first name
# that stands in the device's name counts.
PEAK_FLOPS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "TPU v3": 123e12,
}
CROSS_INPUTS = (
    "EncDecAttention.k",
    "EncDecAttention.v",
    "encoder_attn.k_proj",
    "encoder_attn.v_proj",
)


@dataclass(frozen=True)
class Costs:
    """Operations of one training step: a token, by the part that reads it, and a pair of tokens.

    `cross` is what the decoder's cross-attention computes of every encoder token. The `…_pair`
    values are an attention's, for every query and key.
    """

    encoder: float
    decoder: float
    cross: float
    head: float
    encoder_pair: float
    decoder_pair: float
    cross_pair: float


def costs_of(model: Any) -> Costs:
    """Reads the costs off the model's linear layers and configuration."""
    sums = {"encoder": 0.0, "decoder": 0.0, "cross": 0.0, "head": 0.0}
    both = bool(model.config.is_encoder_decoder)
    inside = {id(module) for module in model.get_encoder().modules()} if both else set()
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        macs = _weights(module)
        if not macs:
            continue
        part = "decoder"
        if module is head:
            part = "head"
        elif id(module) in inside:
            part = "encoder"
        elif any(mark in name for mark in CROSS_INPUTS):
            part = "cross"
        sums[part] += 2.0 * macs * (2 + module.weight.requires_grad)
    encoder, decoder = _attention(model.config, both)
    pairs = {"encoder_pair": encoder, "decoder_pair": decoder, "cross_pair": decoder if both else 0}
    return Costs(**sums, **pairs)


def flops_of_step(costs: Costs, data: Encoded, sequences: Any) -> float:
    """Operations of a step over `sequences` (their numbers), forward and backward."""
    source, target = data.source_length[sequences].double(), data.target_length[sequences].double()
    answered = float(target.sum())
    if costs.cross_pair:
        read, pairs = float(source.sum()), float((source * source).sum())
        found = (costs.encoder + costs.cross) * read + costs.encoder_pair * pairs
        found += costs.decoder * answered + costs.decoder_pair * float((target * target).sum())
        found += costs.cross_pair * float((source * target).sum())
    else:
        whole = source + target
        found = costs.decoder * float(whole.sum()) + costs.decoder_pair * float(
            (whole * whole).sum()
        )
    return found + costs.head * answered


def peak_flops(device: str) -> float | None:
    """bf16 operations a second of the device's chip (``cuda:0``, or a name); None if unknown."""
    name = device
    if device.startswith("cuda"):
        import torch

        name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_FLOPS.items() if known in name), None)


def mfu(flops: float, seconds: float, device: str, chips: int = 1) -> float | None:
    """Share of the peak that `flops` in `seconds` are: model FLOP utilisation. None if unknown."""
    peak = peak_flops(device)
    return None if peak is None or seconds <= 0 else flops / seconds / (peak * chips)


def _weights(module: Any) -> int:
    """Weights of a linear layer, 0 for other modules. GPT-2's Conv1D is one."""
    import torch

    if isinstance(module, torch.nn.Linear):
        return int(module.in_features * module.out_features)
    return int(module.weight.numel()) if type(module).__name__ == "Conv1D" else 0


def _attention(config: Any, both: bool) -> tuple[float, float]:
    """Operations a pair of tokens, of all encoder layers and of all decoder layers.

    Two products (scores and values) of 2 operations an element, three times: forward, and the
    gradients of both factors.
    """
    text = config.get_text_config()
    heads = text.num_attention_heads
    size = getattr(text, "d_kv", None) or getattr(text, "head_dim", None)
    width = 12.0 * heads * (size or text.hidden_size // heads)
    if not both:
        return 0.0, width * text.num_hidden_layers
    encoder = getattr(config, "encoder_layers", None) or config.num_layers
    decoder = getattr(config, "decoder_layers", None) or config.num_decoder_layers
    return width * encoder, width * decoder
