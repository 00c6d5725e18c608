"""Frozen weights: made when weights are loaded, kept in snapshots, rebuilt when asked, set by a caller."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from forcereg.errors import ForceregError, UsageError
from forcereg.solver.loop import Solver
from tests.conftest import RunCli
from tests.solver.graphs import on_device
from tests.solver.nets import blobs_of, regression, write_solver
from tests.solver.sparsity.nets import ELTWISE, GRPWISE, convs
from tests.solver.sparsity.test_step import inputs
from tests.solver.tape import Tape

SETTINGS = "momentum: 0.9 weight_decay: 0.01 max_iter: 8 snapshot_after_train: true"


def solver_of(root: Path, extra: str = "", net: str = convs(mode1=ELTWISE, mode2=GRPWISE), prefix: str = "s") -> Solver:
    return regression(root, f'{SETTINGS} snapshot_prefix: "{prefix}" {extra}', net=net)[0]


def pruned(root: Path, extra: str = "") -> Solver:
    """A solver whose weights, some of them zero, were loaded."""
    first = solver_of(root, extra, convs(), "first")
    with torch.no_grad():
        first.net.params["c1"][0][:, :, 0] = 0
        first.net.params["ip1"][0][:, ::4] = 0
        first.net.params["ip1"][0][0, 1] = 0  # alone: free
    model = first.snapshot()
    solver = solver_of(root, extra)
    solver.load_weights(model)
    return solver


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("s_iter_8.*"))}


@pytest.mark.parametrize("form", ["HDF5", "BINARYPROTO"])
def test_frozen_weights_stay_and_a_resume_is_exact(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    extra = f"snapshot_format: {form} snapshot: 4"
    whole = pruned(tmp_path, extra)
    masks = whole.masks
    assert masks.keys() == {"c1/0", "ip1/0"} and int(masks["ip1/0"][0, 1]) == 1
    whole.solve(inputs)
    expected = bytes_of(tmp_path)
    for name, mask in masks.items():
        assert bool((blobs_of(whole)[name][mask == 0] == 0).all()) and bool((mask == 0).any())
    state = next(path for path in tmp_path.glob("s_iter_4.solverstate*"))
    resumed = solver_of(tmp_path, extra)
    resumed.restore(state)
    assert all(torch.equal(resumed.masks[name], mask) for name, mask in masks.items())
    resumed.solve(inputs)
    assert bytes_of(tmp_path) == expected


def test_rebuilt_masks_can_only_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that became zero in training is free with stored masks, and frozen with rebuilt ones."""
    monkeypatch.chdir(tmp_path)
    whole = pruned(tmp_path)
    whole.step(2, inputs)
    with torch.no_grad():
        whole.net.params["c1"][0][1, 2, 1, 1] = 0
    state = tmp_path / whole.snapshot().name.replace("caffemodel", "solverstate")
    stored, rebuilt = solver_of(tmp_path), solver_of(tmp_path)
    stored.restore(state)
    rebuilt.restore(state, masks="rebuild")
    assert int(stored.masks["c1/0"][1, 2, 1, 1]) == 1 and int(rebuilt.masks["c1/0"][1, 2, 1, 1]) == 0
    assert int((rebuilt.masks["c1/0"] < stored.masks["c1/0"]).sum()) == 1
    with pytest.raises(UsageError, match="masks is 'new'; expected 'stored' or 'rebuild'"):
        stored.restore(state, masks="new")


def test_no_mask_before_weights_are_loaded_nor_behind_a_resume_of_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fresh = solver_of(tmp_path)
    with torch.no_grad():
        fresh.net.params["c1"][0].zero_()
    assert fresh.masks == {}
    state = tmp_path / fresh.snapshot().name.replace("caffemodel", "solverstate")
    again = solver_of(tmp_path)
    again.restore(state)
    assert again.masks == {}
    again.restore(state, masks="rebuild")
    assert not bool(again.masks["c1/0"].any())


