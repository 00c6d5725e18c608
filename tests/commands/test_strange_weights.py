"""Weights that aren't the net's: whoever loads them says which layers were ignored and which stay as initialised."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from forcereg import Solver, load_net
from forcereg.errors import ForceregError
from forcereg.schema.text import read_solver
from forcereg.snapshot import read_model, write_model
from forcereg.study.check import check_file
from tests.conftest import RunCli
from tests.solver.nets import IMAGES, write_images, write_solver

RENAMED = IMAGES.replace('name: "ip"', 'name: "ip_new"')
OTHER = RENAMED
for name in ("conv", "bn", "scale"):
    OTHER = OTHER.replace(f'name: "{name}"', f'name: "{name}_new"')
SAID = "Ignoring source layer ip; Layers left as initialised: ip_new"
NOTHING = "none of its layers with weights is in the net: it has "
EXTRA = 'max_iter: 1 test_iter: 1 test_interval: 1 snapshot_prefix: "net"'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """IMAGES with its weights in net.caffemodel (binary: every layer is listed), and two nets that they don't fit."""
    root = write_images(tmp_path_factory.mktemp("strange"))
    for name, text in (("net", IMAGES), ("renamed", RENAMED), ("other", OTHER)):
        (root / f"{name}.prototxt").write_text(text)
        write_solver(root, EXTRA, f"{name}_solver.prototxt", f'net: "{name}.prototxt"')
    solver = Solver(write_solver(root, f"{EXTRA} snapshot_format: BINARYPROTO"), observers=[lambda event: None])
    solver.snapshot().rename(root / "net.caffemodel")
    # the same with the net inside, for the commands that need one
    write_model(root / "net.h5", read_model(root / "net.caffemodel").layers, attrs={"forcereg_net": IMAGES})
    return root


