"""Recurrent nets in the solver: they learn over time, and a snapshot holds their hidden state."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from forcereg import snapshot
from forcereg.solver.loop import Solver
from tests.solver.nets import Recorder, blobs_of, write_solver

NET = """
name: "echo"
layer {
  name: "in" type: "Input" top: "x" top: "cont" top: "y"
  input_param { shape { dim: 8 dim: 16 dim: 1 } shape { dim: 8 dim: 16 } shape { dim: 8 dim: 16 dim: 1 } }
}
layer {
  name: "deep/rec.1" type: "KIND" bottom: "x" bottom: "cont" top: "rec"
  recurrent_param { num_output: 12 weight_filler { type: "uniform" min: -0.4 max: 0.4 } }
}
layer {
  name: "ip" type: "InnerProduct" bottom: "rec" top: "ip"
  inner_product_param { num_output: 1 axis: 2 weight_filler { type: "xavier" } }
}
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "y" top: "loss" }
"""

KINDS = pytest.mark.parametrize("kind", ["LSTM", "RNN"])
EXTRA = 'momentum: 0.9 base_lr: 0.01 display: 1 average_loss: 3 snapshot_prefix: "s" max_iter: 10 snapshot: '


def batch(seed: int, fresh: float) -> dict[str, Tensor]:
    """Rows of +-1 and, as the target, what was there two steps before; `fresh`: cont at the first step."""
    values = np.random.default_rng(seed).choice([-1.0, 1.0], (8, 16, 1))
    target = np.concatenate((np.zeros((2, 16, 1)), values[:-2]))
    cont = np.ones((8, 16))
    cont[0] = fresh
    return {name: torch.from_numpy(v).float() for name, v in (("x", values), ("cont", cont), ("y", target))}


def connected(iteration: int, sub: int) -> dict[str, Tensor]:
    """A batch that goes on with the sequences of the one before it."""
    return batch(1000 * iteration + sub, 1.0)


def solver(root: Path, kind: str, extra: str) -> tuple[Solver, Recorder]:
    (root / "net.prototxt").write_text(NET.replace("KIND", kind))
    recorder = Recorder()
    return Solver(write_solver(root, extra), observers=[recorder]), recorder


def numbers(recorder: Recorder, since: int) -> list[tuple[object, ...]]:
    """Every loss and output told from iteration `since` on."""
    told = [e for e in recorder.events if e.kind in ("train", "test", "final") and e.iteration >= since]
    return [(e.kind, e.iteration, e.fields.get("loss"), tuple(e.fields.get("outputs", ()))) for e in told]


@KINDS
def test_remembers_what_was_two_steps_before(kind: str, tmp_path: Path) -> None:
    """Without memory nothing is better than 0, whose loss is the baseline."""
    net, _ = solver(tmp_path, kind, "momentum: 0.9 base_lr: 0.03 clip_gradients: 5 average_loss: 10")
    loss = net.step(250, lambda iteration, sub: batch(iteration, 0.0))
    baseline = batch(0, 0.0)["y"].square().sum() / 16
    assert loss < 0.05 * baseline


TESTED = EXTRA.replace("max_iter", "test_iter: 3 test_interval: 2 test_compute_loss: true max_iter")


@KINDS
@pytest.mark.parametrize("at", [3, 4], ids=["between-tests", "before-a-test"])
def test_resume_is_bit_for_bit(kind: str, at: int, tmp_path: Path) -> None:
    whole, told = solver(tmp_path, kind, TESTED + str(at))
    whole.solve(connected)
    resumed, again = solver(tmp_path, kind, TESTED + "0")
    resumed.restore(tmp_path / f"s_iter_{at}.solverstate.h5")
    resumed.solve(connected)
    assert not again.texts()
    assert numbers(again, at) == numbers(told, at)
    assert len(numbers(again, at)) > 8
    for found, wanted in zip(blobs_of(resumed).values(), blobs_of(whole).values(), strict=True):
        assert torch.equal(found, wanted)


@KINDS
def test_resume_from_the_middle_of_a_test_runs_it_again(kind: str, tmp_path: Path) -> None:
    """The state has the hidden state from before the test, which the test then moves on."""
    whole, told = solver(tmp_path, kind, TESTED + "0")
    whole.solve(connected)
    stopped, _ = solver(tmp_path, kind, TESTED + "0")
    between = stopped._between_batches

    def at_third_batch(index: int) -> bool:
        stopped.stop_requested = stopped.iter == 4 and index == 2
        return between(index)

    stopped._between_batches = at_third_batch  # type: ignore[method-assign]
    stopped.solve(connected)
    assert stopped.iter == 4
    resumed, again = solver(tmp_path, kind, TESTED + "0")
    resumed.restore(tmp_path / "s_iter_4.solverstate.h5")
    resumed.solve(connected)
    assert numbers(again, 4) == numbers(told, 4)


def test_streams_beyond_the_declared_ones_are_restored(tmp_path: Path) -> None:
    """The hidden state grew with the batches that were given; the last display of a run leaves it alone."""

    def wide(iteration: int, sub: int) -> dict[str, Tensor]:
        return {name: torch.cat((value, value), 1) for name, value in connected(iteration, sub).items()}

    whole, told = solver(tmp_path, "LSTM", EXTRA + "5")
    whole.solve(wide)
    resumed, again = solver(tmp_path, "LSTM", EXTRA + "0")
    resumed.restore(tmp_path / "s_iter_5.solverstate.h5")
    (carried,) = [module.carried() for spec, module in resumed.net.built if spec.type == "LSTM"]
    assert {name: tuple(tensor.shape) for name, tensor in carried.items()} == {"h": (32, 12), "c": (32, 12)}
    resumed.solve(wide)
    assert numbers(again, 5) == numbers(told, 5)


def test_last_display_leaves_the_state_alone(tmp_path: Path) -> None:
    """Even if its batch has more streams than any before."""
    trained, recorder = solver(tmp_path, "LSTM", EXTRA + "0")
    other, _ = solver(tmp_path, "LSTM", EXTRA + "0")

    def wide_at_last(iteration: int, sub: int) -> dict[str, Tensor]:
        given = connected(iteration, sub)
        return {name: torch.cat((v, v), 1) for name, v in given.items()} if iteration == 10 else given

    trained.solve(wide_at_last)
    other.step(10, connected)
    assert recorder.of("final")
    found, expected = (each.net.module("deep/rec.1").carried() for each in (trained, other))
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)


def without_hidden_states(path: Path) -> None:
    """Makes a state what one was before there were recurrent layers."""
    with h5py.File(path, "r+") as file:
        del file["forcereg/carried"]


def as_caffe_writes(path: Path) -> None:
    """Takes away all that Caffe would not have written."""
    with h5py.File(path, "r+") as file:
        del file["forcereg"]


@pytest.mark.parametrize("change", [without_hidden_states, as_caffe_writes])
def test_state_without_hidden_states_starts_them_from_zeros_with_a_warning(change: object, tmp_path: Path) -> None:
    whole, told = solver(tmp_path, "LSTM", TESTED + "3")
    whole.solve(connected)
    state = tmp_path / "s_iter_3.solverstate.h5"
    change(state)  # type: ignore[operator]
    whole.restore(state)  # into a net that is further on
    resumed, again = solver(tmp_path, "LSTM", TESTED + "0")
    resumed.restore(state)
    expected = [
        f"the state holds no hidden state for layer '{net}/deep/rec.1'; it starts from zeros"
        for net in ("train", "test_0")
    ]
    assert [text for text in again.texts() if "written by Caffe" not in text] == expected
    for each in (whole, resumed):
        for net in (each.net, *each.test_nets):
            assert not any(tensor.any() for tensor in net.module("deep/rec.1").carried().values())
    resumed.solve(connected)
    assert numbers(again, 3) != numbers(told, 3)


def test_state_holds_the_hidden_states_of_all_nets(tmp_path: Path) -> None:
    trained, _ = solver(tmp_path, "LSTM", TESTED + "0")
    trained.step(3, connected)
    trained.snapshot()
    extra = snapshot.read_state(tmp_path / "s_iter_3.solverstate.h5").extra
    assert extra is not None
    saved = extra["carried"]
    assert set(saved) == {"train/deep/rec.1", "test_0/deep/rec.1"}
    for name, net in (("train", trained.net), ("test_0", trained.test_nets[0])):
        for key, tensor in net.module("deep/rec.1").carried().items():
            np.testing.assert_array_equal(saved[f"{name}/deep/rec.1"][key], tensor)
    assert not np.array_equal(saved["train/deep/rec.1"]["h"], saved["test_0/deep/rec.1"]["h"])
