"""`--allow-python-layers` and `--import` of train, test and decompose."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.conftest import Cli, said
from tests.conftest import RunCli

ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

MODULE = """
import caffe
import forcereg
import torch

forcereg.layer("Mish")(torch.nn.Mish)
"""

LAYERS = """
import caffe
import numpy as np


class Batch(caffe.Layer):
    def setup(self, bottom, top):
        self.random = np.random.default_rng(0)

    def reshape(self, bottom, top):
        top[0].reshape(4, 3, 5, 5)
        top[1].reshape(4, 2)

    def forward(self, bottom, top):
        top[0].data[...] = self.random.standard_normal(top[0].shape)
        top[1].data[...] = self.random.standard_normal(top[1].shape)

    def backward(self, top, propagate_down, bottom):
        pass
"""

NET = """
name: "own"
layer { name: "data" type: "Python" top: "data" top: "y" python_param { module: "mydata" layer: "Batch" } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "mish" type: "Mish" bottom: "conv" top: "mish" }
layer { name: "ip" type: "InnerProduct" bottom: "mish" top: "ip"
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "y" top: "loss" }
"""

SOLVER = """
net: "net.prototxt" base_lr: 0.01 lr_policy: "fixed" max_iter: 3 display: 1 random_seed: 1 solver_mode: CPU
test_iter: 1 test_interval: 2 snapshot_prefix: "own" snapshot_format: HDF5
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A net with a Python layer and a registered type, its solver and its modules."""
    for name, text in {
        "mytypes.py": MODULE.replace("import caffe\n", ""),
        "mydata.py": LAYERS,
        "net.prototxt": NET,
        "solver.prototxt": SOLVER,
    }.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_train_test_decompose(folder: Path, run_cli: RunCli) -> None:
    code = ("--allow-python-layers", "--import", "mytypes")
    done = run_cli("train", "--solver", "solver.prototxt", *code, cwd=folder, env=ON_CPU)
    assert done.returncode == 0, done.stderr
    weights = "own_iter_3.caffemodel.h5"
    done = run_cli("test", "--model", "net.prototxt", "--weights", weights, "--iterations", "2", *code, cwd=folder)
    assert done.returncode == 0 and "loss = " in done.stdout, done.stderr
    done = run_cli("decompose", "--snapshot", weights, "--ranks", "2", *code, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert f"{4 * 27 * 9:,}" in done.stdout and "Python layers" not in done.stdout
    done = run_cli("decompose", "--snapshot", weights, "--ranks", "2", cwd=folder)
    assert (
        done.returncode == 0 and "the net has Python layers, which run with --allow-python-layers only" in done.stdout
    )


@pytest.mark.parametrize("command", ["train", "test"])
def test_refusal(folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(folder)
    given = ["--solver", "solver.prototxt"] if command == "train" else ["--model", "net.prototxt", "--weights", "w"]
    code, out, err = cli(command, *given)
    assert (code, out) == (1, "")
    which = " (in the TRAIN net)" if command == "train" else ""
    assert said(err).removeprefix(f"{folder}/") == (
        "net.prototxt:3: layer 'data': type Python runs code that the net names; if you trust the net, give "
        f"--allow-python-layers (allow_python_layers=True in Python){which}"
    )


@pytest.mark.parametrize(
    ("source", "name", "text"),
    [
        (
            None,
            "nowhere",
            "--import nowhere: there is no Python module 'nowhere' on Python's path or in CWD; correct the",
        ),
        (
            "1 / 0",
            "broken1",
            "--import broken1: Python module 'broken1' cannot be imported: ZeroDivisionError: division",
        ),
        (
            "",
            "broken2.py",
            "--import broken2.py: 'broken2.py' is not the name of a Python module; expected a name as in",
        ),
        (
            "import forcereg, torch\nforcereg.layer('ReLU')(torch.nn.ReLU)",
            "broken3",
            "--import broken3: Python module 'broken3' cannot be imported: ValueError: layer type 'ReLU' is registered "
            "twice (broken3.py:2)",
        ),
    ],
    ids=["missing", "raises", "file", "twice"],
)
def test_imports_that_fail(user_module, tmp_path: Path, cli: Cli, source: str | None, name: str, text: str) -> None:
    if source is not None:
        user_module(name.removesuffix(".py"), source)
    code, out, err = cli("train", "--solver", "solver.prototxt", "--import", name)
    assert (code, out) == (1, "")
    assert said(err).startswith(text.replace("CWD", str(tmp_path)))


def test_a_type_that_was_not_imported(folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    code, _, err = cli("train", "--solver", "solver.prototxt", "--allow-python-layers")
    assert code == 1
    text = "net.prototxt:6: layer 'mish': unknown layer type 'Mish'; "
    own = 'for one of your own register a class by forcereg.layer("Mish") and give --import MODULE) (in the TRAIN net)'
    assert text in said(err) and said(err).endswith(own)


# -- fields of one's own


OWN_MODULE = """
import forcereg
import torch


