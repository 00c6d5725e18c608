"""Every place in the source that could run code, start a program or open a connection; see SECURITY.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
SOURCE = TOP / "forcereg"
CALLS = re.compile(
    r"(builtins\.)?(eval|exec|compile|__import__)|(importlib\.)?import_module|(importlib\.util\.)?spec_from_file_location"
    r"|runpy\.\w+|subprocess\.\w+|os\.(system|popen|exec\w*|spawn\w*|posix_spawn\w*|fork\w*)|multiprocessing\.\w+"
    r"|pickle\.\w+|marshal\.\w+|shelve\.\w+|dill\.\w+|torch\.load|torch\.hub\.\w+|torch\.jit\.load|np\.load|numpy\.load"
    r"|yaml\.\w+|socket\.\w+|urllib\.request\.\w+|http\.\w+\.\w+|requests\.\w+|ctypes\.\w+|\w+\.load_module|point\.load"
    r"|dist\.\w*object\w*"
)
FORBIDDEN = {"yaml", "marshal", "shelve", "dill", "requests", "http", "urllib.request", "ftplib", "smtplib", "runpy"}
ALLOWED = {
    "__init__.py": {"importlib.import_module"},  # of forcereg's own names
    "lowrank/__init__.py": {"importlib.import_module"},
    "__main__.py": {"importlib.import_module"},  # of its own commands
    "commands/draw.py": {"subprocess.run"},  # graphviz's dot
    "data/cifar_batches.py": {"pickle.UnpicklingError"},  # walked through before it is loaded
    "data/decoding.py": {"importlib.import_module"},  # of Pillow's decoders, by a fixed list
    "layers/pycaffe.py": {"importlib.import_module"},  # caffe, if a pycaffe layer's module asks for it
    "layers/python.py": {"import_module"},  # by --allow-python-layers
    "commands/options.py": {"import_module"},  # --import
    "lowrank/parafac.py": {"importlib.import_module"},  # tensorly and scikit-learn
    "solver/contact.py": {"ctypes.CDLL"},  # the C library that Python has loaded
    "solver/distributed.py": {"dist.all_gather_object", "dist.broadcast_object_list"},  # among a run's processes
    "solver/launch.py": {"subprocess.Popen", "socket.socket"},  # --nproc: forcereg itself
    "system/device.py": {"ctypes.CDLL"},  # as above
    "system/plugins.py": {"importlib.import_module", "point.load"},  # the users' own modules
}


def calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if CALLS.fullmatch(name):
                yield name


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_nothing_else_runs_code(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert {*calls(tree)} <= ALLOWED.get(path.relative_to(SOURCE).as_posix(), set())
    assert not FORBIDDEN & {*imported(tree)}


def test_the_page_names_tests_that_are_there() -> None:
    page = (TOP / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/.]+)`", page)
    assert len(named) > 20
    assert [name for name in named if not (TOP / name).exists()] == []
