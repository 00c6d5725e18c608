"""Gradients where a derivative jumps: Caffe's values, whichever subgradient a version of torch or a device has."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from forcereg.net.load import load_net
from tests.layers.nets import layer_text

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]
INF = math.inf
Values = Sequence[float]


def gradients(device: str, kind: str, param: str, *bottoms: Tensor) -> list[list[float]]:
    """Each bottom's gradient of the top's sum, flat; empty where there is none."""
    net = load_net(layer_text(kind, param, *(x.shape for x in bottoms)), device=device, seed=0)
    given = [x.to(device).requires_grad_() for x in bottoms]
    net({f"x{i}": x for i, x in enumerate(given)})["y0"].sum().backward()
    return [[] if x.grad is None else x.grad.flatten().tolist() for x in given]


ELEMENTWISE = [
    ("ReLU", "", [-1, -0.0, 0, 2], [0, 0, 0, 1]),
    ("ReLU", "relu_param { negative_slope: 0.25 }", [-1, -0.0, 0, 2], [0.25, 0.25, 0.25, 1]),
    ("ReLU", "relu_param { negative_slope: -0.5 }", [-1, 0, 2], [-0.5, -0.5, 1]),
    ("PReLU", "prelu_param { filler { value: 0.5 } }", [-1, -0.0, 0, 2], [0.5, 0.5, 0.5, 1]),
    ("PReLU", "prelu_param { filler { value: -2 } channel_shared: true }", [-1, 0, 2], [-2, -2, 1]),
    ("ELU", "elu_param { alpha: 0.5 }", [-0.0, 0, 1e-30], [0.5, 0.5, 1]),
    ("AbsVal", "", [-1, -0.0, 0, 2], [-1, 0, 0, 1]),
    ("Clip", "clip_param { min: -2 max: 3 }", [-2.5, -2, 0, 3, 3.5], [0, 1, 1, 1, 0]),
    ("Clip", "clip_param { min: 0 max: 6 }", [-0.0, 0, 6, INF, -INF], [1, 1, 1, 0, 0]),
    ("Clip", "clip_param { min: 1 max: 1 }", [0, 1, 2], [0, 1, 0]),
    ("BNLL", "", [-INF, -200, 0, 49, 51, 1e30], [0, 0, 0.5, 1, 1, 1]),
    ("Sigmoid", "", [-INF, -1e4, 0, 1e4, INF], [0, 0, 0.25, 0, 0]),
    ("TanH", "", [-INF, 0, INF], [0, 1, 0]),
    ("Swish", "", [-1e4, 0, 1e4], [0, 0.5, 1]),
    ("Power", "power_param { power: 2 }", [-1, 0, 1], [-2, 0, 2]),
    ("Power", "power_param { power: 3 }", [-1, 0, 1], [3, 0, 3]),
    ("Power", "power_param { scale: 2 }", [0, INF], [2, 2]),
    ("Power", "power_param { power: 0 }", [0, INF, math.nan], [0, 0, 0]),
    ("Sparsify", "sparsify_param { thre: 0.5 coef: 0.25 }", [-2, -0.5, 0, 0.5, 2], [0.75, 0, 0, 0, 1.25]),
    ("Sparsify", "sparsify_param { coef: 0.25 }", [-2, -0.0, 0, 2], [0.75, 1, 1, 1.25]),
    ("SymmetricRectify", "symmetric_rectify_param { filler { value: 0.5 } }", [-2, -0.5, 0, 0.5, 2], [1, 0, 0, 0, 1]),
    ("SymmetricRectify", "", [-1, -0.0, 0, 1], [1, 0, 0, 1]),
    ("Reduction", "reduction_param { operation: ASUM coeff: 3 }", [-2, -0.0, 0, 2], [-3, 0, 0, 3]),
    ("Pooling", "pooling_param { kernel_h: 1 kernel_w: 4 }", [0, 2, 2, 2], [0, 1, 0, 0]),
    ("Pooling", "pooling_param { kernel_h: 1 kernel_w: 2 }", [1, 1, 1], [1, 1, 0]),
    ("Pooling", "pooling_param { kernel_h: 1 kernel_w: 3 stride: 2 }", [0, 0, 1, 0, 0], [0, 0, 2, 0, 0]),
    ("Pooling", "pooling_param { global_pooling: true }", [-3, -3], [1, 0]),
    ("SPP", "spp_param { pyramid_height: 1 }", [3, 3, 3], [1, 0, 0]),
]  # fmt: skip
"""Type, parameters, a bottom's values and their gradients."""


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("kind", "param", "x", "expected"), ELEMENTWISE)
def test_one_bottom(device: str, kind: str, param: str, x: Values, expected: Values) -> None:
    bottom = torch.tensor(x, dtype=torch.float32).reshape(1, 1, 1, -1)
    assert gradients(device, kind, param, bottom) == [expected]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kernel", [2, 3], ids=["apart", "overlapping"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_the_first_of_equal_maxima(device: str, kernel: int, layout: torch.memory_format) -> None:
    """In all planes at once, as kernels for many channels go about it."""
    x = torch.ones(2, 8, 5, 5).contiguous(memory_format=layout)
    (found,) = gradients(device, "Pooling", f"pooling_param {{ kernel_size: {kernel} stride: 2 }}", x)
    first = torch.zeros(5, 5)
    first[0 : 5 if kernel == 2 else 4 : 2, 0 : 5 if kernel == 2 else 4 : 2] = 1
    assert torch.equal(torch.tensor(found).reshape(2, 8, 5, 5), first.expand(2, 8, 5, 5))


