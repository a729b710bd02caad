"""From a configuration file and ``--set`` to a pipeline's flat parameters.

A file may nest: ``teacher: {backend: replay}`` is ``teacher_backend``. The sections named in
`FREE_SECTIONS` only group, so ``train: {train_steps: 300}`` and ``train: {steps: 300}`` are both
``train_steps``. Unknown names, names given twice and values of the wrong type are refused, each
with its place in the file.
"""

import difflib
import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipestill.data.text import printable
from pipestill.errors import UserError
from pipestill.yaml_text import check_bounds, read_yaml, sound

FREE_SECTIONS = ("data", "train", "student", "evaluate", "evaluation", "eval", "report", "deploy")
SUGAR = ("seeds", "arms", "num_shards", "sizes", "controls", "study")
# pipeline that is asked for → ``study`` in the file → pipeline that is run
STUDIES = {"evaluate": {"models": "evaluate", "claims": "claims"}}
ARMS = ("dss", "label_only", "shuffled")
FAMILIES = ("response", "feature", "relation", "self", "on_policy")
CONTROLS = ("teacher_labels", "gold")
DISTILLING = "on_policy_fraction"  # a parameter by which the pipeline `distill` is known
LONGEST_FILE = 1_000_000  # bytes
LONGEST_SHOWN = 200  # characters of a --set in a message
TYPES = {
    "STRING": str,
    "NUMBER_INTEGER": int,
    "NUMBER_DOUBLE": float,
    "BOOLEAN": bool,
    "LIST": list,
}


@dataclass(frozen=True)
class Setting:
    """One value and where it was given, for error messages."""

    value: Any
    where: str


def load(
    path: str | None, assignments: Sequence[str], allowed: Mapping[str, type]
) -> dict[str, Any]:
    """Reads a file and ``--set`` options into parameters; ``--set`` wins over the file.

    Args:
        path: YAML file, or None.
        assignments: ``key=value`` each; the key may be nested by dots.
        allowed: parameter name → str, int, float, bool or list.

    Raises:
        UserError: ``CONFIG_…``, naming file and line.
    """
    given = read_file(Path(path), allowed) if path else {}
    given |= read_assignments(assignments, allowed)
    folder = Path(path).parent if path else Path()
    given = {name: item for name, item in given.items() if name != "study"}
    given = expand_objectives(given) if DISTILLING in allowed else given
    given = expand_sugar(given, allowed)
    return {
        name: resolve_path(name, coerce(name, setting, allowed[name]), folder)
        for name, setting in given.items()
    }


def pipeline_of(pipeline: str, path: str | None, assignments: Sequence[str]) -> str:
    """The pipeline that is run: some have several studies, and the file names one.

    Raises:
        UserError: ``STUDY_UNKNOWN``, and as `load` where the file cannot be read.
    """
    if pipeline not in STUDIES:
        return pipeline
    studies = STUDIES[pipeline]
    chosen = _study_in_file(path) if path else None
    for text in assignments:
        name, _, value = text.partition("=")
        if name.strip() == "study":
            chosen = Setting(value.strip(), f"--set {text}")
    if chosen is None:
        return pipeline
    if chosen.value not in tuple(studies):
        raise UserError(
            "STUDY_UNKNOWN",
            f"{chosen.where}: study: found {chosen.value!r}, allowed: {', '.join(studies)}",
        )
    return studies[chosen.value]


def _study_in_file(path: str) -> Setting | None:
    root = compose(Path(path))
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    for key, value in pairs:
        if key.value == "study":
            return Setting(value.value, f"{path}, line {key.start_mark.line + 1}")
    return None


def read_file(path: Path, allowed: Mapping[str, type]) -> dict[str, Setting]:
    """The file's values by parameter name."""
    given: dict[str, Setting] = {}
    root = compose(path)
    if root is not None:
        _walk(root, (), path, allowed, given)
    return given


