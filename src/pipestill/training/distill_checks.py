"""What a distillation run refuses before anything is loaded or paid for."""

import dataclasses
from pathlib import Path
from typing import Any

from pipestill.config import DistillConfig, TrainConfig, config_value, pick, refuse_out_of_range
from pipestill.errors import UserError
from pipestill.models.loading import Loaded
from pipestill.training.distill_objectives import Objective
from pipestill.training.distributed import World
from pipestill.training.student import check
from pipestill.training.teacher_states import vocabulary_digest

SOURCES = ("online", "stored")
TARGETS = ("teacher", "label")
CROSS_TOKENIZER = ("refuse", "uld", "sequence")


def check_distill(config: DistillConfig, objective: Objective, world: World) -> None:
    """Refuses settings out of range, or that do not go together.

    Raises:
        UserError: ``CONFIG_VALUE``, ``STORE_OBJECTIVE``, ``BALANCE_PROCESSES``.
    """
    rules = {
        "targets": (config.targets in TARGETS, ", ".join(TARGETS)),
        "teacher_source": (config.teacher_source in SOURCES, ", ".join(SOURCES)),
        "cross_tokenizer": (config.cross_tokenizer in CROSS_TOKENIZER, ", ".join(CROSS_TOKENIZER)),
        "kd_weight": (0 <= config.kd_weight <= 1, "0 to 1"),
        "tau": (config.tau > 0, "above 0"),
        "jsd_beta": (0 <= config.jsd_beta <= 1, "0 to 1"),
        "skew": (0 <= config.skew <= 1, "0 to 1"),
        "feature_weight": (config.feature_weight >= 0, "0 or more"),
        "relation_weight": (config.relation_weight >= 0, "0 or more"),
        "ema_decay": (0 <= config.ema_decay < 1, "0 to below 1"),
        "generations": (config.generations >= 1, "1 or more"),
        "context_shots": (config.context_shots >= 1, "1 or more"),
        "on_policy_fraction": (0 <= config.on_policy_fraction <= 1, "0 to 1"),
        "sample_temperature": (config.sample_temperature > 0, "above 0"),
    }
    refuse_out_of_range(config, rules)
    check(pick(TrainConfig, dataclasses.asdict(config)))
    stored = config.teacher_source == "stored" and objective.needs_teacher
    if stored and objective.family != "response":
        raise UserError(
            "STORE_OBJECTIVE",
            f"teacher_source: found 'stored', but {objective.family} needs the teacher itself "
            "(its states, or its opinion of new text)",
            "set teacher_source to online, or use response",
        )
    if config.auto_balance and not objective.is_control:
        if config.kd_weight == 1:
            raise config_value(
                "kd_weight", config.kd_weight, "below 1 with auto_balance, which follows the CE"
            )
        if world.size > 1:
            raise UserError(
                "BALANCE_PROCESSES",
                f"auto_balance: found true with {world.size} processes, allowed: one process, "
                "because sharded gradients cannot be measured apart",
                "set auto_balance to false and weigh by kd_weight, feature_weight, relation_weight",
            )


def open_checked(path: str | Path, student: Loaded, config: DistillConfig) -> Any:
    """The store of teacher probabilities, if it is of use to this run.

    Raises:
        UserError: ``STORE_MISSING``, ``STORE_EMPTY`` (made with top_k = 0), ``STORE_TAU`` (of the
            tail only the sum is stored, which no other temperature can be computed from),
            ``STORE_TARGETS``, ``STORE_TOKENIZER``.
    """
    from pipestill.generation.logits_store import check_store, open_store

    store = open_store(path)
    digest = vocabulary_digest(student.tokenizer)
    check_store(store, tau=config.tau, targets=config.targets, vocabulary_digest=digest)
    return store
