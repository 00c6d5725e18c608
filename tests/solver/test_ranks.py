"""Ranks of forced layers at tests: what they are, and that a run has them whether anybody asks or not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forcereg.lowrank.factor import smallest_rank, spectrum
from forcereg.solver.diagnostics import ERROR, coordination, forced_ranks
from forcereg.solver.loop import Solver
from forcereg.solver.regularizers.force import FORCE, forced_matrices
from tests.solver.nets import TESTED, Recorder, batches, regression, write_solver

FORCED = "param { lr_mult: 1 force_mult: 1 }"


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.integers(0, 99))
def test_ranks_are_those_of_the_spectrum(rows: int, channels: int, size: int, rank: int, seed: int) -> None:
    """Whichever Gram matrix is the smaller one, in any memory layout."""
    random = torch.Generator().manual_seed(seed)
    shape, width = (rows, channels, size, size), channels * size**2
    noise = 0.1 * torch.randn(shape, generator=random)
    weight = (torch.randn(rows, rank, generator=random) @ torch.randn(rank, width, generator=random)).reshape(shape)
    for one in (weight + noise, (weight + noise).to(memory_format=torch.channels_last)):
        expected = smallest_rank(spectrum(one), ERROR)
        assert forced_ranks({"conv": one.flatten(1)}) == {"conv": (expected, min(rows, width))}


def test_weights_that_tell_nothing() -> None:
    weight = torch.eye(3)
    assert forced_ranks({"nan": weight * math.nan, "inf": weight / 0, "still": 0 * weight}) == {"still": (1, 3)}


@pytest.mark.parametrize("extra", ["", "force_iter: 3", "force_decay: 0"])
def test_a_solver_has_them_from_its_last_test_with_a_force(extra: str, tmp_path: Path) -> None:
    settings = f"test_iter: 1 test_interval: 2 base_lr: 0.01 snapshot_after_train: false max_iter: 5 {extra}"
    decay = "" if "force_decay" in extra else "force_decay: 0.1"
    solver, recorder = regression(tmp_path, f"{settings} {decay}", FORCED, TESTED)
    solver.measure_force = True
    solver.solve(batches)
    told = [(event.iteration, event.layers) for event in recorder.of("force") if "ratio" not in event.fields]
    assert [at for at, _ in told] == [0, 2, 4] and all(bool(layers) is bool(decay) for _, layers in told)
    assert solver.ranks.keys() == ({"ip"} if decay else set())
    if not extra:
        assert solver.ranks == forced_ranks(solver.updater.touched(FORCE))


GROUPED = """
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 4 dim: 4 dim: 4 } } }
layer {
  name: "conv" type: "Convolution" bottom: "x" top: "y" param { force_mult: 1 force_view: VIEW }
  convolution_param { num_output: 6 group: 2 kernel_size: 2 }
}
layer { name: "loss" type: "Reduction" bottom: "y" top: "loss" loss_weight: 1 }
"""
PLAIN, CROSSED = [[1.0, 0], [0, 1]], [[0.0, 1], [1, 0]]
FILTERS, CHANNELS = ("conv", 2, 6, 0.7), ("conv (CHANNELS)", 2, 2, 0.5)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        ("FILTERS", [FILTERS]),
        ("CHANNELS", [CHANNELS]),
        ("BOTH", [FILTERS, CHANNELS]),
        ("VERTICAL", [("conv (VERTICAL)", 2, 4, 1 / 3)]),
    ],
)
def test_ranks_are_of_what_is_drawn_together(
    view: str, expected: list[tuple[str, int, int, float]], tmp_path: Path
) -> None:
    """Group by group where the view is: the larger rank counts, and the mean of cosines."""
    (tmp_path / "net.prototxt").write_text(GROUPED.replace("VIEW", view))
    solver = Solver(write_solver(tmp_path, "force_decay: 0.1"))
    with torch.no_grad():
        # the second group's channels are alike
        solver.net.params["conv"][0].copy_(torch.tensor([[PLAIN, CROSSED]] * 3 + [[PLAIN, PLAIN]] * 3))
    matrices = forced_matrices(solver.net, solver.param)
    ranks = forced_ranks(matrices)
    rows = coordination(matrices, ranks)
    assert [(row["layer"], *ranks[row["layer"]], pytest.approx(row["cosine"])) for row in rows] == expected


@pytest.mark.parametrize(
    ("layer", "extra", "shapes"),
    [
        pytest.param("force_view: BOTH }", "", {"conv": (1, 6, 4)}, id="one-channel"),
        pytest.param("force_view: CHANNELS }", "", {}, id="nothing"),
        pytest.param("}", 'force_metric: "responses"', {"conv": (1, 6, 4)}, id="responses"),
    ],
)
def test_what_is_alone_has_no_rank(layer: str, extra: str, shapes: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    net = GROUPED.replace("force_view: VIEW }", layer).replace("group: 2", "").replace("dim: 1 dim: 4", "dim: 1 dim: 1")
    (tmp_path / "net.prototxt").write_text(net)
    recorder = Recorder()
    solver = Solver(write_solver(tmp_path, f"force_decay: 0.1 {extra}"), observers=[recorder])
    found = forced_matrices(solver.net, solver.param)
    assert {name: tuple(matrix.shape) for name, matrix in found.items()} == shapes
    assert bool(solver.updater.touched(FORCE)) == bool(shapes)
    assert any("nothing to draw together in conv, by their" in text for text in recorder.texts()) != bool(shapes)


def test_in_the_metric_of_responses_each_group_is_alone(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(GROUPED.replace("VIEW", "FILTERS"))
    solver = Solver(write_solver(tmp_path, 'force_decay: 0.1 force_metric: "responses"'))
    assert forced_matrices(solver.net, solver.param)["conv"].shape == (2, 3, 8)
