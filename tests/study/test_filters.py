"""`forcereg filters`: what is read of a snapshot, what is computed of its filters, and the pictures."""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import forcereg
from forcereg.errors import ForceregError, UsageError
from forcereg.snapshot import write_model
from forcereg.study.filters import angles
from forcereg.study.filters.bank import Bank
from forcereg.study.filters.basis import Basis, percent
from forcereg.study.filters.plane import Plane, clustered
from forcereg.study.filters.view import images
from tests.commands.decomposing import NET, fresh_snapshot
from tests.conftest import RunCli


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """conv1 (8, 3, 3, 3), conv2 (6, 4, 5, 5) in two groups, ip (5, ...)."""
    return fresh_snapshot(tmp_path)


def weight_of(path: Path, layer: str, **more: Any) -> torch.Tensor:
    return forcereg.filters(path, layer=layer, **more).banks[0].weight


def bank(weight: Any, groups: int = 1) -> Bank:
    return Bank("x", torch.as_tensor(weight).double(), groups)


# -- what is read


@pytest.mark.parametrize("form", ["binary", "hdf5"])
def test_every_format(form: str, snapshot: Path, tmp_path: Path) -> None:
    ending = {"binary": "", "hdf5": ".h5"}[form]
    forcereg.convert(snapshot, tmp_path / f"other.caffemodel{ending}")
    assert torch.equal(weight_of(tmp_path / f"other.caffemodel{ending}", "conv1"), weight_of(snapshot, "conv1"))


def test_a_chain_is_the_layer_that_it_stands_for(snapshot: Path) -> None:
    found = forcereg.decompose(snapshot, rule=forcereg.Ranks([8, 6]), even_if_dearer=True).write(
        snapshot.parent / "low"
    )
    for layer, groups in (("conv1", 1), ("conv2", 2)):
        (own,) = forcereg.filters(found["weights"], layer=layer).banks
        assert own.groups == groups
        torch.testing.assert_close(own.weight, weight_of(snapshot, layer), rtol=0, atol=1e-6)
    assert weight_of(Path(found["weights"]), "conv2_lowrank").shape == (6, 4, 5, 5)


def test_a_file_without_a_net(tmp_path: Path, snapshot: Path) -> None:
    """As Caffe writes it: the layer has one group, unless a net tells."""
    path = tmp_path / "bare.caffemodel.h5"
    write_model(path, {"conv2": {0: weight_of(snapshot, "conv2").numpy(), 1: np.zeros(6)}, "ip": {}})
    assert forcereg.filters(path, layer="conv2").banks[0].groups == 1
    (tmp_path / "net.prototxt").write_text(NET)
    with pytest.warns(UserWarning, match="Layers left as initialised: conv1, ip"):
        found = forcereg.filters(path, layer="conv2", model=tmp_path / "net.prototxt")
    assert found.banks[0].groups == 2


def test_a_transposed_layer_has_its_filters_in_columns(tmp_path: Path) -> None:
    text = NET.replace("num_output: 5", "num_output: 5 transpose: true")
    path = fresh_snapshot(tmp_path, text)
    assert len(weight_of(path, "ip")) == 5


def test_snapshots_of_a_run_come_in_its_order(tmp_path: Path) -> None:
    paths = [tmp_path / f"run_iter_{number}.caffemodel.h5" for number in (1000, 20, 300)]
    for number, path in enumerate(paths):
        write_model(path, {"conv": {0: np.full((2, 2), number + 1.0)}})
    found = forcereg.filters(paths, layer="conv").banks
    assert [one.label for one in found] == ["iteration 20", "iteration 300", "iteration 1,000"]
    assert [one.weight[0, 0] for one in found] == [2, 3, 1]
    assert forcereg.filters(paths[:1], layer="conv").banks[0].iteration is None
    named = forcereg.filters(paths[:2], layer="conv", labels="late,early").banks
    assert [one.label for one in named] == ["early", "late"]


