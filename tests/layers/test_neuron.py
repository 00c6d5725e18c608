"""ReLU, Sigmoid, TanH and Dropout."""

from __future__ import annotations

import pytest
import torch

from forcereg.load import load_net
from tests.layers.nets import apply, gradcheck, layer_error, layer_net, noise, run


@pytest.mark.parametrize("slope", [0, 0.1, -0.5, 1])
def test_relu_and_its_gradient_at_zero(slope: float) -> None:
    x = torch.tensor([[-2.0, -1.0, 0.0, 3.0]], requires_grad=True)
    (y,) = apply("ReLU", f"relu_param {{ negative_slope: {slope} }}", x)
    torch.testing.assert_close(y, torch.tensor([[-2 * slope, -slope, 0.0, 3.0]]))
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[slope, slope, slope, 1.0]]))


@pytest.mark.parametrize(
    ("kind", "param", "function"),
    [
        ("ReLU", "", lambda x: x.clamp(min=0)),
        ("ReLU", "relu_param { negative_slope: 0.25 }", lambda x: x.clamp(min=0) + 0.25 * x.clamp(max=0)),
        ("Sigmoid", "", lambda x: 1 / (1 + (-x).exp())),
        ("TanH", "", lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp())),
    ],
)
def test_values_and_gradients(kind: str, param: str, function) -> None:
    x = noise(3, 4, 2)
    net = layer_net(kind, param, (3, 4, 2))
    torch.testing.assert_close(run(net.double(), x)[0], function(x))
    assert x.abs().min() > 1e-3  # away from the kink
    assert gradcheck(net, x.requires_grad_())


@pytest.mark.parametrize("kind", ["ReLU", "Sigmoid", "TanH"])
def test_extremes_and_nan(kind: str) -> None:
    (y,) = apply(kind, "", torch.tensor([[-1e30, 1e30, float("nan")]]))
    assert y[0, :2].isfinite().all() and y[0, 2].isnan()


def chain(producer: str, relu: str) -> str:
    return f"""
    layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 2 dim: 3 dim: 4 dim: 4 }} }} }}
    layer {{ name: "p" bottom: "x" top: "p" {producer} }}
    layer {{ name: "r" type: "ReLU" bottom: "p" top: "{relu}" }}
    layer {{ name: "o" type: "Sigmoid" bottom: "{relu}" top: "o" }}"""


PRODUCERS = [
    "type: 'Convolution' convolution_param { num_output: 2 kernel_size: 2 weight_filler { type: 'xavier' } }",
    "type: 'Deconvolution' convolution_param { num_output: 2 kernel_size: 2 weight_filler { type: 'xavier' } }",
    "type: 'InnerProduct' inner_product_param { num_output: 5 weight_filler { type: 'xavier' } }",
    "type: 'BatchNorm'",
    "type: 'Scale' scale_param { filler { type: 'gaussian' } }",
    "type: 'Sigmoid'",
    "type: 'TanH'",
    "type: 'Dropout'",
    "type: 'Pooling' pooling_param { kernel_size: 2 }",
    "type: 'LRN'",
    "type: 'Softmax'",
    "type: 'Flatten'",
    "type: 'Eltwise' bottom: 'x'",
    "type: 'Concat' bottom: 'x'",
]


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("producer", PRODUCERS, ids=[p.split("'")[1] for p in PRODUCERS])
def test_in_place_relu_has_the_gradients_of_one_that_is_not(producer: str, phase: str) -> None:
    """Overwriting memory that backward still needs, or the caller's input, would show here."""
    found = []
    for relu in ("p", "r"):
        net = load_net(chain(producer, relu), phase=phase, seed=3).double()
        x = noise(2, 3, 4, 4).requires_grad_()
        torch.manual_seed(5)
        out = net(x=x, blobs=[relu])
        (out["o"] * noise(*out["o"].shape, seed=1)).sum().backward()
        torch.testing.assert_close(x.detach(), noise(2, 3, 4, 4), rtol=0, atol=0)
        found.append([out[relu], out["o"], x.grad, *(p.grad for p in net.parameters())])
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(here, there, rtol=0, atol=0)


def test_dropout_in_test_phase_is_the_identity() -> None:
    x = noise(3, 4)
    assert torch.equal(apply("Dropout", "dropout_param { dropout_ratio: 0.9 }", x)[0], x)


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_dropout_scales_what_it_keeps(ratio: float) -> None:
    torch.manual_seed(0)
    net = layer_net("Dropout", f"dropout_param {{ dropout_ratio: {ratio} }}", (100, 100), phase="TRAIN")
    x = torch.ones(100, 100, requires_grad=True)
    (y,) = run(net, x)
    kept = y != 0
    assert kept.float().mean().item() == pytest.approx(1 - ratio, abs=0.02)
    torch.testing.assert_close(y[kept], torch.full((int(kept.sum()),), 1 / (1 - ratio)))
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert not torch.equal(run(net, x)[0] != 0, kept)
    assert torch.equal(run(net.eval(), x)[0], x)


@pytest.mark.parametrize("ratio", [1, -0.5, 1.5])
def test_bad_dropout_ratio(ratio: float) -> None:
    assert "expected 0 <= ratio < 1" in layer_error("Dropout", f"dropout_param {{ dropout_ratio: {ratio} }}", (2, 3))
