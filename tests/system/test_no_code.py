"""Every place in the source that could run code, start a program or open a connection; see SECURITY.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from forcereg.snapshot import write_model
from tests.conftest import RunCli

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
    "": {"importlib.import_module"},  # of forcereg's own names and commands
    "commands": {"import_module"},  # --import
    "data": {"pickle.UnpicklingError", "importlib.import_module"},  # Pillow's decoders, by a fixed list
    "exports": {"subprocess.Popen", "np.load"},  # our own program of a .pt2, in a process without forcereg
    "layers": {"import_module", "importlib.import_module"},  # by --allow-python-layers
    "lowrank": {"importlib.import_module"},  # of forcereg's own names; tensorly and scikit-learn
    "net": {"subprocess.run"},  # graphviz's dot
    "nn": {"importlib.import_module"},  # of forcereg's own names
    "pycaffe": {
        "importlib.import_module",  # of its own names; selective search, asked for by name
        "np.load",  # of numbers: no pickles
        "exec", "compile",  # the script that `forcereg python` is given
    },
    "solver": {
        "ctypes.CDLL",  # the C library that Python has loaded
        "dist.all_gather_object", "dist.broadcast_object_list",  # among a run's processes
        "subprocess.Popen", "socket.socket",  # --nproc: forcereg itself
        "import_module",  # --callback
        "importlib.import_module",  # packages of trackers, by a fixed list
    },
    # --jobs: forcereg itself, its job by a pipe; there the modules of --import
    "study": {"subprocess.Popen", "pickle.dumps", "pickle.load", "import_module"},
    "system": {"ctypes.CDLL", "importlib.import_module", "point.load"},  # the users' own modules
}  # fmt: skip
"""Room -> what it calls; a file that reads a pickle walks through it first."""


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
    room = path.relative_to(SOURCE).parts[0] if path.parent != SOURCE else ""
    assert {*calls(tree)} <= ALLOWED.get(room, set())
    assert not FORBIDDEN & {*imported(tree)}


NET = """
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 6 dim: 6 } } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "p" type: "Python" bottom: "c" top: "y" python_param { module: "evil" layer: "Evil" } }
layer { name: "l" type: "Reduction" bottom: "y" top: "l" loss_weight: 1 }
"""
SOLVER = (
    'net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 1 snapshot_prefix: "s" test_iter: 1 test_interval: 1'
)
MODEL = "s_iter_1.caffemodel.h5"
RUNS = (
    "summary net.prototxt", "check net.prototxt", "check solver.prototxt", "draw net.prototxt out.txt",
    "test --model net.prototxt --weights MODEL", "time --model net.prototxt", "train --solver solver.prototxt",
    "finetune --model net.prototxt --weights MODEL --solver solver.prototxt",
    "confusion --model net.prototxt --weights MODEL", "decompose --snapshot MODEL --ranks 1", "ranks MODEL",
    "decompose --snapshot MODEL --max-macs 0.5", "sensitivity MODEL --solver solver.prototxt",
    "frontier MODEL --solver solver.prototxt --ranks 1 -o out.svg", "sweep --solver solver.prototxt --out sweep",
    "tune --solver solver.prototxt --goal macs<=0.5 --trials 1", "lr-find --solver solver.prototxt",
    "shrink MODEL",
    "split-groups --snapshot MODEL", "merge-groups --snapshot MODEL", "deploy MODEL", "deploy net.prototxt",
    "convert MODEL out.caffemodel", "plot net.prototxt -o out.csv",
    "report MODEL -o out.html",
    "classify --pretrained_model MODEL --model_def net.prototxt a.png out.npy",
)  # fmt: skip


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A net, its solver and its model, that name a module which lies beside them and leaves a trace."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w').close()\nraise SystemExit\n")
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "solver.prototxt").write_text(SOLVER)
    weights = {"conv": {0: np.ones((4, 3, 3, 3), np.float32), 1: np.zeros(4, np.float32)}}
    attrs = {"forcereg_net": NET, "forcereg_input_shapes": '{"x": [2, 3, 6, 6]}', "forcereg_solver": SOLVER}
    write_model(tmp_path / MODEL, weights, attrs=attrs)
    return tmp_path


@pytest.mark.parametrize("words", RUNS)
def test_no_command_runs_what_a_net_names_unasked(words: str, trap: Path, run_cli: RunCli) -> None:
    done = run_cli(*words.replace("MODEL", MODEL).split(), cwd=trap)
    assert not (trap / "trace").exists()
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr


def test_the_trap_works(trap: Path, run_cli: RunCli) -> None:
    run_cli("summary", "net.prototxt", "--allow-python-layers", cwd=trap)
    assert (trap / "trace").exists()


def test_the_page_names_tests_that_are_there() -> None:
    page = (TOP / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/.]+)`", page)
    assert len(named) > 20
    assert [name for name in named if not (TOP / name).exists()] == []
