"""The public names: what `import forcereg` promises, that nothing hides it, and that every example of it runs."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

import forcereg
from forcereg import registry
from forcereg.__main__ import COMMANDS
from forcereg.data.budget import DECODING
from tests.conftest import TOP
from tests.nursery import Nursery
from tests.scratch import prepare

PACKAGE = TOP / "forcereg"
MODULES = ("cost", "lowrank", "nn")
"""Public names that are modules; all others are functions, classes and values."""
PLAIN = {"Observer", "__version__"}
"""Public values that have no docstring."""
TYPED = "tests/typed/user.py"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
OPTIONAL = {"lowrank.kmeans": "sklearn", "lowrank.cp": "tensorly", "plot": "matplotlib", "sweep": "matplotlib",
            "tune": "optuna", "export": "onnxruntime", "Sweep": "matplotlib", "Tuned": "optuna",
            "Report": "matplotlib", "report_on": "matplotlib",
            "nn.save": "safetensors", "nn.load": "safetensors",
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


# -- every command has its call

CALLS = {
    "test": ("score",),
    "layers": ("layer_types",),
    "report": ("report_on",),
    "device_query": ("devices",),
    "python": ("run_script",),
    "configs": ("shipped_configs", "copy_configs"),
    "data": ("convert_mnist", "convert_digits", "convert_cifar10", "convert_imageset", "convert_mean"),
}
"""Command -> its public functions, where they aren't one of its own name."""
SUBCOMMANDS = {"images": "convert_imageset", "copy": "copy_configs"}
"""Subcommand -> its function, where that isn't convert_<its name>."""
FILES = {"test": "score"}
"""Command -> its file in workflows/, where that isn't of its own name."""
KEYWORDS = {
    **dict.fromkeys((option.field for option in registry.rank_rule.options.values()), "rule"),
    "choose": "rule",
    "input_shape": "input_shapes",
    "no_cuda_graph": "cuda_graph",
    "no_fold": "fold",
    "no_verify": "verify",
    "no_score": "score",
    "only_layers": "layers",
    "solver": "data",
}
"""Option -> its keyword, of functions that have none of the option's own name."""
LEFT = {
    "json": "a way to print; results have the same as attributes",
    "markdown": "a way to print",
    "pairs": "how many to print; the result's `pairs` takes it",
    "out": "where to write is for the result's `write`",
    "format": "the format is for the result's `write`",
    "gpu": "device names it; `devices` takes numbers",
    "nproc": "a call doesn't start processes; a script under torchrun is one",
    "report": "`report_on` takes the files that a call left",
    "log_json": "an observer, forcereg.solver.jsonlog.JsonLog",
    "tracker": "an observer, forcereg.solver.trackers.opened",
    "log_dir": "an observer, forcereg.solver.log.GlogWriter",
}
"""Options that no function has, and why. (Nor those that aren't handed on: Python imports modules itself, for --import,
and `decode_budget` holds for the process.)"""
OTHER_DEFAULT = {
    "error": "of sweep, where no rule is given",
    "sigint_effect": "signals are the script's own",
    "sighup_effect": "signals are the script's own",
}
"""Options whose keyword has another default, and why."""


def calls() -> list[tuple[str, str, Any]]:
    """(command, public function, click's command) of every command and subcommand."""
    found = []
    for name in COMMANDS:
        command = importlib.import_module(f"forcereg.commands.{name.replace('-', '_')}").command
        functions = CALLS.get(name, (name.replace("-", "_"),))
        subcommands = {
            SUBCOMMANDS.get(sub, f"convert_{sub}"): one for sub, one in getattr(command, "commands", {}).items()
        }
        assert {*subcommands} <= {*functions}, f"of {name}"
        found += [(name, function, subcommands.get(function, command)) for function in functions]
    return found


EVERY_CALL = calls()


@pytest.mark.parametrize(("name", "function", "command"), EVERY_CALL, ids=[f"{one[0]}-{one[1]}" for one in EVERY_CALL])
def test_every_command_has_its_call(name: str, function: str, command: click.Command) -> None:
    """Which has a keyword for each option, with the same default."""
    home = f"forcereg.workflows.{FILES.get(name, name.replace('-', '_'))}"
    assert forcereg._HOME.get(function) == home, f"{name} has no forcereg.{function} in {home}"
    keywords = inspect.signature(getattr(forcereg, function)).parameters
    for option in command.params:
        if not isinstance(option, click.Option) or not option.expose_value:
            continue
        asked = option_name(option)
        known = asked if asked in keywords else KEYWORDS.get(asked)
        if known in keywords:
            assert known == "rule" or same_default(option, keywords[known].default), f"default of {asked}"
        else:
            assert asked in LEFT, f"{function} has no keyword for {asked}"


def option_name(option: click.Parameter) -> str:
    """--max-iter as max_iter."""
    return max(option.opts, key=len).removeprefix("--").replace("-", "_")


def same_default(option: click.Option, own: Any) -> bool:
    """Whether a keyword's default is the option's; one without any has to be given."""
    name = option_name(option)
    if own is inspect.Parameter.empty or name in OTHER_DEFAULT:
        return True
    default = option.default if isinstance(option.default, bool | int | float | str) else None
    if name.startswith("no_"):
        return bool(own) is not bool(default)
    if isinstance(own, tuple) and isinstance(default, str):
        return [str(one) for one in own] == list(filter(None, default.split(",")))
    return (own or None) == (default or None)


def test_every_workflow_is_a_command_s() -> None:
    """And what several share lies in the rooms below."""
    known = {FILES.get(name, name.replace("-", "_")) for name in COMMANDS}
    assert {path.stem for path in (PACKAGE / "workflows").glob("*.py")} - {"__init__"} == known


def test_exceptions_are_options() -> None:
    options = {option_name(option) for _, _, command in EVERY_CALL for option in command.params}
    assert {*KEYWORDS, *LEFT, *OTHER_DEFAULT} <= options


# -- what type checkers see


def test_a_user_s_script_type_checks(tmp_path: Path) -> None:
    """Under mypy --strict, with nothing known but what the package says of itself."""
    pytest.importorskip("mypy")
    call = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}", TYPED]
    done = subprocess.run(call, cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
