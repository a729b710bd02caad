"""The arms of `evaluate_prompts`: who answers, how, and with how many worked examples."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipestill.config import EvalConfig, TeacherConfig
from pipestill.errors import UserError
from pipestill.evaluation.arms import large_arm, teacher_arm
from pipestill.evaluation.latency import percentiles
from pipestill.evaluation.one_request import Asked
from pipestill.evaluation.student_arms import answer_all, answer_limit, first_seeds
from pipestill.evaluation.teacher_arms import few_shot_arm, size_of
from pipestill.models.student import INFO_FILE
from pipestill.records import Example, Prediction

TUNED, BASE, RECORDED = "tuned", "base", "teacher_recorded"
Facts = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm before it is run.

    `run` gives its predictions and facts, or raises. `asked` says how it is timed and weighed, None
    where it does not run in this process. `seed` is that of its first model.
    """

    name: str
    run: Callable[[], tuple[list[Prediction], Facts]]
    shots: int | None = 0  # worked examples; None = not known
    seed: int = -1
    asked: Asked | None = None
    paid: TeacherConfig | None = None  # whose tokens have a price


@dataclass(frozen=True)
class Work:
    """What all arms share: the rows and how they are asked and judged."""

    rows: Sequence[Example]
    config: EvalConfig
    metric: str
    state_dir: str
    teacher: TeacherConfig

    def own(self, name: str, models: Mapping[str, tuple[str, int]]) -> Arm:
        """An arm of one or more of our own models (folder → arm, seed), asked zero-shot."""
        limit = answer_limit(self.rows, self.config)
        path, (_, seed) = next(iter(first_seeds(models).items()))

        def run() -> tuple[list[Prediction], Facts]:
            found, arms = answer_all(models, self.rows, self.config, self.metric)
            empty = sum(not item.output_text for item in found)
            return found, {**arms[name], "unparsable": empty}

        asked = Asked(arm=name, reference=path, max_new_tokens=limit)
        return Arm(name=name, run=run, seed=seed, asked=asked)

    def untuned(self, shots: int, reference: str) -> Arm:
        """The large model before tuning; it runs here, so nothing of it is paid by the token."""
        return self._local(large_arm(shots), shots, untuned_config(self.teacher, reference))

    def teachers(self, shots: Sequence[int]) -> list[Arm]:
        """The teacher with each number of shots; recorded answers make one arm."""
        config = self.teacher
        if config.backend == "replay":
            recorded = self._prompted(RECORDED, 0, config)
            return [dataclasses.replace(recorded, shots=None, paid=config)] if shots else []
        if config.backend == "transformers":
            return [self._local(teacher_arm(count), count, config) for count in shots]
        served = [self._prompted(teacher_arm(count), count, config) for count in shots]
        return [dataclasses.replace(arm, paid=config) for arm in served]

    def _local(self, name: str, shots: int, config: TeacherConfig) -> Arm:
        arm = self._prompted(name, shots, config)
        asked = Asked(
            arm=name,
            reference=config.model_reference,
            max_new_tokens=config.max_new_tokens,
            prompt=config.prompt,
            shots=shots,
        )

        def run() -> tuple[list[Prediction], Facts]:
            found, facts = arm.run()
            # No server's latency: that of a batch says nothing about one request.
            return found, {**facts, **percentiles([]), **size_of(config.model_reference)}

        return dataclasses.replace(arm, run=run, asked=asked)

    def _prompted(self, name: str, shots: int, config: TeacherConfig) -> Arm:
        def run() -> tuple[list[Prediction], Facts]:
            return few_shot_arm(self.rows, name, shots, self.metric, config, self.state_dir)

        return Arm(name=name, run=run, shots=shots)


def untuned_config(teacher: TeacherConfig, reference: str) -> TeacherConfig:
    """The large model asked with the teacher's prompt, in this process, outside of its budget."""
    return dataclasses.replace(
        teacher,
        model_reference=reference,
        backend="transformers",
        replay_uri="",
        base_url="",
        budget_tokens=0,
        budget_usd=0.0,
        usd_per_million_input=0.0,
        usd_per_million_output=0.0,
    )


def student_arms(student_paths: Sequence[str], work: Work) -> list[Arm]:
    """One arm a name of the students' folders, with all its seeds.

    An empty folder, which a training without rows leaves, is no arm; one without a readable
    `pipestill.json` becomes the arm ``student_<n>``, which only has an error.

    Raises:
        UserError: ``STUDENT_TWICE`` for a second student of an arm and seed.
    """
    named: dict[str, dict[str, tuple[str, int]]] = {}
    for number, folder in enumerate(student_paths, 1):
        if Path(folder).is_dir() and not any(Path(folder).iterdir()):
            print(f"evaluate: student {number} is empty: its training had no rows", flush=True)
            continue
        arm, seed = name_and_seed(folder, f"student_{number}")
        runs = named.setdefault(arm, {})
        if (arm, seed) in runs.values() or arm in (TUNED, BASE):
            raise UserError(
                "STUDENT_TWICE",
                f"{folder}: a second student of arm {arm} and seed {seed}",
                "give every student its own arm or seed",
            )
        runs[folder] = (arm, seed)
    return [work.own(arm, runs) for arm, runs in named.items()]


def name_and_seed(folder: str, otherwise: str) -> tuple[str, int]:
    """Arm and seed of a student's folder; `otherwise` and -1 of one that does not tell."""
    try:
        info = json.loads((Path(folder) / INFO_FILE).read_text(encoding="utf-8"))
        return str(info.get("curve_arm") or info["objective"]), int(info["seed"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return otherwise, -1
