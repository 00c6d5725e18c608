"""NetSpec -> torch module with named blobs, parameters in Caffe's order, and losses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

import forcereg.registry as registry
from forcereg.data.feed import Feed, FeedContext, supply
from forcereg.data.memory_data import memory_feed
from forcereg.data.sources import open_source
from forcereg.errors import ForceregError, did_you_mean
from forcereg.layers import Layer, make_layer
from forcereg.layers.fillers import fill_blobs
from forcereg.layers.norm import RunningSums
from forcereg.layers.recording import recording
from forcereg.net.fuse import Run, fuse, run_fused
from forcereg.net.inputs import by_name, checked
from forcereg.net.plan import explained, limit_labels, plan_steps, resized
from forcereg.net.sharing import Owners
from forcereg.schema import TRAIN
from forcereg.schema.rules import net_state
from forcereg.schema.spec import LayerSpec, NetSpec, build_spec
from forcereg.schema.text import NetFile
from forcereg.system.memory import check_room

Shape = tuple[int, ...]
Around = Callable[[LayerSpec, Layer, list[Tensor]], Any]
"""Runs a layer on its bottoms, in place of the plain `module(*bottoms)`, and returns its tops."""


@dataclass(frozen=True)
class Learnable:
    """One learnable blob, where it lives and its multipliers, in Caffe's order of solver parameters."""

    layer: str
    index: int
    blob: Tensor
    lr_mult: float
    decay_mult: float
    force_mult: float


