"""Names of snapshots, and which ones are deleted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from forcereg.errors import ForceregError
from forcereg.snapshot import model_path, pairs, prune, state_path


@pytest.mark.parametrize("prefix", ["lenet", Path("lenet"), "snaps/"], ids=["text", "path", "folder"])
def test_names_are_caffes(prefix: str | Path) -> None:
    assert str(model_path(prefix, 10000)) == f"{prefix}_iter_10000.caffemodel.h5"
    assert str(state_path(prefix, 0)) == f"{prefix}_iter_0.solverstate.h5"
    assert str(model_path(prefix, 10000, binary=True)) == f"{prefix}_iter_10000.caffemodel"
    assert str(state_path(prefix, 0, binary=True)) == f"{prefix}_iter_0.solverstate"


def pair(*iterations: int, prefix: str = "net") -> set[str]:
    return {str(path(prefix, n)) for n in iterations for path in (model_path, state_path)}


OTHERS = (
    {
        "net_iter_1.caffemodel.h5",  # without their other halves
        "net_iter_900.solverstate.h5",
        "net_iter_5.caffemodel",  # of other kinds
        "net_iter_5.solverstate",
        "net_iter_5.caffemodel.h5.bak",
        "net_iter_005.caffemodel.h5",
        "net_iter_005.solverstate.h5",
        "net_iter_x.solverstate.h5",
        "n.t_iter_5.solverstate.h5",
    }
    | pair(5, prefix="net_iter_2")
    | pair(5, prefix="my_net")
)


@pytest.mark.parametrize(
    ("there", "keep", "current", "left"),
    [
        (pair(9, 10, 100), 1, None, pair(100)),
        (pair(9, 10, 100), 2, None, pair(10, 100)),
        (pair(9, 10, 100), 3, None, pair(9, 10, 100)),
        (pair(9, 10, 100), 5, None, pair(9, 10, 100)),
        (pair(0, 2), 1, None, pair(2)),
        (pair(9, 10, 100), 1, 10, pair(10, 100)),
        (set(), 1, None, set()),
    ],
    ids=["one", "two", "all", "more", "zero", "another-run-was-further", "none"],
)
@pytest.mark.parametrize("name", ["net", "[net]*"])
def test_the_newest_pairs_stay(
    there: set[str], keep: int, current: int | None, left: set[str], name: str, tmp_path: Path
) -> None:
    def renamed(files: set[str]) -> set[str]:
        return {file.replace("net_iter", f"{name}_iter") for file in files}

    for file in renamed(there | OTHERS):
        (tmp_path / file).touch()
    deleted = prune(tmp_path / name, keep, current)
    assert set(os.listdir(tmp_path)) == renamed(left | OTHERS)
    assert {path.name for path in deleted} == renamed(there - left)


@pytest.mark.parametrize("binary", [False, True], ids=["hdf5", "binary"])
def test_pairs_of_the_other_format_stay(binary: bool, tmp_path: Path) -> None:
    files = {str(path("net", n, kind)) for n in (1, 2) for path in (model_path, state_path) for kind in (False, True)}
    for file in (*files, "net_iter_3.solverstate", "net_iter_3.solverstate.h5"):
        (tmp_path / file).touch()
    assert pairs(tmp_path / "net", binary) == [1, 2]
    deleted = prune(tmp_path / "net", 1, binary=binary)
    assert {path.name for path in deleted} == {str(path("net", 1, binary)) for path in (model_path, state_path)}
    assert pairs(tmp_path / "net", binary) == [2] and pairs(tmp_path / "net", not binary) == [1, 2]


def test_a_prefix_beside_no_folder_has_nothing_to_delete(tmp_path: Path) -> None:
    assert prune(tmp_path / "none" / "net", 1) == []


def test_a_prefix_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in pair(1, 2):
        Path(file).touch()
    assert prune("net", 1) == [state_path("net", 1), model_path("net", 1)]


def test_what_cannot_be_deleted_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in pair(1, 2):
        (tmp_path / file).touch()

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(
        ForceregError, match=r"cannot delete the old snapshot .*net_iter_1\.solverstate\.h5: Permission"
    ):
        prune(tmp_path / "net", 1)


@pytest.mark.parametrize("keep", [0, -1])
def test_at_least_one_pair_stays(keep: int, tmp_path: Path) -> None:
    with pytest.raises(ForceregError, match="at least 1 has to stay"):
        prune(tmp_path / "net", keep)
