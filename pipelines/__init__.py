"""Pipelines: wiring of components only. Compiled forms lie in `compiled/`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pipestill.errors import UserError

if TYPE_CHECKING:
    from pipestill.pipelines.hardware import Profile

# name → the module whose `build(profile)` returns the kfp pipeline
PIPELINES = {
    "distill_step_by_step": "pipestill.pipelines.distill_step_by_step",
    "distill": "pipestill.pipelines.distill",
    "supervised_tuning": "pipestill.pipelines.supervised_tuning",
    "rlhf": "pipestill.pipelines.rlhf",
    "evaluate": "pipestill.pipelines.evaluate",
    "claims": "pipestill.pipelines.claims",
    "retrain": "pipestill.pipelines.retrain",
    "batch_predict": "pipestill.pipelines.batch_predict",
}


def build(name: str, profile: Profile | None = None, **options: Any) -> Any:
    """The kfp pipeline `name` for a hardware profile (default: this machine).

    Raises:
        UserError: ``PIPELINE_UNKNOWN``.
    """
    if name not in PIPELINES:
        raise UserError(
            "PIPELINE_UNKNOWN",
            f"pipeline: found {name!r}, allowed: {', '.join(PIPELINES)}",
        )
    from pipestill.pipelines.hardware import PROFILES

    module = importlib.import_module(PIPELINES[name])
    return module.build(profile or PROFILES["cpu-local"], **options)
