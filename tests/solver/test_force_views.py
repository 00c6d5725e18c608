"""The force on other unfoldings than filters: against its definition pair by pair, and through whole trainings."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.lowrank.methods import Vh
from forcereg.lowrank.views import ROWS, VIEWS, misfit, unfolded
from forcereg.solver import pairs
from forcereg.solver.force import DECAY_TYPES, DIRECTIONS, ForceField, apply_force, force_gradient
from tests.solver.graphs import TWO_LAYERS, both
from tests.solver.test_force import POWERS, pairwise_force

types = pytest.mark.parametrize("kind", POWERS)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
layouts = pytest.mark.parametrize("layout", LAYOUTS)
shapes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))


def row_of(view: str, place: tuple[int, ...]) -> tuple[int, ...]:
    """Which row of a view the entry (n, c, h, w) or (n, c) belongs to."""
    return {"FILTERS": place[:1], "CHANNELS": place[1:2], "VERTICAL": place[1:3]}[view]


def by_definition(weight: Tensor, kind: str, view: str, groups: int = 1) -> np.ndarray:
    """The force entry by entry: rows gathered by their index, group by group."""
    force = np.zeros(tuple(weight.shape))
    for block, target in zip(np.split(weight.double().numpy(), groups), np.split(force, groups), strict=True):
        for one in VIEWS[view]:
            rows: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
            for place in itertools.product(*map(range, block.shape)):
                rows.setdefault(row_of(one, place), []).append(place)
            found = pairwise_force(np.array([[block[place] for place in row] for row in rows.values()]), kind)
            for row, values in zip(rows.values(), found, strict=True):
                for place, value in zip(row, values, strict=True):
                    target[place] += value
    return force


def drawn(
    shape: tuple[int, ...], seed: int = 0, layout: str = "contiguous", dtype: torch.dtype = torch.float64
) -> Tensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return weight.contiguous(memory_format=LAYOUTS[layout]) if len(shape) == 4 else weight


@types
@pytest.mark.parametrize("view", VIEWS)
@layouts
@given(groups=st.integers(1, 3), shape=shapes, seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_equals_the_definition(
    kind: str, view: str, layout: str, groups: int, shape: tuple[int, ...], seed: int
) -> None:
    weight = drawn((shape[0] * groups, *shape[1:]), seed, layout)
    exact = by_definition(weight, kind, view, groups)
    found = force_gradient(weight, kind, groups, view)
    assert np.abs(found.numpy() - exact).max() <= 1e-9 * max(1.0, np.abs(exact).max())
    assert found.stride() == weight.stride()


@types
@given(shape=shapes, groups=st.integers(1, 3), seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_both_is_the_sum(kind: str, shape: tuple[int, ...], groups: int, seed: int) -> None:
    weight = drawn((shape[0] * groups, *shape[1:]), seed)
    parts = [force_gradient(weight, kind, groups, view) for view in ("FILTERS", "CHANNELS")]
    assert torch.equal(force_gradient(weight, kind, groups, "BOTH"), parts[0] + parts[1])


@types
@given(rows=st.integers(1, 8), columns=st.integers(1, 8), seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_channels_are_filters_of_the_transpose(kind: str, rows: int, columns: int, seed: int) -> None:
    weight = drawn((rows, columns), seed)
    torch.testing.assert_close(force_gradient(weight, kind, view="CHANNELS"), force_gradient(weight.T, kind).T)


@types
@pytest.mark.parametrize("view", VIEWS)
def test_layouts_give_the_same(kind: str, view: str) -> None:
    plain, last = (drawn((6, 4, 3, 3), 2, layout) for layout in LAYOUTS)
    torch.testing.assert_close(force_gradient(last, kind, view=view), force_gradient(plain, kind, view=view))


@pytest.mark.parametrize("groups", [1, 2])
def test_the_vertical_rows_are_those_that_vh_cuts(groups: int) -> None:
    weight = drawn((4, 3, 2, 5))
    for found, part in zip(unfolded(weight, "VERTICAL", groups), weight.chunk(groups), strict=True):
        torch.testing.assert_close(torch.linalg.svdvals(found).square(), Vh(part).energies())


@pytest.mark.parametrize("unfolding", ROWS)
def test_a_force_draws_its_own_rows_together(unfolding: str) -> None:
    """And so lowers the rank of what the view's method cuts."""
    weight = drawn((6, 5, 3, 3), 4)

    def share(of: Tensor) -> float:
        values = torch.linalg.svdvals(unfolded(of, unfolding)[0]).square()
        return float(values[0] / values.sum())

    before = share(weight)
    for _ in range(30):
        weight -= 0.05 * force_gradient(weight, view=unfolding)
    assert share(weight) > before + 0.2


