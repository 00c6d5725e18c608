"""Elementwise layers without blobs."""

from __future__ import annotations

import math

import pytest
import torch

from forcereg.net.load import load_net
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
        ("AbsVal", "", lambda x: (x * x).sqrt()),
        ("BNLL", "", lambda x: (1 + x.exp()).log()),
        ("ELU", "", lambda x: torch.where(x > 0, x, x.exp() - 1)),
        ("ELU", "elu_param { alpha: 0.25 }", lambda x: torch.where(x > 0, x, 0.25 * (x.exp() - 1))),
        ("ELU", "elu_param { alpha: -0.5 }", lambda x: torch.where(x > 0, x, -0.5 * (x.exp() - 1))),
        ("Exp", "", lambda x: x.exp()),
        ("Exp", "exp_param { base: 2 scale: 0.5 shift: -0.25 }", lambda x: 2 ** (0.5 * x - 0.25)),
        ("Exp", "exp_param { base: 0.5 }", lambda x: 0.5**x),
        ("Exp", "exp_param { base: 1 shift: 3 }", lambda x: 0 * x + 1),
        ("Exp", "exp_param { shift: 0.5 }", lambda x: math.e ** (0.5 + x)),
        ("Log", "log_param { scale: 0.5 shift: 4 }", lambda x: (4 + 0.5 * x).log()),
        ("Log", "log_param { base: 10 scale: -1 shift: 4 }", lambda x: (4 - x).log10()),
        ("Log", "log_param { base: 0.5 shift: 4 }", lambda x: -(4 + x).log2()),
        ("Power", "", lambda x: x),
        ("Power", "power_param { power: 2 }", lambda x: x * x),
        ("Power", "power_param { power: 3 scale: -2 }", lambda x: (-2 * x) * (-2 * x) * (-2 * x)),
        ("Power", "power_param { power: 0.5 scale: 0.5 shift: 4 }", lambda x: (4 + 0.5 * x).sqrt()),
        ("Power", "power_param { power: -1 shift: 4 }", lambda x: 1 / (4 + x)),
        ("Power", "power_param { scale: 0.5 shift: 4 }", lambda x: 4 + 0.5 * x),
        ("Swish", "", lambda x: x / (1 + (-x).exp())),
        ("Swish", "swish_param { beta: -0.5 }", lambda x: x / (1 + (0.5 * x).exp())),
        ("Swish", "swish_param { beta: 0 }", lambda x: x / 2),
        ("Clip", "clip_param { min: -0.25 max: 0.75 }", lambda x: x.maximum(x * 0 - 0.25).minimum(x * 0 + 0.75)),
    ],
)
def test_values_and_gradients(kind: str, param: str, function) -> None:
    x = noise(3, 4, 2)
    net = layer_net(kind, param, (3, 4, 2))
    torch.testing.assert_close(run(net.double(), x)[0], function(x))
    for kink in (0, -0.25, 0.75):
        assert (x - kink).abs().min() > 1e-3
    assert gradcheck(net, x.requires_grad_())


CLIP = "clip_param { min: -2 max: 3 }"


@pytest.mark.parametrize(
    ("kind", "param"),
    [(kind, "") for kind in ("ReLU", "Sigmoid", "TanH", "AbsVal", "BNLL", "ELU", "Swish", "Power")] + [("Clip", CLIP)],
)
def test_extremes_and_nan(kind: str, param: str) -> None:
    x = torch.tensor([[-1e30, 1e30, math.nan]], requires_grad=True)
    (y,) = apply(kind, param, x)
    assert y[0, :2].isfinite().all() and y[0, 2].isnan()
    y[0, :2].sum().backward()
    assert x.grad.isfinite()[0, :2].all()


@pytest.mark.parametrize(
    ("kind", "param", "x", "slopes"),
    [
        ("AbsVal", "", [-1.0, -0.0, 0.0, 2.0], [-1, 0, 0, 1]),
        ("ELU", "elu_param { alpha: 0.5 }", [0.0], [0.5]),
        ("Clip", CLIP, [-2.1, -2.0, 0.0, 3.0, 3.1], [0, 1, 1, 1, 0]),
        ("Clip", "clip_param { min: 1 max: 1 }", [0.0, 1.0, 2.0], [0, 1, 0]),
        ("BNLL", "", [-200.0, 49.0, 51.0, 1e5], [0, 1, 1, 1]),
        ("Power", "power_param { power: 2 }", [0.0], [0]),
        ("Power", "power_param { power: 3 }", [0.0], [0]),
        ("Power", "power_param { scale: -2 shift: 2 }", [1.0], [-2]),
    ],
)
def test_gradient_at_kinks_and_special_points(kind: str, param: str, x: list[float], slopes: list[float]) -> None:
    at = torch.tensor([x], requires_grad=True)
    apply(kind, param, at)[0].sum().backward()
    torch.testing.assert_close(at.grad, torch.tensor([slopes]).float())