def compose(path: Path) -> yaml.Node | None:
    """The file as YAML nodes, with their places; None where it is empty.

    Raises:
        UserError: ``CONFIG_TOO_LONG``, ``CONFIG_UNREADABLE``, ``CONFIG_YAML``.
    """
    try:
        if path.stat().st_size > LONGEST_FILE:
            raise UserError("CONFIG_TOO_LONG", f"{path}: more than {LONGEST_FILE:,} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            "CONFIG_UNREADABLE", f"{path}: cannot be read ({error})", "check -c"
        ) from error
    try:
        check_bounds(text)
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                line = event.start_mark.line if event.start_mark else 0
                raise _wrong(path, line, "aliases (*name) are not allowed")
        root: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "not YAML"
        raise _wrong(path, mark.line if mark else 0, str(problem)) from error
    except ValueError as error:
        raise UserError(
            "CONFIG_YAML", f"{path}, {error}", "correct the configuration file"
        ) from error
    return root


def _walk(
    node: yaml.Node,
    keys: tuple[str, ...],
    path: Path,
    allowed: Mapping[str, type],
    given: dict[str, Setting],
) -> None:
    if not isinstance(node, yaml.MappingNode):
        if not keys:
            raise _wrong(path, node.start_mark.line, "expected `name: value` lines")
        where = f"{path}, line {node.start_mark.line + 1}"
        name = parameter_name(keys, allowed, where)
        if name in given:
            raise UserError(
                "CONFIG_DUPLICATE", f"{where}: {name} was already given at {given[name].where}"
            )
        try:
            given[name] = Setting(_construct(node), where)
        except (yaml.YAMLError, ValueError) as error:  # a date or number that is none
            problem = getattr(error, "problem", None) or str(error)
            raise _wrong(path, node.start_mark.line, problem) from error
        return
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _wrong(path, key.start_mark.line, "a name must be a plain word")
        _walk(value, (*keys, key.value), path, allowed, given)


