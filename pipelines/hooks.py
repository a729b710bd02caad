"""What one local run changes about KFP's local runner, for its own time and in this process only.

KFP starts the steps, passes artifacts and caches. Five of its habits do not suit a person at a
terminal, and `hooked` changes them without touching the installed package:

- it prints everything and hides the cause of a failure: each step gets its own log file here, and
  the screen one line when it starts and one when it ends;
- after a failure it starts the other iterations of a ParallelFor all the same: here they are not;
- inside a ParallelFor it replaces another task's output parameter (our `cache_key`) by the loop
  item: here the parameter keeps its value;
- it waits minutes before it repeats a step that failed: here `Steps.run` has decided by then
  whether a step is worth repeating, and nothing waits;
- its cache key knows a model folder or a prompt file by path alone: here by content as well.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipestill.errors import WorkError
from pipestill.pipelines.steps import Steps

CONTENT_INPUTS = ("_model_reference", "_prompt")


@contextlib.contextmanager
def hooked(steps: Steps, cache_root: Path) -> Iterator[None]:
    """Puts `steps` in place of KFP's own process runner and cache while a pipeline runs.

    Raises:
        WorkError: ``KFP_VERSION`` where the installed KFP is built differently.
    """
    try:
        from kfp.local import cache, subprocess_task_handler
        from kfp.local.orchestrator import task_executor, task_spec_utils

        step_cache = make_cache(steps, cache_root)
        replacements = (
            (subprocess_task_handler, "run_local_subprocess", steps.run),
            (cache, "get_local_cache", lambda: step_cache),
            (task_executor, "time", SimpleNamespace(sleep=lambda seconds: None)),
            (
                task_spec_utils,
                "create_parameter_loop_iteration_task_spec",
                keep_task_outputs(task_spec_utils.create_parameter_loop_iteration_task_spec),
            ),
        )
        originals = [(module, name, getattr(module, name)) for module, name, _ in replacements]
    except (ImportError, AttributeError) as error:
        raise WorkError(
            "KFP_VERSION",
            f"this version of kfp cannot run pipelines locally ({error})",
            "pip install 'kfp>=2.17,<3'",
        ) from error
    for module, name, new in replacements:
        setattr(module, name, new)
    try:
        yield
    finally:
        for module, name, old in originals:
            setattr(module, name, old)


def keep_task_outputs(original: Callable[..., Any]) -> Callable[..., Any]:
    """KFP's builder of one loop iteration, with other tasks' outputs left as they were."""

    def build(original_task_spec: Any, loop_item: Any, loop_task_name: str) -> Any:
        spec = original(original_task_spec, loop_item, loop_task_name)
        for name, given in original_task_spec.inputs.parameters.items():
            if given.HasField("task_output_parameter") and not name.endswith("-loop-item"):
                spec.inputs.parameters[name].CopyFrom(given)
        return spec

    return build


def make_cache(steps: Steps, root: Path) -> Any:
    """KFP's file cache, which tells the screen about hits and knows local content inputs."""
    from kfp.local.cache import LocalCache

    class StepCache(LocalCache):  # type: ignore[misc]
        """Keys and hits belong to one thread at a time, so the label waits in a thread local."""

        current = threading.local()

        def compute_key(self, component_name: str, *args: Any, **kwargs: Any) -> str:
            arguments = kwargs["arguments"]
            name = component_name.removeprefix("comp-")
            self.current.label = steps.label(name, arguments, _input_place(arguments))
            self.current.folder = arguments.get("deploy_dir") or ""
            key: str = super().compute_key(component_name, *args, **kwargs)
            return hashlib.sha256((key + content_digest(arguments)).encode()).hexdigest()

        def get(self, key: str) -> dict[str, Any] | None:
            if steps.stopping or steps.failure:
                return None
            found: dict[str, Any] | None = super().get(key)
            if found is None or (self.current.folder and not Path(self.current.folder).exists()):
                return None
            steps.cached.append(self.current.label)
            steps.screen.line(f"{self.current.label}: cached")
            return found

    return StepCache(str(root))


def _input_place(arguments: Mapping[str, Any]) -> str:
    """The path of a step's artifact that is not a list: lists come from outside of a loop."""
    uris = [item.uri for item in arguments.values() if hasattr(item, "uri")]
    return uris[0] if len(uris) == 1 else ""


def content_digest(arguments: Mapping[str, Any]) -> str:
    """What local model folders and prompt files hold: small files' bytes, others' size and time."""
    parts = []
    for name, value in sorted(arguments.items()):
        if name.endswith(CONTENT_INPUTS) and isinstance(value, str) and os.path.exists(value):
            path = Path(value)
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            parts += [_fingerprint(item) for item in files if item.is_file()]
    return "\n".join(parts)


def _fingerprint(path: Path) -> str:
    facts = path.stat()
    if facts.st_size < 1_000_000:
        return f"{path}:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    return f"{path}:{facts.st_size}:{facts.st_mtime_ns}"
