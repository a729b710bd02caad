"""Component `promote`: the gate between challenger and champion, the ledger and the alias."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from pipestill.components._base import component


@component
def promote(
    tick: Input[Dataset],
    predictions: Input[Dataset],
    train: Input[Dataset],
    model: Input[Model],
    retrain_dir: str,
    decision: Output[Metrics],
    gate_require: str = "better",
    gate_margin: float = 0.02,
    gate_min_new: int = 100,
    gate_min_regression: int = 100,
    gate_slice_rows: int = 20,
    gate_level: float = 0.05,
    gate_override: str = "",
) -> str:
    """Promotes what is surely better on new rows and surely not worse on the regression set.

    Args:
        tick: JSON from `should_train`.
        predictions: rows of `evaluate_tuned`: the challenger is the arm ``tuned``, the champion
            ``base``.
        train: the challenger's training set, kept for the next tick.
        model: the challenger.
        retrain_dir: the retraining's folder.
        decision: the ledger's entry.

    The other parameters are the fields of `pipestill.retrain.settings.GateRule`.

    Returns:
        promote, keep or cannot_tell.
    """
    from pipestill.config import pick
    from pipestill.retrain.promote import promote_tick
    from pipestill.retrain.settings import GateRule

    return promote_tick(
        tick.path,
        retrain_dir=retrain_dir,
        predictions_path=predictions.path,
        model_path=model.path,
        train_path=train.path,
        decision_path=decision.path,
        rule=pick(GateRule, locals()),
    )
