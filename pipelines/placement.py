"""Where each step of a pipeline runs: as a plain task, or as a CustomJob on an exact machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipestill import __version__
from pipestill.pipelines.custom_job import JobOptions, as_custom_job
from pipestill.pipelines.hardware import Profile, validate

LIGHT_CPU, LIGHT_MEMORY = "4", "16G"
LIGHT_RETRIES = 1
BACKOFF = {"backoff_duration": "60s", "backoff_factor": 2.0}


@dataclass(frozen=True)
class Placement:
    """Applies one hardware profile to the steps of a pipeline."""

    profile: Profile
    options: JobOptions = field(default_factory=JobOptions)

    def __post_init__(self) -> None:
        validate(self.profile)

    def heavy(self, component: Any) -> Any:
        """The component itself, or its CustomJob where the profile names a machine."""
        if not self.profile.machine_type:
            return component
        image = f"pipestill/{self.profile.image}:{__version__}"
        return as_custom_job(component, self.profile, image, self.options)

    def job_inputs(self, encryption_spec_key_name: Any, tensorboard: Any) -> dict[str, Any]:
        """The run-time inputs that only a CustomJob takes."""
        if not self.profile.machine_type:
            return {}
        return {"encryption_spec_key_name": encryption_spec_key_name, "tensorboard": tensorboard}

    def each(self, items: Any, name: str) -> Any:
        """A loop over `items`, as many at one time as the profile has machines for."""
        from kfp import dsl

        return dsl.ParallelFor(items, name=name, parallelism=self.profile.parallelism or None)

    def settle(self, task: Any, title: str, *, heavy: bool = False, cached: bool = True) -> Any:
        """Sets display name, caching, resources and retries of a task, and returns it."""
        task.set_display_name(title).set_caching_options(cached)
        task.set_retry(self.profile.retries if heavy else LIGHT_RETRIES, **BACKOFF)
        if heavy and self.profile.machine_type:  # the launcher is small; its job has the machine
            return task
        cpu, memory = (
            (self.profile.cpu, self.profile.memory) if heavy else (LIGHT_CPU, LIGHT_MEMORY)
        )
        task.set_cpu_request(cpu).set_cpu_limit(cpu)
        return task.set_memory_request(memory).set_memory_limit(memory)


def settings(component: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the pipeline's parameters that the component takes, by name."""
    return {name: given[name] for name in component.component_spec.inputs if name in given}