@pytest.mark.parametrize(
    ("blobs", "layer", "message"),
    [
        ({"conv1": np.ones((2, 3))}, "con1", "has no layer 'con1'; did you mean \"conv1\"?"),
        ({"conv1": np.ones((2, 3))}, "x", "has no layer 'x'; layers with filters are conv1"),
        ({"bn": np.ones(3)}, "bn", "layer 'bn' has no weights of two axes or more, so no filters"),
        ({"c": np.array([[1.0, np.nan]])}, "c", "the weights of layer 'c' have NaN or infinite entries"),
    ],
)
def test_layers_that_have_none(blobs: dict[str, Any], layer: str, message: str, tmp_path: Path) -> None:
    write_model(tmp_path / "x.caffemodel.h5", {name: {0: values} for name, values in blobs.items()})
    with pytest.raises(ForceregError) as info:
        forcereg.filters(tmp_path / "x.caffemodel.h5", layer=layer)
    assert message in str(info.value) and "x.caffemodel.h5" in str(info.value)


# -- what is computed


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("error", [0.0, 0.05, 0.4])
def test_the_basis_is_pca_s(groups: int, error: float) -> None:
    weight = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(1)).double()
    found = Basis.of("conv", [bank(weight, groups)], error).found
    assert len(found) == groups
    rank = forcereg.lowrank.pca(weight, error=error, groups=groups).rank
    for one, block in zip(found, weight.chunk(groups), strict=True):
        assert one.needed == rank // groups
        assert sum(one.shares) == pytest.approx(1) and sorted(one.shares, reverse=True) == list(one.shares)
        # orthogonal, and all of the filters lie in what they span
        rows = one.filters.flatten(1)
        unit = rows / rows.norm(dim=1, keepdim=True)
        torch.testing.assert_close(unit @ unit.T, torch.eye(len(unit)).double())
        torch.testing.assert_close(block.flatten(1) @ unit.T @ unit, block.flatten(1))


def test_directions_of_rounding_alone_are_not_drawn() -> None:
    pytest.importorskip("matplotlib")
    rows = torch.randn(6, 2, generator=torch.Generator().manual_seed(1)).double() @ torch.ones(2, 2).double()
    view = Basis.of("conv", [bank(torch.cat([rows, rows], 1))], 0.05)
    (axes,) = view.figure().axes
    assert len(axes.images) == len(axes.patches) == 1 and axes.get_title(loc="left") == "x: 1 of 4"


def test_a_layer_of_zeros_has_a_basis() -> None:
    (found,) = Basis.of("conv", [bank(torch.zeros(3, 1, 2, 2))], 0.05).found
    assert found.shares == (0.0, 0.0, 0.0) and found.needed == 1


@pytest.mark.parametrize(
    ("rows", "degrees"),
    [([[1, 0], [0, 2]], [90]), ([[1, 0], [3, 0]], [0]), ([[1, 0], [-1, 0]], [179]), ([[1, 0], [1, 1], [0, 0]], [45])],
)
def test_angles_are_those_between_filters(rows: Any, degrees: Sequence[int]) -> None:
    """The last one has a filter of zeros, which has none."""
    counts = angles.spread("conv", bank(rows)).counts
    # acos of what float64 makes of 45 degrees
    assert [at for at, pairs in enumerate(counts.tolist()) for _ in range(int(pairs))] in (
        [degrees[0]],
        [degrees[0] - 1],
    )


