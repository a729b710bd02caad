"""The steps that a pipeline will take with given parameters, read from its compiled definition.

Loops are taken apart (one step an item), nested pipelines are entered, conditions on known
parameters are decided, and each step knows its machine, its arguments and the steps before it. So a
new pipeline needs no code here.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipestill.errors import UserError

CONDITION = re.compile(
    r"inputs\.parameter_values\['([^']+)'\] (==|!=) (true|false|'[^']*'|-?[0-9.]+)"
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One task as it will run.

    `arguments` holds what is known before the run: constants, the pipeline's parameters and loop
    items; outputs of other steps are missing. `machine_type` is empty for a plain task. `needs` are
    the names of the steps before it.
    """

    name: str
    component: str
    title: str
    arguments: Mapping[str, Any]
    item: str = ""
    loop: str = ""
    loop_size: int = 1
    needs: tuple[str, ...] = ()
    cached: bool = True
    cpu: int = 4
    machine_type: str = ""
    accelerator_type: str = ""
    accelerator_count: int = 0
    location: str = ""

    @property
    def is_job(self) -> bool:
        """Whether it runs as a CustomJob on a machine of its own."""
        return bool(self.machine_type)


@dataclass
class _Scope:
    """Where the walk stands: the values known there, and the path of loop items to it."""

    values: dict[str, Any]
    path: str = ""
    item: str = ""
    loop: str = ""
    size: int = 1
    needs: tuple[str, ...] = ()
    leaves: dict[str, list[str]] = field(default_factory=dict)


def spec_of(pipeline: Any) -> dict[str, Any]:
    """The definition as a dict, of a kfp pipeline or of a compiled file's contents.

    Raises:
        UserError: ``PLAN_PIPELINE``.
    """
    spec = pipeline
    if hasattr(pipeline, "pipeline_spec"):
        from google.protobuf import json_format

        spec = json_format.MessageToDict(pipeline.pipeline_spec)
    if not isinstance(spec, dict) or "dag" not in spec.get("root", {}):
        raise UserError("PLAN_PIPELINE", "not a compiled pipeline (root.dag is missing)")
    return spec


