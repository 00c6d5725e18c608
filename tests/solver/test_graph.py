"""Iterations and tests as graphs: recorded and replayed on the CPU they give bit for bit what they give as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.solver.loop import Solver
from forcereg.solver.window import FIRST
from forcereg.system.capture import WARM_UP
from tests.solver.clipping_nets import CHAINS, EXTRA, clipped_solver
from tests.solver.graphs import FORCE, IMAGE_RUN, SETTINGS, TWO_LAYERS, Outcome, both, on_device, trained
from tests.solver.nets import TESTED, Recorder, batch, batches, blobs_of, write_images, write_solver
from tests.solver.tape import Tape


@pytest.fixture
def two(tmp_path: Path) -> Path:
    (tmp_path / "net.prototxt").write_text(TWO_LAYERS)
    return tmp_path


@pytest.mark.parametrize("extra", SETTINGS.values(), ids=SETTINGS)
def test_graphs_give_the_same_bits(extra: str, two: Path) -> None:
    plain, graphs = both(two, f"max_iter: 16 snapshot_after_train: false {extra}")
    graphs.assert_equals(plain)
    assert graphs.tape is not None
    assert graphs.tape.ran == WARM_UP
    assert graphs.tape.replayed == 16 - WARM_UP
    assert graphs.tape.recorded == (2 if "force_iter" in extra else 1)
    plain_diff, diff = ({k: v.clone() for k, v in one.solver.updater.last_update().items()}
                        if "snapshot_diff" in extra else {} for one in (plain, graphs))  # fmt: skip
    assert all(torch.equal(diff[key], plain_diff[key]) and diff[key].any() for key in plain_diff)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision(amp: str, two: Path) -> None:
    """With a step that is left out while the scale is halved, in fp16."""

    def inputs(iteration: int, sub: int) -> dict[str, Tensor]:
        return {name: blob * (1e30 if iteration == 8 else 1) for name, blob in batches(iteration, sub).items()}

    plain, graphs = both(two, "max_iter: 14 momentum: 0.9 snapshot_after_train: false", inputs, amp=amp)
    graphs.assert_equals(plain)
    if graphs.solver.scale is not None and plain.solver.scale is not None:
        assert graphs.solver.scale.state_dict() == plain.solver.scale.state_dict()
        assert graphs.solver.scale.state_dict()["skipped"] > 0
        assert graphs.solver.updater.first_bad() == -1


@pytest.mark.parametrize("kind", ["SGD", "AdaGrad"])
@pytest.mark.parametrize("bad", [1, 6])
def test_a_loss_that_is_not_finite(bad: int, kind: str, two: Path) -> None:
    """In warm-up and in a graph; display 8 is the first to tell."""

    def inputs(iteration: int, sub: int) -> dict[str, Tensor]:
        return {name: blob * (np.nan if iteration == bad else 1) for name, blob in batches(iteration, sub).items()}

    plain, graphs = both(two, f'type: "{kind}" max_iter: 20 snapshot_after_train: false', inputs)
    graphs.assert_equals(plain)
    assert graphs.solver.updater.first_bad() == bad and graphs.solver.iter == 4 * (bad // 4 + 1)
    assert graphs.solver.updater.all_finite()
    short = trained(two, None, f'type: "{kind}" max_iter: {bad} snapshot_after_train: false')
    for name, blob in blobs_of(short.solver).items():
        assert torch.equal(blob, graphs.state[name])


def test_the_bad_loss_is_displayed_first(two: Path) -> None:
    plain, graphs = both(
        two, "max_iter: 20", lambda i, s: {n: b * (np.nan if i == 8 else 1) for n, b in batch().items()}
    )
    graphs.assert_equals(plain)
    assert np.isnan(graphs.recorder.of("train")[-1].loss) and graphs.recorder.of("train")[-1].iteration == 8


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path)


def test_a_net_with_data_statistics_and_tests(images: Path) -> None:
    """Random crops, BatchNorm, Scale, Dropout, tests in between, snapshots."""
    plain, graphs = both(images, IMAGE_RUN, None)
    graphs.assert_equals(plain)
    assert graphs.tape is not None
    assert graphs.tape.recorded == 3  # training, the same with the force measured, and tests
    assert graphs.tape.replayed == (18 - WARM_UP) + (4 * 4 - WARM_UP)


def test_passes_of_several_batches(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two test batches at once, five of them: the last pass, of one, runs as it is."""
    monkeypatch.setattr("forcereg.net.scoring.batches_at_once", lambda net: 2)
    plain, graphs = both(images, IMAGE_RUN.replace("test_iter: 4", "test_iter: 5"), None)
    graphs.assert_equals(plain)
    assert graphs.tape is not None
    assert graphs.tape.replayed == (18 - WARM_UP) + (4 * 2 - WARM_UP)


def test_rank_clipping_begins_anew(tmp_path: Path) -> None:
    """Weights of other shapes: new graphs, in training and in tests."""
    write_images(tmp_path, CHAINS)
    extra = EXTRA.replace("test_interval: 3", "test_interval: 7").replace("max_iter: 14", "max_iter: 21") + "0"
    outcomes = []
    for tape in (None, Tape()):
        with on_device(tape):
            solver, recorder = clipped_solver(tmp_path, extra)
            before = dict(solver.clipping.ranks) if solver.clipping else {}
            solver.solve()
        outcomes.append(Outcome(solver, recorder, tape))
    outcomes[1].assert_equals(outcomes[0])
    assert outcomes[1].solver.clipping is not None and outcomes[1].solver.clipping.ranks != before
    assert outcomes[1].tape is not None and outcomes[1].tape.recorded >= 2


