"""The settings of a claims run, looked at before anything is paid for."""

from collections.abc import Mapping
from typing import Any

from pipestill.config import (
    CostConfig,
    CurveConfig,
    EvalConfig,
    FrontierConfig,
    PolicyConfig,
    TrainConfig,
    config_value,
    pick,
)


def check_settings(pipeline: str, parameters: Mapping[str, Any]) -> None:
    """Refuses what a step would refuse only after the steps before it have run.

    Args:
        pipeline: only ``claims`` is looked at.
        parameters: of the pipeline, those that were given.

    Raises:
        UserError: ``CONFIG_VALUE``, ``SHOTS_UNREADABLE``, ``MACHINE_UNPRICED``.
    """
    if pipeline != "claims":
        return
    from pipestill.evaluation.request_cost import serving_machine
    from pipestill.evaluation.run import parse_shots
    from pipestill.rlhf.frontier import coefficients_of
    from pipestill.training.curve_rows import ARMS, grid_of

    for arm in parameters.get("arms", []):
        if arm not in ARMS:
            raise config_value("arms", arm, ", ".join(ARMS))
    grid_of(pick(CurveConfig, parameters), pick(TrainConfig, parameters))
    parse_shots(pick(EvalConfig, parameters).eval_shots)
    coefficients_of(pick(FrontierConfig, parameters), pick(PolicyConfig, parameters))
    serving_machine(pick(CostConfig, parameters))
