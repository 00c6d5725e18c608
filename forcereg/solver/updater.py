"""One net's parameter update with its kept state: history, rate and the first bad iteration, on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.net.module import Net
from forcereg.registry import regularizer, solver_type
from forcereg.snapshot import NET, Copies, Damaged, ModelFile, StateFile, damaged, fitted, take_over
from forcereg.solver import update
from forcereg.solver.ondevice import Descent
from forcereg.solver.precision import LossScale
from forcereg.solver.regularizers import Regularizer
from forcereg.solver.regularizers.base import Once, Watch
from forcereg.solver.regularizers.decay import decay
from forcereg.solver.saved import HISTORY, MASKS, REGULARIZERS
from forcereg.solver.sparsity import individual
from forcereg.solver.sparsity.asked import kind_of, lassoed, mode_of, threshold
from forcereg.solver.sparsity.masks import Masks
from forcereg.solver.sparsity.statistics import told
from forcereg.solver.sparsity.zeroing import Zeroing
from forcereg.solver.state import to_array
from forcereg.system.memory import check_room

Measures = Mapping[str, Callable[[list[Tensor], list[Tensor]], None]]
"""Name of a regularizer -> what is shown gradients before and after it."""
NOTHING: Measures = {}


class Updater:
    """Turns gradients into new weights by the solver's settings (`p`: SolverParameter), in Caffe's order.

    Collects weights, multipliers and history once; `apply` then only runs foreach operations on them. With a `scale`
    the gradients come scaled, and a step is left out if one of them isn't finite.
    """

    def __init__(self, net: Net, p: Any, device: torch.device, name: str, scale: LossScale | None = None) -> None:
        self.p = p
        self._net, self._device, self._name, self._scale = net, device, name, scale
        self._rule = solver_type.get(p.type, name)()
        self.on_host = device.type == "cpu"
        self.threshold = threshold(net, p)
        self._moded = any(map(mode_of, net.spec.layers))
        self._collect()
        self.masks = Masks(self._named())

    def _collect(self) -> None:
        """Takes the net's blobs as they are now, with a history of zeros."""
        p, net = self.p, self._net
        every = net.learnable
        # under force_backward frozen weights have gradients too, which count in the clipped norm
        live = [i for i, one in enumerate(every) if one.blob.requires_grad]
        if self._rule.adaptive:
            # Caffe gathers history of their weight decay and group lasso, though they never move
            frozen = [i for i, one in enumerate(every) if not (one.lr_mult or one.blob.requires_grad)]
            live += [i for i in frozen if p.weight_decay * every[i].decay_mult or lassoed(every[i], p)]
            live.sort()
        learning = [every[i] for i in live]
        self._blobs = [one.blob for one in every]
        self._owners = [(one.layer, one.index) for one in every]
        self._live = live
        self._lr_mults = [one.lr_mult for one in learning]
        self._decays = [p.weight_decay * one.decay_mult for one in learning]
        self._kinds = [kind_of(one, p) for one in learning]
        by_name = self._individual_by_name = individual.multipliers(net)
        names = [f"{one.layer}/{one.index}" for one in learning]
        self._individual = {place: by_name[name] for place, name in enumerate(names) if name in by_name}
        self.weights: list[Tensor] = [one.blob for one in learning]
        # decay and what is added behind it commute where none of it looks at the gradient
        plain = {p.regularization_type, *self._kinds} == {"L2"} and not self._individual
        additive = plain and all(regularizer.get(name).additive(p) for name in regularizer)
        self._fused = additive and type(self._rule) is update.SGD and p.momentum != 0
        if self._device.type == "cpu":  # looked at before the first of it is allocated
            copies = 1 + self._rule.slots + (p.snapshot_diff or not self._fused) + (p.ema_decay > 0)
            # told by the layer that is too large, before the system ends the process for it
            layers = {spec.name: spec for spec in net.spec.layers}
            needed = [(layers[one.layer], copies * one.blob.nbytes) for one in learning]
            check_room(needed, "gradients, updates and history")
        self.history = [[torch.zeros_like(w) for w in self.weights] for _ in range(self._rule.slots)]
        self._values: list[Tensor] = [torch.zeros_like(w) for w in self.weights] if p.snapshot_diff else []
        # in the order of their names: that of imports would differ from one program to the next
        made = {name: regularizer.get(name)(learning, p, self._device) for name in regularizer}
        self._regularizers: dict[str, Regularizer] = {name: one for name, one in made.items() if one.touched}
        self._descent = Descent(self._rule, p, self.weights, self.history, self._lr_mults, self._device)
        self.zeroing = Zeroing(every, live, p, self.threshold, self._device)
        self._host_bad = -1
        self._groups = update.grouped(self._lr_mults, self._decays)

    def _named(self) -> dict[str, Tensor]:
        return {f"{layer}/{index}": blob for (layer, index), blob in zip(self._owners, self._blobs, strict=True)}

    @property
    def regularizes(self) -> bool:
        """Whether there is any regularizer beside weight decay."""
        return bool(self._regularizers)

    def touched(self, name: str) -> dict[str, Tensor]:
        """Layer name (with "/index" unless it is the first blob) -> each weight that the regularizer `name` acts on."""
        chosen = self._regularizers[name].touched if name in self._regularizers else ()
        named = [(self._owners[self._live[place]], self.weights[place]) for place in chosen]
        return {f"{layer}/{index}" if index else layer: weight for (layer, index), weight in named}

    def renew(self) -> None:
        """Takes its net as that is now: blobs that it had before keep their history, others begin with zeros."""
        places = {id(weight): place for place, weight in enumerate(self.weights)}
        before, carried = self._kept(), self.carried()
        self._collect()
        self.masks = self.masks.renewed(self._named())
        for fresh, held in zip(self._kept(), before, strict=True):
            for place, weight in enumerate(self.weights):
                if id(weight) in places:
                    fresh[place] = held[places[id(weight)]]
        for name, tensors in self.carried().items():
            for key, tensor in tensors.items():
                held_before = carried.get(name, {}).get(key)
                if held_before is not None and held_before.shape == tensor.shape:
                    tensor.copy_(held_before)

    def _kept(self) -> list[list[Tensor]]:
        return [*self.history, self._values] if self.p.snapshot_diff else self.history

    def history_of(self, layer: str, index: int) -> list[tuple[str, Tensor]]:
        """One learning blob's history: what the solver type `holds`, and the tensor."""
        place = self._live.index(self._owners.index((layer, index)))
        return [(held, slot[place]) for held, slot in zip(self._rule.holds, self.history, strict=True)]

    def spare(self, layer: str, index: int) -> None:
        """From now on no L1 decay and no threshold acts on a learning blob."""
        place = self._live.index(self._owners.index((layer, index)))
        if self._kinds[place] != "L2":
            self._decays[place] = 0.0
        self.zeroing.spare(self.weights[place])

    @property
    def stopped(self) -> Tensor | None:
        """On a device: 1 where the last step changed nothing."""
        return None if self.on_host else self._descent.stopped

    def feeling(self, iteration: int) -> tuple[str, ...]:
        """The regularizers that act in this iteration."""
        return tuple(name for name, one in self._regularizers.items() if one.feels(iteration))

    def whole(self, name: str, iteration: int) -> bool:
        """Whether the regularizer `name` acts as strongly as it ever will."""
        return name in self._regularizers and self._regularizers[name].whole(iteration)

    def prepare(self, iteration: int) -> None:
        """Tells regularizers which iteration is next: before `begin`, and before a graph that holds it."""
        for name in self.feeling(iteration):
            self._regularizers[name].prepare(iteration)

    def watches(self, iteration: int) -> list[Watch]:
        """What is to see the passes of this iteration, which has been prepared."""
        found = [self._regularizers[name].watch() for name in self.feeling(iteration)]
        return [one for one in found if one is not None]

    def watched(self, iteration: int, mean: Callable[[Tensor], Tensor]) -> None:
        """Behind the passes of an iteration; `mean` of a tensor over all processes."""
        for name in self.feeling(iteration):
            self._regularizers[name].watched(mean)

    def look(self, iteration: int, once: Once) -> None:
        """Lets regularizers look at the weights, behind the tests in front of an iteration."""
        for name in self.feeling(iteration):
            self._regularizers[name].look(iteration, once)

    def news(self, iteration: int) -> list[str]:
        """What regularizers have to say at the beginning of an iteration."""
        return [text for one in self._regularizers.values() if (text := one.news(iteration))]

    def begin(self, iteration: int) -> None:
        """Forgets the gradients of the last iteration; a device starts on what it can beside the passes to come."""
        for weight in self.weights:
            # not zeroed: autograd's first gradient then becomes .grad itself, which spares a pass over memory
            weight.grad = None
        if not self.on_host:
            for name in self.feeling(iteration):
                self._regularizers[name].begin()

    @torch.no_grad()
    def apply(self, iteration: int, rate: float, loss: Tensor, measures: Measures = NOTHING) -> None:
        """Unscale, clip, normalise, decay, regularize, update: Caffe's order, the fork's force behind its decay.

        From the first non-finite `loss` on nothing changes any more. On the host the loss is looked at directly; on a
        device it stays there (see `first_bad`). `measures` of a regularizer is shown the gradients of the weights that
        it acts on, decayed, before and after it.
        """
        if self.on_host:
            self.zeroing.set(rate)
            self._apply_on_host(iteration, rate * self._rule.scale(self.p, iteration), loss, measures)
        else:
            self.set(iteration, rate)
            self.step(iteration, loss, measures)

    @torch.no_grad()
    def set(self, iteration: int, rate: float) -> None:
        """Tells a device what the next `step` is for. Raises OverflowError for a rate beyond float32."""
        self._descent.set(iteration, rate * self._rule.scale(self.p, iteration))
        self.zeroing.set(rate)

    @torch.no_grad()
    def step(self, iteration: int, loss: Tensor, measures: Measures = NOTHING) -> None:
        """`apply` on a device, behind `set`. Like `begin` a CUDA graph may hold it, for iterations that feel alike."""
        if not self.weights:
            return
        grads = self._gradients()
        skip, bad = (None, (loss - loss) != 0) if self._scale is None else self._scale.unscale(grads, loss)
        self._regularize(grads, iteration, measures)
        self._before_update()
        values = self._descent.step(grads, bad, skip)
        if self.p.snapshot_diff:
            # copied: `values` may be the graph's memory, or the history that goes on changing
            torch._foreach_copy_(self._values, values)
        self._behind_update(iteration, values, self._descent.stopped)

    def _gradients(self) -> list[Tensor]:
        """The gradients in their weights' memory layouts; zeros where backward gave none."""
        for weight in self.weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            # cuDNN may give a gradient in another layout; foreach kernels are slow on mixed ones
            elif weight.grad.stride() != weight.stride():
                weight.grad = torch.empty_like(weight).copy_(weight.grad)
        return [weight.grad for weight in self.weights if weight.grad is not None]

    def _apply_on_host(self, iteration: int, rate: float, loss: Tensor, measures: Measures) -> None:
        # with a loss scale a loss that isn't finite first only lowers that (below)
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
            self._add(grads, iteration, measures, self._decays)
            self._before_update()
            update.descend(self.weights, grads, self.history[0], self._groups, rate, self.p.momentum)
            self._values = self.history[0]
        else:
            self._regularize(grads, iteration, measures)
            self._before_update()
            self._values = self._rule(self.p, grads, self.history, rate, self._lr_mults)
            torch._foreach_sub_(self.weights, self._values)
        self._behind_update(iteration, self._values)

    def _regularize(self, grads: list[Tensor], iteration: int, measures: Measures) -> None:
        """Clip, normalise, decay, regularize."""
        self._clip(grads)
        decay(grads, self.weights, self._decays, self._kinds, self._individual)
        self._add(grads, iteration, measures, [0.0] * len(grads))

    def _clip(self, grads: list[Tensor]) -> None:
        # the sum over iter_size batches is clipped, as in Caffe, and then made a mean
        update.clip(grads, self.p.clip_gradients)
        if self.p.iter_size > 1:
            torch._foreach_mul_(grads, 1 / self.p.iter_size)

    def _add(self, grads: list[Tensor], iteration: int, measures: Measures, decays: list[float]) -> None:
        """What the regularizers add; `decays` are still to come, and `measures` see the gradients with them."""

        def decayed(places: Sequence[int]) -> list[Tensor]:
            return [torch.add(grads[i], self.weights[i], alpha=decays[i]) for i in places]

        for name in self.feeling(iteration):
            one, measure = self._regularizers[name], measures.get(name)
            before = [] if measure is None else decayed(one.touched)
            one.add(grads)
            if measure is not None:
                measure(before, decayed(one.touched))

    def _before_update(self) -> None:
        self.zeroing.before()
        self.masks.hold()

    def _behind_update(self, iteration: int, values: list[Tensor], stopped: Tensor | None = None) -> None:
        """Frozen weights as they were, what regularizers do to weights, and last the zeros, as in the SSL branch."""
        self.masks.restore()
        for name in self.feeling(iteration):
            self._regularizers[name].project()
        self.zeroing.behind(values, stopped)

    def first_bad(self) -> int:
        """The first iteration whose loss wasn't finite, -1 if there is none. Reads the device."""
        return self._host_bad if self.on_host else self._descent.first_bad()

    def all_finite(self) -> bool:
        """Whether every weight, statistic and history value is finite. Reads the device."""
        # stacked, so that the device is read once
        tensors = [*self._blobs, *(tensor for slot in self.history for tensor in slot)]
        return not tensors or bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())

    def saved_history(self) -> list[np.ndarray]:
        """History of every learnable blob in Caffe's order; zeros for those that never learn."""
        return [to_array(tensor) for slot in self.history for tensor in self._spread(slot)]

    def last_update(self) -> dict[tuple[str, int], Tensor]:
        """(layer, index) -> what the last iteration subtracted. Kept only for snapshot_diff."""
        updates = zip(self._owners, self._spread(self._values), strict=True)
        return {(layer, index): self.masks.masked(f"{layer}/{index}", one) for (layer, index), one in updates}

    def _spread(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        held = dict(zip(self._live, tensors, strict=True))
        return [held[i] if i in held else torch.zeros_like(blob) for i, blob in enumerate(self._blobs)]

    @property
    def holds(self) -> str:
        """What the history is, for the `extra` of a state."""
        return ", ".join(self._rule.holds)

    def forget(self) -> None:
        """Weights were loaded: what was kept of those before is nothing to them."""
        self.zeroing.forget()

    def sparsity(self) -> tuple[list[dict[str, Any]], float]:
        """What is zero in each blob, in percent (see statistics), and the regularization term. Reads the device."""
        return told(self._net.learnable, self.p, self._individual_by_name)

    def extra(self) -> dict[str, Any]:
        """What a state's `extra` has of the update: what its history is, and what regularizers carry, if any does."""
        carried = {name: {key: to_array(one) for key, one in kept.items()} for name, kept in self.carried().items()}
        masks = {name: to_array(mask) for name, mask in self.masks.tensors.items()}
        # with a connectivity_mode also that there are none yet: else they would be made at a resume
        own = {MASKS: masks} if masks or self._moded else {}
        return {HISTORY: self.holds, **({REGULARIZERS: carried} if carried else {}), **own}

    def carried(self) -> dict[str, Mapping[str, Tensor]]:
        """Kept tensors of regularizers and of what zeroes weights, by their names."""
        carried = {name: one.carried() for name, one in self._regularizers.items()}
        carried["surgery"] = self.zeroing.carried()
        return {name: tensors for name, tensors in carried.items() if tensors}

    def matched(self, state: StateFile, model: ModelFile) -> Copies:
        """The state's history for this one's tensors.

        Raises ForceregError if it is another net's or type's, Damaged if its `model` tells that it should fit.
        """
        count, found, needed = len(self._blobs), len(state.history), len(self._blobs) * len(self.history)
        saved = (state.extra or {}).get(HISTORY, self.holds)
        if saved != self.holds:
            raise ForceregError(self._misfit(state, f"its history is {saved}, type {self.p.type} keeps {self.holds}"))
        # the model tells the net: where that is this one only damage explains a misfit
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
        if MASKS in (state.extra or {}):
            self.masks.check(stored_masks(state), str(state.path))
        return copies + self._matched_regularizers(state)

    def _matched_regularizers(self, state: StateFile) -> Copies:
        """What regularizers carry; what the state doesn't know begins anew."""
        copies: Copies = []
        saved = (state.extra or {}).get(REGULARIZERS, {})
        for name, tensors in self.carried().items():
            known = saved.get(name, {})
            for key, tensor in ((key, tensor) for key, tensor in tensors.items() if key in known):
                shape = list(np.shape(known[key]))
                if shape != list(tensor.shape):
                    text = f"{key} of its regularizer {name} has shape {shape}; expected {list(tensor.shape)}"
                    raise ForceregError(self._misfit(state, text))
                copies.append((tensor, known[key]))
        return copies

    def _misfit(self, state: StateFile, what: str) -> str:
        return (
            f"{state.path}: {what}; use the net and solver type it was saved with, or start anew from its model by "
            "--weights"
        )

    def go_on(self, copies: Copies) -> None:
        """Takes over what `matched` gave, and forgets bad iterations."""
        self.forget()
        take_over(copies)
        self._descent.revive()
        self._host_bad = -1


def stored_masks(state: StateFile) -> dict[str, Tensor]:
    """The masks that a state holds, by "layer/index"."""
    return {name: torch.from_numpy(np.array(mask)) for name, mask in (state.extra or {}).get(MASKS, {}).items()}
