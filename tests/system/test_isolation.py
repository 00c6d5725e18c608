"""No code of the working directory, or from beside the net, is run unless the user says so; in no process of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TOP

HOSTILE = ("secrets", "random", "numpy", "h5py", "torch", "click", "socket", "google", "lmdb", "caffe", "msvcrt")
ENV = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}

NET = """
layer { name: "d" type: "DummyData" top: "data" top: "y" dummy_data_param { shape { dim: 2 dim: 4 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 4 } }
OWN
layer { name: "r" type: "TYPE" bottom: "ip" top: "r" }
layer { name: "loss" type: "EuclideanLoss" bottom: "r" bottom: "y" top: "loss" }
"""
PYTHON_LAYER = """
layer { name: "own" type: "Python" bottom: "ip" top: "ip" python_param { module: "beside" layer: "Own" } }"""
SOLVER = """
net: "nets/net.prototxt" base_lr: 0.01 lr_policy: "fixed" max_iter: 1 display: 1 snapshot_prefix: "out"
snapshot_format: HDF5 solver_mode: CPU
"""
TRAIN = ("forcereg", "train", "--solver", "solver.prototxt")
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Modules that say that they ran and end the process, in the working directory and beside the net."""
    (tmp_path / "nets").mkdir()
    for place in (tmp_path, tmp_path / "nets"):
        for name in HOSTILE:
            mark = tmp_path / f"{name} of {place.name} ran"
            (place / f"{name}.py").write_text(f"open({str(mark)!r}, 'w').close()\nraise SystemExit(42)\n")
    (tmp_path / "nets" / "net.prototxt").write_text(NET.replace("TYPE", "ReLU").replace("OWN", ""))
    (tmp_path / "solver.prototxt").write_text(SOLVER)
    return tmp_path


def run(folder: Path, *command: str, **env: str) -> None:
    """A real process: it succeeds, and no such module has run."""
    whole = {**os.environ, **ENV, "PYTHONPATH": str(TOP), **env}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=whole, capture_output=True, text=True, timeout=300
    )
    assert [path.name for path in folder.glob("* ran")] == []
    assert done.returncode == 0, done.stderr
    assert (folder / "out_iter_1.caffemodel.h5").exists()


def test_ranks_of_torchrun(folder: Path) -> None:
    run(folder, "-m", *TORCHRUN, *TRAIN, PYTHONSAFEPATH="1")


def test_ranks_that_are_launched(folder: Path) -> None:
    """By a command that was started without -P, and with the empty entry that `PYTHONPATH=$PYTHONPATH:X` leaves."""
    run(folder, "-m", *TRAIN, "--nproc", "2", PYTHONPATH=os.pathsep.join((str(TOP), "", ".")))


def test_modules_that_are_named_come_last(folder: Path) -> None:
    """They are found in the working directory and beside the net, in every rank; what else lies there isn't run."""
    (folder / "mytypes.py").write_text("import forcereg, random, torch\nforcereg.layer('Mine')(torch.nn.ReLU)\n")
    (folder / "nets" / "beside.py").write_text("import secrets, torch\nOwn = torch.nn.Identity\n")
    (folder / "nets" / "net.prototxt").write_text(NET.replace("TYPE", "Mine").replace("OWN", PYTHON_LAYER))
    (folder / "caffe.py").unlink(), (folder / "nets" / "caffe.py").unlink()  # there is none but these
    run(folder, "-m", *TRAIN, "--nproc", "2", "--import", "mytypes", "--allow-python-layers")


PATH = "from forcereg.system.isolation import *; leave_out_working_directory(); import os; "
SHOWN = PATH + "print(sys.path.count(os.getcwd()) + sys.path.count(''), os.environ.get('PYTHONPATH'), len(python()))"


@pytest.mark.parametrize(
    ("path", "kept", "left"),
    [
        ("TOP", 0, "TOP"),
        (":TOP", 0, "TOP"),
        ("TOP:.:", 0, "TOP"),
        ("./:TOP:.//.", 0, "TOP"),
        ("TOP:HERE", 1, "TOP:HERE"),
        ("TOP:sub", 0, "TOP:sub"),
    ],
)
def test_path_without_the_working_directory(path: str, kept: int, left: str, tmp_path: Path) -> None:
    """An entry that names the folder itself is the user's wish; the one of -c, -m or an empty entry is not."""

    def named(text: str) -> str:
        return text.replace(":", os.pathsep).replace("TOP", str(TOP)).replace("HERE", str(tmp_path))

    env = {**os.environ, "PYTHONPATH": named(path)}
    call = [sys.executable, "-c", SHOWN]
    done = subprocess.run(call, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    count, found, words = done.stdout.split()
    assert (int(count) > 0, found, words) == (kept > 0, named(left), "2"), done.stderr


def test_forcereg_may_lie_in_the_working_directory() -> None:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    call = [sys.executable, "-c", SHOWN]
    done = subprocess.run(call, cwd=TOP, env=env, capture_output=True, text=True, timeout=60)
    count, found, words = done.stdout.split()
    assert int(count) > 0 and (found, words) == ("None", "1"), done.stderr