class Permute(torch.nn.Module):
    def __init__(self, order=(0, 2, 3, 1)):
        super().__init__()
        self.order = order

    def forward(self, x):
        return x.permute(*self.order)


forcereg.layer("Permute")(Permute)
"""
OWN_NET = """name: "own" default_forward_type: FLOAT16
layer { name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param {
  shape { dim: 4 dim: 3 dim: 8 dim: 8 } shape { dim: 4 } data_filler { type: "gaussian" } data_filler { } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { force_mult: 1 }
  convolution_param { num_output: 6 kernel_size: 3 group: 1 weight_filler { type: "xavier" } } }
layer { name: "p" type: "Permute" bottom: "conv" top: "p" # to channels last
  permute_param { order: 0 order: 2 order: 3 order: 1 } }
layer { name: "ip" type: "InnerProduct" bottom: "p" top: "ip"
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
OWN_SOLVER = """net: "net.prototxt" base_lr: 0.01 lr_policy: "fixed" max_iter: 2 random_seed: 1 solver_mode: CPU
eval_type: "detection" snapshot_prefix: "own" force_decay: 0.001
"""


def test_fields_of_its_own_live_on(tmp_path: Path, run_cli: RunCli) -> None:
    """Trained, cut and trained further: what decompose writes holds them as prototxt, and so do snapshots."""
    for name, text in {"mine.py": OWN_MODULE, "net.prototxt": OWN_NET, "solver.prototxt": OWN_SOLVER}.items():
        (tmp_path / name).write_text(text)

    def run(*args: str) -> str:
        done = run_cli(*args, cwd=tmp_path, env=ON_CPU)
        assert done.returncode == 0, done.stderr
        return str(done.stdout + done.stderr)

    out = run("train", "--solver", "solver.prototxt", "--import", "mine")
    for skipped in ("eval_type (SSD)", "default_forward_type (NVCaffe)"):
        assert out.count(f"fields of forks that change no results here are skipped: {skipped}") == 1
    assert "1x8x8" not in run("summary", "net.prototxt", "--import", "mine")
    run("draw", "net.prototxt", "net.txt", "--import", "mine")
    run("decompose", "--snapshot", "own_iter_2.caffemodel", "--only-layers", "conv", "--ranks", "2", "--import", "mine",
        "--even-if-dearer", "--out", "cut")  # fmt: skip
    cut = (tmp_path / "cut.prototxt").read_text()
    assert "  permute_param {\n    order: 0\n    order: 2\n    order: 3\n    order: 1\n  }\n" in cut
    assert "own_fields" not in cut and "default_forward_type" not in cut
    assert "4x6x6x6" in run("summary", "cut.prototxt", "--import", "mine")
    assert "no problems found" in run("check", "solver.prototxt", "--import", "mine")
