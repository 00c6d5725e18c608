"""Timing: which layers are measured, forwards and backwards, and that the passes are those of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from forcereg import load_net
from forcereg.net import timing
from forcereg.net.module import Net
from forcereg.net.timing import Stopwatch, measure
from tests.solver.nets import IMAGES, write_images

CPU = torch.device("cpu")
INPUTS = """
name: "shapes"
layer { name: "in" type: "Input" top: "x" top: "y" input_param { shape { dim: 2 dim: 3 } shape { dim: 2 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param { num_output: 4
  weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "ip" top: "ip" }
layer { name: "twice" type: "Power" bottom: "ip" top: "twice" power_param { scale: 2 } }
layer { name: "both" type: "Eltwise" bottom: "ip" bottom: "twice" top: "both" }
layer { name: "prob" type: "Softmax" bottom: "both" top: "prob" }
layer { name: "best" type: "ArgMax" bottom: "both" top: "best" }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "both" bottom: "y" top: "loss" loss_weight: 3 }
"""


@pytest.fixture(params=["TRAIN", "TEST"])
def images(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Net:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path)
    return load_net("net.prototxt", None, request.param, seed=0)


def test_every_layer_forwards_and_those_that_learn_backwards(images: Net) -> None:
    told: list[tuple[int, float]] = []
    result = measure(images, 3, CPU, lambda index, wall: told.append((index, wall)))
    assert [row.name for row in result.layers] == [spec.name for spec in images.spec.layers]
    assert all(row.forward > 0 for row in result.layers)
    for row in result.layers:
        # data and what only reads labels has none; under TEST the scores of Accuracy neither
        has_one = row.name in ("conv", "bn", "scale", "relu", "drop", "ip", "loss", "ip_ip_0_split")
        assert (row.backward > 0) == has_one, row.name
    assert told == list(enumerate(result.wall))
    assert len(result.wall) == 3
    assert result.forward == pytest.approx(sum(row.forward for row in result.layers))
    assert result.forward + result.backward <= result.both
    assert (result.both, result.total) == (pytest.approx(sum(result.wall) / 3), pytest.approx(sum(result.wall)))


def test_layers_that_no_loss_reaches_run_backwards_too() -> None:
    """Unconditionally, as in Caffe's time: a deploy net has times for both directions."""
    rows = {row.name: row for row in measure(load_net(INPUTS, seed=0), 2, CPU).layers}
    for name in ("ip", "relu", "twice", "both", "prob", "loss"):
        assert rows[name].backward > 0, name
    assert (rows["in"].forward, rows["in"].backward, rows["best"].backward) == (0, 0, 0)


def test_gradients_are_those_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer by layer comes out what one backward through the whole net does."""
    net = load_net(INPUTS.replace('layer { name: "prob" type: "Softmax" bottom: "both" top: "prob" }', ""), seed=0)
    found: list[tuple[Tensor | None, ...]] = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: found.append(grad(*a, **k)) or found[-1])
    zeros = {name: torch.zeros(net.shapes[name]) for name in net.inputs}
    monkeypatch.setattr(torch, "zeros", lambda shape, **_: torch.full(shape, 0.5))
    measure(net, 1, CPU)
    inputs = {name: torch.full_like(blob, 0.5) for name, blob in zeros.items()}
    net.forward_loss(inputs)[0].backward()
    weight, bias = found[-1][-2:]
    torch.testing.assert_close(weight, net.params["ip"][0].grad)
    torch.testing.assert_close(bias, net.params["ip"][1].grad)


def test_the_net_is_as_before(images: Net) -> None:
    """Weights stay, no gradient is left, and layers are called directly again."""
    weights = {name: weight.clone() for name, weight in images.named_parameters()}
    measure(images, 2, CPU)
    assert images.around is None
    for name, weight in images.named_parameters():
        assert torch.equal(weight, weights[name])
        assert weight.grad is None


class Clock:
    """Stands still but for what is added to it."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Slow(torch.autograd.Function):
    """Takes 30 ms forwards and 20 ms backwards of a clock."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clock: Clock) -> Tensor:
        ctx.clock = clock
        clock.now += 0.03
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.clock.now += 0.02
        return grad, None


def test_milliseconds_belong_to_their_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    net, clock = load_net(INPUTS, seed=0), Clock()
    monkeypatch.setattr(timing, "time", clock)
    monkeypatch.setattr(net.module("twice"), "forward", lambda x: Slow.apply(x, clock))
    result = measure(net, 2, CPU)
    for row in result.layers:
        assert (row.forward, row.backward) == pytest.approx((30, 20) if row.name == "twice" else (0, 0))
    assert (result.forward, result.backward, result.both) == pytest.approx((30, 20, 50))


def test_warm_up_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    run = timing._Iteration.run
    monkeypatch.setattr(timing._Iteration, "run", lambda *args: calls.append(1) or run(*args))
    assert len(measure(load_net(INPUTS, seed=0), 4, CPU).wall) == 4
    assert len(calls) == 5


def test_shapes_stand_in_for_data(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(IMAGES)
    net = load_net(tmp_path / "net.prototxt", None, "TRAIN", input_shapes={"data": (2, 1, 6, 6), "label": (2,)})
    rows = {row.name: row for row in measure(net, 1, CPU).layers}
    assert rows["data"].forward == 0
    assert rows["conv"].forward > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpus_own_time() -> None:
    """The product takes far longer than its launch, and a mark doesn't wait for it."""
    watch = Stopwatch(torch.device("cuda"))
    x = torch.rand(4096, 4096, device="cuda")
    x @ x
    watch.wait()
    start = watch.mark()
    for _ in range(10):
        x @ x
    end = watch.mark()
    watch.wait()
    assert watch.between(start, end) > 1
