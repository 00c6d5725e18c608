"""What a net is made of: data sources opened, layers made for the shapes of their bottoms, blobs shared and filled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn

import forcereg.registry as registry
from forcereg.data.feed import Feed, FeedContext
from forcereg.data.fillers import fill
from forcereg.data.sources import open_source
from forcereg.errors import ForceregError, did_you_mean
from forcereg.layers import Layer, make_layer
from forcereg.layers.base import Shape
from forcereg.layers.loss import ClassScores
from forcereg.net.sharing import Owners
from forcereg.schema.blobs import blob_array
from forcereg.schema.spec import LayerSpec, NetSpec, is_loss
from forcereg.system.memory import check_room, is_shortage


@dataclass
class Parts:
    """What a net runs: its layers' modules, and what they are fed.

    `layers` holds the modules by state_dict key, `built` each layer with its key in net order, without those that are
    fed; `keys` has the layers' names. `shapes` are all blobs', `feeds` the data layers' sources by layer name,
    `inputs` the blobs that come from outside or from a source.
    """

    allow_python_layers: bool = False
    layers: nn.Module = field(default_factory=nn.Module)
    built: list[tuple[LayerSpec, str]] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    feeds: dict[str, Feed] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    owners: Owners = field(default_factory=Owners)
    _taken: Counter[str] = field(default_factory=Counter)

    @property
    def modules(self) -> list[tuple[LayerSpec, Layer]]:
        """Every layer that isn't fed with its module, in net order."""
        return [(spec, getattr(self.layers, key)) for spec, key in self.built]

    def module(self, layer: str) -> Layer:
        """The module of the layer called `layer`; raises ForceregError for an unknown name."""
        if layer not in self.keys:
            raise ForceregError(f"net has no layer '{layer}'{did_you_mean(layer, self.keys)}")
        found: Layer = getattr(self.layers, self.keys[layer])
        return found

    def add(self, spec: LayerSpec, module: Layer, given: Mapping[str, Sequence[int]]) -> None:
        """Enters a layer, whose tops the next ones may read; an Input's have the shapes `given`, if any."""
        key = self._key(spec.name)
        self.layers.add_module(key, module)
        # losses without weights may share a name (Caffe's anonymous layers); it is the first's
        self.keys.setdefault(spec.name, key)
        self.built.append((spec, key))
        self.owners.add(spec, module)
        if spec.type == "Input":
            self.inputs += spec.tops
        for top, shape in zip(spec.tops, module.out_shapes, strict=True):
            self.shapes[top] = tuple(given.get(top, shape)) if spec.type == "Input" else shape

    def _key(self, name: str) -> str:
        """A state_dict key for a layer name: torch reserves the dot and its own attributes' names."""
        key = stem = name.replace(".", "_") or "_"
        while hasattr(self.layers, key):
            self._taken[stem] += 1
            key = f"{stem}_{self._taken[stem]}"
        return key


def build(
    spec: NetSpec,
    context: FeedContext | None = None,
    given: Mapping[str, Sequence[int]] | None = None,
    generator: Generator | None = None,
    allow_python_layers: bool = False,
) -> Parts:
    """The parts of a net, filled; arguments as for `Net`. Raises ForceregError.

    A data layer whose tops' shapes are `given` has no feed: its source isn't opened.
    """
    parts, given = Parts(allow_python_layers), given or {}
    for layer in spec.layers:
        is_given = layer.tops and all(top in given for top in layer.tops)
        # an Input whose shapes are given is a data layer without a source: what it says itself no longer counts
        if layer.type in registry.source or (layer.type == "Input" and is_given):
            _add_source(parts, spec, layer, context, given)
        else:
            module = make_layer(layer, [parts.shapes[bottom] for bottom in layer.bottoms], allow_python_layers)
            parts.add(layer, module, given)
    # not while they are made: an error further down costs neither the time to draw values nor the memory
    _fill(parts, generator)
    parts.owners.check_finished(parts.module, freeze=not spec.force_backward)
    limit_labels(parts.modules, parts.feeds)
    return parts


def _add_source(
    parts: Parts, net: NetSpec, spec: LayerSpec, context: FeedContext | None, given: Mapping[str, Sequence[int]]
) -> None:
    first = spec_of(net, spec.name)
    # feeds, and their states in snapshots, go by name
    if first is not spec:
        raise spec.fail(f"the name is taken by {first.where}; rename one of them")
    lacking = [top for top in spec.tops if top not in given]
    if spec.tops and not lacking:
        shapes = [tuple(given[top]) for top in spec.tops]
    elif len(lacking) < len(spec.tops):
        raise spec.fail(f"input_shapes lacks {', '.join(lacking)}; give the shapes of all its tops or of none")
    else:
        # nets without values (`load.meta_net`) ask a source for its shapes only
        if context is None:
            context = FeedContext(root=net.root, device=torch.device("cpu"), seed=None)
        feed = parts.feeds[spec.name] = open_source(spec, context)
        # as opened: a crop or the file decides them, not the prototxt
        shapes = list(feed.shapes)
    for top, shape in zip(spec.tops, shapes, strict=True):
        spec.check_size(f"top '{top}'", shape)
    parts.inputs += spec.tops
    parts.shapes.update(zip(spec.tops, shapes, strict=True))


