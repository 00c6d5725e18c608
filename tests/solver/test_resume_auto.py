"""--resume auto: the newest complete pair of any format, and a warning for every newer one that isn't."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forcereg.errors import ForceregError
from forcereg.snapshot import read_state, write_state
from forcereg.solver.resume import resume_latest
from tests.solver.nets import REGRESSION, Recorder, batches, blobs_of, regression

Damage = Callable[[Path], None]
EXTRA = 'snapshot_prefix: "s" momentum: 0.9 snapshot_format: '


def saved(root: Path, *formats: str) -> dict[str, torch.Tensor]:
    """Snapshots 2, 4, ... in these formats; the weights of each by "iteration/layer/blob"."""
    weights = {}
    for index, form in enumerate(formats, 1):
        solver, _ = regression(root, EXTRA + form)
        solver.step(2 * index, batches)
        solver.snapshot()
        weights |= {f"{2 * index}/{name}": blob for name, blob in blobs_of(solver).items()}
    return weights


def resumed(root: Path) -> tuple[int, dict[str, torch.Tensor], Recorder]:
    """Where a new solver goes on, and with which weights."""
    solver, recorder = regression(root, EXTRA + "HDF5")
    found = resume_latest(solver)
    assert (found is None) == (solver.iter == 0)
    return solver.iter, {f"{solver.iter}/{name}": blob for name, blob in blobs_of(solver).items()}, recorder


@pytest.mark.parametrize("formats", [("HDF5", "HDF5"), ("HDF5", "BINARYPROTO"), ("BINARYPROTO", "HDF5")])
def test_newest_of_any_format(formats: tuple[str, ...], tmp_path: Path) -> None:
    weights = saved(tmp_path, *formats)
    at, found, recorder = resumed(tmp_path)
    assert at == 4
    assert all(torch.equal(blob, weights[name]) for name, blob in found.items())
    assert recorder.texts() == []
    assert [event.iteration for event in recorder.of("restore")] == [4]


def test_model_of_the_pair_counts_and_not_a_namesake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the state names is looked for in the working directory first, where another run may have been."""
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.mkdir()
    other.mkdir()
    weights = saved(mine, "HDF5")
    saved(other, "HDF5", "HDF5")
    shutil.copy(other / "s_iter_4.caffemodel.h5", other / "s_iter_2.caffemodel.h5")
    (other / "net.prototxt").unlink()  # or paths would start there
    monkeypatch.chdir(other)
    at, found, _ = resumed(mine)
    assert at == 2
    assert all(torch.equal(blob, weights[name]) for name, blob in found.items())


def test_ten_is_newer_than_eight(tmp_path: Path) -> None:
    saved(tmp_path, *["HDF5"] * 5)
    assert resumed(tmp_path)[0] == 10


def test_of_both_formats_the_later_one(tmp_path: Path) -> None:
    saved(tmp_path, "HDF5")
    solver, _ = regression(tmp_path, EXTRA + "BINARYPROTO")
    solver.iter = 2
    solver.snapshot()
    os.utime(tmp_path / "s_iter_2.solverstate.h5", (1, 1))
    _, found, recorder = resumed(tmp_path)
    assert recorder.of("restore")[0].state.endswith("s_iter_2.solverstate")
    assert all(torch.equal(blob, blobs_of(solver)[name[2:]]) for name, blob in found.items())


def test_nothing_to_go_on_with(tmp_path: Path) -> None:
    at, _, recorder = resumed(tmp_path)
    assert (at, recorder.texts()) == (0, [])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def changed(**entries: Any) -> Damage:
    """Entries of a state or of its `extra` are others, None for none."""

    def harm(path: Path) -> None:
        state = read_state(path)
        named = {name: getattr(state, name) for name in ("iteration", "current_step", "learned_net", "history")}
        extra = {**(state.extra or {}), **{name: value for name, value in entries.items() if name not in named}}
        own = {name: value(named[name]) for name, value in entries.items() if name in named}
        kept = {name: value for name, value in extra.items() if value is not None}
        write_state(path, **(named | own), extra=kept, binary=path.suffix != ".h5")

    return harm


