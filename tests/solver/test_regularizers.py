"""A regularizer of one's own is one class with one registration: in every update, in graphs, in snapshots."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import forcereg.registry as registry
from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from forcereg.net.module import Learnable
from forcereg.schema.text import parse_solver
from forcereg.solver.force import force_gradient
from forcereg.solver.regularizers import Regularizer
from forcereg.solver.regularizers.force import FORCE
from forcereg.solver.setup import problems
from forcereg.solver.updater import Updater
from forcereg.system.capture import WARM_UP
from tests.solver.graphs import TWO_LAYERS, both, trained
from tests.solver.nets import REGRESSION, batches, blobs_of, regression

STRENGTH = 0.05
END = 9
"""The iteration from which on shrinking doesn't act any more."""


class Shrink(Regularizer):
    """STRENGTH * w / |w| for each row of a weight, as group lasso; in kept memory, by solver settings of anyone's."""

    def __init__(self, learning: Sequence[Learnable], p: Any, device: torch.device) -> None:
        super().__init__(learning, p, device)
        self.touched = [place for place, one in enumerate(learning) if one.blob.dim() == 2]
        self._weights = [learning[place].blob for place in self.touched]
        self._units = [torch.empty_like(weight) for weight in self._weights]
        self._norms = [weight.new_empty((len(weight), 1)) for weight in self._weights]
        self._most = [torch.zeros_like(norm) for norm in self._norms]

    @staticmethod
    def check(p: Any, name: str) -> None:
        if p.delta < 0:
            raise ForceregError(f"{name}: delta is {p.delta:g}; shrinking expects >= 0")

    def feels(self, iteration: int) -> bool:
        return iteration < END

    def add(self, grads: Sequence[Tensor]) -> None:
        for weight, unit, norm, most in zip(self._weights, self._units, self._norms, self._most, strict=True):
            torch.linalg.vector_norm(weight, dim=1, keepdim=True, out=norm)
            torch.maximum(most, norm, out=most)
            torch.div(weight, norm, out=unit)
        torch._foreach_add_([grads[place] for place in self.touched], self._units, alpha=STRENGTH)

    def carried(self) -> Mapping[str, Tensor]:
        return {str(index): most for index, most in enumerate(self._most)}


class Mask(Regularizer):
    """Every first column of a weight stays 0."""

    def __init__(self, learning: Sequence[Learnable], p: Any, device: torch.device) -> None:
        super().__init__(learning, p, device)
        self.touched = [place for place, one in enumerate(learning) if one.blob.dim() == 2]
        self._columns = [learning[place].blob.detach()[:, 0] for place in self.touched]

    def project(self) -> None:
        torch._foreach_zero_(self._columns)


class Doubled(Regularizer):
    """Doubles gradients, so that what is behind it counts twice as little."""

    def __init__(self, learning: Sequence[Learnable], p: Any, device: torch.device) -> None:
        super().__init__(learning, p, device)
        self.touched = range(len(learning))

    @staticmethod
    def additive(p: Any) -> bool:
        return False

    def add(self, grads: Sequence[Tensor]) -> None:
        torch._foreach_mul_(list(grads), 2)


class Idle(Regularizer):
    """Acts on nothing."""

    def add(self, grads: Sequence[Tensor]) -> None:
        raise AssertionError


Register = Callable[[str, type[Regularizer]], None]


@pytest.fixture
def register() -> Iterator[Register]:
    """Registers until the test's end."""
    before = dict(registry.regularizer._known)
    yield lambda name, kind: registry.regularizer(name)(kind) and None
    registry.regularizer._known = before


@pytest.fixture
def two(tmp_path: Path) -> Path:
    (tmp_path / "net.prototxt").write_text(TWO_LAYERS)
    return tmp_path


def updated(settings: str, iteration: int = 0) -> tuple[list[Tensor], list[Tensor], Updater]:
    """Weights and gradients of a small net before an update, and what updated them."""
    net = load_net(REGRESSION.replace("PARAMS", "param { lr_mult: 1 force_mult: 1 }"), phase="TRAIN", seed=3)
    updater = Updater(net, parse_solver(settings).message, torch.device("cpu"), "s")
    updater.begin(iteration)
    net(**batches(0, 0))["loss"].backward()
    grads = [weight.grad.clone() for weight in updater.weights if weight.grad is not None]
    weights = [weight.detach().clone() for weight in updater.weights]
    updater.apply(iteration, 0.1, torch.tensor(1.0))
    return weights, grads, updater


SETTINGS = ["", "momentum: 0.9", "momentum: 0.9 weight_decay: 0.2", 'weight_decay: 0.2 regularization_type: "L1"']


@pytest.mark.parametrize("settings", SETTINGS)
def test_it_joins_the_gradient(settings: str, register: Register) -> None:
    register("shrink", Shrink)
    (weight, bias), (grad, bias_grad), updater = updated(settings)
    decay = 0.2 * (weight.sign() if "L1" in settings else weight) if "decay" in settings else 0
    term = STRENGTH * weight / weight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(updater.weights[0].detach(), weight - 0.1 * (grad + decay + term))
    assert updater._fused == settings.startswith("momentum") and updater.regularizes
    bias_decay = 0.2 * (bias.sign() if "L1" in settings else bias) if "decay" in settings else 0
    torch.testing.assert_close(updater.weights[1].detach(), bias - 0.1 * (bias_grad + bias_decay))


def test_those_that_look_at_gradients_find_them_decayed(register: Register) -> None:
    register("doubled", Doubled)
    (weight, _), (grad, _), updater = updated("momentum: 0.9 weight_decay: 0.2")
    torch.testing.assert_close(updater.weights[0].detach(), weight - 0.1 * 2 * (grad + 0.2 * weight))