def _construct(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return sound(loader.construct_document(node))
    finally:
        loader.dispose()


def _wrong(path: Path, line: int, problem: str) -> UserError:
    return UserError(
        "CONFIG_YAML", f"{path}, line {line + 1}: {problem}", "correct the configuration file"
    )


def read_assignments(assignments: Sequence[str], allowed: Mapping[str, type]) -> dict[str, Setting]:
    """``--set`` options; texts stay as they are typed, other types are read as YAML."""
    given = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        where = f"--set {printable(text[:LONGEST_SHOWN])}"
        if not equals or not key.strip():
            raise UserError("CONFIG_SET", f"{where}: expected key=value")
        name = parameter_name(tuple(key.strip().split(".")), allowed, where)
        if allowed.get(name) is str:
            given[name] = Setting(value, where)
            continue
        try:
            given[name] = Setting(read_yaml(value), where)
        except ValueError as error:
            raise UserError("CONFIG_SET", f"{where}: the value cannot be read") from error
    return given


def parameter_name(keys: tuple[str, ...], allowed: Mapping[str, type], where: str) -> str:
    """The parameter that a nested name means.

    Raises:
        UserError: ``CONFIG_UNKNOWN`` with the closest allowed names.
    """
    joined, bare = "_".join(keys), keys[-1]
    if joined in allowed or joined in SUGAR:
        return joined
    if len(keys) == 2 and keys[0] in FREE_SECTIONS and (bare in allowed or bare in SUGAR):
        return bare
    names = [*allowed, *SUGAR]
    close = difflib.get_close_matches(joined, names, n=3) or difflib.get_close_matches(
        bare, names, n=3, cutoff=0.5
    )
    raise UserError(
        "CONFIG_UNKNOWN",
        f"{where}: unknown name {'.'.join(keys)!r}; "
        + (f"closest: {', '.join(close)}" if close else f"allowed: {', '.join(sorted(allowed))}"),
        "correct the name, or leave it out",
    )


def expand_sugar(given: dict[str, Setting], allowed: Mapping[str, type]) -> dict[str, Setting]:
    """``seeds`` × ``arms`` → ``runs``; ``num_shards: n`` → ``shards``.

    A name that the pipeline itself takes stays as it is.
    """
    rest = {name: item for name, item in given.items() if name not in SUGAR or name in allowed}
    given = {name: item for name, item in given.items() if name not in allowed}
    for short, full in (("seeds", "runs"), ("arms", "runs"), ("num_shards", "shards")):
        if short in given and full in rest:
            raise UserError(
                "CONFIG_DUPLICATE",
                f"{given[short].where}: {short} also sets {full}, given at {rest[full].where}",
                "give one of the two",
            )
    if "seeds" in given or "arms" in given:
        seeds = _seeds(given.get("seeds", Setting([0, 1, 2], "default")))
        arms = _words(given.get("arms", Setting(list(ARMS), "default")), "arms")
        first = given.get("seeds") or given["arms"]
        rest["runs"] = Setting([f"{arm}:{seed}" for arm in arms for seed in seeds], first.where)
    if "num_shards" in given:
        setting = given["num_shards"]
        count = setting.value
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 100:
            raise _type_error("num_shards", setting, "a whole number from 1 to 100")
        rest["shards"] = Setting([f"{i}/{count}" for i in range(count)], setting.where)
    return rest


def expand_objectives(given: dict[str, Setting]) -> dict[str, Setting]:
    """Pipeline `distill`: ``objective`` × ``sizes``, with their ``controls``, as ``arms``.

    ``objective`` is one, several in a list, or ``all``; ``sizes`` are numbers of layers. The first
    of each is the student that is served. Unless ``arms`` or ``runs`` say otherwise.
    """
    if "runs" in given or "arms" in given or not {"objective", "sizes", "seeds"} & given.keys():
        return given
    chosen = given.get("objective", Setting("response", "default"))
    every = chosen.value == "all"
    names = list(FAMILIES) if every else chosen.value
    names = _words(Setting([names] if isinstance(names, str) else names, chosen.where), "objective")
    usual = Setting(list(CONTROLS if every else CONTROLS[:1]), "default")
    controls = _words(given.get("controls", usual), "controls")
    sizes = given.get("sizes", Setting([""], "default"))
    if not isinstance(sizes.value, list) or not sizes.value:
        raise _type_error("sizes", sizes, "a list of numbers of layers such as [2, 5+1]")
    ends = [f"@{size}" if size != "" else "" for size in sizes.value]
    arms = [f"{name}{end}" for end in ends for name in [*names, *controls]]
    rest = {name: item for name, item in given.items() if name not in ("sizes", "controls")}
    return {
        **rest,
        "arms": Setting(list(dict.fromkeys(arms)), chosen.where),
        "objective": Setting(f"{names[0]}{ends[0]}", chosen.where),
    }


def _seeds(setting: Setting) -> list[int]:
    values = setting.value
    if not isinstance(values, list) or not values or any(type(seed) is not int for seed in values):
        raise _type_error("seeds", setting, "a list of whole numbers such as [0, 1, 2]")
    return values


def _words(setting: Setting, name: str) -> list[str]:
    values = setting.value
    if not isinstance(values, list) or not values or any(type(word) is not str for word in values):
        raise _type_error(name, setting, "a list of words such as [dss, label_only]")
    return values


def coerce(name: str, setting: Setting, kind: type) -> Any:
    """The value as the parameter's type, where nothing is lost by it.

    Raises:
        UserError: ``CONFIG_TYPE``.
    """
    value = setting.value
    if type(value) is kind and kind is not list:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            raise _type_error(name, setting, "a number") from None
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if kind is str and value is None:
        return ""
    if kind is str and isinstance(value, list) and {type(item) for item in value} <= {int, float}:
        return ",".join(str(item) for item in value)  # eval_shots: [0, 2, 5]
    if kind is list:
        return _words(setting, name)
    words = {int: "a whole number", bool: "true or false", str: "text (quote it)"}
    raise _type_error(name, setting, words[kind])


def _type_error(name: str, setting: Setting, allowed: str) -> UserError:
    return UserError(
        "CONFIG_TYPE",
        f"{setting.where}: {name}: found {setting.value!r}, allowed: {allowed}",
    )


def resolve_path(name: str, value: Any, folder: Path) -> Any:
    """A relative path as an absolute one: from the working directory, else from the file's folder.

    Only what can be a local path is touched: ``…_uri``, ``…_dir`` and ``…_dataset``, and local
    model folders and prompt files that exist.
    """
    if not isinstance(value, str) or not value or "://" in value or os.path.isabs(value):
        return value
    if value.split(":")[0] in ("pocket", "hf") and ":" in value:
        return value
    here, beside = Path.cwd() / value, Path.cwd() / folder / value
    if name.endswith(("_uri", "_dir", "_dataset")):
        return os.path.normpath(beside if not _exists(here) and _exists(beside) else here)
    if name.endswith(("_model_reference", "_prompt")):
        found = next((path for path in (here, beside) if path.exists()), None)
        return os.path.normpath(found) if found else value
    return value


def _exists(path: Path) -> bool:
    return path.exists() or bool(glob.glob(str(path)))
