"""What a model costs, and what ranks its layers need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from forcereg.errors import check_share
from forcereg.nn.cut import nothing
from forcereg.nn.prepare import Asked, copied, prepare
from forcereg.nn.select import Layers
from forcereg.nn.trace import trace
from forcereg.report.ranks import RankTable, rank_table
from forcereg.system.arguments import checked

ERRORS = (0.01, 0.05, 0.1, 0.2)


@checked
def macs(model: nn.Module, example: Any) -> int:
    """Multiply-accumulates of one run on the example, in the test phase: of all products, attention and LSTM too.

    example: as for `decompose`. Raises ForceregError if the model doesn't run on it.

    >>> import torch
    >>> forcereg.nn.macs(torch.nn.Conv2d(3, 8, 3), torch.randn(1, 3, 8, 8))  # 6 x 6 positions
    7776
    """
    return trace(copied(model), example, {}).macs


@checked
def ranks(
    model: nn.Module,
    example: Any,
    *,
    error: Sequence[float] = ERRORS,
    method: str = "pca",
    layers: Layers | None = None,
    fc: bool = False,
    fold_bn: bool = False,
    multiple: int = 1,
    seed: int = 0,
) -> RankTable:
    """The cheapest rank of every layer whose relative squared error is at most each of `error`, numbers from 0 to 1.

    The rest as for `decompose`, which raises the same. `ranks` of what it returns has a tuple a layer; `report()` is
    plain data, with the largest rank at which a chain is cheaper than its layer, and the whole model's cost.

    >>> import torch
    >>> conv = torch.nn.Conv2d(3, 16, 3)
    >>> forcereg.nn.ranks(conv, torch.randn(1, 3, 8, 8), error=[0, 1]).ranks
    ((16, 1),)
    """
    for bound in error:
        check_share("the error bound", bound)
    ready = prepare(model, example, Asked(method, layers, fc, multiple, seed, fold_bn))
    if not ready.candidates:
        raise nothing(ready.skipped)
    return rank_table(ready.candidates, error, ready.whole)