def test_bnll_does_not_overflow() -> None:
    x = torch.tensor([[-1000.0, -30.0, 0.0, 30.0, 88.0, 1000.0]])
    expected = torch.tensor([[0, math.log1p(math.exp(-30)), math.log(2), 30, 88, 1000]])
    torch.testing.assert_close(apply("BNLL", "", x)[0], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("power: 0", 1.0),
        ("power: 0 scale: 3 shift: -2", 1.0),
        ("scale: 0", 0.0),
        ("scale: 0 shift: 2 power: 3", 8.0),
        ("scale: 0 shift: -2 power: 0.5", math.nan),
        ("scale: 0 power: 0", 1.0),
    ],
)
def test_power_of_nothing_is_a_constant(param: str, value: float) -> None:
    x = torch.tensor([[-1.0, 0.0, math.nan, math.inf]], requires_grad=True)
    (y,) = apply("Power", f"power_param {{ {param} }}", x)
    torch.testing.assert_close(y, torch.full_like(x, value), equal_nan=True)
    y.sum().backward()  # Caffe writes a gradient, of zeros
    assert x.grad.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize(("param", "threshold"), [("", 0.0), ("threshold_param { threshold: -0.5 }", -0.5)])
def test_threshold(param: str, threshold: float) -> None:
    x = torch.tensor([threshold - 1e-3, threshold, threshold + 1e-3, math.nan], requires_grad=True)
    (y,) = apply("Threshold", param, x)
    assert y.tolist() == [0, 0, 1, 0] and y.dtype == x.dtype and not y.requires_grad


@pytest.mark.parametrize("kind", ["AbsVal", "BNLL", "ELU", "Exp", "Log", "Power", "Swish", "Threshold"])
@pytest.mark.parametrize("shape", [(), (5,), (2, 1, 3, 1, 2)], ids=str)
def test_any_number_of_axes(kind: str, shape: tuple[int, ...]) -> None:
    x = noise(*shape).abs().float()
    (y,) = apply(kind, "", x)
    assert y.shape == x.shape and y.dtype == x.dtype
    torch.testing.assert_close(y.reshape(-1, 1), apply(kind, "", x.reshape(-1, 1))[0])


@pytest.mark.parametrize(
    ("kind", "param", "message"),
    [
        ("Exp", "exp_param { base: 0 }", "base is 0; expected a positive number, or -1 for e"),
        ("Exp", "exp_param { base: -2 }", "base is -2; expected a positive number, or -1 for e"),
        ("Exp", "exp_param { base: nan }", "base is nan; expected a positive number"),
        ("Log", "log_param { base: -0.5 }", "base is -0.5; expected a positive number, or -1 for e"),
        ("Log", "log_param { base: 1 }", "base is 1, to which there is no logarithm"),
        ("Log", "log_param { base: inf }", "base is inf; expected a positive number"),
        ("Clip", "", "clip_param lacks min and max; set for example clip_param { min: 0 max: 6 }"),
        ("Clip", "clip_param { min: 1 }", "clip_param lacks max; set"),
        ("Clip", "clip_param { min: 2 max: 1 }", "clip_param has min 2 and max 1; expected min <= max"),
        ("Clip", "clip_param { min: nan max: 1 }", "expected min <= max"),
    ],
)
def test_bad_parameters(kind: str, param: str, message: str) -> None:
    assert message in layer_error(kind, param, (2, 3))


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
    "type: 'AbsVal'",
    "type: 'BNLL'",
    "type: 'Clip' clip_param { min: -1 max: 1 }",
    "type: 'ELU'",
    "type: 'Exp'",
    "type: 'Power'",
    "type: 'PReLU'",
    "type: 'Sparsify' sparsify_param { coef: 0.1 }",
    "type: 'Swish'",
    "type: 'SymmetricRectify' symmetric_rectify_param { filler { value: 0.2 } thre_decay: 0.1 }",
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


@pytest.mark.parametrize("ratio", [0, 0.25, 0.5])
def test_dropout_that_scales_in_testing(ratio: float) -> None:
    torch.manual_seed(0)
    param = f"dropout_param {{ dropout_ratio: {ratio} scale_train: false }}"
    net = layer_net("Dropout", param, (100, 100), phase="TRAIN")
    x = noise(100, 100).float().requires_grad_()
    (y,) = run(net, x)
    kept = y != 0
    assert kept.float().mean().item() == pytest.approx(1 - ratio, abs=0.02)
    assert torch.equal(y[kept], x[kept])
    y.sum().backward()
    assert torch.equal(x.grad, kept.float())
    torch.testing.assert_close(run(net.eval(), x)[0], x * (1 - ratio), rtol=0, atol=0)


def test_dropout_scales_in_training_unless_told_otherwise() -> None:
    x = noise(3, 4)
    for fields in ("", "scale_train: true"):
        assert torch.equal(apply("Dropout", f"dropout_param {{ {fields} }}", x)[0], x)


@pytest.mark.parametrize("ratio", [1, -0.5, 1.5])
def test_bad_dropout_ratio(ratio: float) -> None:
    assert "expected 0 <= ratio < 1" in layer_error("Dropout", f"dropout_param {{ dropout_ratio: {ratio} }}", (2, 3))