@given(st.integers(2, 9), st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
def test_every_pair_of_a_group_counts_once(filters: int, groups: int, block: int, seed: int) -> None:
    weight = torch.randn(groups * filters, 5, generator=torch.Generator().manual_seed(seed)).double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(angles, "BLOCK", block)
        found = angles.spread("conv", bank(weight, groups))
    whole = angles.spread("conv", bank(weight, groups))
    assert found.counts.sum() == groups * filters * (filters - 1) / 2
    assert torch.equal(found.counts, whole.counts) and found.mean == pytest.approx(whole.mean)
    cosines = [torch.nn.functional.normalize(rows) for rows in weight.chunk(groups)]
    pairs = torch.cat([(own @ own.T)[torch.triu_indices(filters, filters, 1).unbind()] for own in cosines])
    assert found.mean == pytest.approx(float(pairs.acos().rad2deg().mean()))


@pytest.mark.parametrize(("rows", "groups"), [(np.ones((3, 2)), 3), (np.zeros((3, 2)), 1)], ids=["depthwise", "zeros"])
def test_without_a_pair_there_is_no_angle(rows: np.ndarray, groups: int) -> None:
    with pytest.raises(ForceregError, match="layer 'conv' has no two filters of a group"):
        angles.spread("conv", bank(rows, groups))


def test_a_curve_is_of_all_pairs() -> None:
    counts = torch.zeros(180).double()
    counts[[0, 90, 179]] = 1
    places, heights = angles.curve(counts)
    assert places[0] == 0.5 and places[-1] == 179.5 and heights[90] == pytest.approx(100 / 3 / 5)
    assert heights[0] == heights[179] == pytest.approx(100 / 3 / 3)


def heaps(count: int, spread: float) -> torch.Tensor:
    """`count` filters around each of four orthogonal directions."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(4 * count, 12, generator=generator).double()
    return torch.eye(12).double()[:4].repeat(count, 1) + spread * noise


def test_clusters_of_one_snapshot_lie_apart() -> None:
    pytest.importorskip("sklearn")
    found = Plane.of("conv", [bank(heaps(10, 0.05))], clusters=4, seed=0)
    assert found.by == "cluster" and found.points.shape == (40, 2)
    assert sorted(found.kinds) == [f"cluster {number}" for number in range(1, 5)]
    for heap in range(4):
        assert len(set(found.classes[heap::4])) == 1
    middles = np.stack([found.points[heap::4].mean(0) for heap in range(4)])
    within = max(np.ptp(found.points[heap::4], axis=0).max() for heap in range(4))
    gaps = [np.linalg.norm(a - b) for at, a in enumerate(middles) for b in middles[:at]]
    assert sorted(gaps)[1] > within  # two axes can't tell all pairs of four apart
    again = Plane.of("conv", [bank(heaps(10, 0.05))], clusters=4, seed=0)
    assert np.array_equal(found.points, again.points)


def test_the_largest_cluster_is_the_first() -> None:
    pytest.importorskip("sklearn")
    rows = np.repeat(np.eye(3), [2, 6, 4], axis=0)
    assert clustered(rows, "conv", 3, 0) == ["cluster 3"] * 2 + ["cluster 1"] * 6 + ["cluster 2"] * 4


def test_several_snapshots_are_told_apart() -> None:
    """Along the first axis, whatever else differs along the second."""
    pytest.importorskip("sklearn")
    first, second = heaps(10, 0.05), heaps(10, 0.05) + 2 * torch.eye(12).double()[5]
    found = Plane.of("conv", [Bank("a", first), Bank("b", second), Bank("c", 3 * first)][:2], clusters=4, seed=0)
    assert found.by == "snapshot" and found.classes == found.snapshots == ("a",) * 40 + ("b",) * 40
    left, right = found.points[:40, 0], found.points[40:, 0]
    assert left.max() < right.min() or right.max() < left.min()


@pytest.mark.parametrize(
    "filters",
    [
        pytest.param([np.repeat(np.eye(3)[:2], 4, 0)], id="a class is a point"),
        pytest.param([np.array([[1.0]] * 4 + [[-2.0]] * 3)], id="of one weight"),
        pytest.param([np.ones((4, 6)), np.ones((3, 6))], id="all alike"),
        pytest.param([np.ones((4, 6)), -np.ones((3, 6))], id="two points"),
        pytest.param([np.eye(9), np.eye(9)], id="the same net twice"),
    ],
)
def test_filters_without_a_discriminant_have_a_plane(filters: list[np.ndarray]) -> None:
    """What a strong force leaves: filters that are alike."""
    pytest.importorskip("sklearn")
    banks = [Bank("ab"[place], torch.from_numpy(one)) for place, one in enumerate(filters)]
    found = Plane.of("conv", banks, clusters=2, seed=2**40)
    assert found.points.shape == (sum(map(len, filters)), 2) and np.isfinite(found.points).all()
    assert len({tuple(point) for point in found.points.round(6)}) <= len({tuple(row) for row in np.vstack(filters)})


def test_every_cluster_has_a_look_and_its_place() -> None:
    pytest.importorskip("sklearn")
    found = Plane.of("conv", [bank(np.repeat(np.eye(12), 2, 0))], clusters=12, seed=0)
    assert found.kinds == [f"cluster {number}" for number in range(1, 13)]
    looks = [(line.get_marker(), line.get_color()) for line in found.figure().axes[0].lines]
    assert len(set(looks)) == 12


@pytest.mark.parametrize(
    ("banks", "clusters", "message"),
    [
        ([bank(np.eye(3))], 3, "--clusters is 3; expected 2 to 2, fewer than the filters of 'conv'"),
        ([bank(np.eye(3)), bank(np.eye(4))], 2, "the filters of 'conv' have 3 and 4 weights"),
        ([bank(np.zeros((3, 3)))], 2, "fewer than two filters that aren't zero"),
        ([bank(np.eye(2))], 2, "layer 'conv' has two filters that aren't zero: too few"),
        ([bank(np.ones((5, 3)))], 2, "--clusters is 2, but layer 'conv' has filters of only 1 different direction;"),
        ([bank(np.repeat(np.eye(2), 4, 0))], 3, "has filters of only 2 different directions; ask for no more clusters"),
    ],
    ids=["clusters", "sizes", "zeros", "two", "alike", "few directions"],
)
def test_what_has_no_plane(banks: list[Bank], clusters: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Plane.of("conv", banks, clusters, 0)


def test_filters_as_images() -> None:
    grey = images(torch.tensor([[[[0.0, 2.0], [-2.0, 1.0]]], [[[0.0, 0.0], [0.0, 0.0]]]]).double())
    assert grey.tolist() == [[[0.5, 1.0], [0.0, 0.75]], [[0.5, 0.5], [0.5, 0.5]]]
    colour = torch.zeros(1, 3, 2, 2).double()
    colour[0, 2] = 1
    assert images(colour).shape == (1, 2, 2, 3) and images(colour)[0, 0, 0].tolist() == [0.5, 0.5, 1.0]
    # five channels: two rows of three tiles, a white line between
    many = images(torch.arange(1, 6).reshape(1, 5, 1, 1).expand(1, 5, 2, 2).double())[0]
    assert many.shape == (5, 8) and many[0, 2] == many[2, 0] == 1
    assert many[[0, 0, 0, 3, 3, 3], [0, 3, 6, 0, 3, 6]].tolist() == pytest.approx([0.6, 0.7, 0.8, 0.9, 1, 1])
    # single values have no line between them
    assert images(torch.ones(2, 6).double()).shape == (2, 2, 3)


def test_a_small_share_does_not_look_like_none() -> None:
    assert [percent(share) for share in (1, 0.123, 0.0949, 0.001, 0.0001, 0)] == [
        "100%", "12%", "9.5%", "0.1%", "<0.1%", "0.0%",
    ]  # fmt: skip


# -- the command


def test_pictures_and_numbers(snapshot: Path, run_cli: RunCli) -> None:
    pytest.importorskip("matplotlib")
    other = snapshot.with_name("other.caffemodel.h5")
    other.write_bytes(snapshot.read_bytes())
    given = [snapshot.name, other.name, "--layer", "conv1", "--labels", "a$b,_c", "--basis", "--error", "0.3"]
    outs = [word for name in ("x.png", "x.svg", "x.pdf", "x.csv") for word in ("-o", name)]
    done = run_cli("filters", *given, *outs, cwd=snapshot.parent)
    assert (done.returncode, done.stderr) == (0, "")
    first, second, last = done.stdout.splitlines()
    assert first.startswith("a$b: ") and first.endswith(" of 8 at 30 % error") and second.startswith("_c: ")
    assert last == "wrote x.png and x.svg and x.pdf and x.csv"
    with Image.open(snapshot.with_name("x.png")) as picture:
        low, high = picture.convert("L").getextrema()
        assert picture.format == "PNG" and low < high
    assert ElementTree.parse(snapshot.with_name("x.svg")).getroot().tag.endswith("svg")
    assert snapshot.with_name("x.pdf").read_bytes().startswith(b"%PDF")
    with snapshot.with_name("x.csv").open() as file:
        rows = list(csv.DictReader(file))
    framed = sum(int(row["needed"]) for row in rows if row["snapshot"] == "_c")
    assert len(rows) == 16 and second == f"_c: {framed} of 8 at 30 % error"


def test_a_picture_shows_what_is_needed(snapshot: Path) -> None:
    """A frame for each principal filter that is, a share below every one."""
    pytest.importorskip("matplotlib")
    view = forcereg.filters(snapshot, layer="conv1", basis=True, error=0.3).view
    assert isinstance(view, Basis)
    (axes,) = view.figure().axes
    assert len(axes.patches) == view.found[0].needed < 8 == len(axes.images)
    assert [text.get_text() for text in axes.texts] == [percent(share) for share in view.found[0].shares]


@pytest.mark.parametrize(
    ("layer", "lines"), [("conv1", (8, 8, 8, 180)), ("conv2", (6, 6, 6, 180)), ("ip", (5, 5, 5, 180))]
)
def test_every_layer_has_every_view(layer: str, lines: tuple[int, ...], snapshot: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    out = snapshot.with_name("x.csv")
    for view, count in zip((None, "basis", "lda", "angles"), lines, strict=True):
        more: dict[str, Any] = {view: True} if view else {}
        found = forcereg.filters(snapshot, layer=layer, **more)
        assert found.view.figure().axes and len(list(found.view.lines())) >= 1
        found.write(out)
        assert len(out.read_text().splitlines()) == 1 + count
        assert out.read_text().startswith(",".join(found.view.columns) + "\n")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--basis", "--lda", "-o", "x.png"], 2, "--basis and --lda are both given; use one"),
        (["-o", "x.gif"], 2, "--out is 'x.gif'; expected a name that ends in .csv, .png, .svg, .pdf"),
        (["--basis", "--error", "2", "-o", "x.png"], 2, "the error bound is 2; expected 0 to 1"),
        (["--lda", "--clusters", "9", "-o", "x.csv"], 2, "--clusters is 9; expected 2 to 7, fewer than the filters"),
        (["--labels", "a,b", "-o", "x.png"], 2, "--labels is 'a,b'; expected 1 different names"),
        ([], 2, "Missing option '-o'"),
    ],
)
def test_wrong_calls(args: list[str], code: int, message: str, snapshot: Path, run_cli: RunCli) -> None:
    pytest.importorskip("sklearn")
    done = run_cli("filters", snapshot.name, "--layer", "conv1", *args, cwd=snapshot.parent)
    assert done.returncode == code and message in done.stderr and "Traceback" not in done.stderr
    assert not list(snapshot.parent.glob("x.*"))


def test_what_is_missing_is_said(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.cluster", None)
    with pytest.raises(
        ForceregError, match=r"--lda needs scikit-learn; install it with pip install .forcereg\[lowrank"
    ):
        forcereg.filters(snapshot, layer="conv1", lda=True)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    found = forcereg.filters(snapshot, layer="conv1", basis=True)
    with pytest.raises(ForceregError, match="plots need matplotlib"):
        found.write(snapshot.with_name("x.png"))
