"""An optimizer of torch.optim, wrapped so that gradients get something more at each step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from forcereg.errors import ForceregError, UsageError
from forcereg.nn.kinds import groups_of, is_transposed, no_plain_weight
from forcereg.system.arguments import wrong

STATE = "forcereg"
"""Where the state dict says how many steps were taken."""
F = TypeVar("F")


class Touched(NamedTuple):
    """A layer whose weight's gradient gets more."""

    name: str
    module: Any

    @property
    def view(self) -> tuple[str, int]:
        """Where filters lie in the stored weight: a transposed convolution's on axis 1; and its groups."""
        return "CHANNELS" if is_transposed(self.module) else "FILTERS", groups_of(self.module)


class Wrapped(Optimizer, ABC, Generic[F]):
    """`optimizer`, whose steps also add what `_made` gives for the weights of `layers`, every so manieth step.

    It is the wrapped one otherwise: schedulers, GradScaler and hooks take this object in its place, everywhere.
    Raises UsageError if the optimizer has no weight of the layers, ForceregError for a layer whose weight is computed
    from others.
    """

    # GradScaler then unscales before `step`, whatever the wrapped one could do by itself
    _step_supports_amp_scaling = False
    KEPT: tuple[str, ...] = ("optimizer", "every", "_layers", "_steps")
    """What a copy keeps; buffers are made anew, what schedulers and hooks put on an optimizer refers to this one."""

    def __init__(self, optimizer: Optimizer, every: int, layers: dict[str, nn.Module]) -> None:
        # without Optimizer's own: what it would hold is the wrapped one's
        for name, one in layers.items():
            if problem := no_plain_weight(one):
                raise ForceregError(f"layer '{name}': {problem}, or leave the layer out by layers=")
        self.optimizer, self.every = optimizer, every
        self._layers = [Touched(name, one) for name, one in layers.items()]
        self._steps = 0
        self._field: tuple[Any, F] | None = None
        if not self._mine(lambda weight: True):
            names = ", ".join(layers) or "none"
            raise UsageError(f"the optimizer has no weight of the layers that should feel {self._what} ({names})")

    _what = "it"
    """What its layers feel, in errors."""

    # -- what it adds

    @abstractmethod
    def _made(self, mine: Sequence[Touched]) -> F:
        """What adds to gradients, for these layers, in memory of its own."""

    @abstractmethod
    def _add(self, field: F, grads: Sequence[Tensor]) -> None:
        """Adds it, on the weights as they are now."""

    def _behind(self) -> None:
        """Behind each step."""

    def step(self, closure: Callable[[], Any] | None = None, *args: Any, **named: Any) -> Any:
        """The wrapped optimizer's step, with more in the gradients; what it returns.

        With a closure it is added each time behind it.
        """
        acts = self._steps % self.every == 0
        self._steps += 1
        if closure is None:
            if acts:
                self.add()
            result = self.optimizer.step(*args, **named)
        else:
            result = self.optimizer.step(self._behind_closure(closure) if acts else closure, *args, **named)
        self._behind()
        return result

    def _behind_closure(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def more() -> Any:
            loss = closure()
            self.add()
            return loss

        return more

    @torch.no_grad()
    def add(self) -> None:
        """Add it, on the weights as they are now, to their gradients; `step` does it."""
        mine = self._mine(lambda weight: weight.grad is not None and weight.requires_grad)
        weights = [one.module.weight for one in mine]
        if not weights:
            return
        # a weight may have been moved, cut or replaced since, or be without a gradient this time
        key = [(id(weight), weight.shape, weight.dtype, weight.device, weight.stride()) for weight in weights]
        if self._field is None or self._field[0] != key:
            self._field = key, self._made(mine)
        self._add(self._field[1], [weight.grad for weight in weights])

    def _mine(self, wanted: Callable[[Tensor], bool]) -> list[Touched]:
        """The layers whose weights the optimizer has and that are wanted, each weight once."""
        owned = {id(weight) for group in self.param_groups for weight in group["params"]}
        found: dict[int, Touched] = {}
        for one in self._layers:
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
        """The wrapped optimizer's; layers of the model that are in it feel it from then on."""
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
        return {**{name: self.__dict__[name] for name in self.KEPT}, "_field": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def check_wrapped(optimizer: Any) -> None:
    """Raises UsageError for what is no optimizer."""
    if not isinstance(optimizer, Optimizer):
        raise wrong("optimizer", optimizer, "an optimizer of torch.optim")