def test_they_act_in_the_order_of_their_names(register: Register) -> None:
    register("z", Doubled)
    register("shrink", Shrink)
    (weight, _), (grad, _), updater = updated("force_decay: 0.1")
    assert updater.feeling(0) == (FORCE, "shrink", "z") and updater.feeling(END) == (FORCE, "z")
    assert list(updater.touched("shrink")) == ["ip"] and list(updater.touched("z")) == ["ip", "ip/1"]
    assert updater.touched("other") == {}
    term = STRENGTH * weight / weight.norm(dim=1, keepdim=True)
    forced = grad + 0.1 * force_gradient(weight)
    torch.testing.assert_close(updater.weights[0].detach(), weight - 0.1 * 2 * (forced + term))


def test_one_that_acts_on_nothing_changes_no_bit(register: Register) -> None:
    settings = "momentum: 0.9 weight_decay: 0.2 force_decay: 0.1"
    expected = updated(settings)[2].weights
    register("idle", Idle)
    _, _, updater = updated(settings)
    assert updater.feeling(0) == (FORCE,) and updater._fused
    assert all(torch.equal(found, one) for found, one in zip(updater.weights, expected, strict=True))


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_a_projection_comes_behind_the_update(kind: str, register: Register, two: Path) -> None:
    register("mask", Mask)
    extra = f'type: "{kind}" momentum: 0.9 weight_decay: 0.01 max_iter: 12 snapshot_after_train: false'
    plain, graphs = both(two, extra)
    graphs.assert_equals(plain)
    for layer in ("ip", "out"):
        assert not plain.state[f"{layer}/0"][:, 0].any() and plain.state[f"{layer}/0"][:, 1:].all()


@pytest.mark.parametrize("extra", ["momentum: 0.9 force_decay: 0.01", 'type: "Adam" momentum: 0.9 weight_decay: 0.01'])
def test_graphs_hold_it(extra: str, register: Register, two: Path) -> None:
    """One while it acts, another behind its end."""
    settings = f"max_iter: 16 snapshot_after_train: false {extra}"
    without = trained(two, None, settings)
    register("shrink", Shrink)
    plain, graphs = both(two, settings)
    graphs.assert_equals(plain)
    assert graphs.tape is not None and graphs.tape.recorded == 2 and graphs.tape.replayed == 16 - WARM_UP
    assert not torch.equal(plain.state["ip/0"], without.state["ip/0"])


def test_it_makes_weights_smaller(register: Register, tmp_path: Path) -> None:
    sizes = []
    for shrinks in (False, True):
        if shrinks:
            register("shrink", Shrink)
        solver, _ = regression(tmp_path, "max_iter: 9 base_lr: 0.05 snapshot_after_train: false")
        solver.solve(batches)
        sizes.append(float(blobs_of(solver)["ip/0"].norm()))
    assert sizes[1] < sizes[0]


RESUMED = 'momentum: 0.9 max_iter: 8 snapshot: 4 snapshot_prefix: "s"'


def test_what_it_carries_is_in_snapshots(register: Register, tmp_path: Path) -> None:
    register("shrink", Shrink)
    whole, _ = regression(tmp_path, RESUMED)
    whole.solve(batches)
    resumed, _ = regression(tmp_path, RESUMED)
    resumed.restore(tmp_path / "s_iter_4.solverstate.h5")
    resumed.solve(batches)
    found, expected = (one.updater.extra()["regularizers"]["shrink"]["0"] for one in (resumed, whole))
    assert (found == expected).all() and expected.any()
    assert all(torch.equal(blob, blobs_of(whole)[name]) for name, blob in blobs_of(resumed).items())


def test_a_state_without_it_and_one_of_another_shape(register: Register, tmp_path: Path) -> None:
    solver, _ = regression(tmp_path, RESUMED)
    solver.solve(batches)
    assert set(solver.updater.extra()) == {"history"}
    register("shrink", Shrink)
    solver, _ = regression(tmp_path, RESUMED)
    solver.restore(tmp_path / "s_iter_4.solverstate.h5")  # it begins anew
    assert not solver.updater.extra()["regularizers"]["shrink"]["0"].any()
    solver.solve(batches)

    class Whole(Shrink):
        def carried(self) -> Mapping[str, Tensor]:
            return {"0": self._most[0].reshape(-1)}

    registry.regularizer._known["shrink"] = Whole
    solver, _ = regression(tmp_path, RESUMED)
    with pytest.raises(ForceregError, match=r"h5: 0 of its regularizer shrink has shape \[2, 1\]; expected \[2\]; use"):
        solver.restore(tmp_path / "s_iter_8.solverstate.h5")


def test_settings_that_it_cannot_take(register: Register) -> None:
    register("shrink", Shrink)
    p = parse_solver('base_lr: 1 lr_policy: "fixed" delta: -1').message
    assert [str(error) for error in problems(p, "s")] == ["s: delta is -1; shrinking expects >= 0"]


def test_weight_decay_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.weight_decay, "_known", dict(registry.weight_decay._known))
    registry.weight_decay("L4")(lambda weights: list(torch._foreach_pow(weights, 3)))
    settings = 'momentum: 0.9 weight_decay: 0.2 regularization_type: "L4"'
    assert list(problems(parse_solver(f'base_lr: 1 lr_policy: "fixed" {settings}').message, "s")) == []
    (weight, _), (grad, _), updater = updated(settings)
    torch.testing.assert_close(updater.weights[0].detach(), weight - 0.1 * (grad + 0.2 * weight**3))
