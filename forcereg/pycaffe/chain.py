"""A net's blobs and its layers between them, run one by one: from any layer to any other, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from forcereg.errors import Fatal
from forcereg.layers.pycaffe.blob import Blob
from forcereg.layers.pycaffe.layer import PyCaffeLayer
from forcereg.layers.pycaffe.memory import Memory
from forcereg.net.module import Net
from forcereg.pycaffe.flow import Flow, flows
from forcereg.pycaffe.stages import FAILURES, FeedStage, ModuleStage, PythonStage, SplitStage, Stage
from forcereg.pycaffe.state import current_device, fatal
from forcereg.schema.spec import LayerSpec

AUTOMATIC = "(automatic)"
"""What a loss's blob is called for which the net gives no name."""
Hook = Callable[[int], Any]
Weights = dict[int, Memory]
"""id of a weight -> its values: nets that share weights share arrays of them."""


class Chain:
    """The blobs of a net, as Caffe lists them, and its layers as stages between them.

    `names` are the blobs', in the order of `blobs`; `bottoms` and `tops` have their numbers for each layer. `hooks` are
    called with the number of a layer, before and behind its forward and its backward.
    """

    def __init__(self, net: Net, weights: Weights | None = None) -> None:
        self.net = net
        self._weights: Weights = {} if weights is None else weights
        self._grads: dict[int, Memory] = {}
        self.device = torch.device("cpu")
        self.follows_mode = True  # False: stays where it is, as a solver's do
        self._places: dict[str, int] = {}
        self.names: list[str] = []
        self.blobs: list[Blob] = []
        self.bottoms: list[tuple[int, ...]] = []
        self.tops: list[tuple[int, ...]] = []
        self.hooks: dict[str, list[Hook]] = {
            f"{when}_{what}": [] for when in ("before", "after") for what in ("forward", "backward")
        }
        self._number_blobs()
        modules = dict(zip(map(id, net.spec.layers), (module for _, module in net.built), strict=True))
        learns = [module is not None and _learns(module) for module in modules.values()]
        refused = [frozenset() if module is None else module.labels for module in modules.values()]
        every = flows(net.spec.layers, learns, refused, net.spec.force_backward)
        self.stages = [
            self._stage(index, spec, modules[id(spec)], flow)
            for index, (spec, flow) in enumerate(zip(net.spec.layers, every, strict=True))
        ]
        self.to(next((one.device for one in (*net.parameters(), *net.buffers())), torch.device("cpu")))

    def _number_blobs(self) -> None:
        for spec in self.net.spec.layers:
            self.bottoms.append(tuple(self._places[bottom] for bottom in spec.bottoms))
            written = set(spec.message.top)
            for top in spec.tops:
                if top not in self._places:
                    self._places[top] = len(self.blobs)
                    self.names.append(top if top in written or spec.type == "Split" else AUTOMATIC)
                    self.blobs.append(Blob.zeros(self.net.shapes[top]))
            self.tops.append(tuple(self._places[top] for top in spec.tops))

    def _stage(self, index: int, spec: LayerSpec, module: Any, flow: Flow) -> Stage:
        bottoms, tops = ([self.blobs[i] for i in numbers[index]] for numbers in (self.bottoms, self.tops))
        params = [] if module is None else self._params(module)
        stage: Stage
        if module is None:
            feed = self.net.feeds.get(spec.name)
            stage = Stage(spec, bottoms, tops, params, flow) if feed is None else FeedStage(spec, tops, flow, feed)
        elif spec.type == "Split":
            stage = SplitStage(spec, bottoms, tops, params, flow)
            stage.own = self.net.loss_weights.get(spec.bottoms[0], 0.0)
            stage.reshape()
        elif isinstance(module, PyCaffeLayer):
            stage = PythonStage(spec, bottoms, tops, params, flow, module)
        elif spec.type == "Input":
            stage = Stage(spec, bottoms, tops, params, flow)
        else:
            stage = ModuleStage(spec, bottoms, tops, params, flow, module)
        return stage

    def _params(self, module: Any) -> list[Blob]:
        found = []
        for own, shaped in zip(module.blobs, module.shaped_blobs, strict=True):
            values = self._weights.setdefault(id(own), Memory(tensor=own.detach(), fixed=True))
            grads = self._grads.setdefault(id(own), Memory(own.shape))
            shape = None if shaped.shape == own.shape else tuple(shaped.shape)
            found.append(Blob.of(values, grads, shape))
        return found

    def blob(self, name: str) -> Blob:
        """The blob that the net's layers call so."""
        return self.blobs[self._places[name]]

    def take(self, spec: LayerSpec, bottoms: Sequence[Tensor], tops: Sequence[Tensor]) -> None:
        """A layer ran on these bottoms elsewhere, and gave these tops: the blobs show them."""
        for names, tensors in ((spec.bottoms, bottoms), (spec.tops, tops)):
            for name, tensor in zip(names, tensors, strict=True):
                self.blob(name).put(tensor.detach())

    # -- weights

    @property
    def params(self) -> list[Blob]:
        """The blobs of all layers' weights."""
        return [param for stage in self.stages for param in stage.params]

    def read_weights(self) -> None:
        """Brings what was written into arrays of weights to the weights."""
        for param in self.params:
            param.values.read()

    def weights_changed(self) -> None:
        """The weights were changed from outside: arrays follow."""
        for param in self.params:
            param.values.changed()

    def share(self, other: Chain) -> None:
        """Takes over the weights of `other`'s layers of equal name. Raises ForceregError if they don't fit."""
        other.read_weights()
        theirs = {stage.spec.name: (stage, owned) for stage, owned in other._owned()}
        pairs = [(stage, owned, *theirs[name]) for stage, owned in self._owned() if (name := stage.spec.name) in theirs]
        for stage, _, their, _ in pairs:
            found, expected = ([list(param.sizes) for param in one.params] for one in (stage, their))
            if found != expected:
                raise stage.spec.fail(f"has blobs {found}, those of the other net are {expected}")
        for stage, owned, their, their_owned in pairs:
            for mine, param, weight, source in zip(stage.params, their.params, owned, their_owned, strict=True):
                # the tensors stay, which solvers hold; their memory is one
                weight.data, mine.values = source.data, param.values
            stage.renew()

    def _owned(self) -> list[tuple[Stage, tuple[Tensor, ...]]]:
        """Each layer with the tensors of its weights."""
        modules = (module for _, module in self.net.built)
        return [(stage, () if one is None else one.blobs) for stage, one in zip(self.stages, modules, strict=True)]

    def clear_grads(self) -> None:
        """Zeros the gradients of the weights."""
        for grads in self._grads.values():
            grads.zero()

    def grad_of(self, weight: Tensor) -> Memory:
        """The gradient of a weight of the net."""
        return self._grads[id(weight)]

    def to(self, device: torch.device) -> None:
        """Moves the net and its blobs to `device`."""
        if device == self.device:
            return
        self.device = device
        self.read_weights()
        self.net.place(device)
        for stage, owned in self._owned():
            for param, own in zip(stage.params, owned, strict=True):
                param.values.adopt(own.detach())
                param.grads.move(device)
            for blob in stage.tops:
                blob.values.move(device)
                blob.grads.move(device)

    # -- passes

    def reshape(self) -> None:
        """Shapes of blobs follow from those in front of them. Raises Fatal, or what Python layers raise."""
        with fatal():
            for stage in self.stages:
                stage.reshape()

    def forward(self, start: int, end: int) -> None:
        """Runs the layers from `start` to `end`. Raises Fatal, or what Python layers and hooks raise."""
        self._check("forward", start, end)
        if start > end:
            return
        if self.follows_mode:
            self.to(current_device())
        around, grad = self.net.around, torch.is_grad_enabled()
        before, after = self.hooks["before_forward"], self.hooks["after_forward"]
        try:
            for index in range(start, end + 1):
                stage = self.stages[index]
                for hook in before:
                    hook(index)
                torch.set_grad_enabled(stage.learns)
                self._run(stage, stage.forward, around)
                for hook in after:
                    hook(index)
        finally:
            torch.set_grad_enabled(grad)

    def backward(self, start: int, end: int) -> None:
        """Runs backward from `start` to the earlier `end`. Raises Fatal, or what Python layers and hooks raise."""
        self._check("backward", start, end)
        if self.follows_mode:
            self.to(current_device())
        before, after = self.hooks["before_backward"], self.hooks["after_backward"]
        with torch.no_grad():
            for index in range(start, end - 1, -1):
                stage = self.stages[index]
                for hook in before:
                    hook(index)
                if stage.flow.runs:
                    self._run(stage, stage.backward)
                for hook in after:
                    hook(index)

    @staticmethod
    def _run(stage: Stage, work: Callable[..., None], *given: Any) -> None:
        if isinstance(stage, PythonStage):
            work(*given)
            return
        try:
            work(*given)
        except FAILURES as error:
            with fatal():
                if (told := stage.explain(error)) is error:
                    raise
                raise told from error

    def loss(self, start: int, end: int) -> float:
        """The loss of the layers from `start` to `end`."""
        return sum((stage.loss() for stage in self.stages[start : end + 1]), 0.0)

    def _check(self, what: str, *numbers: int) -> None:
        for number in numbers:
            if not 0 <= number < len(self.stages):
                raise Fatal(f"{what}: there is no layer {number}; the net has 0 to {len(self.stages) - 1}")


def _learns(module: nn.Module) -> bool:
    return any(isinstance(blob, nn.Parameter) and blob.requires_grad for blob in module.blobs)  # type: ignore[union-attr]
