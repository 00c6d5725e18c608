"""Force regularization beside any optimizer of torch.optim."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from torch import Tensor, nn
from torch.optim import Optimizer

from forcereg.nn.kinds import CONVS, KINDS, chains_of
from forcereg.nn.select import Layers, bare, named_layers, picked
from forcereg.nn.wrapped import Touched, Wrapped, check_wrapped
from forcereg.solver.force import ForceField, check_force
from forcereg.system.arguments import checked, wrong


class Force(Wrapped[ForceField]):
    """An optimizer of torch.optim that also adds the force to gradients, once a step, and is the wrapped one otherwise.

    optimizer: any, SGD, Adam, LBFGS, fused or foreach. model: whose layers feel the force, also inside
    DistributedDataParallel or torch.compile. layers: names or patterns (layer1.*), classes, or a function of a name and
    a module, among Conv1d to 3d, ConvTranspose1d to 3d and Linear; None: the convolutions, but for the chains of
    `decompose`. force_decay, force_type: as in a solver prototxt (Wen et al., ICCV 2017, section 3); groups of a
    convolution are drawn together each alone. every: the force acts in every so manieth step, so many times as strong
    (lazy regularization, Karras et al., CVPR 2020, section 2.2).

    The force is added to gradients as they are at `step`, after accumulation, unscaling and clipping; the optimizer's
    own weight decay stays what it is. A weight without a gradient, or that the
    wrapped optimizer doesn't have, feels none; one shared by several modules feels it once. Learning rate schedulers,
    GradScaler and hooks take this object in the wrapped one's place, everywhere.

    Raises UsageError for wrong arguments and if no layer is left to feel it, ForceregError for layers whose weight is
    computed from others.

    >>> import torch
    >>> conv = torch.nn.Conv2d(3, 8, 3)
    >>> optimizer = forcereg.nn.Force(torch.optim.SGD(conv.parameters(), lr=0.1), conv, force_decay=0.01)
    >>> conv(torch.randn(2, 3, 8, 8)).square().mean().backward()
    >>> optimizer.step()
    >>> optimizer.param_groups[0]["lr"]
    0.1
    """

    KEPT = (*Wrapped.KEPT, "force_decay", "force_type")
    _what = "the force"

    @checked
    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        force_decay: float = 1e-4,
        force_type: str = "Degradation",
        layers: Layers | None = None,
        every: int = 1,
    ) -> None:
        check_wrapped(optimizer)
        if not isfinite(force_decay):
            raise wrong("force_decay", force_decay, "a finite number")
        check_force(force_type)
        self.force_decay, self.force_type = force_decay, force_type
        super().__init__(optimizer, every, _forced(model, layers))

    def _made(self, mine: Sequence[Touched]) -> ForceField:
        factors = [self.force_decay * self.every] * len(mine)
        views = [one.view for one in mine]
        return ForceField([one.module.weight for one in mine], factors, self.force_type, views=views, apart=True)

    def _add(self, field: ForceField, grads: Sequence[Tensor]) -> None:
        field.add_to(list(grads))

    def __repr__(self) -> str:
        return f"Force({self.force_type}, {self.force_decay:g}, every {self.every}) of {self.optimizer!r}"


def _forced(model: nn.Module, layers: Layers | None) -> dict[str, nn.Module]:
    """The layers that are meant."""
    known = named_layers(model, KINDS)
    found = picked(layers, known, CONVS)
    if layers is None:
        # a chain's ranks are chosen: further force would lower them
        parts = {id(part) for _, one in chains_of(bare(model)) for part in one}
        found = {name: one for name, one in found.items() if id(one) not in parts}
    return found
