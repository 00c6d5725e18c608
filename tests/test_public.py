"""The public names: what `import forcereg` promises, that nothing hides it, and that every example of it runs."""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import forcereg
from forcereg import registry
from forcereg.data.budget import DECODING
from tests.conftest import TOP
from tests.nursery import Nursery
from tests.scratch import prepare

PACKAGE = TOP / "forcereg"
MODULES = ("cost", "lowrank")
"""Public names that are modules; all others are functions, classes and values."""
PLAIN = {"Observer", "__version__"}
"""Public values that have no docstring."""
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
OPTIONAL = {"lowrank.kmeans": "sklearn", "lowrank.cp": "tensorly", "plot": "matplotlib", "sweep": "matplotlib",
            "convert_digits": "sklearn"}  # fmt: skip
"""Public name -> what its example needs beside forcereg itself."""


def tables() -> dict[str, set[str]]:
    """The public names as each of the three tables of `__init__` has them."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    for_types = {alias.name for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    return {"types": for_types, "__all__": set(forcereg.__all__), "_HOME": {*forcereg._HOME, *MODULES}}


def test_the_tables_agree() -> None:
    found = tables()
    assert found["types"] == found["__all__"] == found["_HOME"]
    assert list(forcereg._HOME) == sorted(forcereg._HOME) and forcereg.__all__ == sorted(forcereg.__all__)


EVERYTHING = """
import importlib, pkgutil, sys, types
import forcereg
for module in pkgutil.walk_packages(forcereg.__path__, "forcereg."):
    importlib.import_module(module.name)
for name in forcereg.__all__:
    value = getattr(forcereg, name)
    if home := forcereg._HOME.get(name):
        assert not isinstance(value, types.ModuleType), f"{name} is a module"
        assert value is getattr(sys.modules[home], name), name
    else:
        assert value is sys.modules[f"forcereg.{name}"], name
"""


def test_no_submodule_hides_a_public_name(nursery: Nursery) -> None:
    """Importing forcereg.x sets forcereg's attribute x, whatever that was."""
    done = nursery.run("-c", EVERYTHING)
    assert done.returncode == 0, done.stderr


def test_no_room_has_the_name_of_something_else() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert rooms & set(forcereg.__all__) == set(MODULES)


def test_import_loads_nothing(nursery: Nursery) -> None:
    code = "import sys, forcereg; print(*sorted(name for name in sys.modules if name.startswith('forcereg')))"
    assert nursery.run("-c", code).stdout.split() == ["forcereg"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'solve'"):
        forcereg.solve  # noqa: B018 (that it raises is the test)


def documented() -> dict[str, Any]:
    """Dotted name -> every public function and class, with those of public modules."""
    found = {name: getattr(forcereg, name) for name in forcereg.__all__ if name not in {*PLAIN, *MODULES}}
    for name in MODULES:
        module = importlib.import_module(f"forcereg.{name}")
        own = getattr(module, "__all__", None) or [key for key in vars(module) if is_own(module, key)]
        found |= {f"{name}.{key}": getattr(module, key) for key in own}
    return found


def is_own(module: ModuleType, name: str) -> bool:
    """Whether a module defines the name, for others to use."""
    return not name.startswith("_") and getattr(vars(module)[name], "__module__", None) == module.__name__


DOCUMENTED = documented()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `scratch.prepare`."""
    folder, before = tmp_path_factory.mktemp("scratch"), os.getcwd()
    os.chdir(folder)
    try:
        return prepare(folder)
    finally:
        os.chdir(before)


@pytest.fixture
def scratch(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the working directory; layer types and limits that are set there go with it."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for table in ("_known", "_about"):
        monkeypatch.setattr(registry.layer, table, dict(getattr(registry.layer, table)))
    monkeypatch.setattr(DECODING, "limit", DECODING.limit)
    return tmp_path


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_docstring_s_example_runs(name: str, scratch: Path) -> None:
    """Its lines behind >>> print what stands below them; `forcereg` is imported, ... stands for any text."""
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name])
    found = doctest.DocTestFinder().find(DOCUMENTED[name], f"forcereg.{name}", globs={"forcereg": forcereg})
    tests = [test for test in found if test.examples]
    assert any(test.name == f"forcereg.{name}" for test in tests), f"{name} has no example"
    runner, said = doctest.DocTestRunner(optionflags=FLAGS), []
    for test in tests:
        runner.run(test, out=said.append)
    assert not said, "".join(said)
