"""Group lasso beside any optimizer of torch.optim: filters and shapes of weights that become zero as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from forcereg.errors import UsageError
from forcereg.nn.kinds import CONVS, KINDS
from forcereg.nn.select import Layers, named_layers, picked
from forcereg.nn.wrapped import Touched, Wrapped, check_wrapped
from forcereg.solver.sparsity.blocks import LassoField, Term, block_norms, matrix_shape, misfit
from forcereg.solver.sparsity.zeroing import zero_below
from forcereg.system.arguments import checked, wrong


class GroupLasso(Wrapped[LassoField]):
    """An optimizer of torch.optim that also shrinks whole groups of weights until they are zero.

    optimizer, model, layers: as of `Force`; None: the convolutions. A weight is seen as a matrix of one row a filter.
    decay: what a step shortens each group by, times the learning rate, whatever its length. rows, columns: times that,
    for filters, and for one place in all filters of a kernel group; 0 for none. blocks: further ones, as (columns,
    rows, multiplier), which have to tile the weights. threshold: smaller values of these weights become 0 behind each
    step; 0 for none. Learning rate times the decays of a weight should be 2 * threshold at most, or groups swing around
    zero.

    The gradient is decay * w / |w_group|, 0 for a group of zeros (Wen et al., "Learning Structured Sparsity in Deep
    Neural Networks", NIPS 2016, section 3), added to gradients as they are at `step`; Adam and the like rescale it.
    Raises UsageError for wrong arguments, blocks that don't tile a weight, and if no layer is left; ForceregError for
    layers whose weight is computed from others.

    >>> import torch
    >>> conv = torch.nn.Conv2d(3, 8, 3)
    >>> optimizer = forcereg.nn.GroupLasso(torch.optim.SGD(conv.parameters(), lr=0.1), conv, decay=1e-3)
    >>> conv(torch.randn(2, 3, 8, 8)).square().mean().backward()
    >>> optimizer.step()
    >>> [float(share) for share in optimizer.sparsity["Conv2d"]]
    [0.0, 0.0]
    """

    KEPT = (*Wrapped.KEPT, "decay", "rows", "columns", "blocks", "threshold")
    _what = "group lasso"

    @checked
    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        decay: float = 1e-4,
        rows: float = 1.0,
        columns: float = 1.0,
        blocks: Sequence[tuple[int, int, float]] = (),
        layers: Layers | None = None,
        threshold: float = 1e-4,
    ) -> None:
        check_wrapped(optimizer)
        given = {"decay": decay, "rows": rows, "columns": columns, "threshold": threshold}
        for name, value in given.items():
            if not isfinite(value) or (name == "threshold" and value < 0):
                raise wrong(name, value, "a finite number")
        self.decay, self.rows, self.columns, self.threshold = decay, rows, columns, threshold
        self.blocks = [Term(*one) for one in blocks]
        super().__init__(optimizer, 1, picked(layers, named_layers(model, KINDS), CONVS))
        for one in self._layers:
            for x, y, _ in self.blocks:
                if problem := misfit(one.module.weight.shape, x, y):
                    raise UsageError(
                        f"layer '{one.name}': {problem}".replace("xdimen", "width").replace("ydimen", "height")
                    )

    def _terms(self, one: Touched) -> list[Term]:
        rows, columns = matrix_shape(one.module.weight.shape)
        own = [Term(columns, 1, self.rows), Term(1, rows // one.view[1], self.columns), *self.blocks]
        return [Term(x, y, mult * self.decay) for x, y, mult in own]

    def _made(self, mine: Sequence[Touched]) -> LassoField:
        return LassoField([one.module.weight for one in mine], [self._terms(one) for one in mine])

    def _add(self, field: LassoField, grads: Sequence[Tensor]) -> None:
        field.compute()
        field.add(grads)

    @torch.no_grad()
    def _behind(self) -> None:
        for one in self._mine(lambda weight: weight.requires_grad):
            zero_below(one.module.weight, self.threshold)

    @property
    def penalty(self) -> Tensor:
        """The sum of decay * |w_group| that the loss has more by it, 0-d."""
        terms = [(one.module.weight.detach(), term) for one in self._layers for term in self._terms(one)]
        return sum((decay * block_norms(weight, x, y).sum() for weight, (x, y, decay) in terms), torch.zeros(()))

    @property
    def sparsity(self) -> dict[str, tuple[float, float]]:
        """Layer -> the shares of its weight's rows and columns that are zero."""
        weights = {one.name: one.module.weight.detach().flatten(1) == 0 for one in self._layers}
        return {
            name: (float(zero.all(1).float().mean()), float(zero.all(0).float().mean()))
            for name, zero in weights.items()
        }

    def __repr__(self) -> str:
        return f"GroupLasso({self.decay:g}) of {self.optimizer!r}"
