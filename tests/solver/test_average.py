"""Averaged weights (`ema_decay`): their numbers, graphs, tests and snapshots; nothing else is touched by them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forcereg import snapshot
from forcereg.errors import ForceregError, UsageError
from forcereg.net.load import load_net
from forcereg.solver.average import Average
from forcereg.solver.loop import Solver
from tests.conftest import RunCli
from tests.small_nets import NET
from tests.small_nets import batch as small_batch
from tests.solver.clipping_nets import CHAINS, EXTRA, clipped_solver
from tests.solver.graphs import SETTINGS, TWO_LAYERS, both, trained
from tests.solver.nets import IMAGES, Recorder, batches, blobs_of, regression, write_images, write_solver

CPU = torch.device("cpu")


def averages_of(solver: Solver) -> dict[str, Tensor]:
    average = solver.steps.average
    assert average is not None
    return {name: value.clone() for name, value in average._named().items()}


@settings(max_examples=30)
@given(decay=st.floats(0.01, 0.9999), count=st.integers(1, 40))
@pytest.mark.parametrize("on_device", [False, True])
def test_each_is_the_mean_with_falling_weights(on_device: bool, decay: float, count: int) -> None:
    net = load_net(NET, phase="TRAIN", seed=1)
    average, wanted = Average(net, decay, CPU), {}
    moving = {f"{one.layer}/{one.index}": one.blob for one in net.learnable}
    wanted = {name: blob.detach().double().clone() for name, blob in moving.items()}
    generator = torch.Generator().manual_seed(count)
    for step in range(count):
        with torch.no_grad():
            for name, blob in moving.items():
                blob.copy_(torch.randn(blob.shape, generator=generator))
                d = min(decay, (1 + step) / (10 + step))
                wanted[name] = d * wanted[name] + (1 - d) * blob.double()
        average.prepare(7 + step)  # it counts from where it began
        average.step(torch.tensor(0.0) if on_device else None)
    assert average.since == 7 and {*average._named()} == {*wanted}
    for name, value in average._named().items():
        torch.testing.assert_close(value.double(), wanted[name], rtol=1e-4, atol=1e-5)


def test_a_step_that_is_left_out_leaves_it_alone() -> None:
    average = Average(net := load_net(NET, phase="TRAIN", seed=1), 0.5, CPU)
    before = [value.clone() for value in average.values]
    with torch.no_grad():
        for one in net.learnable:
            one.blob.add_(1)
    average.prepare(0)
    average.step(torch.tensor(1.0))
    assert all(map(torch.equal, average.values, before))
    average.step(torch.tensor(0.0))
    assert not any(map(torch.equal, average.values, before))


def test_statistics_have_the_mean_of_what_was_seen() -> None:
    """BatchNorm's are sums and their factor: where batches are alike the averages give the statistics themselves."""
    net, given = load_net(NET, phase="TRAIN", seed=1), small_batch()
    average = Average(net, 0.9, CPU)
    for step in range(5):
        net(**given)
        average.prepare(step)
        average.step(None)
    mean, variance, factor = (net.params["bn"][index].detach().clone() for index in range(3))
    with average.in_place():
        found = net.params["bn"]
        assert not torch.equal(found[2], factor)
        for now, then in ((found[0], mean), (found[1], variance)):
            torch.testing.assert_close(now / found[2], then / factor)
    assert torch.equal(net.params["bn"][2], factor)


ENDS = "max_iter: 14 snapshot_after_train: false test_iter: 1 test_interval: 3 ema_decay: 0.8"


@pytest.mark.parametrize("kind", ["momentum", "Nesterov", "Adam", "clip", "Degradation", "iter-size"])
def test_graphs_keep_the_same(kind: str, tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(TWO_LAYERS)
    plain, graphs = both(tmp_path, f"{SETTINGS[kind]} {ENDS}")
    graphs.assert_equals(plain)
    assert graphs.tape is not None and graphs.tape.recorded
    theirs = averages_of(plain.solver)
    # and the host, which averages by another operation
    host, _ = regression(tmp_path, f"{SETTINGS[kind]} {ENDS}", net=TWO_LAYERS)
    host.solve(batches)
    for name, value in averages_of(host).items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-5)
        assert not torch.equal(value, blobs_of(host)[name])