def all_parameters(spec: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The given parameters over the pipeline's defaults.

    Raises:
        UserError: ``PLAN_PARAMETER`` where one is unknown or missing.
    """
    inputs = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    unknown = [name for name in given if name not in inputs]
    optional = [name for name, item in inputs.items() if _optional(item)]
    missing = [name for name in inputs if name not in given and name not in optional]
    if unknown or missing:
        problem = f"unknown: {', '.join(unknown)}" if unknown else f"missing: {', '.join(missing)}"
        name = spec.get("pipelineInfo", {}).get("name", "the pipeline")
        raise UserError("PLAN_PARAMETER", f"parameters of {name}: {problem}")
    return {
        name: given.get(name, _typed(item.get("defaultValue"), item))
        for name, item in inputs.items()
    }


def read_steps(spec: Mapping[str, Any], parameters: Mapping[str, Any]) -> list[Step]:
    """Every step that will run, in an order in which each comes after those it needs."""
    scope = _Scope(values=all_parameters(spec, parameters))
    return list(_walk(spec, spec["root"]["dag"], scope))


def _walk(spec: Mapping[str, Any], dag: Mapping[str, Any], scope: _Scope) -> Iterator[Step]:
    waiting = dict(dag["tasks"])
    while waiting:
        ready = [
            name
            for name, task in waiting.items()
            if not any(other in waiting for other in _before(task))
        ]
        for name in sorted(ready or waiting):  # a cycle cannot be compiled
            steps = list(_task(spec, name, waiting.pop(name), scope))
            scope.leaves[name] = [step.name for step in steps]
            yield from steps


def _before(task: Mapping[str, Any]) -> list[str]:
    inputs = task.get("inputs", {})
    producers = [
        item[kind]["producerTask"]
        for group, kind in (
            ("parameters", "taskOutputParameter"),
            ("artifacts", "taskOutputArtifact"),
        )
        for item in inputs.get(group, {}).values()
        if kind in item
    ]
    return list(dict.fromkeys([*task.get("dependentTasks", []), *producers]))


def _task(
    spec: Mapping[str, Any], name: str, task: Mapping[str, Any], scope: _Scope
) -> Iterator[Step]:
    values = {
        key: value
        for key, given in task.get("inputs", {}).get("parameters", {}).items()
        if (value := _value(given, scope.values)) is not None
    }
    if not _runs(task.get("triggerPolicy", {}).get("condition", ""), values):
        return
    component = spec["components"][task["componentRef"]["name"]]
    above = [leaf for other in _before(task) for leaf in scope.leaves.get(other, [])]
    needs = (*scope.needs, *above)
    loop = task.get("parameterIterator")
    if loop:
        yield from _loop(spec, name, task, component, values, needs, scope)
    elif "dag" in component:
        inner = _Scope(values, scope.path, scope.item, scope.loop, scope.size, needs)
        yield from _walk(spec, component["dag"], inner)
    else:
        yield _leaf(spec, name, task, component, values, needs, scope)


def _loop(
    spec: Mapping[str, Any],
    name: str,
    task: Mapping[str, Any],
    component: Mapping[str, Any],
    values: Mapping[str, Any],
    needs: tuple[str, ...],
    scope: _Scope,
) -> Iterator[Step]:
    """One walk an item; with a limit of n, item i also waits for item i - n."""
    iterator = task["parameterIterator"]
    items = _items(iterator["items"], values)
    limit = int(task.get("iteratorPolicy", {}).get("parallelismLimit", 0)) or len(items)
    done: list[tuple[str, ...]] = []
    for number, item in enumerate(items):
        waits = done[number - limit] if number >= limit else ()
        inner = _Scope(
            {**values, iterator["itemInput"]: item},
            f"{scope.path}/{number}",
            str(item),
            f"{scope.loop}{name}",
            len(items),
            (*needs, *waits),
        )
        steps = list(_walk(spec, component["dag"], inner))
        done.append(tuple(step.name for step in steps))
        yield from steps


def _leaf(
    spec: Mapping[str, Any],
    name: str,
    task: Mapping[str, Any],
    component: Mapping[str, Any],
    values: Mapping[str, Any],
    needs: tuple[str, ...],
    scope: _Scope,
) -> Step:
    inputs = component.get("inputDefinitions", {}).get("parameters", {})
    defaults = {
        key: _typed(item["defaultValue"], item)
        for key, item in inputs.items()
        if "defaultValue" in item
    }
    arguments = {key: _typed(value, inputs.get(key, {})) for key, value in values.items()}
    arguments = {**defaults, **arguments}
    container = spec["deploymentSpec"]["executors"][component["executorLabel"]].get("container", {})
    pools = arguments.get("worker_pool_specs")
    machine = pools[0]["machine_spec"] if pools else {}
    return Step(
        name=f"{name}{scope.path}",
        component=_component(task["componentRef"]["name"]),
        title=task.get("taskInfo", {}).get("name", name),
        arguments=arguments,
        item=scope.item,
        loop=scope.loop,
        loop_size=scope.size,
        needs=needs,
        cached=bool(task.get("cachingOptions", {}).get("enableCache")),
        cpu=max(1, int(float(container.get("resources", {}).get("cpuLimit", 4)))),
        machine_type=machine.get("machine_type", ""),
        accelerator_type=machine.get("accelerator_type", ""),
        accelerator_count=int(machine.get("accelerator_count", 0)),
        location=str(arguments.get("location", "")) if pools else "",
    )


def _component(reference: str) -> str:
    """``comp-student-train-2`` → student_train."""
    return re.sub(r"-\d+$", "", reference.removeprefix("comp-")).replace("-", "_")


def _value(given: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    """What a task's input is, or None where only the run will tell."""
    if "componentInputParameter" in given:
        return known.get(given["componentInputParameter"])
    constant = given.get("runtimeValue", {}).get("constant")
    if isinstance(constant, str) and "{{" in constant:
        return None
    return constant


def _items(items: Mapping[str, Any], values: Mapping[str, Any]) -> list[Any]:
    """The items of a loop; one that nobody knows where they come from another step."""
    import json

    found = json.loads(items["raw"]) if "raw" in items else values.get(items["inputParameter"])
    return list(found) if isinstance(found, list | tuple) else ["?"]


def _runs(condition: str, values: Mapping[str, Any]) -> bool:
    """Whether a condition holds; one that is not understood or not known yet counts as holding."""
    parts = [CONDITION.fullmatch(part.strip(" ()")) for part in condition.split("&&")]
    for part in parts:
        if part is None or part[1] not in values:
            continue
        value, wanted = values[part[1]], part[3].strip("'")
        found = str(value).lower() if isinstance(value, bool) else str(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            equal = re.fullmatch(r"-?[0-9.]+", wanted) is not None and float(wanted) == value
        else:
            equal = found == wanted
        if equal != (part[2] == "=="):
            return False
    return True


def _typed(value: Any, definition: Mapping[str, Any]) -> Any:
    """Whole numbers come back from a definition as floats."""
    kind = definition.get("parameterType")
    if kind == "NUMBER_INTEGER" and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind == "NUMBER_DOUBLE" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if value is None and kind is not None:
        return {"STRING": "", "LIST": [], "STRUCT": {}}.get(kind)
    return value


def _optional(definition: Mapping[str, Any]) -> bool:
    return bool(definition.get("isOptional")) or "defaultValue" in definition