def spec_of(net: NetSpec, name: str) -> LayerSpec:
    """The layer of `net` called `name`, the first of several."""
    return next(one for one in net.layers if one.name == name)


def _fill(parts: Parts, generator: Generator | None) -> None:
    """Draws the initial values of every owned blob, once all shapes are known to be right and to fit in memory."""
    # by identity: a shared blob takes memory once
    owned = {id(blob): (spec, blob) for spec, module in parts.modules for blob in module.blobs}
    # reserved memory is taken only when it is written, so this is the last moment to refuse a net for its size
    check_room(((spec, blob.nbytes) for spec, blob in owned.values() if not blob.is_meta), "the net's weights")
    borrowed = parts.owners.borrowed
    # in net order, whoever owns what: a seed draws the same values for a layer whatever comes behind it
    for spec, module in parts.modules:
        taken = {index for index in range(len(module.blobs)) if f"{spec.name}/{index}" in borrowed}
        fill_blobs(spec, module, taken, generator)
    reset_state(module for _, module in parts.modules)


@torch.no_grad()
def fill_blobs(spec: LayerSpec, module: Layer, borrowed: Container[int], generator: Generator | None) -> None:
    """Gives a layer's own blobs the values written in the net (`blobs`), else those of their fillers.

    `borrowed`: positions of blobs that another layer owns. Raises ForceregError.
    """
    given = [blob_array(blob, f"{spec.where}: blob {index}") for index, blob in enumerate(spec.message.blobs)]
    shapes = [list(values.shape) for values in given]
    if given and shapes != [list(blob.shape) for blob in module.blobs]:
        raise spec.fail(f"gives blobs {shapes}; expected {[list(blob.shape) for blob in module.blobs]}, or none")
    for index, (blob, message) in enumerate(zip(module.blobs, module.fillers, strict=True)):
        if index in borrowed:
            continue
        if given and not blob.is_meta:
            blob.copy_(torch.from_numpy(given[index]))
        elif message is not None and not given:
            # on the meta device, where nothing is drawn, it checks the filler's settings
            blob.copy_(_fitting(message, tuple(blob.shape), None if blob.is_meta else generator, spec))
    # they are done with; a copied or pickled net needn't carry them
    module.fillers = []


def _fitting(message: Any, shape: Shape, generator: Generator | None, spec: LayerSpec) -> Tensor:
    try:
        return fill(message, shape, generator, spec)
    except RuntimeError as error:
        if is_shortage(error):
            raise spec.fail(f"not enough memory to fill its blob {list(shape)}; use smaller sizes") from error
        raise


def reset_state(modules: Iterable[Layer]) -> None:
    """Zeros what layers carry from one forward to the next."""
    for module in modules:
        for tensor in module.carried().values():
            tensor.zero_()


def limit_labels(built: Sequence[tuple[LayerSpec, Layer]], feeds: Mapping[str, Feed]) -> None:
    """Tells every data layer whose top is read as labels which ones its reader takes, a loss before all others."""
    origin = {top: (name, top) for name, feed in feeds.items() for top in feed.tops}
    for spec, _ in built:
        if spec.type == "Split" and spec.bottoms[0] in origin:
            origin.update(dict.fromkeys(spec.tops, origin[spec.bottoms[0]]))
    # several may read the same labels; the first of these that does is named in errors
    readers = [(spec, module) for spec, module in built if isinstance(module, ClassScores)]
    limited: set[tuple[str, str]] = set()
    for spec, module in sorted(readers, key=lambda reader: not is_loss(reader[0].type)):
        source = origin.get(spec.bottoms[1])
        if source is not None and source not in limited:
            name, top = source
            feeds[name].limit_labels(module.classes, module.ignore_label, spec.where, top)
            limited.add(source)


def rebuild(parts: Parts, old: NetSpec, new: NetSpec) -> None:
    """Makes those layers anew that have other settings in `new` than in `old`, or read other shapes now.

    All else stays the same object. Raises ForceregError if settings and shapes don't fit together.
    """
    # by identity: two layers may be equal, and what hasn't changed is the very same object
    keys, before, built = {id(spec): key for spec, key in parts.built}, dict(parts.shapes), []
    for was, spec in zip(old.layers, new.layers, strict=True):
        if (key := keys.get(id(was))) is None:
            continue
        if spec is not was or any(parts.shapes[bottom] != before[bottom] for bottom in spec.bottoms):
            module = _remade(parts, spec, getattr(parts.layers, key))
            setattr(parts.layers, key, module)
            parts.shapes.update(zip(spec.tops, module.out_shapes, strict=True))
        built.append((spec, key))
    parts.built = built


def _remade(parts: Parts, spec: LayerSpec, old: Layer) -> Layer:
    """The layer of `spec`, with those blobs of `old` whose shape it has kept; others aren't filled yet."""
    module = make_layer(spec, [parts.shapes[bottom] for bottom in spec.bottoms], parts.allow_python_layers)
    # all blobs of a layer are on one device and of one type; without blobs there is nothing to move
    for blob in old.blobs[:1]:
        module.to(blob.device, blob.dtype).lay_out(blob.device)
    for index, (mine, blob) in enumerate(zip(module.blobs, old.blobs, strict=True)):
        if mine.shape == blob.shape:
            module.share_blob(index, blob)
        else:
            # what was frozen (lr_mult 0) stays so
            mine.requires_grad_(blob.requires_grad)
    return module.train(old.training)