NAN = math.nan
SEVERAL = [
    ("Eltwise", "eltwise_param { operation: MAX }", [[1, 2, 2], [2, 1, 2]], [[0, 1, 0], [1, 0, 1]]),
    ("Eltwise", "eltwise_param { operation: MAX }", [[1, 2, 2], [1, 1, 2], [1, 3, 2]], [[0] * 3, [1, 0, 1], [0, 1, 0]]),
    ("Eltwise", "eltwise_param { operation: MAX }", [[NAN, 1], [1, NAN]], [[0, 0], [1, 1]]),
    ("Eltwise", "eltwise_param { operation: PROD }", [[0, 0, 2], [0, 3, 0]], [[0, 3, 0], [0, 0, 2]]),
    ("HingeLoss", "", [[[-1, 1, -2]], [1]], [[0, 0, 0], []]),
    ("HingeLoss", "", [[[-1, 0.5, 0]], [1]], [[0, -1, 1], []]),
    ("HingeLoss", "hinge_loss_param { norm: L2 }", [[[-1, 1, 0]], [1]], [[0, 0, 2], []]),
    ("ContrastiveLoss", "contrastive_loss_param { margin: 5 }", [[[3, 4]], [[0, 0]], [0]], [[0, 0], [0, 0], []]),
    ("ContrastiveLoss", "contrastive_loss_param { margin: 5 }", [[[3, 4]], [[3, 4]], [0]], [[0, 0], [0, 0], []]),
    (
        "ContrastiveLoss", "contrastive_loss_param { margin: 25 legacy_version: true }",
        [[[3, 4]], [[0, 0]], [0]], [[0, 0], [0, 0], []],
    ),
    ("SoftmaxWithLoss", "", [[[0, 200]], [0]], [[-1, 1], []]),
    ("SigmoidCrossEntropyLoss", "", [[[-1e4, 0, 1e4]], [[1, 0.5, 0]]], [[-1, 0, 1], []]),
]  # fmt: skip
"""Type, parameters, the bottoms' values and their gradients."""


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("kind", "param", "bottoms", "expected"), SEVERAL)
def test_several_bottoms(device: str, kind: str, param: str, bottoms: list[Values], expected: list[Values]) -> None:
    found = gradients(device, kind, param, *(torch.tensor(x, dtype=torch.float32) for x in bottoms))
    assert found == expected


@pytest.mark.parametrize("device", DEVICES)
def test_the_log_of_a_probability_of_nothing(device: str) -> None:
    found, _ = gradients(device, "MultinomialLogisticLoss", "", torch.tensor([[0.0, 1.0]]), torch.tensor([0.0]))
    assert found == pytest.approx([-1e20, 0])


@pytest.mark.parametrize("device", DEVICES)
def test_a_rectified_chain_of_batch_norm(device: str) -> None:
    """What is computed as one has ReLU's gradient at 0, too."""
    net = load_net(
        """
        layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 3 dim: 1 dim: 1 dim: 1 } } }
        layer { name: "bn" type: "BatchNorm" bottom: "x" top: "bn" batch_norm_param { use_global_stats: true eps: 0 } }
        layer { name: "sc" type: "Scale" bottom: "bn" top: "sc" scale_param { bias_term: true } }
        layer { name: "re" type: "ReLU" bottom: "sc" top: "sc" }""",
        device=device,
        seed=0,
    )
    with torch.no_grad():
        for blob in net.params["bn"][1:]:
            blob.fill_(1)
    x = torch.tensor([-1.0, 0.0, 2.0], device=device).reshape(3, 1, 1, 1).requires_grad_()
    net(x=x)["sc"].sum().backward()
    assert x.grad is not None and x.grad.flatten().tolist() == [0, 0, 1]
    assert [blob.grad.item() for blob in net.parameters() if blob.grad is not None] == [2, 1]