VIEWED = [
    ((11, 2, 3, 3), "BOTH", 1), ((8, 6, 3, 3), "VERTICAL", 2), ((8, 6, 3, 3), "CHANNELS", 2), ((11, 18), "CHANNELS", 1),
    ((7, 4), "BOTH", 1), ((4, 1, 3, 3), "CHANNELS", 4), ((4, 9, 1, 1), "FILTERS", 2), ((1, 5, 2, 2), "BOTH", 1),
]  # fmt: skip
"""Shape, view and groups of weights of one net, some with a view of single rows, which feel nothing."""


@types
@pytest.mark.parametrize("block", [1, 4, 7, 256])
@layouts
def test_a_field_of_many_views(monkeypatch: pytest.MonkeyPatch, kind: str, block: int, layout: str) -> None:
    """Blocks of rows, stacks and padding change nothing; filters of several groups are drawn all together."""
    monkeypatch.setitem(pairs.BLOCK, "cpu", block)
    weights = [drawn(shape, number, layout, torch.float32) for number, (shape, _, _) in enumerate(VIEWED)]
    grads = [torch.zeros_like(weight) for weight in weights]
    field = ForceField(weights, [0.5] * len(weights), kind, views=[(view, groups) for _, view, groups in VIEWED])
    for weight in weights:  # somebody sets .data: other values in another place
        weight.data = weight.data * 1.5
    field.add_to(grads)
    for weight, grad, (_, view, groups) in zip(weights, grads, VIEWED, strict=True):
        exact = 0.5 * by_definition(weight, kind, view, 1 if view == "FILTERS" else groups)
        assert np.abs(grad.numpy() - exact).max() <= 2e-6 * max(1e-3, np.abs(exact).max())


@pytest.mark.parametrize("decay", DECAY_TYPES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_both_are_scaled_as_one_force(decay: str, direction: str) -> None:
    weight, grad = drawn((6, 4, 3, 3), 1, dtype=torch.float32), drawn((6, 4, 3, 3), 2, dtype=torch.float32)
    expected = grad.clone()
    apply_force(expected, force_gradient(weight, "Constant", view="BOTH"), 0.3, decay, direction)
    ForceField([weight], [0.3], "Constant", decay, direction, [("BOTH", 1)]).add_to([grad])
    torch.testing.assert_close(grad, expected)


def test_a_step_allocates_nothing() -> None:
    weights = [drawn(shape, dtype=torch.float32) for shape, _, _ in VIEWED]
    grads = [torch.zeros_like(weight) for weight in weights]
    field = ForceField(weights, [1.0] * len(weights), "Constant", views=[(view, g) for _, view, g in VIEWED])
    field.add_to(grads)
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profiler:
        field.add_to(grads)
    events = profiler.profiler.kineto_results.events()
    assert not [event.nbytes() for event in events if event.name() == "[memory]"]


@pytest.mark.parametrize(
    ("shape", "view", "expected"),
    [
        ((4, 3), "VERTICAL", r"view VERTICAL needs a convolution's weight.*shape is \[4, 3\]"),
        ((4, 3, 2, 2, 2), "VERTICAL", "of two kernel axes"),
        ((4, 3), "CHANNEL", "unknown view 'CHANNEL'; did you mean \"CHANNELS\""),
    ],
)
def test_wrong_views(shape: tuple[int, ...], view: str, expected: str) -> None:
    with pytest.raises(ForceregError, match=expected):
        force_gradient(torch.ones(shape), view=view)


def test_every_weight_of_two_axes_has_each_view_but_vertical() -> None:
    assert not any(misfit(view, (3, 2)) for view in VIEWS if view != "VERTICAL")
    assert not any(misfit(view, (3, 2, 1, 1)) for view in VIEWS) and misfit("BOTH", (3,))


@pytest.mark.parametrize("extra", ["momentum: 0.9", 'force_decay_type: "adaptive"'])
def test_a_training_by_graphs_equals_one_without(extra: str, tmp_path: Path) -> None:
    net = TWO_LAYERS.replace("force_mult: 1", "force_mult: 1 force_view: BOTH")
    (tmp_path / "net.prototxt").write_text(net.replace("force_mult: 2", "force_mult: 2 force_view: CHANNELS"))
    plain, graphs = both(tmp_path, f"{extra} force_decay: 0.01 max_iter: 12 snapshot_after_train: false")
    graphs.assert_equals(plain)
    (tmp_path / "net.prototxt").write_text(TWO_LAYERS)
    filters, _ = both(tmp_path, f"{extra} force_decay: 0.01 max_iter: 12 snapshot_after_train: false")
    assert not torch.equal(filters.state["ip/0"], plain.state["ip/0"])
