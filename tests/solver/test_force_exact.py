"""The force on near-coincident filters against 60 decimal digits, and its work in blocks, stacks and kept buffers."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from forcereg.solver import force, pairs
from forcereg.solver.force import ForceField, force_gradient

POWERS = {"Degradation": 0, "Constant": 1, "Linear": 2, "Gravity": 3}
types = pytest.mark.parametrize("kind", POWERS)
Row = list[Decimal]


def dot(one: Row, other: Row) -> Decimal:
    return sum((a * b for a, b in zip(one, other, strict=True)), Decimal(0))


def exact_force(weight: Tensor, kind: str) -> np.ndarray:
    """The force by its definition, of exactly the values that `weight` holds."""
    with localcontext(prec=60):
        rows = [[Decimal(float(x)) for x in row] for row in weight.flatten(1)]
        norms = [dot(row, row).sqrt() for row in rows]
        units = [[x / norm for x in row] for row, norm in zip(rows, norms, strict=True)]
        found = []
        for i, u in enumerate(units):
            total = [Decimal(0)] * len(u)
            for v in units[:i] + units[i + 1 :]:
                apart = [a - b for a, b in zip(u, v, strict=True)]
                distance = dot(apart, apart).sqrt()
                if POWERS[kind] and distance <= Decimal("1e-4"):
                    continue
                along, strength = dot(apart, u), norms[i] / distance ** POWERS[kind] if POWERS[kind] else norms[i]
                total = [t + strength * (a - along * b) for t, a, b in zip(total, apart, u, strict=True)]
            found.append([float(x) for x in total])
    return np.array(found).reshape(weight.shape)


def clusters(distance: float, sizes: list[int], length: int, seed: int) -> Tensor:
    """Rows of various norms, float64: in each cluster their directions are `distance` apart, on the average."""
    rng = np.random.default_rng(seed)
    rows = []
    for size in sizes:
        center = rng.normal(size=length)
        center /= np.linalg.norm(center)
        offset = rng.normal(size=(size, length))
        offset -= np.outer(offset @ center, center)
        offset *= distance / np.sqrt(2) / np.linalg.norm(offset, axis=1, keepdims=True)
        rows.append((center + offset) * rng.uniform(0.01, 3, (size, 1)))
    return torch.from_numpy(np.concatenate(rows))


def row_errors(found: Tensor, exact: np.ndarray) -> float:
    """The largest ||error|| / ||force|| of a row."""
    exact = exact.reshape(len(exact), -1)
    error = found.double().flatten(1).numpy() - exact
    return float((np.linalg.norm(error, axis=1) / np.linalg.norm(exact, axis=1)).max())


@types
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@given(
    distance=st.floats(-3.5, 0).map(lambda power: 10.0**power),
    sizes=st.lists(st.integers(2, 4), min_size=1, max_size=3),
    length=st.integers(20, 40),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=15, deadline=None)
def test_near_filters(kind: str, dtype: torch.dtype, distance: float, sizes: list[int], length: int, seed: int) -> None:
    """|u_i - u_j|^2 is off by a few 1e-16, so its power -p / 2 by a few p * 1e-16 / d^2."""
    weight = clusters(distance, sizes, length, seed).to(dtype)
    rounding = 5e-7 if dtype == torch.float32 else 1e-12
    bound = rounding + POWERS[kind] * 2e-15 / distance**2 + 1e-15 / distance
    assert row_errors(force_gradient(weight, kind), exact_force(weight, kind)) <= bound


@types
@pytest.mark.parametrize("distance", [1e-7, 1e-6, 1e-5, 0.3e-4])
def test_filters_nearer_than_the_threshold(kind: str, distance: float) -> None:
    """Only Degradation acts within a cluster; of the other cluster every type feels all."""
    weight = clusters(distance, [3, 4], 30, seed=5)
    assert row_errors(force_gradient(weight, kind), exact_force(weight, kind)) <= 1e-12
    alone = clusters(distance, [4], 30, seed=5)
    found, exact = force_gradient(alone, kind), exact_force(alone, kind)
    if kind == "Degradation":
        assert row_errors(found, exact) <= 1e-14 / distance
    else:
        assert not exact.any() and np.abs(found.numpy()).max() <= 1e-20


@types
def test_copies_of_one_filter_feel_nothing(kind: str) -> None:
    row = torch.randn(1, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    copies = torch.cat([row * 2.0**power for power in range(-2, 4)])
    assert force_gradient(copies, kind).norm() <= 1e-14 * copies.norm()


def random_weights(*shapes: tuple[int, ...]) -> list[Tensor]:
    draw = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=draw) for shape in shapes]


def added(weights: list[Tensor], factors: list[float], kind: str) -> list[Tensor]:
    """What a field adds to gradients of zero, at its second computation."""
    field = ForceField(weights, factors, kind)
    field.compute()
    grads = [torch.zeros_like(weight) for weight in weights]
    field.add_to(grads)
    return grads


@types
@pytest.mark.parametrize("block", [1, 4, 5, 11])
def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch, kind: str, block: int) -> None:
    weights = random_weights((11, 2, 3, 3), (11, 18), (7, 4), (4, 9, 1, 1), (2, 3))
    factors = [1.0, -0.5, 2.0, 0.25, 3.0]
    monkeypatch.setitem(force.WASTE, "cpu", 0)
    whole = added(weights, factors, kind)
    monkeypatch.setitem(force.WASTE, "cpu", 10_000)  # several row counts in one padded batch
    monkeypatch.setitem(pairs.BLOCK, "cpu", block)
    for found, expected, weight, factor in zip(added(weights, factors, kind), whole, weights, factors, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        exact = factor * exact_force(weight, kind)
        assert np.abs(found.numpy() - exact).max() <= 1e-6 * np.abs(exact).max()


class Operations(TorchDispatchMode):
    """Counts the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))


