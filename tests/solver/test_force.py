"""The force against its definition, a float64 sum over pairs, and against what Caffe subtracted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.schema.text import parse_net, parse_solver
from forcereg.solver.force import DECAY_TYPES, DIRECTIONS, ForceField, force_gradient
from tests.golden_cases import Case, golden_cases

POWERS = {"Degradation": 0, "Constant": 1, "Linear": 2, "Gravity": 3}
types = pytest.mark.parametrize("kind", POWERS)


def pairwise_force(weight: np.ndarray, kind: str) -> np.ndarray:
    """The force by its definition: float64, pair by pair, distances from differences."""
    rows = np.asarray(weight, np.float64).reshape(len(weight), -1)
    norms = np.linalg.norm(rows, axis=1)
    force = np.zeros_like(rows)
    for i in range(len(rows)):
        for j in range(len(rows)):
            if i == j or min(norms[i], norms[j]) <= 1e-4:
                continue
            u, v = rows[i] / norms[i], rows[j] / norms[j]
            distance = np.linalg.norm(u - v)
            if POWERS[kind] and distance <= 1e-4:
                continue
            tangent = (u - v) - ((u - v) @ u) * u
            force[i] += norms[i] * tangent / distance ** POWERS[kind] if POWERS[kind] else norms[i] * tangent
    return force.reshape(weight.shape)


def relative_error(weight: Tensor, kind: str) -> float:
    """||error|| / ||force|| of force_gradient on a float32 weight."""
    exact = pairwise_force(weight.numpy(), kind)
    return float(np.linalg.norm(force_gradient(weight, kind).numpy() - exact) / np.linalg.norm(exact))


def cluster(distance: float, count: int = 6, length: int = 40, seed: int = 0) -> Tensor:
    """float32 rows of various norms whose directions are about `distance` apart."""
    rng = np.random.default_rng(seed)
    center = rng.normal(size=length)
    center /= np.linalg.norm(center)
    offset = rng.normal(size=(count, length))
    offset -= np.outer(offset @ center, center)
    offset *= distance / np.sqrt(2) / np.linalg.norm(offset, axis=1, keepdims=True)
    return torch.tensor((center + offset) * rng.uniform(0.05, 3, (count, 1)), dtype=torch.float32)


@types
@given(
    rows=st.integers(2, 12),
    columns=st.integers(2, 40),
    scale=st.sampled_from([1e-2, 1.0, 1e3]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=25, deadline=None)
def test_equals_the_definition(kind: str, rows: int, columns: int, scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(rows, columns) * scale
    exact = pairwise_force(weight.numpy(), kind)
    error = np.abs(force_gradient(weight, kind).numpy() - exact).max()
    assert error <= 1e-6 * np.abs(exact).max() + 1e-9 * scale * rows


@types
@pytest.mark.parametrize("distance", [1.1e-4, 2e-4, 1e-3, 1e-2, 0.1])
def test_near_duplicates_are_exact(kind: str, distance: float) -> None:
    weight = cluster(distance * 1.2, seed=3)  # the float32 rounding of the rows moves some distances
    assert relative_error(weight, kind) <= 1e-4


@types
@pytest.mark.parametrize("distance", [1.1e-4, 3e-4])
def test_a_near_pair_is_exact(kind: str, distance: float) -> None:
    angle = 2 * np.arcsin(distance / 2)
    pair = np.array([[1, 0, 0], [np.cos(angle), np.sin(angle), 0]]) * [[1.0], [0.3]]
    assert relative_error(torch.tensor(pair, dtype=torch.float32), kind) <= 1e-4


@types
def test_pairs_below_the_threshold(kind: str) -> None:
    weight = torch.tensor([[1.0, 0.0], [1.0, 0.9e-4]])
    force = force_gradient(weight, kind)
    assert force.any().item() == (kind == "Degradation")


@types
@pytest.mark.parametrize("norm", [0.0, 1e-7, 0.99e-4])
def test_short_rows_neither_feel_nor_exert(kind: str, norm: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 6)
    short = torch.randn(6)
    both = torch.cat([weight, short[None] * (norm / short.norm())])
    force = force_gradient(both, kind)
    assert torch.equal(force[4], torch.zeros(6))
    assert torch.allclose(force[:4], force_gradient(weight, kind), rtol=1e-6, atol=0)


@types
@pytest.mark.parametrize("shape", [(1, 5), (1, 2, 3, 3)])
def test_a_single_row_feels_nothing(kind: str, shape: tuple[int, ...]) -> None:
    assert not force_gradient(torch.full(shape, 0.3), kind).any()


@types
@pytest.mark.parametrize("shape", [(7, 30), (20, 1, 5, 5), (4, 3, 2, 2, 2)], ids=str)
def test_is_tangential_and_attracts(kind: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    weight = torch.randn(shape, dtype=torch.float64)
    force = force_gradient(weight, kind)
    assert (weight.flatten(1) * force.flatten(1)).sum(1).abs().max() < 1e-12 * force.norm() * weight.norm()

    def mean_cosine(of: Tensor) -> float:
        unit = torch.nn.functional.normalize(of.flatten(1))
        return float((unit @ unit.T).mean())

    step = 1e-3 / float(force.norm())
    assert mean_cosine(weight - step * force) > mean_cosine(weight) > mean_cosine(weight + step * force)


@types
@pytest.mark.parametrize("weight_of", ["channels_last", "transposed", "expanded", "strided", "double"])
def test_memory_formats(kind: str, weight_of: str) -> None:
    torch.manual_seed(2)
    plain = torch.randn(6, 4, 3, 3)
    weight = {
        "channels_last": plain.to(memory_format=torch.channels_last),
        "transposed": plain.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
        "expanded": plain[:, :1].expand(6, 4, 3, 3),
        "strided": torch.cat([plain, plain], 1)[:, ::2],
        "double": plain.double(),
    }[weight_of]
    before = weight.clone()
    force = force_gradient(weight, kind)
    assert torch.equal(weight, before) and force.dtype == weight.dtype
    exact = pairwise_force(weight.numpy(), kind)
    assert np.abs(force.numpy() - exact).max() <= 1e-6 * np.abs(exact).max()
    if weight_of == "channels_last":
        assert force.is_contiguous(memory_format=torch.channels_last)


@types
def test_groups_are_coordinated_alone(kind: str) -> None:
    torch.manual_seed(3)
    weight = torch.randn(6, 2, 3, 3)
    alone = torch.cat([force_gradient(half, kind) for half in weight.chunk(2)])
    assert torch.allclose(force_gradient(weight, kind, groups=2), alone, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(force_gradient(weight, kind), alone, rtol=1e-2)


@types
@pytest.mark.parametrize(("rows", "columns"), [(384, 2304), (1024, 1024)])
def test_memory_stays_quadratic(kind: str, rows: int, columns: int) -> None:
    """At most six float64 arrays of the weight's or the Gram matrix's size; N*N*C is 100 times that."""
    weight = torch.randn(rows, columns)
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profiler:
        force_gradient(weight, kind)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    largest = max(event.nbytes() for event in events)
    assert largest <= 8 * max(rows * columns, rows * rows)
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    assert held.max() <= 8 * 6 * max(rows * columns, rows * rows)


def regularize(
    grad: Tensor, weight: Tensor, factor: float, kind: str, decay: str = "fixed", direction: str = "all"
) -> None:
    """Adds the force on one weight to its gradient, as the solver does."""
    ForceField([weight], [factor], kind, decay, direction).add_to([grad])


def straight_regularize(grad: np.ndarray, force: np.ndarray, factor: float, decay: str, same: bool) -> np.ndarray:
    """`regularize` by its description, on float64 arrays."""
    grad, force = grad.astype(np.float64), np.array(force, np.float64)
    if same:
        force[force * grad < 0] = 0
    if decay == "adaptive":
        size = np.linalg.norm(force)
        factor = 0 if size < 1e-8 else factor * np.linalg.norm(grad) / size
    return grad + factor * force


@types
@pytest.mark.parametrize("decay", DECAY_TYPES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("factor", [0.7, -0.3])
def test_regularize(kind: str, decay: str, direction: str, factor: float) -> None:
    torch.manual_seed(4)
    weight, grad = torch.randn(8, 3, 3, 3), torch.randn(8, 3, 3, 3)
    grad[0] = 0  # products that are zero keep the force
    force = pairwise_force(weight.numpy(), kind)
    expected = straight_regularize(grad.numpy(), force, factor, decay, direction == "same")
    regularize(grad, weight, factor, kind, decay, direction)
    assert np.abs(grad.numpy() - expected).max() <= 2e-6 * np.abs(expected).max()


@pytest.mark.parametrize("weight", [torch.zeros(3, 4), torch.ones(3, 4)], ids=["zero", "identical"])
def test_adaptive_adds_nothing_where_no_force_is(weight: Tensor) -> None:
    grad = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    before = grad.clone()
    regularize(grad, weight, 0.5, "Constant", "adaptive")
    assert torch.equal(grad, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(("Constnat",), "unknown force_type 'Constnat'; did you mean \"Constant\"", id="type"),
        pytest.param(("Constant", "fixd"), "decay_type 'fixd'.*are fixed, adaptive", id="decay"),
        pytest.param(("Constant", "fixed", "opposite"), "'opposite'.*all, same", id="direction"),
    ],
)
def test_unknown_names_list_the_known(options: tuple[str, ...], message: str) -> None:
    with pytest.raises(ForceregError, match=message):
        regularize(torch.ones(2, 2), torch.ones(2, 2), 1.0, *options)


@pytest.mark.parametrize(
    ("shape", "groups"), [((5,), 1), ((5, 2), 2), ((4, 2), 0)], ids=["vector", "indivisible", "no-groups"]
)
def test_wrong_shapes(shape: tuple[int, ...], groups: int) -> None:
    with pytest.raises(ForceregError, match="force_gradient: weight of shape"):
        force_gradient(torch.ones(shape), groups=groups)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_weights_of_other_numbers_feel_none(dtype: torch.dtype) -> None:
    """Rounded, or without its imaginary part, a force would be another one."""
    with pytest.raises(ForceregError, match=f"force_gradient: weight of {dtype}; expected floating point"):
        force_gradient(torch.ones(3, 2, dtype=dtype))


@pytest.mark.parametrize("case", golden_cases("force", lambda case: case.attrs["kind"] == "single"))
def test_equals_caffe(case: Case) -> None:
    """With a loss gradient of exactly zero, Caffe's first update is the force times its factors."""
    solver = parse_solver(case.attrs["solver"]).message
    net = parse_net(case.attrs["net"]).message
    (layer,) = (layer for layer in net.layer if layer.name == "l")
    spec = layer.param[0] if layer.param else None
    weight = case.load("params_init/l/0")
    after = case.load("iter_0001/params/l/0")
    if spec is None or not spec.force_mult or weight.ndim < 2:
        assert np.array_equal(after, weight)
        return
    grad = torch.zeros(weight.shape)
    regularize(grad, torch.from_numpy(weight), solver.force_decay * spec.force_mult, solver.force_type)
    update = grad.numpy() * solver.base_lr * spec.lr_mult
    with case.open() as group:
        expected = group["iter_0001/update/l/0"][()] if "iter_0001/update/l/0" in group else weight - after
    tolerance = 2e-3 if case.id.endswith("rows_near_above") else 2e-5
    assert np.abs(update - expected).max() <= tolerance * np.abs(expected).max() + 1e-6


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_field_follows_replaced_data(layout: torch.memory_format) -> None:
    """Users set `param.data`; the kept buffers must not go on with the old values or layout."""
    draw = torch.Generator().manual_seed(3)
    weights = [torch.nn.Parameter(torch.randn(n, 4, 3, 3, generator=draw)) for n in (6, 9)]
    field = ForceField(weights, (0.5, 0.25), "Constant")
    for weight in weights:
        weight.data = torch.randn(weight.shape, generator=draw).contiguous(memory_format=layout)
    grads = [torch.zeros_like(weight) for weight in weights]
    field.add_to(grads)
    for grad, weight, factor in zip(grads, weights, (0.5, 0.25), strict=True):
        torch.testing.assert_close(grad, factor * force_gradient(weight, "Constant"))
