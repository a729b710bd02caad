"""Component `skip_training`: the ledger's entry of a tick that does not train."""

from kfp.dsl import Dataset, Input

from pipestill.components._base import component


@component
def skip_training(tick: Input[Dataset], retrain_dir: str) -> str:
    """Enters the tick, unless it has an entry already: then nothing is done.

    Args:
        tick: JSON from `should_train`.
        retrain_dir: the retraining's folder.

    Returns:
        not_trained, or the decision that the tick had before.
    """
    from pipestill.retrain.decide import skip_tick

    return skip_tick(tick.path, retrain_dir)
