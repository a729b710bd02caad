"""Dependencies point inward only: pipelines → components → library."""

import ast
import sys
from pathlib import Path

import pytest

import pipestill
from pipestill import components

LIBRARY = Path(pipestill.__file__).parent
COMPONENTS = Path(components.__file__).parent
LIBRARY_FILES = sorted(
    path.relative_to(LIBRARY).as_posix()
    for path in LIBRARY.rglob("*.py")
    if path.relative_to(LIBRARY).parts[0] not in ("cli", "pipelines", "components")
)
KFP_CLIENT = "cloud/kfp_server.py"  # talks to a Kubeflow Pipelines server by its own client
FORBIDDEN = ("kfp", "pipestill.components", "pipestill.pipelines", "pipestill.cli")


def imported(tree: ast.AST) -> set[str]:
    """Every module that the code imports, at any depth."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def at_top(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return imported(ast.Module(body=body, type_ignores=[]))


def inside(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("path", sorted(COMPONENTS.glob("*.py")), ids=lambda path: path.stem)
def test_components_import_only_kfp_and_the_standard_library_at_the_top(path):
    allowed = ("kfp", "pipestill.components._base", *sys.stdlib_module_names)
    if path.name == "_base.py":
        allowed += ("pipestill",)
    assert [name for name in at_top(path) if not inside(name, allowed)] == []


@pytest.mark.parametrize("name", LIBRARY_FILES)
def test_the_library_knows_nothing_of_pipelines(name):
    tree = ast.parse((LIBRARY / name).read_text(encoding="utf-8"))
    wrong = [found for found in imported(tree) if inside(found, FORBIDDEN)]
    if name == KFP_CLIENT:
        wrong = [found for found in wrong if not inside(found, ("kfp",))]
    assert wrong == []
    if not name.startswith("cloud/"):
        assert [found for found in imported(tree) if inside(found, ("google.cloud",))] == []


@pytest.mark.parametrize("name", [name for name in LIBRARY_FILES if name.startswith("losses/")])
def test_losses_import_torch_and_nothing_of_ours_outside_the_room(name):
    tree = ast.parse((LIBRARY / name).read_text(encoding="utf-8"))
    allowed = ("torch", "pipestill.losses", *sys.stdlib_module_names)
    assert [found for found in imported(tree) if not inside(found, allowed)] == []


def test_importing_pipelines_and_components_loads_no_torch():
    import subprocess

    code = (
        "import sys; from pipestill import pipelines; pipelines.build('distill_step_by_step');"
        "sys.exit(' '.join({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip().splitlines()[-1:] in ([], [""]), done.stderr
