"""What a layer's `param` entries say of its weights' sizes, for weights of other sizes (pure functions on messages)."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, TypeAlias

import numpy as np

Shape: TypeAlias = tuple[int, ...]


def refit(layer: Any, before: Mapping[int, np.ndarray], after: Mapping[int, np.ndarray]) -> list[str]:
    """Changes the entries to fit; says, a line each, what of them couldn't and is left out.

    Blocks of group lasso that were all columns or rows of the matrix, or one kernel, are that again.
    """
    remarks = []
    for at, param in enumerate(layer.param):
        if at not in before or at not in after or before[at].shape == after[at].shape:
            continue
        blocks = [(one, _block(one, before[at].shape, after[at].shape)) for one in param.block_group_lasso]
        for one, size in blocks:
            if size is None:
                remarks.append(
                    f"{layer.name}: blocks of {one.ydimen}x{one.xdimen} don't tile its {list(after[at].shape)} "
                    "any more; its block_group_lasso is left out"
                )
            else:
                one.xdimen, one.ydimen = size
        kept = [one for one, size in blocks if size is not None]
        if len(kept) < len(blocks):
            copies = [type(one).FromString(one.SerializeToString()) for one in kept]
            param.ClearField("block_group_lasso")
            param.block_group_lasso.extend(copies)
        if param.decay_proto:
            remarks.append(f"{layer.name}: decay_proto {param.decay_proto} is of another shape now, and is left out")
            param.ClearField("decay_proto")
    return remarks


def _block(block: Any, before: Shape, after: Shape) -> tuple[int, int] | None:
    """Columns and rows of a block of the new matrix; None where they don't tile it."""
    columns = {prod(before[1:]): prod(after[1:]), prod(before[2:]): prod(after[2:])}
    width = columns.get(block.xdimen, block.xdimen)
    height = after[0] if block.ydimen == before[0] else block.ydimen
    return None if prod(after[1:]) % width or after[0] % height else (width, height)
