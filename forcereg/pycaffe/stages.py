"""One layer of a net between its blobs: what reads them, runs, and writes them, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from forcereg.data.dummy_data import DummyFeed
from forcereg.data.feed import DataError, Feed
from forcereg.errors import ForceregError
from forcereg.layers import Layer, make_layer
from forcereg.layers.neuron import Dropout, ReLU
from forcereg.layers.pycaffe.blob import Blob, BlobVec, RawBlobVec
from forcereg.layers.pycaffe.layer import PyCaffeLayer
from forcereg.layers.pycaffe.memory import Memory
from forcereg.layers.pycaffe.vectors import BoolVec
from forcereg.layers.shape import Flatten, Parameter, Reshape
from forcereg.net.explain import explained, misfit
from forcereg.net.module import Around
from forcereg.pycaffe.flow import Flow
from forcereg.schema.spec import LayerSpec

FAILURES = (RuntimeError, IndexError, MemoryError, ForceregError)
"""What a layer raises on what it can't run on."""
SHARING = Flatten | Reshape | Parameter
"""Layers whose tops lie in the memory of what they read, as in Caffe."""


class Stage:
    """A layer with its blobs. This one does nothing: an Input, whose blobs are filled from outside.

    `params` are the layer's own blobs.
    """

    def __init__(
        self, spec: LayerSpec, bottoms: Sequence[Blob], tops: Sequence[Blob], params: Sequence[Blob], flow: Flow
    ) -> None:
        self.spec, self.flow = spec, flow
        self.bottoms, self.tops, self.params = RawBlobVec(bottoms), RawBlobVec(tops), list(params)
        self.learns = flow.runs and (any(flow.bottoms) or bool(params))
        self.weighted = [(top, weight) for top, weight in zip(tops, spec.loss_weights, strict=True) if weight]
        for top, weight in self.weighted:
            top.grads.put(torch.full(top.sizes, weight))

    def reshape(self) -> None:
        """Gives the tops the shapes that follow from the bottoms'. Raises ForceregError if these don't fit."""

    def forward(self, around: Around | None) -> None:
        """Fills the tops; `around`: see Net."""

    def backward(self) -> None:
        """Fills the gradients of the bottoms from those of the tops, and adds to those of `params`."""

    def renew(self) -> None:
        """The layer's weights are other tensors now."""

    def explain(self, error: Exception) -> Exception:
        """What the layer raised, as one line that names it."""
        return error

    def loss(self) -> float:
        """What the layer adds to the net's loss."""
        return sum(weight * float(top.values.read().sum()) for top, weight in self.weighted)

    def weigh(self) -> None:
        """Puts loss weights where a top has got a new gradient."""
        for top, weight in self.weighted:
            if top.grads.untouched:
                top.grads.put(torch.full(top.sizes, weight, device=top.grads.device))


class FeedStage(Stage):
    """A data layer: each forward takes the next batch."""

    def __init__(self, spec: LayerSpec, tops: Sequence[Blob], flow: Flow, feed: Feed) -> None:
        super().__init__(spec, [], tops, [], flow)
        self.feed = feed
        # constants are filled once: what a script writes over them stays
        self._fresh = [True] * len(tops)
        if isinstance(feed, DummyFeed):
            self._fresh = [filler is not None and filler.type != "constant" for filler in feed.fillers]
            before = feed.state_dict()
            self._put([True] * len(tops))
            feed.load_state_dict(before)

    def _put(self, wanted: Sequence[bool]) -> None:
        if any(wanted):
            for top, values, take in zip(self.tops, self.feed.next(), wanted, strict=True):
                if take:
                    top.put(values.to(top.values.device))

    def forward(self, around: Around | None) -> None:
        """See Stage. Raises DataError."""
        try:
            self._put(self._fresh)
        except ForceregError as error:
            raise DataError(str(error)) from error


class SplitStage(Stage):
    """A Split: its tops share the bottom's values, their gradients add up, to `own` where the bottom is a loss."""

    own = 0.0

    def reshape(self) -> None:
        """See Stage."""
        (bottom,) = self.bottoms
        for top in self.tops:
            top.values = bottom.values
            if top.grads.shape != bottom.sizes:
                top.grads.resize(bottom.sizes)
        self.weigh()

    def forward(self, around: Around | None) -> None:
        """See Stage."""
        self.reshape()

    def backward(self) -> None:
        """See Stage."""
        if self.flow.bottoms[0]:
            total = self.tops[0].grads.read()
            for top in self.tops[1:]:
                total = total + top.grads.read()
            self.bottoms[0].grads.put(total + self.own)


