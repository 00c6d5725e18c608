"""2-D convolution on the CPU: channels_last, with long sums in two halves so that rounding stays near Caffe's."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LONG_SUM = 256
"""Products per output value above which a forward sum is worth splitting."""

BLOCK = 16
"""Channels of one of oneDNN's blocks. Two halves cost nothing where the channels don't fill whole blocks (LeNet's
20); where they do, the forward pass would take 15 to 75 % longer (cifar10_full, ResNet-20), so there they don't split.
"""


class TwoHalves(torch.autograd.Function):
    """conv2d that adds the two halves of its channels separately; the backward pass is the usual one.

    oneDNN's channels_last kernel adds all channels*kh*kw products in one float32 chain, whose rounding error
    (4.0e-7 rms for LeNet's conv2) is well above that of Caffe's matrix products (2.4e-7): enough to decide
    near-ties of MAX pooling differently. Two halves bring it to 2.8e-7 at next to no cost.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, pad: Any, dilation: Any
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.has_bias = (stride, pad, dilation), bias is not None
        # as two groups of one convolution: no copies of x, and oneDNN is as fast as with one
        count, half = weight.shape[0], x.shape[1] // 2
        halves = torch.cat((weight[:, :half], weight[:, half:]))
        biases = None if bias is None else F.pad(bias, (0, count))
        y = F.conv2d(x, halves, biases, stride, pad, dilation, 2)
        return y[:, :count] + y[:, count:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, pad, dilation = ctx.geometry
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.has_bias and ctx.needs_input_grad[2]]
        grads = torch.ops.aten.convolution_backward(
            grad, x, weight, [weight.shape[0]], stride, pad, dilation, False, [0, 0], 1, wanted
        )
        return *(value if want else None for value, want in zip(grads, wanted, strict=True)), None, None, None


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, pad: Any, dilation: Any, group: int) -> Tensor:
    """torch's conv2d; on the CPU in float32 with long sums in two halves where that costs nothing."""
    channels = weight.shape[1]
    split = weight[0].numel() > LONG_SUM and channels % 2 == 0 and channels % BLOCK != 0
    if split and group == 1 and x.device.type == "cpu" and x.dtype == torch.float32:
        return TwoHalves.apply(x, weight, bias, stride, pad, dilation)
    return F.conv2d(x, weight, bias, stride, pad, dilation, group)
