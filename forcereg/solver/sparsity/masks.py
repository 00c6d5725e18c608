"""Masks: which values of which weights an update may change (the SSL branch's connectivity_mode, and a caller's own).

A mask multiplies the update just before it is subtracted; history and clipping know nothing of it. The branch makes
masks from binary models only, and anew at each resume; here weights of every format make them, and solver states
hold them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from forcereg.errors import ForceregError, did_you_mean
from forcereg.net.module import Net
from forcereg.solver.sparsity.asked import MASKED, mode_of
from forcereg.solver.sparsity.zeroing import zero_below


def elementwise(weight: Tensor) -> Tensor:
    """DISCONNECTED_ELTWISE: True where a value isn't 0."""
    return weight != 0


def groupwise(weight: Tensor, groups: int = 1) -> Tensor:
    """DISCONNECTED_GRPWISE: False in rows and columns of N x K, of each kernel group, that are all 0.

    >>> groupwise(torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.0, 0.0]])).int()
    tensor([[0, 0, 0],
            [0, 1, 0]], dtype=torch.int32)
    """
    zero = (weight == 0).reshape(groups, weight.shape[0] // groups, -1)
    dead = zero.all(1, keepdim=True) | zero.all(2, keepdim=True)
    return dead.logical_not().reshape(weight.shape)


class Loaded(NamedTuple):
    """A layer whose weights were loaded: its connectivity_mode ('': none), and the share of zeros among them."""

    layer: str
    mode: str
    share: float


def made(net: Net, loaded: Collection[str], threshold: float) -> dict[str, Tensor]:
    """The masks by "layer/0" of each loaded layer with a mode: the branch's, behind zeroing what is below `threshold`.

    Weights that layers share get the last one's.
    """
    found = {}
    for layer, mode, owner in _places(net, loaded):
        if mode:
            weight = zero_below(net.params[layer][0].detach(), threshold)
            groups = getattr(net.module(layer), "group", 1)
            found[owner] = elementwise(weight) if mode == "DISCONNECTED_ELTWISE" else groupwise(weight, groups)
    return found


def loaded_layers(net: Net, loaded: Collection[str], threshold: float) -> list[Loaded]:
    """What the branch prints of loaded layers; the threshold counts as zero here."""
    shares = []
    for layer, mode, _ in _places(net, loaded):
        share = (net.params[layer][0].detach().double().abs() < threshold).double().mean()
        shares.append(Loaded(layer, mode, float(share)))
    return shares


def _places(net: Net, loaded: Collection[str]) -> Iterator[tuple[str, str, str]]:
    """Layers of MASKED types that got weights: name, connectivity_mode, and "layer/0" of the weight's owner."""
    for spec in net.spec.layers:
        owner = net.shared.get(f"{spec.name}/0", f"{spec.name}/0")
        if spec.type in MASKED and not {spec.name, owner.rpartition("/")[0]}.isdisjoint(loaded):
            yield spec.name, mode_of(spec), owner


class Masks:
    """The masks of a training, by "layer/index" of the owners in `weights`; what has none is free.

    Around an update, `hold` and `restore` leave masked values as they are, in kept memory.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = {name: weight.detach() for name, weight in weights.items()}
        self._masks: dict[str, Tensor] = {}
        self._held: list[Tensor] = []

    def __bool__(self) -> bool:
        return bool(self._masks)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Copies of the masks, as uint8: 1 free, 0 frozen."""
        return {name: mask.to(torch.uint8) for name, mask in self._masks.items()}

    def check(self, masks: Mapping[str, Tensor], what: str = "masks") -> None:
        """Raises ForceregError, opened by `what`, for a name that isn't a weight's, or a mask of another shape."""
        for name, mask in masks.items():
            if name not in self._weights:
                hint = did_you_mean(name, self._weights) or f"; expected {', '.join(self._weights)}"
                raise ForceregError(f"{what}: '{name}' is no parameter of the net{hint}")
            shape, found = list(self._weights[name].shape), list(mask.shape)
            if shape != found:
                raise ForceregError(f"{what}: the mask of '{name}' has shape {found}; expected {shape}")

    def set(self, masks: Mapping[str, Tensor], what: str = "masks") -> None:
        """Takes these masks (0: frozen) beside those of other weights. Raises ForceregError as `check`."""
        self.check(masks, what)
        for name, mask in masks.items():
            weight = self._weights[name]
            self._masks[name] = torch.empty_like(weight, dtype=torch.bool).copy_(mask != 0)
        self._held = [torch.empty_like(self._weights[name]) for name in self._masks]

    def clear(self) -> None:
        """All weights are free again."""
        self._masks, self._held = {}, []

    def renewed(self, weights: Mapping[str, Tensor]) -> Masks:
        """Those of a net that has changed: of weights of other shapes none."""
        fresh = Masks(weights)
        fresh.set({name: mask for name, mask in self._masks.items() if weights[name].shape == mask.shape})
        return fresh

    def hold(self) -> None:
        """In front of an update."""
        if self._masks:
            torch._foreach_copy_(self._held, [self._weights[name] for name in self._masks])

    def restore(self) -> None:
        """Behind it."""
        for (name, mask), held in zip(self._masks.items(), self._held, strict=True):
            torch.where(mask, self._weights[name], held, out=self._weights[name])

    def masked(self, name: str, update: Tensor) -> Tensor:
        """What of an update was subtracted."""
        return update * self._masks[name] if name in self._masks else update
