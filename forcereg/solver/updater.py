"""One net's parameter update with its kept state: history, rate and the first bad iteration, on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.net.module import Net
from forcereg.registry import solver_type
from forcereg.schema.scan import shown
from forcereg.snapshot import NET, Copies, Damaged, ModelFile, StateFile, damaged, fitted, take_over
from forcereg.solver import update
from forcereg.solver.force import ForceField
from forcereg.solver.ondevice import Beside, Descent
from forcereg.solver.precision import LossScale
from forcereg.solver.saved import HISTORY
from forcereg.solver.state import to_array
from forcereg.system.memory import check_room

Measure = Callable[[list[Tensor], list[Tensor]], None]


def forced_layers(net: Net) -> list[str]:
    """The layers with weights that feel a force: those with force_mult that learn and have filters."""
    feeling = (one for one in net.learnable if one.force_mult and one.blob.dim() >= 2 and one.blob.requires_grad)
    return list(dict.fromkeys(one.layer for one in feeling))


def without_force(net: Net, p: Any) -> str:
    """What to say where force_decay is set and nothing feels a force; '' where something does."""
    given = ", ".join(dict.fromkeys(shown(one.layer) for one in net.learnable if one.force_mult))
    why, fix = "no weight has force_mult", "add `param { force_mult: 1 }` to"
    if forced_layers(net):
        if p.force_iter == -1 or p.force_iter > 0:
            return ""
        why, fix = f"force_iter is {p.force_iter}, so it never begins", "remove force_iter, or set how long it acts on"
    elif given:
        why = f"force_mult stands only at what doesn't learn or is a bias ({given})"
        fix = "set lr_mult there, or put `param { force_mult: 1 }` first in"
    said = f"force_decay is {p.force_decay:g} but {why}: NOTHING IS REGULARIZED"
    return f"{said}; {fix} the layers whose filters should be coordinated"


class Updater:
    """Turns gradients into new weights by the solver's settings (`p`: SolverParameter), in Caffe's order.

    Collects weights, multipliers and history once; `apply` then only runs foreach operations on them. With a `scale`
    the gradients come scaled, and a step is left out if one of them isn't finite.
    """

    def __init__(self, net: Net, p: Any, device: torch.device, name: str, scale: LossScale | None = None) -> None:
        self.p = p
        self._net, self._name, self._scale = net, name, scale
        every = net.learnable
        self._rule = solver_type.get(p.type, name)()
        # under force_backward frozen weights have gradients too, which count in the clipped norm
        live = [i for i, one in enumerate(every) if one.blob.requires_grad]
        if self._rule.adaptive and p.weight_decay:
            live += [i for i, one in enumerate(every) if one.decay_mult and not (one.lr_mult or one.blob.requires_grad)]
            live.sort()
        self._blobs = [one.blob for one in every]
        self._owners = [(one.layer, one.index) for one in every]
        self._live = live
        self._lr_mults = [every[i].lr_mult for i in live]
        self._decays = [p.weight_decay * every[i].decay_mult for i in live]
        forces = [p.force_decay * every[i].force_mult * (every[i].blob.dim() >= 2) for i in live]
        self._forced = [position for position, factor in enumerate(forces) if factor]
        self.weights: list[Tensor] = [every[i].blob for i in live]
        # decay and force commute where neither looks at the gradient
        additive = p.regularization_type == "L2" and (p.force_decay_type, p.force_direction) == ("fixed", "all")
        self._fused = additive and type(self._rule) is update.SGD and p.momentum != 0
        if device.type == "cpu":
            copies = 1 + self._rule.slots + (p.snapshot_diff or not self._fused)
            layers = {spec.name: spec for spec in net.spec.layers}
            needed = [(layers[every[i].layer], copies * every[i].blob.nbytes) for i in live]
            check_room(needed, "gradients, updates and history")
        self.history = [[torch.zeros_like(w) for w in self.weights] for _ in range(self._rule.slots)]
        self._values: list[Tensor] = [torch.zeros_like(w) for w in self.weights] if p.snapshot_diff else []
        self._field = ForceField(self.weights, forces, p.force_type, p.force_decay_type, p.force_direction)
        self._device = device
        self._descent = Descent(self._rule, p, self.weights, self.history, self._lr_mults, device)
        self._beside = Beside(device)
        self.on_host = device.type == "cpu"
        self._host_bad = -1
        self._groups = update.grouped(self._lr_mults, self._decays)

    @property
    def regularizes(self) -> bool:
        """Whether any weight feels a force."""
        return bool(self._forced)

    @property
    def forced(self) -> dict[str, Tensor]:
        """Layer name (with "/index" unless it is the first blob) -> each weight that feels a force."""
        chosen = [(self._owners[self._live[i]], self.weights[i]) for i in self._forced]
        return {f"{layer}/{index}" if index else layer: weight for (layer, index), weight in chosen}

    def renewed(self) -> Updater:
        """The same for its net as that is now: blobs that it had before keep their history, others begin with zeros."""
        new = Updater(self._net, self.p, self._device, self._name, self._scale)
        places = {id(weight): place for place, weight in enumerate(self.weights)}
        slots = list(zip(new.history, self.history, strict=True))
        for fresh, held in [*slots, (new._values, self._values)] if self.p.snapshot_diff else slots:
            for place, weight in enumerate(new.weights):
                if id(weight) in places:
                    fresh[place] = held[places[id(weight)]]
        return new

    def history_of(self, layer: str, index: int) -> list[tuple[str, Tensor]]:
        """One learning blob's history: what the solver type `holds`, and the tensor."""
        place = self._live.index(self._owners.index((layer, index)))
        return [(held, slot[place]) for held, slot in zip(self._rule.holds, self.history, strict=True)]

    def feels(self, iteration: int) -> bool:
        """Whether weights feel a force in this iteration."""
        return self.regularizes and (self.p.force_iter == -1 or iteration < self.p.force_iter)

    def begin(self, iteration: int) -> None:
        """Forgets the gradients of the last iteration; a device starts on the forces, beside the passes to come."""
        for weight in self.weights:
            weight.grad = None
        if not self.on_host and self.feels(iteration):
            self._beside.start(self._field.compute)

    @torch.no_grad()
    def apply(self, iteration: int, rate: float, loss: Tensor, measure: Measure | None = None) -> None:
        """Unscale, clip, normalise, decay, force, update. From the first non-finite `loss` on nothing changes any more.

        On the host the loss is looked at directly; on a device it stays there (see `first_bad`).
        `measure` is shown the forced weights' gradients before and after the force.
        """
        if self.on_host:
            self._apply_on_host(iteration, rate * self._rule.scale(self.p, iteration), loss, measure)
        else:
            self.set(iteration, rate)
            self.step(iteration, loss, measure)

    @torch.no_grad()
    def set(self, iteration: int, rate: float) -> None:
        """Tells a device what the next `step` is for. Raises OverflowError for a rate beyond float32."""
        self._descent.set(iteration, rate * self._rule.scale(self.p, iteration))

    @torch.no_grad()
    def step(self, iteration: int, loss: Tensor, measure: Measure | None = None) -> None:
        """`apply` on a device, behind `set`. Like `begin` a CUDA graph may hold it, for iterations that feel alike."""
        if not self.weights:
            return
        grads = self._gradients()
        skip, bad = (None, (loss - loss) != 0) if self._scale is None else self._scale.unscale(grads, loss)
        self._regularize(grads, iteration, measure)
        values = self._descent.step(grads, bad, skip)
        if self.p.snapshot_diff:
            torch._foreach_copy_(self._values, values)

    def _gradients(self) -> list[Tensor]:
        """The gradients in their weights' memory layouts; zeros where backward gave none."""
        for weight in self.weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            elif weight.grad.stride() != weight.stride():
                weight.grad = torch.empty_like(weight).copy_(weight.grad)
        return [weight.grad for weight in self.weights if weight.grad is not None]

    def _apply_on_host(self, iteration: int, rate: float, loss: Tensor, measure: Measure | None) -> None:
        if self._host_bad < 0 and self._scale is None and not math.isfinite(loss.item()):
            self._host_bad = iteration
        if self._host_bad >= 0 or not self.weights:
            return
        grads = self._gradients()
        if self._scale is not None:
            skip, diverged = self._scale.unscale(grads, loss)
            if bool(skip):
                self._host_bad = iteration if bool(diverged) else self._host_bad
                return
        if self._fused:
            self._clip(grads)
            if self.feels(iteration):
                self._add_force(grads, measure, self._decays)
            update.descend(self.weights, grads, self.history[0], self._groups, rate, self.p.momentum)
            self._values = self.history[0]
            return
        self._regularize(grads, iteration, measure)
        self._values = self._rule(self.p, grads, self.history, rate, self._lr_mults)
        torch._foreach_sub_(self.weights, self._values)

    def _regularize(self, grads: list[Tensor], iteration: int, measure: Measure | None) -> None:
        """Clip, normalise, decay, force."""
        self._clip(grads)
        update.decay(grads, self.weights, self._decays, self.p.regularization_type)
        if self.feels(iteration):
            self._add_force(grads, measure, [0.0] * len(grads))

    def _clip(self, grads: list[Tensor]) -> None:
        update.clip(grads, self.p.clip_gradients)
        if self.p.iter_size > 1:
            torch._foreach_mul_(grads, 1 / self.p.iter_size)

    def _add_force(self, grads: list[Tensor], measure: Measure | None, decays: list[float]) -> None:
        """`decays` are still to come; `measure` sees the gradients with them."""

        def decayed() -> list[Tensor]:
            return [torch.add(grads[i], self.weights[i], alpha=decays[i]) for i in self._forced]

        before = [] if measure is None else decayed()
        if not self._beside.join():
            self._field.compute()
        self._field.add(grads)
        if measure is not None:
            measure(before, decayed())

    def first_bad(self) -> int:
        """The first iteration whose loss wasn't finite, -1 if there is none. Reads the device."""
        return self._host_bad if self.on_host else self._descent.first_bad()

    def all_finite(self) -> bool:
        """Whether every weight, statistic and history value is finite. Reads the device."""
        tensors = [*self._blobs, *(tensor for slot in self.history for tensor in slot)]
        return not tensors or bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())

    def saved_history(self) -> list[np.ndarray]:
        """History of every learnable blob in Caffe's order; zeros for those that never learn."""
        return [to_array(tensor) for slot in self.history for tensor in self._spread(slot)]

    def last_update(self) -> dict[tuple[str, int], Tensor]:
        """(layer, index) -> what the last iteration subtracted. Kept only for snapshot_diff."""
        return dict(zip(self._owners, self._spread(self._values), strict=True))

    def _spread(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        held = dict(zip(self._live, tensors, strict=True))
        return [held[i] if i in held else torch.zeros_like(blob) for i, blob in enumerate(self._blobs)]

    @property
    def holds(self) -> str:
        """What the history is, for the `extra` of a state."""
        return ", ".join(self._rule.holds)

    def matched(self, state: StateFile, model: ModelFile) -> Copies:
        """The state's history for this one's tensors.

        Raises ForceregError if it is another net's or type's, Damaged if its `model` tells that it should fit.
        """
        count, found, needed = len(self._blobs), len(state.history), len(self._blobs) * len(self.history)
        saved = (state.extra or {}).get(HISTORY, self.holds)
        if saved != self.holds:
            raise ForceregError(self._misfit(state, f"its history is {saved}, type {self.p.type} keeps {self.holds}"))
        same = HISTORY in (state.extra or {}) and model.attrs.get(NET) == self._net.spec.text
        unfit = Damaged if same else ForceregError
        if found != needed:
            raise unfit(self._misfit(state, f"holds {found} history blobs, this net and solver type need {needed}"))
        copies: Copies = []
        for slot, (kind, tensors) in enumerate(zip(self._rule.holds, self.history, strict=True)):
            for index, tensor in zip(self._live, tensors, strict=True):
                blob = state.history[slot * count + index]
                values, what = fitted(blob, tuple(tensor.shape), state.legacy), f"history blob {slot * count + index}"
                if values is None:
                    text = f"{what} has shape {list(blob.shape)}; expected {list(tensor.shape)}"
                    raise unfit(self._misfit(state, text))
                if not np.isfinite(values).all():
                    raise damaged(state.path, f"{what} isn't finite in places")
                if "squares" in kind and (values < 0).any():
                    text = f"{what} is negative in places, type {self.p.type} keeps squares there"
                    raise unfit(self._misfit(state, text))
                copies.append((tensor, values))
        return copies

    def _misfit(self, state: StateFile, what: str) -> str:
        return (
            f"{state.path}: {what}; use the net and solver type it was saved with, or start anew from its model by "
            "--weights"
        )

    def go_on(self, copies: Copies) -> None:
        """Takes over what `matched` gave, and forgets bad iterations."""
        take_over(copies)
        self._descent.revive()
        self._host_bad = -1