def test_a_loss_that_is_not_finite_stops_it(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(TWO_LAYERS)

    def given(iteration: int, sub: int) -> dict[str, Tensor]:
        found = batches(iteration, sub)
        return {**found, "x": found["x"] * float("nan")} if iteration == 5 else found

    settings = "momentum: 0.9 max_iter: 9 snapshot_after_train: false ema_decay: 0.8"
    stopped = trained(tmp_path, None, settings, given)
    sound = trained(tmp_path, None, settings.replace("max_iter: 9", "max_iter: 5"), batches)
    for name, value in averages_of(stopped.solver).items():
        assert torch.equal(value, averages_of(sound.solver)[name])


SCHEDULE = """
momentum: 0.9 base_lr: 0.05 max_iter: 8 display: 2 test_iter: 3 test_interval: 4 snapshot: 4 snapshot_prefix: "s"
weight_decay: 0.001 clip_gradients: 5 force_decay: 0.001 prune_threshold: 0.001 breadth_decay: 0.001
"""


def run(root: Path, extra: str = "", name: str = "solver.prototxt") -> tuple[Solver, Recorder]:
    recorder = Recorder()
    solver = Solver(write_solver(root, SCHEDULE + extra, name), observers=[recorder])
    return solver, recorder


def outputs(recorder: Recorder) -> list[dict[str, float]]:
    return [{one.name: one.value for one in event.outputs} for event in recorder.of("test")]


def test_the_plain_run_is_the_same_with_it(tmp_path: Path) -> None:
    """Tests of 15 of 10 images: the data goes on behind the plain ones alone."""
    write_images(tmp_path)
    plain, told = run(tmp_path)
    plain.solve()
    averaged, told_too = run(tmp_path, "ema_decay: 0.7", "other.prototxt")
    averaged.solve()
    ours, theirs = blobs_of(averaged), blobs_of(plain)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    found = outputs(told_too)
    assert [{name: one[name] for name in ("accuracy", "loss")} for one in found] == outputs(told)
    assert [sorted(one) for one in found] == [["accuracy", "accuracy_ema", "loss", "loss_ema"]] * 3
    # before the first iteration both are the same, on the same images
    assert found[0]["loss_ema"] == found[0]["loss"] and found[2]["loss_ema"] != found[2]["loss"]


@pytest.mark.parametrize("form", ["HDF5", "BINARYPROTO"])
def test_it_is_saved_beside_and_goes_on_bit_for_bit(form: str, tmp_path: Path) -> None:
    write_images(tmp_path)
    extra = f"snapshot_format: {form} ema_decay: 0.7"
    whole, told = run(tmp_path, extra)
    whole.solve()
    end = ".h5" if form == "HDF5" else ""
    files = [f"s_iter_{at}{kind}{end}" for at in (4, 8) for kind in (".caffemodel", ".solverstate", "_ema.caffemodel")]
    assert {path.name for path in tmp_path.glob("s_iter*")} == {*files}
    assert [Path(event.average).name for event in told.of("snapshot")] == [files[2], files[5]]
    kept = {name: (tmp_path / name).read_bytes() for name in files}
    model = snapshot.read_model(tmp_path / files[5])
    with whole.averaged():
        for name, blobs in whole.net.params.items():
            for index, blob in enumerate(blobs):
                assert np.array_equal(model.layers[name][index], blob.detach().numpy())
    resumed, told_too = run(tmp_path, extra)
    resumed.restore(tmp_path / files[1])
    resumed.solve()
    assert {name: (tmp_path / name).read_bytes() for name in files} == kept
    assert outputs(told_too) == outputs(told)[1:] and told_too.texts() == []


def test_what_is_zero_is_zero_in_the_average(tmp_path: Path) -> None:
    """By masks and by thresholds: the averaged net is as sparse."""
    write_images(tmp_path)
    solver, _ = run(tmp_path, "ema_decay: 0.9")
    solver.step(3)
    weight = solver.net.params["conv"][0]
    mask = torch.ones_like(weight, dtype=torch.uint8)
    mask[1] = 0
    with torch.no_grad():
        weight[1] = 0
    solver.set_masks({"conv/0": mask})
    solver.step(2)
    zeros = weight.detach() == 0
    assert zeros[1].all()
    with solver.averaged():
        assert torch.equal(weight.detach() == 0, zeros)
    assert not torch.equal(averages_of(solver)["conv/0"] == 0, zeros)


def test_weights_that_are_loaded_begin_it_anew(tmp_path: Path) -> None:
    write_images(tmp_path)
    first, _ = run(tmp_path, "ema_decay: 0.9")
    first.solve()
    second, _ = run(tmp_path, "ema_decay: 0.9 random_seed: 8", "other.prototxt")
    second.load_weights(tmp_path / "s_iter_8.caffemodel.h5")
    for name, value in averages_of(second).items():
        assert torch.equal(value, blobs_of(first)[name])


def test_a_state_without_it_and_a_run_without_it(tmp_path: Path) -> None:
    write_images(tmp_path)
    plain, _ = run(tmp_path)
    plain.solve()
    begun, told = run(tmp_path, "ema_decay: 0.9", "other.prototxt")
    begun.restore(tmp_path / "s_iter_4.solverstate.h5")
    assert told.texts() == [
        f"{tmp_path / 's_iter_4.solverstate.h5'}: holds no averaged weights; they begin anew with its model"
    ]
    assert all(torch.equal(value, blobs_of(begun)[name]) for name, value in averages_of(begun).items())
    begun.solve()
    assert begun.steps.average is not None and begun.steps.average.since == 4
    ended, told = run(tmp_path)
    ended.restore(tmp_path / "s_iter_8.solverstate.h5")
    assert told.texts()[0].endswith("its averaged weights end here; go on with them by --ema DECAY")
    with pytest.raises(UsageError, match="there are no averaged weights; set ema_decay"), ended.averaged():
        pass


def test_another_net_s_averages_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path)
    solver, _ = run(tmp_path, "ema_decay: 0.9")
    solver.step(4)
    state = snapshot.read_state(tmp_path / "s_iter_4.solverstate.h5")
    assert state.extra is not None
    average, blobs = solver.steps.average, state.extra["average"]["blobs"]
    assert average is not None
    blobs["conv/0"] = blobs["conv/0"][:1]
    with pytest.raises(ForceregError, match=r"of conv/0, of shape \[4, 1, 3, 3\], it has one of shape \[1, 1, 3, 3\]"):
        average.matched(state)
    del blobs["conv/0"]
    with pytest.raises(ForceregError, match="it lacks one among its averaged weights"):
        average.matched(state)


