"""What is zero in a net's blobs, and what regularization adds to the loss: the lines of the SSL branch's displays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from forcereg.net.module import Learnable
from forcereg.solver.sparsity.asked import kind_of, terms_of
from forcereg.solver.sparsity.blocks import block_norms, matrix_shape, tiled


def element(weight: Tensor, threshold: float) -> Tensor:
    """Percent of |w| < threshold, 0-d."""
    return _percent(weight.abs() < threshold)


def block(weight: Tensor, x: int, y: int) -> Tensor:
    """Percent of blocks of `x` columns and `y` rows that are exactly zero, 0-d; kernel groups aren't looked at."""
    view, inside = tiled((weight == 0)[None], x, y)
    # one axis after the other: older versions of torch take no several
    for axis in inside:
        view = view.all(axis, keepdim=True)
    return _percent(view)


def _percent(found: Tensor) -> Tensor:
    return found.double().mean() * 100


def penalty(one: Learnable, p: Any, individual: Tensor | None = None) -> Tensor:
    """What a blob's weight decay and group lasso add to the loss, 0-d, float64."""
    weight = one.blob.detach().double()
    local = p.weight_decay * one.decay_mult
    share = weight if individual is None else weight * individual
    decayed = share.mul(weight).sum() / 2 if kind_of(one, p) == "L2" else share.abs().sum()
    term = decayed * local
    for x, y, decay in terms_of(one, p):
        if decay:
            term = term + decay * block_norms(weight, x, y).sum()
    return term


@torch.no_grad()
def told(
    learnable: Sequence[Learnable], p: Any, individual: Mapping[str, Tensor]
) -> tuple[list[dict[str, Any]], float]:
    """Of each blob layer, index, percent of zeros by element, column, row and block; and the regularization term.

    Reads the device once.
    """
    values = [sum((penalty(one, p, individual.get(f"{one.layer}/{one.index}")) for one in learnable), torch.zeros(()))]
    for one in learnable:
        weight = one.blob.detach()
        rows, columns = matrix_shape(weight.shape) if weight.dim() else (1, 1)
        weight = weight if weight.dim() else weight[None]
        values += [element(weight, p.measure_threshold), block(weight, 1, rows), block(weight, columns, 1)]
        values += [block(weight, x, y) for x, y, _ in one.sparse.blocks]
    term, *percents = torch.stack([value.double() for value in values]).tolist()
    read = iter(percents)
    return [
        {
            "layer": one.layer,
            "index": one.index,
            **{kind: next(read) for kind in ("element", "column", "row")},
            "blocks": [{"x": x, "y": y, "percent": next(read)} for x, y, _ in one.sparse.blocks],
        }
        for one in learnable
    ], term
