"""The force in the metric of responses: against its definition, and through whole trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from forcereg.schema.text import parse_solver
from forcereg.solver import pairs
from forcereg.solver.force import ForceField, force_gradient, normalised
from forcereg.solver.loop import Solver
from forcereg.solver.metric import Metric
from forcereg.solver.regularizers.force import FORCE
from forcereg.solver.updater import Updater
from tests.conftest import RunCli
from tests.small_nets import inputs, ip
from tests.solver.clipping_nets import CHAINS, EXTRA, clipped_solver
from tests.solver.graphs import TWO_LAYERS, both
from tests.solver.nets import Recorder, batches, write_images, write_solver
from tests.solver.test_force import POWERS
from tests.solver.test_resume import assert_same

types = pytest.mark.parametrize("kind", POWERS)
RESPONSES = 'force_metric: "responses" force_metric_interval: 4'


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def metric_of(k: int, groups: int = 1, seed: int = 1) -> Tensor:
    """Moments of samples in which some directions hardly show."""
    samples = drawn(groups, 3 * k, k, seed=seed) * torch.linspace(0.1, 2, k)
    return samples.mT @ samples


def by_definition(rows: np.ndarray, kind: str, m: np.ndarray) -> np.ndarray:
    """Pair by pair: lengths, angles and distances of a metric."""
    lengths = np.sqrt(np.einsum("ik,kl,il->i", rows, m, rows))
    units = rows / lengths[:, None]
    force = np.zeros_like(rows)
    for i, u in enumerate(units):
        for j, v in enumerate(units):
            if i != j:
                distance = np.sqrt((u - v) @ m @ (u - v))
                force[i] += lengths[i] * ((u @ m @ v) * u - v) / distance ** POWERS[kind]
    return force


@types
@given(n=st.integers(2, 7), k=st.integers(2, 9), groups=st.integers(1, 3), seed=st.integers(0, 10**6))
@settings(max_examples=12, deadline=None)
def test_equals_the_definition(kind: str, n: int, k: int, groups: int, seed: int) -> None:
    weight, moments = drawn(n * groups, k, seed=seed), metric_of(k, groups, seed)
    found = force_gradient(weight, kind, groups, moments=moments)
    for part, rows, m in zip(found.chunk(groups), weight.chunk(groups), moments, strict=True):
        exact = by_definition(rows.numpy(), kind, m.numpy())
        assert np.abs(part.numpy() - exact).max() <= 1e-7 * max(1.0, np.abs(exact).max())


@types
def test_the_scale_of_moments_and_a_round_metric_change_nothing(kind: str) -> None:
    weight, moments = drawn(6, 3, 2, 2), metric_of(12)
    found = force_gradient(weight, kind, moments=moments[0])
    torch.testing.assert_close(force_gradient(weight, kind, moments=1e6 * moments), found)
    round_ = torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(force_gradient(weight, kind, moments=round_), force_gradient(weight, kind))
    assert not torch.allclose(found, force_gradient(weight, kind), rtol=0.1)
    torch.testing.assert_close(normalised(moments).diagonal(dim1=1, dim2=2).mean(1), torch.ones(1).double())


@types
@pytest.mark.parametrize("block", [4, 256])
def test_a_field_of_metrics_and_layouts(monkeypatch: pytest.MonkeyPatch, kind: str, block: int) -> None:
    monkeypatch.setitem(pairs.BLOCK, "cpu", block)
    shapes, groups = [(6, 3, 2, 2), (9, 12), (8, 3, 2, 2), (6, 3, 2, 2)], [1, 1, 2, 1]
    weights = [drawn(*shape, seed=place).float() for place, shape in enumerate(shapes)]
    weights[0] = weights[0].contiguous(memory_format=torch.channels_last)
    moments = {place: normalised(metric_of(12, groups[place], place)) for place in range(3)}
    field = ForceField(weights, [0.5] * 4, kind, views=[("FILTERS", g) for g in groups], moments=moments)
    grads = [torch.zeros_like(weight) for weight in weights]
    field.add_to(grads)
    for place, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
        alone = force_gradient(weight, kind, groups[place], moments=moments.get(place))
        torch.testing.assert_close(grad, 0.5 * alone, rtol=1e-4, atol=1e-6)


def test_it_draws_together_what_responds_alike() -> None:
    """Of no length is what never shows in the inputs: filters that differ there alone feel nothing."""
    weight = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 5.0]])
    seen = torch.diag(torch.tensor([1.0, 1.0, 0.0]))
    assert not force_gradient(weight, "Constant", moments=seen).any()
    assert force_gradient(weight, "Constant").any()
    assert not force_gradient(weight, "Constant", moments=torch.zeros(3, 3)).any()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"moments": torch.eye(3)}, r"moments of shape \(3, 3\); expected \(4, 4\)"),
        ({"moments": torch.eye(4), "groups": 2}, r"expected \(2, 4, 4\)"),
        ({"moments": torch.eye(4), "view": "BOTH"}, "moments are of filters, and view is BOTH; expected FILTERS"),
    ],
)
def test_wrong_moments(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ForceregError, match=expected):
        force_gradient(torch.ones(6, 4), **options)


# -- in training


def test_moments_are_those_of_the_training_batch(tmp_path: Path) -> None:
    write_images(tmp_path)
    solver = Solver(write_solver(tmp_path, f"force_decay: 0.001 {RESPONSES}"))
    metric = solver.updater._regularizers[FORCE]._metric  # type: ignore[attr-defined]
    seen: list[Tensor] = []
    take = Metric.watch

    def watch(self: Metric, spec: Any, module: Any, bottoms: list[Tensor]) -> None:
        if spec.name == "conv":
            seen.append(torch.nn.functional.unfold(bottoms[0].detach(), module.geometry.kernel))
        take(self, spec, module, bottoms)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Metric, "watch", watch)
        solver.step(5)
    first, second = (rows.movedim(1, 2).flatten(0, 1).double() for rows in seen)  # of iterations 0 and 4
    parts = [normalised((rows.mT @ rows / len(rows))[None]) for rows in (first, second)]
    torch.testing.assert_close(metric.moments[0], (parts[0] + parts[1]) / 2)


def test_a_step_has_the_force_of_the_definition() -> None:
    net = load_net(TWO_LAYERS, phase="TRAIN", seed=3)
    updater = Updater(net, parse_solver(f"force_decay: 0.5 {RESPONSES}").message, torch.device("cpu"), "s")
    updater.prepare(0)
    (watch,) = updater.watches(0)
    batch = batches(0, 0)
    net.around = lambda spec, module, bottoms: (watch(spec, module, bottoms), module(*bottoms))[1]
    net(**batch)["loss"].backward()
    net.around = None
    updater.watched(0, lambda value: value)
    weight, grad = updater.weights[0].detach().clone(), updater.weights[0].grad
    assert grad is not None
    grad = grad.clone()
    updater.apply(0, 0.1, torch.tensor(1.0))
    x = batch["x"].double()
    expected = grad + 0.5 * force_gradient(weight, moments=x.T @ x)
    torch.testing.assert_close(updater.weights[0].detach(), weight - 0.1 * expected)


@pytest.mark.parametrize("extra", ["", 'force_decay_type: "adaptive" force_ramp: 3', "iter_size: 2"])
def test_graphs_equal_a_run_without(extra: str, tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(TWO_LAYERS)
    plain, graphs = both(
        tmp_path, f"{extra} momentum: 0.9 force_decay: 0.01 max_iter: 12 snapshot_after_train: false {RESPONSES}"
    )
    graphs.assert_equals(plain)
    assert graphs.tape is not None and graphs.tape.replayed > 4
    weights, _ = both(tmp_path, "momentum: 0.9 force_decay: 0.01 max_iter: 12 snapshot_after_train: false")
    assert not torch.equal(weights.state["ip/0"], plain.state["ip/0"])


RUN = (
    f'momentum: 0.9 force_decay: 0.01 force_type: "Constant" base_lr: 0.02 {RESPONSES} test_iter: 1 test_interval: 3 '
    'max_iter: 11 snapshot_prefix: "{}" snapshot: {}'
)


@pytest.mark.parametrize("stop", [3, 4, 7])
def test_resume_is_bit_for_bit(stop: int, tmp_path: Path) -> None:
    write_images(tmp_path)
    Solver(write_solver(tmp_path, RUN.format("whole", 11)), observers=[Recorder()]).solve()
    first = write_solver(tmp_path, RUN.format("parts", 0).replace("max_iter: 11", f"max_iter: {stop}"))
    Solver(first, observers=[Recorder()]).solve()
    second = Solver(write_solver(tmp_path, RUN.format("parts", 11)), observers=[Recorder()])
    second.restore(tmp_path / f"parts_iter_{stop}.solverstate.h5")
    second.solve()
    for kind in ("caffemodel", "solverstate"):
        assert_same(tmp_path / f"whole_iter_11.{kind}.h5", tmp_path / f"parts_iter_11.{kind}.h5")


def test_what_is_not_finite_leaves_nothing() -> None:
    net = load_net(TWO_LAYERS, phase="TRAIN", seed=3)
    metric = Metric([one for one in net.learnable if one.force_mult][:1], 2)
    spec, module = next((spec, module) for spec, module in net.built if spec.name == "ip")
    for value in (1.0, torch.inf, 3.0):
        assert metric.due(0) and module is not None
        metric.watch(spec, module, [torch.full((4, 3), value)])
        metric.take(lambda found: found)
        torch.testing.assert_close(metric.moments[0], torch.ones(1, 3, 3).double())
    assert metric.due(2) and not metric.due(3)


def test_a_first_batch_that_is_not_finite_is_none() -> None:
    net = load_net(TWO_LAYERS, phase="TRAIN", seed=3)
    metric = Metric([one for one in net.learnable if one.force_mult][:1], 2)
    spec, module = next((spec, module) for spec, module in net.built if spec.name == "ip")
    assert module is not None
    for value, expected in ((torch.nan, 0.0), (2.0, 1.0)):
        metric.watch(spec, module, [torch.full((4, 3), value)])
        metric.take(lambda found: found)
        torch.testing.assert_close(metric.moments[0], torch.full((1, 3, 3), expected).double())


def test_ranks_that_are_clipped_are_looked_at_anew(tmp_path: Path) -> None:
    chains = CHAINS.replace('top: "conv" param { lr_mult: 1 }', 'top: "conv" param { lr_mult: 1 force_mult: 1 }')
    write_images(tmp_path, chains)
    solver, recorder = clipped_solver(tmp_path, f'force_metric: "responses" {EXTRA} 0', 0.5)
    metric = solver.updater._regularizers[FORCE]._metric  # type: ignore[attr-defined]
    before = {tuple(one.shape) for one in metric.moments}
    solver.step(5)
    now = solver.updater._regularizers[FORCE]._metric  # type: ignore[attr-defined]
    assert any("before" in layer for event in recorder.of("ranks") for layer in event.layers)
    assert {tuple(one.shape) for one in now.moments} != before and now is not metric
    assert all(bool(one.any()) for one in now.moments) and not now.due(5)


NET = inputs(x=(4, 3), y=(4, 2)) + "\n"


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (ip("l", "x", "z", 2, "param { force_mult: 1 force_view: BOTH }"), "is of FILTERS, its force_view is BOTH"),
        (ip("l", "x", "z", 2, "param { force_mult: 1 }", "transpose: true"), "and InnerProduct, not of transpose;"),
        (
            'layer { name: "l" type: "Embed" bottom: "x" top: "z" param { force_mult: 1 } embed_param { num_output: 2 '
            "input_dim: 3 } }",
            "and InnerProduct, not of a weight of Embed; remove its force_mult",
        ),
    ],
)
def test_layers_without_it(layer: str, expected: str, tmp_path: Path, run_cli: RunCli) -> None:
    loss = '\nlayer { name: "loss" type: "Reduction" bottom: "z" top: "loss" loss_weight: 1 }'
    (tmp_path / "net.prototxt").write_text(NET + layer + loss)
    solver = write_solver(tmp_path, f"force_decay: 1 max_iter: 1 snapshot_after_train: false {RESPONSES}")
    with pytest.raises(ForceregError, match=expected) as info:
        Solver(solver)
    done = run_cli("check", "solver.prototxt", cwd=tmp_path)
    assert str(info.value).rpartition("/")[2] in done.stdout and done.returncode == 1


@pytest.mark.parametrize("text", [NET, NET + ip("l", "x", "z", 1, "param { force_mult: 1 }")])
def test_a_net_without_such_weights(text: str, tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(text)
    recorder = Recorder()
    Solver(write_solver(tmp_path, f"force_decay: 1 {RESPONSES}"), observers=[recorder])
    assert any("NOTHING IS REGULARIZED" in text for text in recorder.texts())


TWICE = NET + "\n".join(
    [
        ip("a", "x", "p", 3, 'param { name: "w" force_mult: 1 }', "bias_term: false"),
        ip("b", "p", "q", 3, 'param { name: "w" }', "bias_term: false SHAPE"),
        ip("c", "q", "r", 2),
        'layer { name: "loss" type: "EuclideanLoss" bottom: "r" bottom: "y" top: "loss" }',
    ]
)


def test_a_shared_weight_has_the_inputs_of_all_its_layers(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(TWICE.replace("SHAPE", ""))
    solver = Solver(write_solver(tmp_path, f"force_decay: 0.01 max_iter: 2 {RESPONSES}"))
    weight = solver.net.params["a"][0].detach().clone().double()
    solver.step(1, batches)
    rows = batches(0, 0)["x"].double()
    rows = torch.cat([rows, rows @ weight.mT])
    metric = solver.updater._regularizers[FORCE]._metric  # type: ignore[attr-defined]
    torch.testing.assert_close(metric.moments[0], normalised((rows.mT @ rows)[None]), rtol=1e-5, atol=1e-6)


def test_a_shared_weight_that_is_another_one_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(TWICE.replace("SHAPE", "transpose: true"))
    with pytest.raises(ForceregError, match=r"layer 'b': .* not of transpose; remove its force_mult"):
        Solver(write_solver(tmp_path, f"force_decay: 1 {RESPONSES}"))