def not_finite(history: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [*history[:-1], np.full_like(history[-1], np.nan)]


DAMAGES: dict[str, tuple[str, Damage, str]] = {
    "no-state": ("solverstate", Path.unlink, "has no solver state"),
    "no-model": ("caffemodel", Path.unlink, "cannot read .*s_iter_4.caffemodel.*no such file"),
    "cut-state": ("solverstate", truncate, "damaged or truncated"),
    "cut-model": ("caffemodel", truncate, "damaged or truncated"),
    "empty-state": ("solverstate", lambda path: path.write_bytes(b"") and None, "empty"),
    "empty-model": ("caffemodel", lambda path: path.write_bytes(b"") and None, "empty"),
    "random-text": ("solverstate", changed(random="x"), "random is 'x', expected a group"),
    "random-cut": (
        "solverstate",
        changed(random={"cpu": np.zeros(9, "u1")}),
        "random/cpu is uint8 in shape .9.",
    ),
    "no-losses": ("solverstate", changed(losses=None), "it lacks losses"),
    "losses-number": ("solverstate", changed(losses=3), "losses is 3, expected a row of floats"),
    "count-text": ("solverstate", changed(loss_count="3"), "loss_count is '3', expected a whole number from 0"),
    "feeds-array": ("solverstate", changed(feeds=np.zeros(3)), "feeds is float64 in shape .3., expected a group"),
    "feed-unnamed": ("solverstate", changed(feeds={"0": {"state": {}}}), "it lacks feeds/0/name"),
    "carried-text": (
        "solverstate",
        changed(carried={"train/ip": {"h": "x"}}),
        "carried/train/ip/h is 'x'",
    ),
    "weights-text": ("solverstate", changed(weights="3"), "is not the model that"),
    "history-cut": (
        "solverstate",
        changed(history=lambda old: old[:-1]),
        "holds 1 history blobs, this net",
    ),
    "history-shape": ("solverstate", changed(history=lambda old: [one[None] for one in old]), "blob 0 has shape"),
    "history-nan": ("solverstate", changed(history=not_finite), "history blob 1 isn't finite in places"),
    "iteration": ("solverstate", changed(iteration=lambda _: -1), "iteration -1, step 0"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("form", ["HDF5", "BINARYPROTO"])
def test_incomplete_or_damaged_falls_back(
    form: str, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kind, harm, says = DAMAGES[damage]
    weights = saved(tmp_path, form, form)
    harm(next(tmp_path.glob(f"s_iter_4.{kind}*")))
    at, found, recorder = resumed(tmp_path)
    assert at == 2
    assert all(torch.equal(blob, weights[name]) for name, blob in found.items())
    (text,) = recorder.texts()
    assert re.match(rf"snapshot 4 is passed over: .*{says}", text)


def test_only_damaged_ones_leave_the_solver_as_it_was(tmp_path: Path) -> None:
    saved(tmp_path, "HDF5", "HDF5")
    for path in tmp_path.glob("s_iter_*.caffemodel.h5"):
        truncate(path)
    solver, recorder = regression(tmp_path, EXTRA + "HDF5")
    before = blobs_of(solver)
    assert resume_latest(solver) is None
    assert len(recorder.texts()) == 2
    assert all(torch.equal(blob, before[name]) for name, blob in blobs_of(solver).items())
    assert not any(tensor.any() for slot in solver.updater.history for tensor in slot)


def test_half_of_a_pair_that_was_written_over_is_no_pair(tmp_path: Path) -> None:
    """A run over another one's files was killed between model and state: the state is still the other run's."""
    weights = saved(tmp_path, "HDF5", "HDF5")
    shutil.copy(tmp_path / "s_iter_2.caffemodel.h5", tmp_path / "s_iter_4.caffemodel.h5")
    at, found, recorder = resumed(tmp_path)
    assert at == 2
    assert all(torch.equal(blob, weights[name]) for name, blob in found.items())
    (text,) = recorder.texts()
    assert text.endswith("s_iter_4.caffemodel.h5 is not the model that s_iter_4.solverstate.h5 was saved with")


def test_the_prefix_may_be_called_as_a_state(tmp_path: Path) -> None:
    extra = EXTRA.replace('"s"', '"my.solverstate"') + "BINARYPROTO"
    regression(tmp_path, extra)[0].snapshot()
    assert resume_latest(regression(tmp_path, extra)[0]) == tmp_path / "my.solverstate_iter_0.solverstate"


def test_snapshots_of_another_net_are_an_error(tmp_path: Path) -> None:
    """Falling back would train something else than what the user asks for."""
    saved(tmp_path, "HDF5")
    solver, _ = regression(tmp_path, EXTRA + "HDF5", net=REGRESSION.replace("num_output: 2", "num_output: 2 axis: 1 "
                                                                            "bias_term: false"))  # fmt: skip
    with pytest.raises(ForceregError, match="holds 2 history blobs"):
        resume_latest(solver)


def test_other_prefixes_and_files_are_let_alone(tmp_path: Path) -> None:
    saved(tmp_path, "HDF5")
    for name in ("ss_iter_9", "s_iter_x", "s_iter_09", "s_iter_9.old"):
        shutil.copy(tmp_path / "s_iter_2.solverstate.h5", tmp_path / f"{name}.solverstate.h5")
    at, _, recorder = resumed(tmp_path)
    assert (at, recorder.texts()) == (2, [])


def test_what_a_killed_writer_left_is_deleted(tmp_path: Path) -> None:
    saved(tmp_path, "HDF5")
    kinds = ("caffemodel.h5", "solverstate", "solverstate.h5", "caffem")  # the last of a name that was too long
    left = [tmp_path / f".s_iter_4.{kind}.0123abcd.tmp" for kind in kinds]
    kept = [tmp_path / name for name in (".ss_iter_4.caffemodel.0123abcd.tmp", ".s_iter_4.caffemodel.tmp", ".s.tmp")]
    for path in left + kept:
        path.touch()
    assert resumed(tmp_path)[0] == 2
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)