@types
def test_weights_of_one_shape_cost_no_further_operations(kind: str) -> None:
    counts = []
    for copies in (1, 6):
        field = ForceField(random_weights(*[(16, 16, 3, 3)] * copies), [1.0] * copies, kind)
        with Operations() as operations:
            field.compute()
        counts.append(operations.count)
    assert counts[1] == counts[0] and counts[0]["aten.bmm.out"] == 2


@types
@pytest.mark.parametrize("rows", [20, 300])
def test_a_step_allocates_and_reads_nothing(kind: str, rows: int) -> None:
    """What a CUDA graph needs, too: results in kept buffers, nothing brought to the host."""
    weights = random_weights((8, 3, 3, 3), (rows, 8, 3, 3), (rows, 8, 3, 3))
    grads = [torch.zeros_like(weight) for weight in weights]
    field = ForceField(weights, [1.0] * 3, kind)
    field.add_to(grads)
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profiler, Operations() as operations:
        field.add_to(grads)
    events = profiler.profiler.kineto_results.events()
    assert not [event.nbytes() for event in events if event.name() == "[memory]"]
    assert not {"aten._local_scalar_dense.default", "aten.nonzero.default"} & set(operations.count)


@types
def test_the_force_waits_for_its_gradients(kind: str) -> None:
    """compute() looks at the weights, add() at the gradients, as on two streams."""
    weights, grads = random_weights((6, 5), (9, 2, 3)), random_weights((6, 5), (9, 2, 3))
    before = [grad.clone() for grad in grads]
    field = ForceField(weights, [0.5, 0.0], kind)
    field.compute()
    assert all(torch.equal(grad, old) for grad, old in zip(grads, before, strict=True))
    expected = before[0] + 0.5 * force_gradient(weights[0], kind)
    weights[0].zero_()
    field.add(grads)
    torch.testing.assert_close(grads[0], expected)
    assert torch.equal(grads[1], before[1])


def test_no_weight_without_a_force() -> None:
    grads = random_weights((6, 5))
    before = grads[0].clone()
    ForceField(random_weights((6, 5)), [0.0]).add_to(grads)
    assert torch.equal(grads[0], before)