RECURRENT = """
name: "recurrent"
layer {
  name: "in" type: "Input" top: "x" top: "cont" top: "y"
  input_param { shape { dim: 3 dim: 2 dim: 4 } shape { dim: 3 dim: 2 } shape { dim: 3 dim: 2 dim: 5 } }
}
layer {
  name: "lstm" type: "LSTM" bottom: "x" bottom: "cont" top: "h"
  recurrent_param { num_output: 5 weight_filler { type: "xavier" } }
}
layer { name: "loss" type: "EuclideanLoss" bottom: "h" bottom: "y" top: "loss" }
"""


def test_hidden_state_is_carried(tmp_path: Path) -> None:
    """From one replay to the next, by tensors that stay."""
    (tmp_path / "net.prototxt").write_text(RECURRENT)

    def inputs(iteration: int, sub: int) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(iteration)
        x, y = torch.randn(3, 2, 4, generator=random), torch.randn(3, 2, 5, generator=random)
        return {"x": x, "cont": torch.ones(3, 2), "y": y}

    plain, graphs = both(tmp_path, "max_iter: 12 snapshot_after_train: false momentum: 0.9", inputs)
    graphs.assert_equals(plain)
    hidden = [dict(one.solver.net.module("lstm").carried()) for one in (plain, graphs)]
    assert all(torch.equal(hidden[0][name], hidden[1][name]) and hidden[0][name].any() for name in ("h", "c"))


@pytest.mark.parametrize("by", [None, "graphs"])
@pytest.mark.parametrize("first", [None, "graphs"])
def test_resuming_is_exact(first: str | None, by: str | None, images: Path) -> None:
    """From a run with or without graphs to one with or without."""
    whole = trained(images, Tape(), IMAGE_RUN, None)
    trained(images, Tape() if first else None, IMAGE_RUN.replace("max_iter: 18", "max_iter: 9"), None)
    recorder, tape = Recorder(), Tape() if by else None
    with on_device(tape):
        solver = Solver(write_solver(images, f"display: 4 {IMAGE_RUN}"), observers=[recorder])
        solver.restore(images / "s_iter_9.solverstate.h5")
        solver.solve()
    found = Outcome(solver, recorder, tape)
    for name, blob in whole.state.items():
        assert torch.equal(found.state[name], blob), name


def test_going_back_to_a_snapshot(images: Path) -> None:
    """Restoring into a solver whose graphs are recorded already: they begin anew."""
    with on_device(Tape()):
        solver = Solver(write_solver(images, IMAGE_RUN))
        solver.step(12)
        once = blobs_of(solver)
        solver.restore(images / "s_iter_9.solverstate.h5")
        solver.step(3)
        assert all(torch.equal(blob, once[name]) for name, blob in blobs_of(solver).items())
        solver.restore(images / "s_iter_9.solverstate.h5")
        solver.solve()
    whole = trained(images, None, IMAGE_RUN, None)
    assert all(torch.equal(blob, whole.state[name]) for name, blob in blobs_of(solver).items())


def test_debug_info_runs_as_it_is(images: Path) -> None:
    plain, graphs = both(images, f"{IMAGE_RUN} debug_info: true", None)
    graphs.assert_equals(plain)
    assert graphs.tape is not None and plain.recorder.of("debug")
    assert graphs.tape.ran == 5 + WARM_UP  # displays as they are, tests too
    assert graphs.tape.replayed == 18 - 5 - WARM_UP


def test_force_is_measured_as_it_is(two: Path) -> None:
    (two / "net.prototxt").write_text(TESTED.replace("PARAMS", "param { lr_mult: 1 force_mult: 1 }"))
    outcomes = []
    for tape in (None, Tape()):
        recorder = Recorder()
        with on_device(tape):
            solver = Solver(
                write_solver(two, f"{FORCE} test_iter: 1 test_interval: 5 max_iter: 17"), observers=[recorder]
            )
            solver.measure_force = True
            solver.step(17, batches)
        outcomes.append(Outcome(solver, recorder, tape))
    outcomes[1].assert_equals(outcomes[0])
    assert len(outcomes[1].recorder.of("force")) == 8  # ratios and cosines


def test_a_window_that_grows_gets_a_graph_of_its_own(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forcereg.solver.window.FIRST", 5)
    plain, graphs = both(two, "max_iter: 16 snapshot_after_train: false average_loss: 12")
    graphs.assert_equals(plain)
    assert FIRST > 5 and len(graphs.solver._losses.values) == 12
    assert graphs.tape is not None and graphs.tape.recorded == 3  # 5, 10 and 12 places


def test_the_rates_overflow_is_told_the_same_way(two: Path) -> None:
    errors = []
    for tape in (None, Tape()):
        with on_device(tape):
            solver = Solver(write_solver(two, 'base_lr: 1e36 lr_policy: "exp" gamma: 2 max_iter: 20'))
            with pytest.raises(ForceregError) as caught:
                solver.solve(lambda i, s: {name: blob * 0 for name, blob in batch().items()})
        errors.append(str(caught.value))
    assert errors[0] == errors[1] and "at iteration 8 the learning rate 2.56e+38" in errors[0]
