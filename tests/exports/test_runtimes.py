"""Files in the programs that they are for, each in a folder of its own beside the environment. Long form only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import forcereg
from tests.conftest import TOP
from tests.exports.nets import NORMED, snapshot_of

pytest.importorskip("onnxruntime")
WORKER = Path(__file__).with_name("worker.py")
PROGRAMS = {
    "opencv-5": ("opencv", ["opencv-python-headless==5.0.0.93"]),
    "opencv-4": ("opencv", ["opencv-python-headless==4.14.0.94"]),
    "openvino": ("openvino", ["openvino==2026.4.1", "openvino-telemetry"]),
    "netron": ("netron", ["netron==9.3.3"]),
}
NETS = ["lenet", "cifar10_full", "cifar10_resnet20", "normed", "lowrank", "googlenet"]


def find(name: str) -> Path | str:
    """A shipped net by its name, or the text of the small one."""
    places = ("examples/mnist/lenet", "examples/cifar10/cifar10_full", "examples/cifar10/cifar10_resnet20")
    known = {Path(place).name: TOP / "configs" / f"{place}.prototxt" for place in places}
    return {**known, "googlenet": TOP / "configs/models/googlenet/deploy.prototxt"}.get(name, NORMED)


@pytest.fixture(scope="module", params=PROGRAMS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """How the worker calls a program, and an environment that has it; `$FORCEREG_SIDE` may hold such folders."""
    if not request.config.getoption("--long"):
        pytest.skip("installs other programs; --long")
    name, packages = PROGRAMS[request.param]
    kept = os.environ.get("FORCEREG_SIDE")
    folder = Path(kept, request.param) if kept else tmp_path_factory.mktemp(request.param)
    if not any(folder.glob("*")):
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *packages]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{request.param} can't be installed: {done.stderr.strip().splitlines()[-1]}")
    return name, {**os.environ, "PYTHONPATH": str(folder)}


@pytest.mark.parametrize("name", NETS)
def test_a_program_runs_it(name: str, program: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    called, environment = program
    model, weights = find(name), tmp_path / "net.caffemodel.h5"
    net = snapshot_of(model, weights)
    if name == "lowrank":
        made = forcereg.decompose(weights, rule=forcereg.Ranks([3, 2]), method="vh", fold_bn=True, even_if_dearer=True)
        paths = made.write(tmp_path / "low")
        net, weights = forcereg.load_net(paths["model"], paths["weights"]), Path(paths["weights"])
    forcereg.export(weights, tmp_path / "net.onnx")
    (fed,) = net.inputs
    x = torch.randn(2, *net.shapes[fed][1:], generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "in.npz", **{fed: x.numpy()})
    call = [sys.executable, str(WORKER), called, "net.onnx", "in.npz", "out.npy"]
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "out.npy")
    if called == "netron":
        assert found.tobytes() == (tmp_path / "net.onnx").read_bytes()
        return
    with torch.no_grad():
        expected = list(net({fed: x}).values())[-1].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * float(np.abs(expected).max()))
