"""The direct sparse convolution's kernel for CUDA devices, in Triton, which comes with torch there."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 256
"""Output positions of one program."""
WARPS = 4


@triton.jit
def _tile(
    out: Any,
    x: Any,
    values: Any,
    offsets: Any,
    starts: Any,
    bias: Any,
    length: Any,
    row: Any,
    height: Any,
    width: Any,
    TILE: tl.constexpr,
) -> Any:
    """A tile of one filter's output plane of one image: a weight and its offset are read once for all positions."""
    filter, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    filters = tl.num_programs(1)
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    seen = x + image * length + at
    sums = tl.zeros((TILE,), out.dtype.element_ty) + tl.load(bias + filter)
    for j in range(tl.load(starts + filter), tl.load(starts + filter + 1)):
        sums += tl.load(values + j) * tl.load(seen + tl.load(offsets + j))
    # where padding is wide a row goes on into what lies behind it
    plane = out + (image * filters + filter) * height * width
    for over in range((width + row - 1) // row):
        y, column = at // row - over, at % row + over * row
        tl.store(plane + y * width + column, sums, mask=(y >= 0) & (y < height) & (column < width))


def run(out: Tensor, x: Tensor, values: Tensor, offsets: Tensor, starts: Tensor, bias: Tensor, *, row: int) -> None:
    """As `kernel.run`, of weights in one block; x reaches a TILE beyond the last offset."""
    images, filters, height, width = out.shape
    tiles = triton.cdiv((height - 1) * row + width, TILE)
    if out.numel():
        weights = (values, offsets, starts, bias)
        with torch.cuda.device_of(out):
            _tile[(tiles, filters, images)](out, x, *weights, x.shape[1], row, height, width, TILE, num_warps=WARPS)
