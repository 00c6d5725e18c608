"""2-D convolution on the CPU in the layouts that are fastest and follow Caffe's rounding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 16
"""Channels that oneDNN's blocked kernels sum at a time."""


def wants_blocked_forward(x: Tensor, channels: int) -> bool:
    """Whether the forward pass should use the blocked kernel although data is channels_last.

    oneDNN's channels_last kernel adds all channels*kh*kw products in one float32 chain, the blocked one
    starts anew every 16 channels: about a third less rounding error. Where the channels don't fill whole
    blocks, channels_last gains least in the forward pass, and there (LeNet's conv2) its longer chain flips
    near-ties of MAX pooling against Caffe's recorded run.
    """
    return x.device.type == "cpu" and channels > BLOCK and channels % BLOCK != 0


class BlockedForward(torch.autograd.Function):
    """conv2d whose forward runs on contiguous copies and whose backward runs in channels_last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.has_bias = geometry, bias is not None
        y = F.conv2d(x.contiguous(), weight.contiguous(), bias, *geometry)
        return y.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, pad, dilation, group = ctx.geometry
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.has_bias and ctx.needs_input_grad[2]]
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad, x, weight, [weight.shape[0]], stride, pad, dilation, False, [0, 0], group, wanted
        )
        return grad_x, grad_weight, grad_bias, None


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    """torch's conv2d (`geometry`: stride, pad, dilation, groups) by the kernels chosen above."""
    if wants_blocked_forward(x, weight.shape[1]) and x.dtype == torch.float32:
        if torch.is_grad_enabled():
            return BlockedForward.apply(x, weight, bias, geometry)
        return F.conv2d(x.contiguous(), weight.contiguous(), bias, *geometry).contiguous(
            memory_format=torch.channels_last
        )
    return F.conv2d(x, weight, bias, *geometry)
