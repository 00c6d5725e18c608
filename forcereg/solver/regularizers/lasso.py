"""Group lasso as a regularizer: blocks of weights that shrink by as much whatever their length, and so reach zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.net.module import Learnable, Net
from forcereg.registry import regularizer
from forcereg.solver.ondevice import Beside
from forcereg.solver.regularizers.base import Regularizer
from forcereg.solver.regularizers.decay import check_regularization
from forcereg.solver.sparsity.asked import terms_of
from forcereg.solver.sparsity.blocks import LassoField, misfit

LASSO = "lasso"


@regularizer(LASSO)
class Lasso(Regularizer):
    """block_group_lasso, breadth_decay (rows) and kernel_shape_decay (columns of each kernel group), which add up."""

    def __init__(self, learning: Sequence[Learnable], p: Any, device: torch.device) -> None:
        super().__init__(learning, p, device)
        terms = [[term for term in terms_of(one, p) if term.decay] for one in learning]
        self.touched = [place for place, own in enumerate(terms) if own]
        weights = [learning[place].blob for place in self.touched]
        self._field = LassoField(weights, [terms[place] for place in self.touched])
        self._beside = Beside(device)

    @staticmethod
    def check(p: Any, name: str) -> None:
        """See Regularizer; of all fields of structured sparsity."""
        for field in ("prune_threshold", "measure_threshold"):
            if getattr(p, field) < 0:
                raise ForceregError(f"{name}: {field} is {getattr(p, field):g}; expected >= 0")

    def begin(self) -> None:
        """Starts on the norms, beside the passes."""
        self._beside.start(self._field.compute)

    def add(self, grads: Sequence[Tensor]) -> None:
        """See Regularizer."""
        if not self._beside.join():
            self._field.compute()
        self._field.add([grads[place] for place in self.touched])


def check_fit(net: Net, p: Any) -> None:
    """Raises ForceregError for blobs that can't be regularized as they ask: block sizes, types of their own decay."""
    specs = {spec.name: spec for spec in net.spec.layers}
    for one in net.learnable:
        spec, where = specs[one.layer], f"param {one.index}"
        for x, y, mult in one.sparse.blocks:
            problem = misfit(one.blob.shape, x, y) if one.blob.dim() else "needs axes, which this blob hasn't"
            # as in the branch: also where displays count such blocks
            if problem and (p.block_group_decay * mult or p.display or not (x and y)):
                raise spec.fail(f"{where}: block_group_lasso {problem}")
        if one.sparse.regularization_type and p.weight_decay * one.decay_mult:
            check_regularization(one.sparse.regularization_type, f"{spec.where}: {where}")