class Net(nn.Module):
    """A Caffe net: call it with its inputs by name (`net(data=x)`; with one input `net(x)`), get its outputs by name.

    `shapes` are the declared blob shapes, `spec` where it came from, `feeds` the data layers' sources
    by layer name (called for a batch when their blobs aren't given), `params` every layer's blobs.
    `train()` and `eval()` switch Dropout and BatchNorm as in torch; the phase sets the initial mode.
    `sums` adds to BatchNorm's statistics behind each pass.
    `input_shapes` gives shapes of data layers' tops, whose sources are then not opened.
    `allow_python_layers`: run code that the net file names (Python layers).
    While `around` is set every layer runs through it: to watch, to measure, to compute in another precision.
    While `batches` is above 1 its inputs are those of so many test batches (see `batching`, which sets it).

    >>> net = forcereg.load_net("deploy.prototxt")
    >>> net.inputs, net.shapes["conv1"]
    (('data',), (1, 8, 6, 6))
    >>> [tuple(blob.shape) for blob in net.params["conv1"]]
    [(8, 1, 3, 3), (8,)]
    """

    def __init__(
        self,
        spec: NetSpec,
        context: FeedContext | None = None,
        input_shapes: Mapping[str, Sequence[int]] | None = None,
        generator: Generator | None = None,
        allow_python_layers: bool = False,
    ) -> None:
        super().__init__()
        self.spec = spec
        self._allow_python_layers = allow_python_layers
        self.layers = nn.Module()
        self.shapes: dict[str, Shape] = {}
        self.feeds: dict[str, Feed] = {}
        self.inputs: tuple[str, ...] = ()
        self.around: Around | None = None
        self.batches = 1
        self._keys: dict[str, str] = {}
        self._taken = Counter[str]()
        self._built: list[tuple[LayerSpec, str]] = []
        self._owners = Owners()
        given = input_shapes or {}
        for layer_spec in spec.layers:
            is_given = layer_spec.tops and all(top in given for top in layer_spec.tops)
            if layer_spec.type in registry.source or (layer_spec.type == "Input" and is_given):
                self._add_source(layer_spec, context, given)
            else:
                self._add_layer(layer_spec, given)
        self._fill(generator)
        self._owners.check_finished(self.module, freeze=not spec.force_backward)
        self._plan()
        self._losses = tuple(
            (top, weight)
            for layer_spec in spec.layers
            for top, weight in zip(layer_spec.tops, layer_spec.loss_weights, strict=True)
            if weight
        )
        limit_labels(self.built, self.feeds)
        self.train(spec.phase == TRAIN)

    # -- building

    def _add_source(self, spec: LayerSpec, context: FeedContext | None, given: Mapping[str, Any]) -> None:
        if self._spec_of(spec.name) is not spec:
            raise spec.fail(f"the name is taken by {self._spec_of(spec.name).where}; rename one of them")
        lacking = [top for top in spec.tops if top not in given]
        if spec.tops and not lacking:
            shapes = [tuple(given[top]) for top in spec.tops]
        elif len(lacking) < len(spec.tops):
            raise spec.fail(f"input_shapes lacks {', '.join(lacking)}; give the shapes of all its tops or of none")
        else:
            if context is None:
                context = FeedContext(root=self.spec.root, device=torch.device("cpu"), seed=None)
            feed = open_source(spec, context)
            self.feeds[spec.name] = feed
            shapes = list(feed.shapes)
        for top, shape in zip(spec.tops, shapes, strict=True):
            spec.check_size(f"top '{top}'", shape)
        self.inputs += spec.tops
        self.shapes.update(zip(spec.tops, shapes, strict=True))

    def _add_layer(self, spec: LayerSpec, given: Mapping[str, Any]) -> None:
        bottoms = [self.shapes[bottom] for bottom in spec.bottoms]
        module = make_layer(spec, bottoms, self._allow_python_layers)
        key = self._key(spec.name)
        self.layers.add_module(key, module)
        self._keys.setdefault(spec.name, key)
        self._built.append((spec, key))
        self._owners.add(spec, module)
        if spec.type == "Input":
            self.inputs += spec.tops
        for top, shape in zip(spec.tops, module.out_shapes, strict=True):
            self.shapes[top] = tuple(given.get(top, shape)) if spec.type == "Input" else shape

    def _fill(self, generator: Generator | None) -> None:
        """Draws the initial values of every owned blob, once all shapes are known to be right and to fit in memory."""
        owned = {id(blob): (spec, blob) for spec, module in self.built if module is not None for blob in module.blobs}
        check_room(((spec, blob.nbytes) for spec, blob in owned.values() if not blob.is_meta), "the net's weights")
        for spec, key in self._built:
            module: Layer = getattr(self.layers, key)
            borrowed = {index for index in range(len(module.blobs)) if f"{spec.name}/{index}" in self._owners.borrowed}
            fill_blobs(spec, module, borrowed, generator)
        self.reset_state()

    def _plan(self) -> None:
        runs = [Run(spec, (key,), getattr(self.layers, key)) for spec, key in self._built if spec.type != "Input"]
        self._steps = plan_steps(self.spec, runs)
        self._fused_steps = plan_steps(self.spec, fuse(runs))
        self.sums = RunningSums(run.module for run in runs)

    def adopt(self, spec: NetSpec) -> None:
        """Takes over `spec`: layers that have other settings there, or read other shapes now, begin anew.

        Of their blobs those of another shape are not filled yet; they must not be shared. All else stays as it is.
        Raises ForceregError if settings and shapes don't fit together.
        """
        keys, before, built = {id(old): key for old, key in self._built}, dict(self.shapes), []
        for old, new in zip(self.spec.layers, spec.layers, strict=True):
            if (key := keys.get(id(old))) is None:
                continue
            if new is not old or any(self.shapes[bottom] != before[bottom] for bottom in new.bottoms):
                module = self._remade(new, getattr(self.layers, key))
                setattr(self.layers, key, module)
                self.shapes.update(zip(new.tops, module.out_shapes, strict=True))
            built.append((new, key))
        self.spec, self._built = spec, built
        self._plan()

    def _remade(self, spec: LayerSpec, old: Layer) -> Layer:
        module = make_layer(spec, [self.shapes[bottom] for bottom in spec.bottoms], self._allow_python_layers)
        for blob in old.blobs[:1]:
            module.to(blob.device, blob.dtype).lay_out(blob.device)
        for index, (mine, blob) in enumerate(zip(module.blobs, old.blobs, strict=True)):
            if mine.shape == blob.shape:
                module.share_blob(index, blob)
            else:
                mine.requires_grad_(blob.requires_grad)
        return module.train(old.training)

    def _key(self, name: str) -> str:
        """A state_dict key for a layer name: torch reserves the dot and its own attributes' names."""
        key = stem = name.replace(".", "_") or "_"
        while hasattr(self.layers, key):
            self._taken[stem] += 1
            key = f"{stem}_{self._taken[stem]}"
        return key

    def _spec_of(self, name: str) -> LayerSpec:
        return next(one for one in self.spec.layers if one.name == name)

    # -- parameters

    def module(self, layer: str) -> Layer:
        """The module of the layer called `layer`; raises ForceregError for an unknown name."""
        if layer not in self._keys:
            raise ForceregError(f"net has no layer '{layer}'{did_you_mean(layer, self._keys)}")
        return getattr(self.layers, self._keys[layer])

    @property
    def built(self) -> list[tuple[LayerSpec, Layer | None]]:
        """Every layer in net order with its module; None for a layer whose tops are fed."""
        modules = {id(spec): getattr(self.layers, key) for spec, key in self._built}
        return [(spec, modules.get(id(spec))) for spec in self.spec.layers]

    @property
    def params(self) -> dict[str, tuple[Tensor, ...]]:
        """Layer name -> blobs in Caffe's order, for every layer in net order (empty without blobs).

        A blob borrowed in another shape (share_mode PERMISSIVE) shows in the borrower's.
        """
        names = [spec.name for spec in self.spec.layers]
        return {name: self.module(name).shaped_blobs if name in self._keys else () for name in names}

    @property
    def shared(self) -> dict[str, str]:
        """Borrowed blobs ("layer/index") -> the blob that owns them."""
        return dict(self._owners.borrowed)

    @property
    def learnable(self) -> list[Learnable]:
        """The owned blobs in net order with their multipliers: the solver's parameters."""
        params = self.params
        return [
            Learnable(name, index, params[name][index], m.lr_mult, m.decay_mult, m.force_mult)
            for (name, index), m in self._owners.multipliers.items()
        ]

    def share_params(self, other: Net) -> list[str]:
        """Takes over `other`'s blobs in the layers of equal name; returns the names that `other` alone has.

        Raises ForceregError if a shape differs (Caffe's test nets read the training net's weights).
        """
        mine = self.params
        ignored = []
        for name, blobs in other.params.items():
            if name not in mine:
                ignored.append(name)
                continue
            if not blobs or not mine[name]:
                continue
            found, expected = [list(b.shape) for b in blobs], [list(b.shape) for b in mine[name]]
            if found != expected:
                raise self._spec_of(name).fail(f"has blobs {expected}, the training net's are {found}")
            for index, blob in enumerate(other.module(name).blobs):
                self.module(name).share_blob(index, blob)
        return ignored

    def _apply(self, fn: Any, recurse: bool = True) -> Net:
        super()._apply(fn, recurse)
        # moving replaces buffers one by one; borrowed ones must stay the owner's
        for borrower, owner in self._owners.borrowed.items():
            (name, index), (owner_name, owner_index) = borrower.rsplit("/", 1), owner.rsplit("/", 1)
            self.module(name).share_blob(int(index), self.module(owner_name).blobs[int(owner_index)])
        return self

    def place(self, device: torch.device) -> Net:
        """Moves the net to `device` and its weights into the memory layout that is fastest there."""
        self.to(device)
        for name in self._keys:
            self.module(name).lay_out(device)
        return self

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """As torch's, but contiguous, as other formats want it: a weight that lies otherwise (`place`) as a copy."""
        found = super().state_dict(*args, **options)
        if not options.get("keep_vars"):
            found.update({key: value.contiguous() for key, value in found.items() if isinstance(value, Tensor)})
        return found

    def train(self, mode: bool = True) -> Net:
        """As torch's, but a layer whose `phase` is written in the file stays in that phase."""
        super().train(mode)
        for spec, key in self._built:
            if spec.message.HasField("phase"):
                getattr(self.layers, key).train(spec.phase == TRAIN)
        return self

    # -- running

    def reset_state(self) -> None:
        """Zeros what layers carry from one forward to the next (recurrent hidden state), as in a new net."""
        for _, key in self._built:
            for tensor in getattr(self.layers, key).carried().values():
                tensor.zero_()

    def forward(
        self, inputs: Mapping[str, Tensor] | Tensor | None = None, /, *, blobs: Iterable[str] = (), **named: Tensor
    ) -> dict[str, Tensor]:
        """Output blobs by name, and the intermediate `blobs` asked for (in-place ones: the final value).

        Inputs go by keyword (`net(data=x)`) or, for names that aren't identifiers, in a dict; the tensor of a net with
        one input goes by itself too: `net(x)`. Raises ForceregError for inputs that aren't the net's.
        """
        extra = (blobs,) if isinstance(blobs, str) else tuple(blobs)
        given = by_name(inputs, named, self.inputs, self.spec.name)
        with self.sums.behind():
            return self._select(self._run(given, extra), extra)

    def forward_loss(self, inputs: Mapping[str, Tensor] | None = None, /) -> tuple[Tensor, dict[str, Tensor]]:
        """The total loss (sum of loss_weight * loss, 0-d) and the output blobs."""
        with self.sums.behind():
            env = self._run(inputs or {}, ())
        return self.total_loss(env), self._select(env, ())

    def total_loss(self, env: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum over every element of every loss blob in `env`, 0-d."""
        total: Tensor | None = None
        for name, weight in self._losses:
            if name not in env:
                raise ForceregError(f"total_loss needs blob '{name}', not an output; add it by blobs=['{name}']")
            blob = env[name]
            term = blob if blob.dim() == 0 else blob.sum()
            term = term if weight == 1 else term * weight
            total = term if total is None else total + term
        return torch.zeros(()) if total is None else total

    @property
    def loss_weights(self) -> dict[str, float]:
        """Loss blob -> weight."""
        return dict(self._losses)

    def _select(self, env: Mapping[str, Tensor], extra: Sequence[str]) -> dict[str, Tensor]:
        for name in extra:
            if name not in env:
                raise ForceregError(f"net has no blob '{name}'{did_you_mean(name, self.shapes)}")
        return {name: env[name] for name in (*self.spec.outputs, *extra)}

    def _run(self, inputs: Mapping[str, Tensor], keep: Sequence[str]) -> dict[str, Tensor]:
        env = checked(inputs, {name: self.shapes[name] for name in self.inputs}, self.spec.name)
        supply(self.feeds.values(), env)
        missing = [name for name in self.inputs if name not in env]
        if missing:
            needed = f"net '{self.spec.name}' needs input blobs {', '.join(missing)}"
            raise ForceregError(f"{needed}; give one tensor each or a data layer")
        around, sizes = self.around, {name: env[name].shape for name in self.inputs}
        for step in self._fused_steps if around is None and not keep and not recording() else self._steps:
            spec = step.spec
            bottoms = [env[name] for name in spec.bottoms]
            for index in step.cut:
                bottoms[index] = bottoms[index].detach()
            module, *rest = (getattr(self.layers, key) for key in step.keys)
            try:
                if rest:
                    tops = run_fused((module, *rest), bottoms)
                elif self.batches > 1 and module.per_batch:
                    tops = module.each(self.batches, *bottoms)
                else:
                    tops = module(*bottoms) if around is None else around(spec, module, bottoms)
            except (RuntimeError, IndexError, MemoryError, ForceregError) as error:
                more = resized(sizes, self.shapes, self.feeds)
                told = explained(error, spec, bottoms, None if rest else module, more)
                if told is error:
                    raise
                raise told from error
            if len(spec.tops) == 1:
                env[spec.tops[0]] = tops
            else:
                env.update(zip(spec.tops, tops, strict=True))
            if not keep:
                for name in step.dead:
                    del env[name]
        return env

    def extra_repr(self) -> str:
        return f"name={self.spec.name!r}, inputs={list(self.inputs)}, outputs={list(self.spec.outputs)}"

    def set_input_arrays(self, data: Any, labels: Any, layer: str | None = None) -> None:
        """Arrays (n, C, H, W) and n labels for the MemoryData layer `layer` (None: the only one), as pycaffe's.

        n is a multiple of its batch_size. Raises ForceregError if there is no such layer or something doesn't fit.
        """
        memory_feed(self.feeds, layer).set_arrays(data, labels)

    def close(self) -> None:
        """Stops the data layers' readers."""
        for feed in self.feeds.values():
            feed.close()


def meta_net(
    file: NetFile,
    phase: int,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    root: Path | None = None,
    allow_python_layers: bool = False,
) -> Net:
    """The net with all shapes, nothing allocated or filled. Raises ForceregError, also for absent data."""
    spec = build_spec(file, net_state(phase, file.message.state, net_state(phase)), root)
    with torch.device("meta"):
        return Net(spec, input_shapes=input_shapes, allow_python_layers=allow_python_layers)