def test_a_test_net_that_leaves_traces_is_tested_once(tmp_path: Path) -> None:
    kept = """
layer { name: "rows" type: "Flatten" bottom: "ip" top: "rows" include { phase: TEST } }
layer { name: "kept" type: "HDF5Output" bottom: "rows" bottom: "label" hdf5_output_param { file_name: "out.h5" }
  include { phase: TEST } }
"""
    write_images(tmp_path, IMAGES + kept)
    solver, told = run(tmp_path, "ema_decay: 0.9")
    solver.solve()
    assert [sorted(one) for one in outputs(told)] == [["accuracy", "loss"]] * 3
    assert "test net #0 is not tested with averaged weights: it writes a file or runs code" in [
        event.text for event in told.of("note")
    ]


def test_old_averages_are_deleted_with_their_snapshots(tmp_path: Path) -> None:
    write_images(tmp_path)
    recorder = Recorder()
    settings = f"{SCHEDULE} snapshot: 2 ema_decay: 0.9".replace("snapshot: 4", "")
    Solver(write_solver(tmp_path, settings), observers=[recorder], keep=1).solve()
    assert sorted(path.name for path in tmp_path.glob("s_iter*")) == [
        "s_iter_8.caffemodel.h5",
        "s_iter_8.solverstate.h5",
        "s_iter_8_ema.caffemodel.h5",
    ]


@pytest.mark.parametrize("decay", ["0", "1"])
def test_a_decay_is_between_0_and_1(decay: str, tmp_path: Path, run_cli: RunCli) -> None:
    done = run_cli("train", "--solver", "solver.prototxt", "--ema", decay, cwd=tmp_path)
    assert done.returncode == 2 and "'--ema'" in done.stderr


def test_ranks_that_are_clipped_are_clipped_in_it(tmp_path: Path) -> None:
    """And it goes on bit for bit, whatever the ranks of the run that is resumed."""
    write_images(tmp_path, CHAINS)
    extra = EXTRA.replace("snapshot: ", "ema_decay: 0.9 snapshot: 5")
    whole, told = clipped_solver(tmp_path, extra)
    whole.solve()
    assert any(layer["rank"] < layer.get("before", 0) for event in told.of("ranks") for layer in event.layers)
    average = averages_of(whole)
    assert {name: value.shape for name, value in average.items()} == {n: b.shape for n, b in blobs_of(whole).items()}
    # what both compute stays near: it is one linear map
    assert all(abs(one["loss_ema"] - one["loss"]) < 0.2 for one in outputs(told))
    resumed, told_too = clipped_solver(tmp_path, extra)
    resumed.restore(tmp_path / "s_iter_10.solverstate.h5")
    resumed.solve()
    assert all(torch.equal(value, average[name]) for name, value in averages_of(resumed).items())
    assert outputs(told_too) == outputs(told)[-len(outputs(told_too)) :] and told_too.texts() == []