NET_OF_TWO = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 4 dim: 6 dim: 6 } } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "conv"
  convolution_param { num_output: 6 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
"""


def blobs_of(text: str) -> dict[str, dict[int, np.ndarray]]:
    """The weights of a net as it is initialised."""
    params = load_net(text).params
    return {name: {i: blob.detach().numpy() for i, blob in enumerate(blobs)} for name, blobs in params.items() if blobs}


COMMANDS = {
    "test": ("test", "--model", "{}.prototxt", "--weights", "net.caffemodel", "--iterations", "2"),
    "time": ("time", "--model", "{}.prototxt", "--weights", "net.caffemodel", "--iterations", "1"),
    "train": ("train", "--solver", "{}_solver.prototxt", "--weights", "net.caffemodel", "--max-iter", "0"),
    "set": ("train", "--solver", "{}_solver.prototxt", "--set", "weights=net.caffemodel", "--max-iter", "0"),
    "finetune": (
        *("finetune", "--solver", "solver.prototxt", "--model", "{}.prototxt", "--weights", "net.caffemodel"),
        *("--max-iter", "0"),
    ),
    "ranks": ("ranks", "net.h5", "--model", "{}.prototxt"),
    "decompose": ("decompose", "--snapshot", "net.h5", "--model", "{}.prototxt", "--ranks", "2", "--out", "low"),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_what_commands_say(command: str, folder: Path, run_cli: RunCli) -> None:
    def run(net: str) -> tuple[int, str]:
        done = run_cli(*(arg.format(net) for arg in COMMANDS[command]), cwd=folder)
        return done.returncode, done.stderr

    code, err = run("renamed")
    assert code == 0 and "Ignoring source layer ip" in err and "Layers left as initialised: ip_new" in err
    code, err = run("other")
    assert code == 1 and re.match(rf"forcereg: .*net\.(caffemodel|h5): {NOTHING}", err.splitlines()[-1])
    code, err = run("net")
    assert code == 0 and "Ignoring" not in err.replace("Ignoring source layer data", "") and "left as" not in err


MISFITS = {
    "outputs": ("num_output: 3", "num_output: 4"),
    "groups": ("kernel_size: 3", "kernel_size: 3 group: 2"),
}


@pytest.mark.parametrize("command", ["ranks", "decompose", "split-groups", "merge-groups", "sensitivity"])
@pytest.mark.parametrize("kind", MISFITS)
def test_a_model_whose_layers_have_other_shapes(kind: str, command: str, tmp_path: Path, run_cli: RunCli) -> None:
    """Nothing is written that couldn't be loaded; which layers are looked at by the command doesn't matter."""
    text = NET_OF_TWO
    write_model(tmp_path / "net.h5", blobs_of(text), attrs={"forcereg_net": text})
    assert text.count(MISFITS[kind][0]) == 1
    (tmp_path / "other.prototxt").write_text(text.replace(*MISFITS[kind]))
    (tmp_path / "solver.prototxt").write_text(f'net: "other.prototxt" base_lr: 0.1 lr_policy: "fixed" {EXTRA}')
    more = {"decompose": ("--error", "0.1", "--snapshot"), "sensitivity": ("--solver", "solver.prototxt")}
    done = run_cli(command, *more.get(command, ()), "net.h5", "--model", "other.prototxt", cwd=tmp_path)
    layer = "ip" if kind == "outputs" else "conv"
    assert done.returncode == 1 and not done.stdout
    assert (
        f"net.h5: layer '{layer}' blob 0: shape (" in done.stderr and "give the net that the file is of" in done.stderr
    )
    assert sorted(one.name for one in tmp_path.iterdir()) == ["net.h5", "other.prototxt", "solver.prototxt"]


def test_check_says_it(folder: Path) -> None:
    for name, error, warning in (("renamed", "", SAID), ("other", NOTHING, ""), ("net", "", "")):
        path = folder / f"{name}_checked.prototxt"
        write_solver(folder, f'{EXTRA} weights: "net.caffemodel"', path.name, f'net: "{name}.prototxt"')
        report = check_file(path)
        assert [error in text for text in report.errors] == [True] * bool(error)
        texts = [text.partition(": ")[2] for text in report.warnings if "net.caffemodel" in text]
        assert texts == [warning] * bool(warning)


def test_load_net_warns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.warns(UserWarning) as caught:
        load_net("renamed.prototxt", "net.caffemodel")
    assert [str(one.message) for one in caught] == [f"net.caffemodel: {SAID}"]
    with pytest.raises(ForceregError, match="none of its layers with weights is in the net"):
        load_net("other.prototxt", "net.caffemodel")


def test_what_another_file_brings_is_not_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    layers = read_model("net.caffemodel").layers
    write_model("first.h5", {name: layers[name] for name in ("conv", "bn")})
    write_model("second.h5", {name: layers[name] for name in ("scale", "ip")} | {"more": {0: np.zeros(1)}})
    with pytest.warns(UserWarning) as caught:
        load_net("net.prototxt", ["first.h5", "second.h5"])
    assert [str(one.message) for one in caught] == ["second.h5: Ignoring source layer more"]
    with pytest.warns(UserWarning, match=r"^first.h5: Layers left as initialised: scale, ip$"):
        load_net("net.prototxt", "first.h5")


def test_a_net_without_weights_and_other_layers_without_are_nothing(tmp_path: Path) -> None:
    """Nothing is warned of, which would be an error here."""
    net = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }'
    ip = 'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 2 } }'
    loss = 'layer { name: "loss" type: "EuclideanLoss" bottom: "y" bottom: "y" top: "loss" }'
    write_model(tmp_path / "w.h5", {"in": {}, "ip": {0: np.ones((2, 3)), 1: np.ones(2)}, "loss": {}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_net(net + "\n", tmp_path / "w.h5")
        assert load_net(f"{net}\n{ip}", tmp_path / "w.h5").params["ip"][0].sum() == 6
        load_net(f"{net}\n{ip}\n{loss}", tmp_path / "w.h5")


def test_a_solver_without_observers_warns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    solver = Solver("renamed_solver.prototxt")
    with pytest.warns(UserWarning) as caught:
        report = solver.load_weights("net.caffemodel")
    assert [str(one.message) for one in caught] == [f"net.caffemodel: {SAID}"]
    assert report.fresh == ("ip_new",)
    before = {name: [blob.clone() for blob in blobs] for name, blobs in solver.net.params.items()}
    write_model("stranger.h5", {"stranger": {0: np.zeros(1)}})
    with pytest.raises(ForceregError, match=r"it has stranger, the net has conv, bn, scale, ip_new"):
        solver.load_weights("stranger.h5")
    assert all((a == b).all() for name in before for a, b in zip(before[name], solver.net.params[name], strict=True))


def test_resuming_from_another_nets_model(folder: Path, tmp_path: Path) -> None:
    told = []
    solver = Solver(read_solver(folder / "renamed_solver.prototxt"), observers=[told.append])
    solver.param.snapshot_prefix = str(tmp_path / "s")
    model = solver.snapshot()
    state = tmp_path / "s_iter_0.solverstate.h5"
    write_model(model, {"stranger": {0: np.zeros(1)}}, net=None)
    with pytest.raises(ForceregError, match="it has stranger, the net has conv, bn, scale, ip_new"):
        solver.restore(state)
    layers = {
        name: {i: blob.detach().numpy() for i, blob in enumerate(blobs)} for name, blobs in solver.net.params.items()
    }
    write_model(model, {**layers, "more": {0: np.zeros(1)}})
    solver.restore(state)
    assert f"{model}: Ignoring source layer more" in [event.text for event in told if event.kind == "warning"]


def test_finetune_refuses_weights_without_the_chains(folder: Path, run_cli: RunCli) -> None:
    done = run_cli("decompose", "--snapshot", "net.h5", "--ranks", "2", "--out", "cut", cwd=folder)
    assert done.returncode == 0, done.stderr
    for old in folder.glob("net_finetuned*"):
        old.unlink()
    args = ("finetune", "--model", "cut.prototxt", "--solver", "solver.prototxt", "--max-iter", "1", "--weights")
    for model in ("net.h5", "net.caffemodel"):
        done = run_cli(*args, model, cwd=folder)
        says = "cut.prototxt: --weights lacks conv_lowrank, conv_linear in place of 'conv'; give the model that"
        assert done.returncode == 1 and says in done.stderr.splitlines()[-1]
        assert not list(folder.glob("net_finetuned*"))
    done = run_cli(*args, "net.h5,cut.caffemodel.h5", cwd=folder)
    assert done.returncode == 0, done.stderr