def test_masks_of_a_callers_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen values needn't be zero; snapshots hold such masks without any connectivity_mode."""
    monkeypatch.chdir(tmp_path)
    net = convs()
    solver = solver_of(tmp_path, net=net)
    mask = torch.ones(4, 4, 3, 3)
    mask[1] = 0
    solver.set_masks({"c1/0": mask})
    before = blobs_of(solver)["c1/0"]
    solver.step(3, inputs)
    after = blobs_of(solver)["c1/0"]
    assert torch.equal(after[1], before[1]) and bool((after[0] != before[0]).all())
    state = tmp_path / solver.snapshot().name.replace("caffemodel", "solverstate")
    solver.step(3, inputs)
    again = solver_of(tmp_path, net=net)
    again.restore(state)
    again.step(3, inputs)
    assert all(torch.equal(blob, blobs_of(solver)[name]) for name, blob in blobs_of(again).items())
    for wrong, told in (
        ({"c2/0": mask}, "masks: 'c2/0' is no parameter of the net; did you mean"),
        ({"c1/0": mask[0]}, r"masks: the mask of 'c1/0' has shape \[4, 3, 3\]; expected \[4, 4, 3, 3\]"),
    ):
        with pytest.raises(ForceregError, match=told):
            solver.set_masks(wrong)


def test_surgery_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    extra = 'regularization_type: "L1_DNS" prune_threshold: 0.1 snapshot: 4'
    whole = solver_of(tmp_path, extra, convs())
    whole.solve(inputs)
    expected = bytes_of(tmp_path)
    again = solver_of(tmp_path, extra, convs())
    again.restore(tmp_path / "s_iter_4.solverstate.h5")
    again.solve(inputs)
    assert bytes_of(tmp_path) == expected


def test_masks_in_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that come when a graph has been recorded."""
    monkeypatch.chdir(tmp_path)
    ends = []
    for tape in (None, Tape()):
        with on_device(tape):
            solver = pruned(tmp_path)
            solver.step(8, inputs)
            solver.set_masks({"c1/1": torch.tensor([1, 0, 1, 0])})
            solver.step(8, inputs)
        ends.append((blobs_of(solver), solver.masks))
    for name, blob in ends[0][0].items():
        assert torch.equal(blob, ends[1][0][name])
    for name, mask in ends[0][1].items():
        assert not bool(blobs_of(solver)[name][mask == 0].any()) or name == "c1/1"


def test_a_state_with_strange_masks_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import h5py

    monkeypatch.chdir(tmp_path)
    solver = pruned(tmp_path)
    path = tmp_path / solver.snapshot().name.replace("caffemodel", "solverstate")
    data = path.read_bytes()[:-16]  # without its checksum, as another program writes it
    path.write_bytes(data)
    with h5py.File(path, "a") as file:
        masks = file["forcereg/masks"]
        masks["ip1%2F0"][...] = 2
    with pytest.raises(ForceregError, match=r"masks/ip1/0 is uint8 in shape \[2, 16\], expected zeros and ones"):
        solver_of(tmp_path).restore(path)


def test_the_option(tmp_path: Path, run_cli: RunCli) -> None:
    """A resumed run says what it froze where it made masks anew, and goes on with those it had otherwise."""
    net = convs(mode1=ELTWISE).replace('"Input"', '"DummyData"').replace("input_param", "dummy_data_param")
    (tmp_path / "net.prototxt").write_text(net)
    write_solver(tmp_path, 'max_iter: 2 prune_threshold: 0.05 snapshot_prefix: "s"')
    assert run_cli("train", "--solver", "solver.prototxt", cwd=tmp_path).returncode == 0
    again = ("train", "--solver", "solver.prototxt", "--snapshot", "s_iter_2.solverstate.h5", "--max-iter", "3")
    stored, rebuilt = (run_cli(*again, *more, cwd=tmp_path) for more in ((), ("--masks", "rebuild")))
    assert stored.returncode == rebuilt.returncode == 0, stored.stderr + rebuilt.stderr
    assert "are frozen" not in stored.stderr and "all zero weights of c1 are frozen" in rebuilt.stderr
    wrong = run_cli(*again, "--masks", "new", cwd=tmp_path)
    assert wrong.returncode == 2 and "'new' is not one of 'stored', 'rebuild'" in wrong.stderr
