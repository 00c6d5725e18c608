"""The parts of forcereg import in one direction only, and what `--help` needs does not load torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]
PACKAGE = TOP / "forcereg"

# From left to right; a module imports from its own room and from those before it.
ORDER = (
    "errors",
    "version",
    "registry",
    "cost",
    "system",
    "schema",
    "snapshot",
    "layers",
    "data",
    "lowrank",
    "net",
    "report",
    "solver",
    "study",
    "workflows",
    "__init__",
    "commands",
    "__main__",
)
PURE = ("solver/force.py", "lowrank/factor.py")  # mathematics: these import torch, errors and the registry
LIGHT = (
    "errors",
    "registry",
    "version",
    "cost",
    "system",
    "schema",
    "__init__",
    "commands",
    "__main__",
)

HEAVY = ("forcereg.system.capture", "forcereg.system.device", "forcereg.system.hdf5")  # these are about torch and h5py

MODULES = sorted(PACKAGE.rglob("*.py"))


def part(module: str) -> str:
    """'forcereg.data.feed' -> 'data'; 'forcereg' itself -> '__init__'."""
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else "__init__"


def module_name(path: Path) -> str:
    """forcereg/data/feed.py -> 'forcereg.data.feed'."""
    pieces = path.relative_to(TOP).with_suffix("").parts
    return ".".join(pieces[:-1] if pieces[-1] == "__init__" and len(pieces) > 2 else pieces)


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, module imported) for every import statement, also those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                keep = len(module.split(".")) - node.level + is_package
                source = ".".join([*module.split(".")[:keep], *filter(None, [source])])
            if source == "forcereg":  # a submodule, or a name of the package itself
                yield from ((node.lineno, _of_package(alias.name)) for alias in node.names)
            else:
                yield node.lineno, source


def _of_package(name: str) -> str:
    is_module = (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()
    return f"forcereg.{name}" if is_module else "forcereg"


def rightward(source: str, path: Path) -> list[str]:
    """The imports in `source`, the text of `path`, that go against the order."""
    module = module_name(path)
    own = ORDER.index(part(module))
    return [
        f"{path.relative_to(TOP)}:{line}: {part(module)} must not import {part(target)}"
        for line, target in imports(ast.parse(source), module, path.name == "__init__.py")
        if target.split(".")[0] == "forcereg" and ORDER.index(part(target)) > own
    ]


def test_every_part_has_a_place() -> None:
    assert {part(module_name(path)) for path in MODULES} <= set(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_left(path: Path) -> None:
    assert rightward(path.read_text(encoding="utf-8"), path) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        pytest.param("import torch\nfrom forcereg.errors import ForceregError", 0, id="left"),
        pytest.param("from forcereg.layers.base import Built", 0, id="own-part"),
        pytest.param("from .base import Built", 0, id="relative-own"),
        pytest.param("from forcereg.solver import Solver", 1, id="right"),
        pytest.param("from forcereg import net", 1, id="right-submodule"),
        pytest.param("from forcereg import load_net", 1, id="name-of-the-package"),
        pytest.param("from ..net import Net", 1, id="relative-right"),
        pytest.param("def f():\n    import forcereg.commands.train", 1, id="inside-a-function"),
    ],
)
def test_the_check_itself(source: str, found: int) -> None:
    assert len(rightward(source, PACKAGE / "layers" / "pooling.py")) == found


@pytest.mark.parametrize("name", PURE)
def test_mathematics_stays_pure(name: str) -> None:
    path = PACKAGE / name
    used = {target for _, target in imports(ast.parse(path.read_text()), module_name(path), False)}
    assert {target for target in used if target.startswith("forcereg")} <= {
        "forcereg.errors",
        "forcereg.registry",
    }


@pytest.mark.parametrize(
    "module", [name for name in map(module_name, MODULES) if part(name) in LIGHT and name not in HEAVY]
)
def test_torch_is_not_loaded(module: str) -> None:
    code = f"import sys, {module.removesuffix('.__init__')}; sys.exit('torch' in sys.modules)"
    call = [sys.executable, "-c", code]
    done = subprocess.run(call, cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or f"{module} loads torch"
