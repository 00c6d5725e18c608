"""The root rule: which folder a relative path in a solver or net starts from."""

from __future__ import annotations

from pathlib import Path

import pytest

from forcereg.errors import ForceregError
from forcereg.system.paths import find_root, learned_nets, resolve, snapshot_prefix

NET = "examples/mnist/net.prototxt"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """project/configs/examples/mnist/{net,solver}.prototxt; the working directory is project."""
    folder = tmp_path / "project/configs/examples/mnist"
    folder.mkdir(parents=True)
    for name in ("net.prototxt", "solver.prototxt"):
        (folder / name).touch()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


SOLVER = "configs/examples/mnist/solver.prototxt"


@pytest.mark.parametrize(
    ("named", "cwd", "naming_file", "root"),
    [
        pytest.param(NET, "configs", "examples/mnist/solver.prototxt", "configs", id="in cwd"),
        pytest.param(NET, ".", SOLVER, "configs", id="above the solver"),
        pytest.param("net.prototxt", ".", SOLVER, "configs/examples/mnist", id="beside the solver"),
        pytest.param("net.prototxt", "configs/examples/mnist", "solver.prototxt", ".", id="both are cwd"),
        pytest.param(NET, "configs/examples/mnist", "solver.prototxt", "../..", id="above cwd"),
        pytest.param(NET, "configs/examples", "mnist/../mnist/solver.prototxt", "..", id="dots in the path"),
        pytest.param("elsewhere.prototxt", ".", SOLVER, ".", id="nowhere"),
        pytest.param("/no/such/net.prototxt", ".", SOLVER, ".", id="absolute"),
        pytest.param("", ".", SOLVER, ".", id="nothing named"),
        pytest.param(NET, ".", None, ".", id="no naming file"),
    ],
)
def test_root(
    tree: Path, monkeypatch: pytest.MonkeyPatch, named: str, cwd: str, naming_file: str | None, root: str
) -> None:
    monkeypatch.chdir(tree / cwd)
    found = find_root(named, naming_file)
    assert found.is_absolute()
    assert found == (tree / cwd / root if root.startswith(".") else tree / root).resolve()


def test_the_working_directory_beats_the_solvers_folders(tree: Path) -> None:
    (tree / "examples/mnist").mkdir(parents=True)
    (tree / NET).touch()
    assert find_root(NET, SOLVER) == tree


def test_the_nearest_folder_beats_those_above(tree: Path) -> None:
    inner = tree / "configs/examples/mnist" / NET
    inner.parent.mkdir(parents=True)
    inner.touch()
    assert find_root(NET, SOLVER) == tree / "configs/examples/mnist"


def test_a_linked_solver_belongs_to_the_folder_of_the_link(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other/examples/mnist"
    other.mkdir(parents=True)
    (other / "net.prototxt").touch()
    (other / "solver.prototxt").symlink_to(tree / SOLVER)
    assert find_root(NET, other / "solver.prototxt") == tmp_path / "other"


@pytest.mark.parametrize(("path", "resolved"), [("a/b", "/root/a/b"), ("/a/b", "/a/b")])
def test_resolve(path: str, resolved: str) -> None:
    assert resolve(Path("/root"), path) == Path(resolved)


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("configs/lenet", "configs/lenet"),
        ("configs", "configs/solver"),
        ("new/", "new/solver"),
        ("/abs/lenet", "/abs/lenet"),
    ],
)
def test_snapshot_prefix(tree: Path, prefix: str, expected: str) -> None:
    assert snapshot_prefix(tree, prefix, SOLVER) == tree / expected


LEARNED = "snapshots/lenet_iter_5.caffemodel.h5"


@pytest.mark.parametrize("places", [("cwd", "root", "beside"), ("root", "beside"), ("beside",)])
def test_learned_net_is_found_in_every_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, places: tuple[str, ...]
) -> None:
    for place in ("cwd", "root", "beside"):
        (tmp_path / place / "snapshots").mkdir(parents=True)
    for place in places:
        name = Path(LEARNED).name if place == "beside" else LEARNED
        (tmp_path / place / name).touch()
    monkeypatch.chdir(tmp_path / "cwd")
    found = learned_nets(tmp_path / "root", LEARNED, tmp_path / "beside/lenet_iter_5.solverstate.h5")
    assert [path.resolve().relative_to(tmp_path).parts[0] for path in found] == list(places)


def test_a_learned_net_in_several_places_at_once_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / LEARNED).parent.mkdir()
    (tmp_path / LEARNED).touch()
    monkeypatch.chdir(tmp_path)
    state = tmp_path / "snapshots/lenet_iter_5.solverstate.h5"
    assert learned_nets(tmp_path, LEARNED, state) == [Path(LEARNED)]


def test_missing_learned_net_names_every_place(tmp_path: Path) -> None:
    state = tmp_path / "beside/lenet.solverstate.h5"
    with pytest.raises(ForceregError) as caught:
        learned_nets(tmp_path / "root", LEARNED, state)
    assert str(caught.value) == (
        f"{state}: its weights file (learned_net) is in none of these places: "
        f"{LEARNED}, {tmp_path / 'root' / LEARNED}, {tmp_path / 'beside/lenet_iter_5.caffemodel.h5'}"
    )
