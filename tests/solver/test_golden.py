"""Whole trajectories (solver/, force/, snapshots/) against Caffe's, for the solver types that exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import forcereg.registry as registry
from forcereg.schema import NetParameter, SolverState
from forcereg.schema.text import parse_solver
from forcereg.solver.loop import Solver
from tests.golden_cases import Case, golden_cases


def runs_here(case: Case) -> bool:
    return parse_solver(case.attrs["solver"]).message.type in registry.solver_type


def build(case: Case, folder: Path, solver_text: str) -> Solver:
    (folder / "net.prototxt").write_text(case.attrs.get("net_with_input_layers", case.attrs["net"]))
    (folder / "solver.prototxt").write_text(solver_text)
    solver = Solver(folder / "solver.prototxt", observers=[lambda event: None])
    set_params(solver, case.tree("params_init"))
    return solver


def set_params(solver: Solver, values: dict[str, np.ndarray]) -> None:
    with torch.no_grad():
        for name, blobs in solver.net.params.items():
            for index, blob in enumerate(blobs):
                blob.copy_(torch.from_numpy(values[f"{name}/{index}"]))


def feeder(case: Case):
    inputs = {name: torch.from_numpy(array) for name, array in case.tree("inputs").items()}
    return lambda iteration, sub: {name: array[iteration, sub] for name, array in inputs.items()}


def params_of(solver: Solver) -> dict[str, np.ndarray]:
    return {
        f"{name}/{index}": blob.detach().numpy().copy()
        for name, blobs in solver.net.params.items()
        for index, blob in enumerate(blobs)
    }


@pytest.mark.parametrize("case", golden_cases("solver", runs_here))
def test_trajectory(case: Case, tmp_path: Path) -> None:
    solver = build(case, tmp_path, case.attrs["solver"])
    feed = feeder(case)
    bound = 5e-5 if "BatchNorm" in case.attrs["net"] else 1e-5
    for iteration in range(int(case.attrs["iters"])):
        assert solver.lr == pytest.approx(case.load("lr")[iteration], rel=1e-6)
        loss = float(solver.step(1, feed))
        assert loss == pytest.approx(case.load("loss")[iteration], abs=2e-5 if bound == 1e-5 else 5e-5)
        found = params_of(solver)
        for name, expected in case.tree(f"iter_{iteration + 1:04d}/params").items():
            np.testing.assert_allclose(found[name], expected, rtol=0, atol=bound, err_msg=name)
    assert solver.current_step == case.attrs["current_step"]
    names = [f"{one.layer}/{one.index}" for one in solver.net.learnable]
    assert names == case.json("learnable_params")
    for index, blob in enumerate(solver.updater.saved_history()):
        np.testing.assert_allclose(blob, case.load(f"history/{index}"), rtol=0, atol=bound, err_msg=f"history {index}")


def force_bound(case: Case, update: np.ndarray) -> float:
    if "rows_near_above" in case.id:
        return 2e-3 * float(np.abs(update).max())
    return 2e-5 * float(np.abs(update).max(initial=0)) + 1e-6


@pytest.mark.parametrize("case", golden_cases("force", runs_here))
def test_force(case: Case, tmp_path: Path) -> None:
    solver = build(case, tmp_path, case.attrs["solver"])
    feed = feeder(case)
    for iteration in range(int(case.attrs["iters"])):
        before = params_of(solver)
        solver.step(1, feed)
        after = params_of(solver)
        recorded = case.tree(f"iter_{iteration + 1:04d}/update")
        if not recorded:
            recorded = {"l/0": case.load("params_init/l/0") - case.load("iter_0001/params/l/0")}
        for name, expected in recorded.items():
            np.testing.assert_allclose(
                before[name] - after[name], expected, rtol=0, atol=force_bound(case, expected), err_msg=name
            )
        # the next iteration starts from Caffe's own numbers, so that one iteration is judged at a time
        if case.attrs["kind"] == "combo":
            set_params(solver, case.tree(f"iter_{iteration + 1:04d}/params"))


def resumed(case: Case, folder: Path, end: str) -> Solver:
    """A solver restored from the case's snapshot, whose two files end in `end`, that writes such ones itself."""
    start = int(case.attrs["iter_snapshot"])
    for kind in ("caffemodel", "solverstate"):
        name = f"snap_iter_{start}.{kind}{end}"
        (folder / name).write_bytes(case.file(name))
    solver = build(case, folder, case.attrs["solver_hdf5" if end else "solver_binaryproto"])
    solver.restore(folder / f"snap_iter_{start}.solverstate{end}")
    return solver


@pytest.mark.parametrize("case", golden_cases("snapshots", lambda c: True))
@pytest.mark.parametrize("end", [".h5", ""], ids=["hdf5", "binary"])
def test_resume_from_caffe(case: Case, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that Caffe wrote continues with Caffe's numbers, and our own snapshot holds the same ones."""
    monkeypatch.chdir(tmp_path)
    solver = resumed(case, tmp_path, end)
    start = int(case.attrs["iter_snapshot"])
    assert (solver.iter, solver.current_step) == (start, case.attrs["current_step"])
    feed = feeder(case)
    for iteration in range(start, int(case.attrs["iters"])):
        loss = float(solver.step(1, feed))
        assert loss == pytest.approx(case.load("loss")[iteration], abs=5e-5)
        found = params_of(solver)
        for name, expected in case.tree(f"iter_{iteration + 1:04d}/params").items():
            np.testing.assert_allclose(found[name], expected, rtol=0, atol=5e-5, err_msg=name)


@pytest.mark.parametrize("case", golden_cases("snapshots"))
def test_what_we_write_is_what_caffe_wrote(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Message by message, but for the field that the fork adds to every layer, and ours, which Caffe skips."""
    monkeypatch.chdir(tmp_path)
    solver = resumed(case, tmp_path, "")
    start = int(case.attrs["iter_snapshot"])
    names = [f"snap_iter_{start}.{kind}" for kind in ("caffemodel", "solverstate")]
    assert solver.snapshot() == tmp_path / names[0]
    for name, kind in zip(names, (NetParameter, SolverState), strict=True):
        found, expected = kind.FromString((tmp_path / name).read_bytes()), kind.FromString(case.file(name))
        found.DiscardUnknownFields()
        taken = taken_blobs if kind is NetParameter else lambda state: list(state.history)
        blobs = [taken(message) for message in (found, expected)]
        assert len(blobs[0]) == len(blobs[1]) > 0
        for ours, caffes in zip(*blobs, strict=True):
            assert (ours.shape, ours.data) == (caffes.shape, caffes.data)
            assert len(ours.diff) == len(caffes.diff)
        assert found == expected


def taken_blobs(net: Any) -> list[Any]:
    """The blobs of a net, layer by layer; what the fork adds is cleared, and diffs are only counted."""
    found = []
    for layer in net.layer:
        layer.ClearField("display")
        found += [type(blob).FromString(blob.SerializeToString()) for blob in layer.blobs]
        for blob in layer.blobs:
            blob.ClearField("diff")
    return found
