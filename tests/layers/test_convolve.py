"""The CPU convolution that splits long sums against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from forcereg.layers.convolve import conv2d


def run(convolve, tensors: tuple[Tensor, Tensor, Tensor | None], geometry: tuple) -> list[Tensor]:
    """Output and gradients."""
    leaves = [None if t is None else t.clone().requires_grad_() for t in tensors]
    y = convolve(*leaves, *geometry)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return [y.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("channels", "geometry"),
    [
        pytest.param(20, ((1, 1), (0, 0), (1, 1), 1), id="lenet-conv2"),
        pytest.param(36, ((2, 1), (2, 1), (1, 2), 1), id="strided-padded-dilated"),
        pytest.param(21, ((1, 1), (2, 2), (1, 1), 1), id="odd-channels"),
        pytest.param(32, ((1, 1), (2, 2), (1, 1), 1), id="whole-blocks"),
        pytest.param(40, ((1, 1), (2, 2), (1, 1), 2), id="grouped"),
    ],
)
def test_equals_float64(channels: int, geometry: tuple, layout: torch.memory_format, bias: bool) -> None:
    draw = torch.Generator().manual_seed(channels)
    x = torch.randn(3, channels, 12, 11, generator=draw).contiguous(memory_format=layout)
    weight = torch.randn(14, channels // geometry[3], 5, 5, generator=draw).contiguous(memory_format=layout)
    tensors = (x, weight, torch.randn(14, generator=draw) if bias else None)
    found = run(conv2d, tensors, geometry)
    exact = run(F.conv2d, tuple(None if t is None else t.double() for t in tensors), geometry)
    for ours, right in zip(found, exact, strict=True):
        bound = 5e-6 * float(right.abs().max())  # one thread adds up a bias' gradient in one chain: 4.2e-6
        torch.testing.assert_close(ours.double(), right, rtol=0, atol=bound)


def test_two_halves_round_less() -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(8, 20, 12, 12, generator=draw), torch.randn(50, 20, 5, 5, generator=draw)
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    right = F.conv2d(x.double(), weight.double())
    geometry = ((1, 1), (0, 0), (1, 1), 1)
    split, plain = ((f(x, weight, None, *geometry).double() - right).norm() for f in (conv2d, F.conv2d))
    assert split <= plain


@pytest.mark.parametrize(
    ("kernel", "stride", "pad", "dilation", "size"),
    [
        ((2, 2), (5, 3), (1, 4), (2, 3), (6, 2)),
        ((5, 1), (5, 2), (1, 3), (1, 3), (4, 1)),
        ((3, 2), (2, 3), (2, 4), (1, 2), (3, 1)),
        ((2, 1), (3, 5), (6, 4), (3, 2), (3, 1)),
    ],
)
def test_kernels_in_the_padding_alone(kernel, stride, pad, dilation, size) -> None:
    """Of two images and channels_last: where torch 2.14's own conv2d ends the process, now and then."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, *size, generator=draw).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(5, 8, *kernel, generator=draw), torch.randn(5, generator=draw)
    for _ in range(100):
        y = conv2d(x, weight, bias, stride, pad, dilation, 1)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), stride, pad, dilation)
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=1e-4)
