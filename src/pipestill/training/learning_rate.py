"""The recommended learning rate, and how it changes during a run."""

REFERENCE_PARAMETERS = 250e6
REFERENCE_BATCH = 64
REFERENCE_RATE = 1e-4
HIGHEST, LOWEST = 1e-3, 1e-6
PARAMETER_EXPONENT = -0.646
BATCH_EXPONENT = 0.578


def recommended(parameters: int, batch_size: int) -> float:
    """The AdamW rate for a model of `parameters` weights and a step of `batch_size` examples.

    The scaling is the one Google's distillation study reports: rate × C^−0.646 when the model grows
    by C, × C^0.578 when the global batch does. It is anchored at 1e-4 for T5-base (250 million
    parameters) and 64 examples, and capped at 1e-3, which a model of one million parameters reaches
    at 32 examples: past that, small models gain no more and large steps turn unstable.
    """
    size = max(parameters, 1) / REFERENCE_PARAMETERS
    batch = max(batch_size, 1) / REFERENCE_BATCH
    rate = REFERENCE_RATE * size**PARAMETER_EXPONENT * batch**BATCH_EXPONENT
    return float(min(HIGHEST, max(LOWEST, rate)))


def chosen(rate: float, multiplier: float, parameters: int, batch_size: int) -> float:
    """The peak rate of a run: `rate`, or where it is 0 the recommended one; times `multiplier`."""
    return (rate or recommended(parameters, batch_size)) * multiplier


def scale(step: int, steps: int, warmup_fraction: float) -> float:
    """Share of the peak rate at `step` (1-based) of `steps`: linear up, then linear down to 0.

    The last step still moves: the line reaches zero one step later.
    """
    warmup = round(steps * warmup_fraction)
    if step <= warmup:
        return step / (warmup + 1)
    return (steps + 1 - step) / (steps - warmup)
