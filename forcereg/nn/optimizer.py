"""Force regularization beside any optimizer of torch.optim."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from forcereg.errors import ForceregError, UsageError
from forcereg.nn.kinds import CONVS, KINDS, chains_of, groups_of, is_transposed, no_plain_weight
from forcereg.nn.select import Layers, bare, named_layers, picked
from forcereg.solver.force import ForceField, check_force
from forcereg.system.arguments import checked, wrong

STATE = "forcereg"
"""Where the state dict says how many steps were taken."""


class Forced(NamedTuple):
    """A layer that feels the force."""

    name: str
    module: Any

    @property
    def view(self) -> tuple[str, int]:
        """What is drawn together, in terms of the stored weight: a transposed convolution's filters lie on axis 1."""
        return "CHANNELS" if is_transposed(self.module) else "FILTERS", groups_of(self.module)


class Force(Optimizer):
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

    # GradScaler then unscales before `step`, whatever the wrapped one could do by itself
    _step_supports_amp_scaling = False

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
        # without Optimizer's own: what it would hold is the wrapped one's
        if not isinstance(optimizer, Optimizer):
            raise wrong("optimizer", optimizer, "an optimizer of torch.optim")
        if not isfinite(force_decay):
            raise wrong("force_decay", force_decay, "a finite number")
        check_force(force_type)
        self.optimizer, self.force_decay, self.force_type, self.every = optimizer, force_decay, force_type, every
        self._forced = _forced(model, layers)
        self._steps = 0
        self._field: tuple[Any, ForceField] | None = None
        if not self._mine(lambda weight: True):
            names = ", ".join(one.name for one in self._forced) or "none"
            raise UsageError(f"the optimizer has no weight of the layers that should feel the force ({names})")

    # -- what it adds

    def step(self, closure: Callable[[], Any] | None = None, *args: Any, **named: Any) -> Any:
        """The wrapped optimizer's step, with the force in the gradients; what it returns.

        With a closure the force is added each time behind it.
        """
        acts = self._steps % self.every == 0
        self._steps += 1
        if closure is None:
            if acts:
                self.add()
            return self.optimizer.step(*args, **named)
        return self.optimizer.step(self._behind(closure) if acts else closure, *args, **named)

    def _behind(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def forced() -> Any:
            loss = closure()
            self.add()
            return loss

        return forced

    @torch.no_grad()
    def add(self) -> None:
        """Add the force on the weights as they are now to their gradients; `step` does it."""
        mine = self._mine(lambda weight: weight.grad is not None and weight.requires_grad)
        weights = [one.module.weight for one in mine]
        if not weights:
            return
        # a weight may have been moved, cut or replaced since, or be without a gradient this time
        key = [(id(weight), weight.shape, weight.dtype, weight.device, weight.stride()) for weight in weights]
        if self._field is None or self._field[0] != key:
            factors = [self.force_decay * self.every] * len(weights)
            views = [one.view for one in mine]
            self._field = key, ForceField(weights, factors, self.force_type, views=views, apart=True)
        self._field[1].add_to([weight.grad for weight in weights])

    def _mine(self, wanted: Callable[[Tensor], bool]) -> list[Forced]:
        """The layers whose weights the optimizer has and that are wanted, each weight once."""
        owned = {id(weight) for group in self.param_groups for weight in group["params"]}
        found: dict[int, Forced] = {}
        for one in self._forced:
            weight = one.module.weight
            if id(weight) in owned and wanted(weight):
                if weight.grad is not None and weight.grad.layout != torch.strided:
                    raise ForceregError(f"layer '{one.name}': its gradient is sparse; leave it out by layers=")
                found.setdefault(id(weight), one)
        return list(found.values())

    # -- all else is the wrapped one's

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The wrapped optimizer's own."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        """The wrapped optimizer's own."""
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.optimizer.state = state

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The wrapped optimizer's."""
        self.optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """The wrapped optimizer's; layers of the model that are in it feel the force from then on."""
        self.optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's, which can load it, and how many steps were taken, for `every`."""
        return {**self.optimizer.state_dict(), STATE: {"steps": self._steps}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of this or of the wrapped optimizer."""
        own = dict(state_dict)
        self._steps = int(own.pop(STATE, {"steps": 0})["steps"])
        self.optimizer.load_state_dict(own)

    def __getattr__(self, name: str) -> Any:
        # not before `optimizer` is there: a copy begins empty
        if name == "optimizer":
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def __getstate__(self) -> dict[str, Any]:
        # buffers are made anew; what schedulers and hooks put on an optimizer refers to this one
        kept = ("optimizer", "force_decay", "force_type", "every", "_forced", "_steps")
        return {**{name: self.__dict__[name] for name in kept}, "_field": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        return f"Force({self.force_type}, {self.force_decay:g}, every {self.every}) of {self.optimizer!r}"


def _forced(model: nn.Module, layers: Layers | None) -> list[Forced]:
    """The layers that are meant. Raises ForceregError for one that has no plain weight."""
    known = named_layers(model, KINDS)
    found = picked(layers, known, CONVS)
    if layers is None:
        # a chain's ranks are chosen: further force would lower them
        parts = {id(part) for _, one in chains_of(bare(model)) for part in one}
        found = {name: one for name, one in found.items() if id(one) not in parts}
    for name, one in found.items():
        if problem := no_plain_weight(one):
            raise ForceregError(f"layer '{name}': {problem}, or leave the layer out by layers=")
    return [Forced(name, one) for name, one in found.items()]
