"""Losses that are not finite, what the solver warns of, and requests to save or stop."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from forcereg.errors import ForceregError, UsageError
from forcereg.solver.loop import Solver
from tests.conftest import RunCli
from tests.data.lmdbs import put_lmdb, raw
from tests.small_nets import inputs, ip
from tests.solver.nets import (
    REGRESSION,
    TESTED,
    Recorder,
    batch,
    batches,
    blobs_of,
    regression,
    write_solver,
)

FORCED = "param { lr_mult: 1 force_mult: 1 }"

# -- losses that are not finite


def poisoned(at: int):
    def inputs(iteration: int, sub: int) -> dict[str, torch.Tensor]:
        data = batch(iteration)
        if iteration == at:
            data["x"][0, 0] = float("inf")
        return data

    return inputs


@pytest.mark.parametrize(
    ("bad", "saved"), [(0, None), (1, None), (3, 2), (5, 4)], ids=["first", "second", "fourth", "sixth"]
)
def test_loss_that_is_not_finite(bad: int, saved: int | None, tmp_path: Path) -> None:
    solver, recorder = regression(tmp_path, 'max_iter: 20 snapshot: 2 momentum: 0.9 snapshot_prefix: "s"')
    with pytest.raises(ForceregError) as caught:
        solver.solve(poisoned(bad))
    text = str(caught.value)
    assert f"the loss is not finite at iteration {bad};" in text
    last = "there is no snapshot yet" if saved is None else f"last good snapshot is {tmp_path}/s_iter_{saved}.caffe"
    assert last in text
    assert "\n" not in text
    assert all(bool(blob.isfinite().all()) for blob in blobs_of(solver).values())
    assert [event.iteration for event in recorder.of("snapshot")] == list(range(2, bad + 1, 2))
    with pytest.raises(ForceregError, match=f"not finite at iteration {bad};"):
        solver.snapshot()
    if saved:
        solver.restore(tmp_path / f"s_iter_{saved}.solverstate.h5")
        solver.solve(batches)
        assert solver.iter == 20


def test_update_that_never_reads_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's way of updating, on CPU tensors: same weights while all is well, none changed from then on."""
    extra = 'momentum: 0.9 weight_decay: 0.01 clip_gradients: 1 lr_policy: "exp" gamma: 0.9'
    host, _ = regression(tmp_path, extra)
    device, _ = regression(tmp_path, extra)
    device.updater.on_host = False
    monkeypatch.setattr(device, "check_finite", lambda: None)
    host.step(3, batch())
    device.step(3, batch())
    good = blobs_of(device)
    for found, wanted in zip(good.values(), blobs_of(host).values(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
    device.step(3, poisoned(4))
    first, at_bad = blobs_of(device), device.updater.first_bad()
    device.step(3, batch())
    assert (at_bad, device.updater.first_bad()) == (4, 4)
    for name, blob in blobs_of(device).items():
        assert torch.equal(blob, first[name])
        assert not torch.equal(blob, good[name])  # iteration 3 was still good
    assert device.updater.all_finite()


def test_weights_that_turn_non_finite_are_not_saved(tmp_path: Path) -> None:
    """A finite loss can have a gradient that overflows: the next loss would tell, but the snapshot comes first."""
    solver, recorder = regression(tmp_path, 'max_iter: 9 snapshot: 1 snapshot_prefix: "s"')

    def inputs(iteration: int, sub: int) -> dict[str, torch.Tensor]:
        data = batch(iteration)
        if iteration == 2:
            data = {"x": torch.full((4, 3), 2e38), "y": torch.full((4, 2), 3.0)}
            with torch.no_grad():
                solver.net.params["ip"][0].copy_(torch.tensor([[1.0, -1.0, 0.0]] * 2))
                solver.net.params["ip"][1].fill_(-2e3)
        return data

    with pytest.raises(ForceregError) as caught:
        solver.solve(inputs)
    assert "weights are not finite at iteration 3; no snapshot is written" in str(caught.value)
    assert "s_iter_2.caffemodel.h5" in str(caught.value)
    assert [event.iteration for event in recorder.of("snapshot")] == [1, 2]
    assert not list(tmp_path.glob("s_iter_3*"))


RATE, FORCE = (
    "; lower base_lr or set clip_gradients",
    "; lower force_decay or base_lr; clip_gradients can't bound the force",
)
ADVICE = [
    ("momentum: 0", "", RATE),
    ("clip_gradients: 1e15", "", "; lower base_lr or clip_gradients"),
    ("force_decay: 0.5", FORCED, FORCE),
    ("force_decay: 0.5 clip_gradients: 1e15", FORCED, FORCE),
    ("force_decay: 0.5 force_iter: 2", FORCED, RATE),
    ("force_decay: 0.5", "", RATE),
    ("momentum: 1.5", "", "; momentum is 1.5: from 1 on"),
    ("weight_decay: 10", "", "; weight_decay is 10: times base_lr (it is 1e+09) it takes more"),
    ("weight_decay: -1", "", "; weight_decay is -1: a negative one makes"),
]


@pytest.mark.parametrize(("extra", "params", "says"), ADVICE)
def test_the_advice_is_about_what_can_be(extra: str, params: str, says: str, tmp_path: Path) -> None:
    """A rate that makes the weights grow until the loss overflows; all that is fed is finite."""
    solver, _ = regression(tmp_path, f"base_lr: 1e9 max_iter: 99 snapshot_after_train: false {extra}", params)
    with pytest.raises(ForceregError) as caught:
        solver.solve(batches)
    assert says in str(caught.value) and "data" not in str(caught.value)


def test_inputs_that_are_not_finite_are_named(tmp_path: Path) -> None:
    solver, _ = regression(tmp_path, "max_iter: 9 snapshot_after_train: false")
    with pytest.raises(ForceregError) as caught:
        solver.solve(poisoned(3))
    assert str(caught.value).endswith("; the data isn't finite: input 'x' of iteration 3; correct it or leave it out")


def test_before_any_update_it_is_not_the_rate(tmp_path: Path) -> None:
    solver, _ = regression(tmp_path, "max_iter: 9 snapshot_after_train: false")
    with pytest.raises(ForceregError, match="no update came before, so it isn't base_lr or a force"):
        solver.solve({name: blob * 1e30 for name, blob in batch().items()})
    solver, _ = regression(tmp_path, "max_iter: 9 snapshot_after_train: false")
    with torch.no_grad():
        solver.net.params["ip"][1][0] = float("nan")
    with pytest.raises(ForceregError, match="the weights that it began with are not finite in ip; load others"):
        solver.solve(batches)


def test_the_first_layer_is_named(tmp_path: Path) -> None:
    """A layer makes it from what is finite, in place of its bottom as well."""
    for name, top in (("log", "log"), ("in_place", "zero")):
        (tmp_path / f"{name}.prototxt").write_text(
            inputs(x=(2, 3))
            + f"""layer {{ name: "zero" type: "Power" bottom: "x" top: "zero" power_param {{ scale: 0 }} }}
            layer {{ name: "log" type: "Log" bottom: "zero" top: "{top}" }}"""
            + ip("ip", top, "ip", 2)
            + 'layer { name: "loss" type: "Reduction" bottom: "ip" top: "loss" loss_weight: 1 }'
        )
        p = f'net: "{name}.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 3 snapshot_after_train: false'
        (tmp_path / "solver.prototxt").write_text(p)
        solver = Solver(tmp_path / "solver.prototxt", observers=[lambda event: None])
        with pytest.raises(ForceregError) as caught:
            solver.solve({"x": torch.ones(2, 3)})
        first = f"blob '{top}' of layer 'log' (Log) is the first; look at what it is given, the data's scale and the"
        assert first in str(caught.value)


def put_source(root: Path, kind: str, value: float, row: int) -> str:
    """A set of 12 rows, one of them with `value`; the layer that reads it, four at a time."""
    values = np.ones((12, 1, 2, 3), np.float32)
    values[row, 0, 1, 1] = value
    if kind == "lmdb":
        put_lmdb(root / "db", [(b"%03d" % number, raw(image)) for number, image in enumerate(values)])
        return '"Data" data_param { source: "db" batch_size: 4 backend: LMDB }'
    with h5py.File(root / "a.h5", "w") as file:
        file["x"] = values
    (root / "a.txt").write_text("a.h5")
    return f'"HDF5Data" hdf5_data_param {{ source: "a.txt" batch_size: 4 shuffle: {str(kind == "shuffled").lower()} }}'


def fed_by(root: Path, layer: str, extra: str = "") -> Path:
    kind, param = layer.split(" ", 1)
    (root / "net.prototxt").write_text(
        f'layer {{ name: "d" type: {kind} top: "x" {param} }}\n'
        'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 2 '
        'weight_filler { type: "xavier" } } }\n'
        'layer { name: "l" type: "EuclideanLoss" bottom: "y" bottom: "y" top: "loss" }\n'
    )
    return write_solver(root, f"base_lr: 1e-5 max_iter: 20 snapshot_after_train: false {extra}")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize(
    ("kind", "row", "says"),
    [
        ("hdf5", 9, "a.h5: dataset 'x', row 9: {:g}"),
        ("shuffled", 9, "a.h5: dataset 'x', row 9: {:g}"),
        ("lmdb", 2, "db: record '002': {:g}"),
        ("lmdb", 11, "db: record '011': {:g}"),
    ],
)
def test_the_record_is_named(kind: str, row: int, says: str, value: float, tmp_path: Path) -> None:
    solver = Solver(fed_by(tmp_path, put_source(tmp_path, kind, value, row)), observers=[Recorder()])
    with pytest.raises(ForceregError) as caught:
        solver.solve()
    assert f"the data isn't finite: {says.format(value)}; correct it" in str(caught.value)
    assert "base_lr" not in str(caught.value)


def test_a_blob_is_named_where_its_source_is_fine(tmp_path: Path) -> None:
    beyond_float32 = "transform_param { scale: 2 mean_value: -3e38 } data_param"
    layer = put_source(tmp_path, "lmdb", 1.0, 0).replace("data_param", beyond_float32)
    solver = Solver(fed_by(tmp_path, layer), observers=[Recorder()])
    with pytest.raises(ForceregError, match="the data isn't finite: blob 'x' of layer 'd'; correct it"):
        solver.solve()


def test_the_message_of_a_run(tmp_path: Path, run_cli: RunCli) -> None:
    fed_by(tmp_path, put_source(tmp_path, "hdf5", np.nan, 5), "display: 1")
    done = run_cli("train", "--solver", "solver.prototxt", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == (
        "forcereg: solver.prototxt: the loss is not finite at iteration 1; no update was made from there on; "
        "there is no snapshot yet; the data isn't finite: a.h5: dataset 'x', row 5: nan; correct it or leave it out"
    )


def test_last_display_shows_the_bad_loss(tmp_path: Path) -> None:
    solver, recorder = regression(tmp_path, "display: 1 max_iter: 5")
    with pytest.raises(ForceregError):
        solver.solve(poisoned(1))
    assert not np.isfinite(recorder.of("train")[-1].loss)
    assert recorder.story()[-1] == "rate 1"


# -- warnings


@pytest.mark.parametrize(
    ("extra", "params", "warned"),
    [
        pytest.param("force_decay: 0.1", "", True, id="no-force-mult"),
        pytest.param("force_decay: -0.1", "", True, id="discrimination"),
        pytest.param("force_decay: 0.1", "param { lr_mult: 1 } param { force_mult: 1 }", True, id="only-a-bias"),
        pytest.param("force_decay: 0.1", "param { lr_mult: 0 force_mult: 1 }", True, id="frozen"),
        pytest.param("force_decay: 0.1", "param { force_mult: 1 force_view: CHANNELS }", False, id="channels"),
        pytest.param("force_decay: 0.1 force_iter: 0", "param { force_mult: 1 }", True, id="force_iter-0"),
        pytest.param("force_decay: 0.1 force_iter: -2", "param { force_mult: 1 }", True, id="force_iter--2"),
        pytest.param("force_decay: 0.1 force_iter: 1", "param { force_mult: 1 }", False, id="force_iter-1"),
        pytest.param("force_decay: 0.1", "param { force_mult: 1 }", False, id="weights"),
        pytest.param("", "param { force_mult: 1 }", False, id="no-decay"),
        pytest.param("", "", False, id="neither"),
    ],
)
def test_warning_that_nothing_is_regularized(extra: str, params: str, warned: bool, tmp_path: Path) -> None:
    _, recorder = regression(tmp_path, extra, params)
    assert any("NOTHING IS REGULARIZED" in text for text in recorder.texts()) == warned


def test_warnings_without_observers_are_pythons(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(REGRESSION.replace("PARAMS", ""))
    path = write_solver(tmp_path, "force_decay: 0.1")
    with pytest.warns(UserWarning, match="NOTHING IS REGULARIZED"):
        Solver(path)


@pytest.mark.parametrize(
    ("mode", "device", "warned"),
    [
        pytest.param("solver_mode: GPU", None, "solver's solver_mode", id="solver-mode"),
        pytest.param("solver_mode: GPU", "cpu", None, id="cpu-wins"),
        pytest.param("solver_mode: GPU", "auto", None, id="auto"),
        pytest.param("solver_mode: CPU", "cuda", "asked for on the command line", id="asked"),
        pytest.param("solver_mode: CPU", "cuda:1", "asked for on the command line", id="asked-number"),
        pytest.param("", None, None, id="nothing-written"),
    ],
)
def test_gpu_without_cuda_is_one_warning(
    mode: str, device: str | None, warned: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "net.prototxt").write_text(REGRESSION.replace("PARAMS", ""))
    path = write_solver(tmp_path)
    path.write_text(path.read_text().replace("solver_mode: CPU", mode))
    recorder = Recorder()
    solver = Solver(path, device=device, observers=[recorder])
    assert solver.device.type == "cpu"
    assert len(recorder.texts()) == (warned is not None)
    if warned:
        assert warned in recorder.texts()[0]
        assert "running on the CPU" in recorder.texts()[0]


def test_unknown_device(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown device 'gpu'; expected auto, cpu, cuda or cuda:N"):
        regression(tmp_path, device="gpu")


def test_loss_read_by_another_layer_is_warned_of(tmp_path: Path) -> None:
    net = REGRESSION + 'layer { name: "more" type: "Sigmoid" bottom: "loss" top: "more" }'
    _, recorder = regression(tmp_path, net=net)
    assert any("counted once" in text for text in recorder.texts())


# -- requests while training


def test_stop_request_saves_and_stops(tmp_path: Path) -> None:
    solver, recorder = regression(
        tmp_path, 'max_iter: 50 display: 1 snapshot: 20 snapshot_prefix: "s" test_iter: 1 test_interval: 50', net=TESTED
    )

    def stop(event) -> None:
        solver.stop_requested |= event.kind == "train" and event.iteration == 6

    solver.observers.append(stop)
    solver.solve(batches)
    assert solver.iter == 7
    assert recorder.story()[-2:] == ["snapshot 7", "stopped"]


def test_stop_request_abandons_a_test(tmp_path: Path) -> None:
    solver, recorder = regression(
        tmp_path, 'max_iter: 50 test_iter: 5 test_interval: 4 snapshot_prefix: "s"', net=TESTED
    )

    def stop(event) -> None:
        solver.stop_requested |= event.kind == "test_start" and event.iteration == 4

    solver.observers.append(stop)
    solver.solve(batches)
    assert recorder.story()[-3:] == ["test_start 4", "snapshot 4", "stopped"]


def test_snapshot_request_is_served_once(tmp_path: Path) -> None:
    solver, recorder = regression(tmp_path, 'max_iter: 6 display: 3 snapshot_prefix: "s"')

    def save(event) -> None:
        solver.snapshot_requested |= event.kind == "train" and event.iteration == 3

    solver.observers.append(save)
    solver.solve(batches)
    assert [event.iteration for event in recorder.of("snapshot")] == [4, 6]
    assert solver.iter == 6


def test_snapshot_request_during_a_test_is_served_at_once(tmp_path: Path) -> None:
    solver, recorder = regression(
        tmp_path, 'max_iter: 4 test_iter: 3 test_interval: 2 snapshot_prefix: "s"', net=TESTED
    )

    def save(event) -> None:
        solver.snapshot_requested |= event.kind == "test_start" and event.iteration == 2

    solver.observers.append(save)
    solver.solve(batches)
    story = recorder.story()
    assert story[story.index("test_start 2") :][:3] == ["test_start 2", "snapshot 2", "test 2"]


def test_stop_request_before_the_first_iteration_saves(tmp_path: Path) -> None:
    """In the initial test, when the schedule (which counts 0 as its own) has saved nothing yet."""
    extra = 'max_iter: 50 snapshot: 10 test_iter: 5 test_interval: 4 snapshot_prefix: "s"'
    solver, recorder = regression(tmp_path, extra, net=TESTED)

    def stop(event) -> None:
        solver.stop_requested |= event.kind == "test_start"

    solver.observers.append(stop)
    solver.solve(batches)
    assert recorder.story()[-3:] == ["test_start 0", "snapshot 0", "stopped"]
