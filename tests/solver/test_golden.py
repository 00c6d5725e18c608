"""Whole trajectories (solver/, force/, snapshots/) against Caffe's, for the solver types that exist."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import forcereg.registry as registry
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


@pytest.mark.parametrize(
    "case",
    golden_cases("snapshots", lambda c: parse_solver(c.attrs["solver_hdf5"]).message.type in registry.solver_type),
)
def test_resume_from_caffe(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that Caffe wrote continues with Caffe's numbers, and our own snapshot holds the same ones."""
    monkeypatch.chdir(tmp_path)
    start = int(case.attrs["iter_snapshot"])
    for kind in ("caffemodel", "solverstate"):
        name = f"snap_iter_{start}.{kind}.h5"
        (tmp_path / name).write_bytes(case.file(name))
    solver = build(case, tmp_path, case.attrs["solver_hdf5"])
    solver.restore(tmp_path / f"snap_iter_{start}.solverstate.h5")
    assert (solver.iter, solver.current_step) == (start, case.attrs["current_step"])
    feed = feeder(case)
    for iteration in range(start, int(case.attrs["iters"])):
        loss = float(solver.step(1, feed))
        assert loss == pytest.approx(case.load("loss")[iteration], abs=5e-5)
        found = params_of(solver)
        for name, expected in case.tree(f"iter_{iteration + 1:04d}/params").items():
            np.testing.assert_allclose(found[name], expected, rtol=0, atol=5e-5, err_msg=name)