class PythonStage(Stage):
    """A layer written for pycaffe, which works on the net's very blobs; its exceptions are its own."""

    def __init__(
        self,
        spec: LayerSpec,
        bottoms: Sequence[Blob],
        tops: Sequence[Blob],
        params: Sequence[Blob],
        flow: Flow,
        module: PyCaffeLayer,
    ) -> None:
        super().__init__(spec, bottoms, tops, params, flow)
        self.user: Any = module.user
        self._learned = BlobVec(self.params)
        self.user.blobs = self._learned
        for mine, top in zip(self.tops, module.top_blobs, strict=True):
            # what setup and reshape have left there
            if mine not in self.bottoms:
                mine.put(top.values.read().clone())

    def reshape(self) -> None:
        """See Stage."""
        self.user.blobs = self._learned
        self.user.reshape(self.bottoms, self.tops)
        self.weigh()

    def forward(self, around: Around | None) -> None:
        """See Stage."""
        self.reshape()
        self.user.forward(self.bottoms, self.tops)
        self.weigh()

    def backward(self) -> None:
        """See Stage."""
        self.user.blobs = self._learned
        self.user.backward(self.tops, BoolVec(self.flow.bottoms), self.bottoms)


class _Run(NamedTuple):
    """A forward that a backward can follow: its inputs and tops with their graph, and the weights' versions."""

    inputs: list[Tensor]
    tops: tuple[Tensor, ...]
    versions: list[int]

    @classmethod
    def of(cls, inputs: list[Tensor], tops: tuple[Tensor, ...], weights: Sequence[Tensor]) -> _Run:
        return cls(inputs, tops, [one._version for one in (*inputs, *weights)])

    def stands(self, weights: Sequence[Tensor]) -> bool:
        """Whether the tensors of back then are as they were."""
        return self.versions == [one._version for one in (*self.inputs, *weights)]


