"""caffe's solvers: as forcereg's, through blobs that scripts read and write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import forcereg
import forcereg.pycaffe as caffe
from forcereg.pycaffe.state import ArgumentError
from tests.pycaffe.nets import TRAINED

rng = np.random.default_rng(0)
X, LABEL = rng.standard_normal((4, 6)).astype(np.float32), np.array([0, 1, 2, 1], np.float32)
NET = TRAINED + 'layer { name: "accuracy" type: "Accuracy" bottom: "ip2" bottom: "label" top: "accuracy" }'
KINDS = {
    "SGD": "momentum: 0.9",
    "Nesterov": "momentum: 0.9",
    "AdaGrad": "",
    "RMSProp": "rms_decay: 0.9",
    "AdaDelta": "momentum: 0.95 delta: 1e-6",
    "Adam": "momentum: 0.9 momentum2: 0.999",
}


def solver_file(folder: Path, kind: str = "SGD", more: str = "", net: str = NET) -> str:
    (folder / "net.prototxt").write_text(net)
    file = folder / "solver.prototxt"
    file.write_text(
        f'net: "{folder}/net.prototxt" type: "{kind}" base_lr: 0.1 lr_policy: "step" gamma: 0.5 stepsize: 3 '
        f'weight_decay: 0.01 random_seed: 3 max_iter: 6 snapshot_prefix: "{folder}/s" {KINDS[kind]} {more}'
    )
    return str(file)


def fill(net: Any) -> None:
    net.blobs["x"].data[...], net.blobs["label"].data[...] = X, LABEL


def blobs_of(net: Any) -> list[np.ndarray]:
    return [blob.data.copy() for blobs in net.params.values() for blob in blobs]


FORCE = 'force_decay: 0.01 force_type: "Constant" breadth_decay: 0.001'
FORCED = NET.replace("param { lr_mult: 1 }", "param { lr_mult: 1 force_mult: 1 breadth_decay_mult: 1 }")


@pytest.mark.parametrize(("kind", "more"), [*((kind, "iter_size: 2") for kind in KINDS), ("SGD", FORCE)])
def test_steps_are_forcereg_s(tmp_path: Path, kind: str, more: str) -> None:
    file = solver_file(tmp_path, kind, more, FORCED)
    solver: Any = caffe.get_solver(file)
    assert type(solver).__name__ == f"{kind}Solver" and isinstance(solver, caffe.SGDSolver)
    fill(solver.net)
    own = forcereg.Solver(file, device="cpu")
    held = solver.net.params["ip1"][0].data
    for _ in range(2):
        solver.step(2)
        own.step(2, {"x": torch.from_numpy(X), "label": torch.from_numpy(LABEL)})
        assert solver.iter == own.iter and solver.lr == own.lr
        for name, blobs in own.net.params.items():
            for index, blob in enumerate(blobs):
                found = solver.net.params[name][index].data
                np.testing.assert_allclose(found, blob.detach(), rtol=1e-5, atol=1e-7)
    assert np.array_equal(held, solver.net.params["ip1"][0].data)


def test_the_class_decides_and_not_the_file(tmp_path: Path) -> None:
    file = solver_file(tmp_path, "Adam")
    found = caffe.SGDSolver(file)
    fill(found.net)
    before = blobs_of(found.net)
    found.step(1)
    plain = caffe.SGDSolver(solver_file(tmp_path, "SGD"))
    fill(plain.net)
    plain.step(1)
    for one, other, first in zip(blobs_of(found.net), blobs_of(plain.net), before, strict=True):
        np.testing.assert_array_equal(one, other)
        assert first.size == 3 or not np.array_equal(one, first)


def test_what_a_step_leaves(tmp_path: Path) -> None:
    solver: Any = caffe.SGDSolver(solver_file(tmp_path, more="test_iter: 1 test_interval: 100"))
    fill(solver.net)
    before = solver.net.params["ip1"][0].data.copy()
    assert solver.step(1) is None and solver.iter == 1
    assert 0 < float(solver.net.blobs["loss"].data) < 10 and solver.net.blobs["ip2"].diff.any()
    update = before - solver.net.params["ip1"][0].data
    np.testing.assert_allclose(solver.net.params["ip1"][0].diff, update, atol=1e-6)
    (test,) = solver.test_nets
    fill(test)
    assert 0 <= float(test.forward()["accuracy"]) <= 1
    assert np.shares_memory(test.params["ip1"][0].data, solver.net.params["ip1"][0].data)
    solver.net.backward()
    assert solver.net.params["ip1"][0].diff.any()
    with pytest.raises(AttributeError):
        solver.iter = 3


def test_edits_between_steps_count(tmp_path: Path) -> None:
    solver: Any = caffe.SGDSolver(solver_file(tmp_path))
    fill(solver.net)
    solver.step(1)
    for blobs in solver.net.params.values():
        for blob in blobs:
            blob.data[...] = 0
    solver.step(1)
    assert float(solver.net.blobs["loss"].data) == pytest.approx(np.log(3), rel=1e-5)


def test_a_loop_by_hand(tmp_path: Path) -> None:
    """clear_param_diffs, forward, backward and apply_update are a step."""
    file = solver_file(tmp_path)
    stepped: Any = caffe.SGDSolver(file)
    driven: Any = caffe.SGDSolver(file)
    fill(stepped.net)
    fill(driven.net)
    stepped.step(3)
    for _ in range(3):
        driven.net.clear_param_diffs()
        driven.net.forward()
        driven.net.backward()
        driven.apply_update()
    assert driven.iter == 3
    for one, other in zip(blobs_of(stepped.net), blobs_of(driven.net), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_callbacks(tmp_path: Path) -> None:
    solver: Any = caffe.SGDSolver(solver_file(tmp_path))
    fill(solver.net)
    seen: list[Any] = []
    solver.add_callback(
        lambda: seen.append(("start", solver.iter, solver.net.params["ip2"][0].diff.any())),
        lambda: seen.append(("ready", solver.iter, solver.net.params["ip2"][0].diff.any())),
    )
    solver.step(2)
    assert seen == [("start", 0, False), ("ready", 0, True), ("start", 1, False), ("ready", 1, True)]
    solver.add_callback(lambda: 1 / 0, lambda: None)
    with pytest.raises(ZeroDivisionError):
        solver.step(1)
    assert solver.iter == 2


def test_gradients_that_a_callback_edits(tmp_path: Path) -> None:
    solver: Any = caffe.SGDSolver(solver_file(tmp_path))
    fill(solver.net)
    before = solver.net.params["ip2"][1].data.copy()

    def stop() -> None:
        solver.net.params["ip2"][1].diff[...] = 0

    solver.add_callback(lambda: None, stop)
    solver.step(1)
    np.testing.assert_array_equal(solver.net.params["ip2"][1].data, before)


def test_tests_see_what_is_written_over_constants(tmp_path: Path) -> None:
    data = """layer { name: "in" type: "DummyData" top: "x" top: "label" dummy_data_param {
      shape { dim: 4 dim: 6 } shape { dim: 4 } data_filler { type: "gaussian" } data_filler { type: "constant" } } }"""
    text = "name: 'dummy'" + data + NET[NET.index('layer { name: "ip1"') :]
    solver: Any = caffe.SGDSolver(solver_file(tmp_path, more="test_iter: 2 test_interval: 1", net=text))
    (test,) = solver.test_nets
    for net in (solver.net, test):
        net.blobs["label"].data[...] = LABEL
    solver.step(2)
    for net in (solver.net, test):
        assert net.blobs["label"].data.tolist() == LABEL.tolist() and net.blobs["x"].data.any()
    scores = test.blobs["ip2"].data
    assert test.blobs["accuracy"].data == np.mean(scores.argmax(1) == LABEL, dtype="f")


def test_solve_snapshots_and_restores(tmp_path: Path) -> None:
    file = solver_file(tmp_path, more="test_iter: 1 test_interval: 3")
    solver: Any = caffe.get_solver(file)
    for net in (solver.net, *solver.test_nets):
        fill(net)
    solver.step(2)
    solver.snapshot()
    assert {path.name for path in tmp_path.glob("s_iter_2*")} == {"s_iter_2.caffemodel", "s_iter_2.solverstate"}
    solver.solve()
    (test,) = solver.test_nets
    scores = test.blobs["ip2"].data.copy()
    assert scores.any() and np.array_equal(test.forward()["accuracy"], np.mean(scores.argmax(1) == LABEL, dtype="f"))
    assert solver.iter == 6 and (tmp_path / "s_iter_6.caffemodel").exists()
    again: Any = caffe.get_solver(file)
    for net in (again.net, *again.test_nets):
        fill(net)
    weights = again.net.params["ip1"][0].data
    again.restore(str(tmp_path / "s_iter_2.solverstate"))
    assert again.iter == 2
    loaded = caffe.Net(str(tmp_path / "net.prototxt"), str(tmp_path / "s_iter_2.caffemodel"), caffe.TEST)
    np.testing.assert_array_equal(weights, loaded.params["ip1"][0].data)
    again.solve(str(tmp_path / "s_iter_2.solverstate"))
    for one, other in zip(blobs_of(again.net), blobs_of(solver.net), strict=True):
        np.testing.assert_array_equal(one, other)


def test_settings_and_sharing(tmp_path: Path) -> None:
    solver: Any = caffe.SGDSolver(solver_file(tmp_path, more="display: 2"))
    assert (solver.param.max_iter, solver.param.display) == (6, 2)
    solver.param.base_lr = 0.01
    assert solver.lr == pytest.approx(0.01)
    with pytest.raises(AttributeError):
        solver.param.max_iter = 3
    assert isinstance(solver.param, caffe._caffe.SolverParameter)
    other: Any = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST)
    solver.share_weights(other)
    fill(solver.net)
    solver.step(1)
    np.testing.assert_array_equal(other.params["ip1"][0].data, solver.net.params["ip1"][0].data)
    assert not other.params["ip1"][0].diff.any()


def test_a_solver_s_net_that_takes_weights_of_another(tmp_path: Path) -> None:
    solver: Any = caffe.SGDSolver(solver_file(tmp_path))
    other: Any = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST)
    solver.net.share_with(other)
    before = other.params["ip1"][0].data.copy()
    fill(solver.net)
    solver.step(1)
    assert not np.array_equal(other.params["ip1"][0].data, before)
    np.testing.assert_array_equal(other.params["ip1"][0].data, solver.net.params["ip1"][0].data)


@pytest.mark.parametrize("name", ["w.caffemodel", "w.caffemodel.h5"])
def test_weights_that_a_net_takes_are_frozen_where_it_says_so(name: str, tmp_path: Path) -> None:
    """As of the SSL branch's copy_from; not where a script has written zeros."""
    net = NET.replace('name: "ip1"', 'name: "ip1" connectivity_mode: DISCONNECTED_ELTWISE')
    assert net != NET
    solver: Any = caffe.SGDSolver(solver_file(tmp_path, net=net))
    weight = solver.net.params["ip1"][0].data
    weight[0], weight[1] = 0, 5e-5
    solver.net.save_hdf5(str(tmp_path / name)) if name.endswith("h5") else solver.net.save(str(tmp_path / name))
    fill(solver.net)
    solver.step(1)
    assert weight[:2].any(1).all()
    solver.net.copy_from(str(tmp_path / name))
    assert not weight[:2].any() and weight[2:].any()
    fill(solver.net)
    solver.step(2)
    assert not weight[:2].any() and weight[2:].all()


def test_what_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    solver: Any = caffe.SGDSolver(solver_file(tmp_path, more="display: 1"))
    fill(solver.net)
    solver.step(1)
    assert "Iteration 0" in capfd.readouterr().err
    caffe.init_log(2)
    solver.step(1)
    assert not capfd.readouterr().err


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        pytest.param(lambda file: caffe.SGDSolver("none.prototxt"), RuntimeError, id="no-file"),
        pytest.param(lambda file: caffe.get_solver("none.prototxt"), RuntimeError, id="get-no-file"),
        pytest.param(lambda file: caffe.SGDSolver(), TypeError, id="no-argument"),
        pytest.param(lambda file: caffe.SGDSolver(3), ArgumentError, id="no-path"),
        pytest.param(lambda file: caffe.SGDSolver(file).step(), TypeError, id="step-of-nothing"),
        pytest.param(lambda file: caffe.SGDSolver(file).restore("none.solverstate"), RuntimeError, id="no-state"),
        pytest.param(lambda file: caffe.NCCL(None, "uid"), RuntimeError, id="nccl"),
    ],
)
def test_what_is_refused(tmp_path: Path, call: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        call(solver_file(tmp_path))
