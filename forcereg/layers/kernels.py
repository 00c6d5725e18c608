"""Which of two kernels does the same work faster on a GPU: measured once for each kind of batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_CHOSEN: dict[object, bool] = {}
RUNS = 10


def prefers_cudnn(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> bool:
    """Whether cuDNN normalises batches like x in training, with `weight` and `bias`, faster than torch's own kernels.

    Both compute the same but for rounding: the biased variance + eps under the root, the unbiased one for the sums.
    Only measured where cuDNN may choose its own kernels by time (`torch.backends.cudnn.benchmark`), and not while a
    graph records, which has warm-up runs before it; else False.
    """
    if not x.is_cuda or weight is None or bias is None or not torch.backends.cudnn.benchmark:
        return False
    # what is chosen by time may be another one in the next run
    if torch.are_deterministic_algorithms_enabled():
        return False
    # by strides, too: channels_last has other kernels
    key = x.device, x.dtype, x.shape, x.stride()
    if key not in _CHOSEN:
        # nothing can be timed within a graph
        if torch.cuda.is_current_stream_capturing():
            return False
        _CHOSEN[key] = _is_faster(x, weight, bias, eps)
    return _CHOSEN[key]


def _is_faster(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> bool:
    own, cudnn = (_milliseconds(_training_pass(x, weight, bias, eps, on)) for on in (False, True))
    return cudnn < own


def _training_pass(x: Tensor, weight: Tensor, bias: Tensor, eps: float, cudnn: bool) -> Callable[[], object]:
    """A forward and backward of a normalisation of such blobs, which stay as they are."""
    leaves = [blob.detach().requires_grad_() for blob in (x, weight, bias)]
    mean, variance = (torch.zeros_like(weight) for _ in range(2))

    @torch.enable_grad()
    def work() -> object:
        y = torch.batch_norm(leaves[0], leaves[1], leaves[2], mean, variance, True, 1.0, eps, cudnn)
        # any gradient will do, and y is there
        return torch.autograd.grad(y, leaves, y.detach())

    return work


def _milliseconds(work: Callable[[], object]) -> float:
    """Of RUNS runs on the current GPU, behind a warm-up; infinity if it can't."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    try:
        for _ in range(3):
            work()
        start.record()
        for _ in range(RUNS):
            work()
        end.record()
        end.synchronize()
    except RuntimeError:  # cuDNN doesn't know the shape, or memory is short
        return math.inf
    return start.elapsed_time(end)