class ModuleStage(Stage):
    """Any other layer: a torch module, whose gradients are autograd's, layer by layer."""

    def __init__(
        self,
        spec: LayerSpec,
        bottoms: Sequence[Blob],
        tops: Sequence[Blob],
        params: Sequence[Blob],
        flow: Flow,
        module: Layer,
    ) -> None:
        super().__init__(spec, bottoms, tops, params, flow)
        self.module = module
        self.in_place = bool(bottoms) and bool(tops) and bottoms[0] is tops[0]
        if self.learns and isinstance(module, ReLU):
            # a layer that learns has its bottoms as leaves, which can't be written to
            module.overwrite = False
        self._overwrites = isinstance(module, ReLU) and module.overwrite
        # their random draw, or hidden state, is that of the forward: they aren't run a second time
        self._draws, self._carries = isinstance(module, Dropout), bool(module.carried())
        self._shares = isinstance(module, SHARING)
        self._made_for = tuple(bottom.sizes for bottom in bottoms)
        self._run: _Run | None = None
        self.renew()

    def renew(self) -> None:
        """See Stage."""
        pairs = zip(self.module.blobs, self.params, strict=True)
        learning = [(blob, param.grads) for blob, param in pairs if isinstance(blob, nn.Parameter)]
        self._learning: list[tuple[Tensor, Memory]] = [pair for pair in learning if pair[0].requires_grad]
        self._kept = [param.values for param in self.params]
        # statistics, which a forward changes
        buffers = zip(self.module.blobs, self._kept, strict=True)
        self._moving = [memory for blob, memory in buffers if not isinstance(blob, nn.Parameter)]
        self._run = None

    @property
    def _weights(self) -> list[Tensor]:
        return [weight for weight, _ in self._learning]

    def reshape(self) -> None:
        """See Stage."""
        shapes = tuple(bottom.sizes for bottom in self.bottoms)
        if shapes == self._made_for:
            return
        with torch.device("meta"):
            fresh = make_layer(self.spec, shapes, True)
        if (told := misfit(self.spec, self.module, fresh, shapes[0] if shapes else ())) is not None:
            raise told
        for top, shape in zip(self.tops, fresh.out_shapes, strict=True):
            top.values.resize(shape)
            top.grads.resize(shape)
        self._made_for = shapes
        self.weigh()

    def forward(self, around: Around | None) -> None:
        """See Stage."""
        inputs = [bottom.values.read() for bottom in self.bottoms]
        for memory in self._kept:
            memory.read()
        if self.in_place and not self._overwrites and self.bottoms[0].values.is_lent:
            # the top's values go into the very memory that backward would look at
            inputs[0] = inputs[0].clone()
        inputs, tops = self._compute(inputs, around)
        self._run = _Run.of(inputs, tops, self._weights) if self.learns else None
        self._made_for = tuple([tuple(one.shape) for one in inputs])
        for blob, values in zip(self.tops, tops, strict=True):
            values = values.detach()
            if not self._shares and any(_same_memory(values, one) for one in inputs) and not self.in_place:
                values = values.clone()
            blob.put(values)
        for memory in self._moving:
            memory.changed()
        if self.weighted:
            self.weigh()

    def _compute(self, inputs: list[Tensor], around: Around | None) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        if self.learns:
            flags = self.flow.bottoms
            inputs = [x.detach().requires_grad_(flag) for x, flag in zip(inputs, flags, strict=True)]
        found = self.module(*inputs) if around is None else around(self.spec, self.module, inputs)
        return inputs, (found,) if isinstance(found, Tensor) else tuple(found)

    def explain(self, error: Exception) -> Exception:
        """See Stage."""
        return explained(error, self.spec, [bottom.values.read() for bottom in self.bottoms], self.module)

    def backward(self) -> None:
        """See Stage."""
        if not any(self.flow.bottoms) and not self._learning:
            return
        for memory in self._kept:
            memory.read()
        run = self._current()
        gradients = [top.grads.read() for top in self.tops]
        pairs = [pair for pair in zip(run.tops, gradients, strict=True) if pair[0].requires_grad]
        bottoms = [(x, blob) for x, blob, flag in zip(run.inputs, self.bottoms, self.flow.bottoms, strict=True) if flag]
        leaves = [*(x for x, _ in bottoms), *self._weights]
        found: Sequence[Tensor | None] = [None] * len(leaves)
        if pairs and leaves:
            tops, seeds = zip(*pairs, strict=True)
            found = torch.autograd.grad(tops, leaves, seeds, retain_graph=True, allow_unused=True)
        # autograd hands one tensor to several; here each has its own
        own = _Own(gradients)
        for (x, blob), gradient in zip(bottoms, found[: len(bottoms)], strict=True):
            blob.grads.put(torch.zeros_like(x) if gradient is None else own(gradient.detach()))
        for (_, memory), gradient in zip(self._learning, found[len(bottoms) :], strict=True):
            if gradient is not None:
                memory.add(own(gradient.detach()))

    def _current(self) -> _Run:
        """The last forward if blobs and weights are still as it saw them, else another one on those of now."""
        run = self._run
        if run is not None and (self._draws or (run.stands(self._weights) and (self._carries or self._sees(run)))):
            return run
        kept = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        with torch.enable_grad():
            inputs, tops = self._compute([bottom.values.read() for bottom in self.bottoms], None)
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)
        self._run = _Run.of(inputs, tops, self._weights)
        return self._run

    def _sees(self, run: _Run) -> bool:
        """Whether the bottoms hold what they held then; what the layer itself has written over doesn't count."""
        return all(
            blob in self.tops or _same(blob.values.read(), seen)
            for blob, seen in zip(self.bottoms, run.inputs, strict=True)
        )


def _same(values: Tensor, seen: Tensor) -> bool:
    if values.shape != seen.shape:
        return False
    return (values.data_ptr() == seen.data_ptr() and values.stride() == seen.stride()) or torch.equal(values, seen)


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


class _Own:
    """Copies a tensor whose memory another one has already."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._taken = {tensor.untyped_storage().data_ptr() for tensor in tensors}

    def __call__(self, tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place in self._taken:
            return tensor.clone()
        self._taken.add(place)
        return tensor
