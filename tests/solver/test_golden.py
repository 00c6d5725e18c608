"""Whole trajectories (solver/, force/, snapshots/) against Caffe's, for the solver types that exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forcereg.schema import NetParameter, SolverState
from tests.golden_cases import Case, golden_cases
from tests.golden_checks import check_force, check_resume, check_trajectory, resumed, runs_here


@pytest.mark.parametrize("case", golden_cases("solver", runs_here))
def test_trajectory(case: Case, tmp_path: Path) -> None:
    check_trajectory(case, tmp_path)


@pytest.mark.parametrize("case", golden_cases("force", runs_here))
def test_force(case: Case, tmp_path: Path) -> None:
    check_force(case, tmp_path)


@pytest.mark.parametrize("case", golden_cases("snapshots", lambda c: True))
@pytest.mark.parametrize("end", [".h5", ""], ids=["hdf5", "binary"])
def test_resume_from_caffe(case: Case, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that Caffe wrote continues with Caffe's numbers, and our own snapshot holds the same ones."""
    monkeypatch.chdir(tmp_path)
    check_resume(case, tmp_path, end)


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
