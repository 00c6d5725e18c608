"""A net as a torch module that runs what `build` makes: named blobs, parameters in Caffe's order, losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from forcereg.data.feed import FeedContext, supply
from forcereg.data.memory_data import memory_feed
from forcereg.errors import ForceregError, did_you_mean
from forcereg.layers import Layer
from forcereg.layers.norm import RunningSums
from forcereg.layers.recording import recording
from forcereg.layers.weighted import Convolution, Deconvolution
from forcereg.net.build import build, rebuild, reset_state, spec_of
from forcereg.net.explain import explained, resized
from forcereg.net.fuse import Run, run_fused
from forcereg.net.inputs import by_name, checked
from forcereg.net.plan import plan_net
from forcereg.net.sharing import NOT_SPARSE, Multipliers, Sparse
from forcereg.schema import TRAIN
from forcereg.schema.spec import LayerSpec, NetSpec

Shape = tuple[int, ...]
Around = Callable[[LayerSpec, Layer, list[Tensor]], Any]
"""Runs a layer on its bottoms, in place of the plain `module(*bottoms)`, and returns its tops."""


@dataclass(frozen=True)
class Learnable:
    """One learnable blob, where it lives and its multipliers, in Caffe's order of solver parameters.

    `force_view`: what a force draws together (see lowrank.views), of each of so many `groups` of a weight alone.
    `sparse`: what group lasso and the like act on.
    """

    layer: str
    index: int
    blob: Tensor
    lr_mult: float
    decay_mult: float
    force_mult: float
    force_view: str = "FILTERS"
    groups: int = 1
    sparse: Sparse = NOT_SPARSE


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
    Raises ForceregError, when made for a net that can't be, when called for inputs that aren't its.

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
        self._parts = parts = build(spec, context, input_shapes, generator, allow_python_layers)
        self.spec = spec
        # the name is in every key of a state_dict: layers.<key>.<blob>
        self.layers = parts.layers
        self.shapes, self.feeds, self.inputs = parts.shapes, parts.feeds, parts.inputs
        self.around: Around | None = None
        self.batches = 1
        self._make_plan()
        self.train(spec.phase == TRAIN)

    def _make_plan(self) -> None:
        runs = [Run(spec, (key,), getattr(self.layers, key)) for spec, key in self._parts.built if spec.type != "Input"]
        self._plan = plan_net(self.spec, runs)
        # anew with the plan: it holds modules, and adopt replaces some
        self.sums = RunningSums(run.module for run in runs)

    def adopt(self, spec: NetSpec) -> None:
        """Takes over `spec`: layers that have other settings there, or read other shapes now, begin anew.

        Of their blobs those of another shape are not filled yet; they must not be shared. All else stays as it is.
        Raises ForceregError if settings and shapes don't fit together.
        """
        rebuild(self._parts, self.spec, spec)
        self.spec = spec
        self._make_plan()

    # -- parameters

    def module(self, layer: str) -> Layer:
        """The module of the layer called `layer`; raises ForceregError for an unknown name."""
        return self._parts.module(layer)

    @property
    def built(self) -> list[tuple[LayerSpec, Layer | None]]:
        """Every layer in net order with its module; None for a layer whose tops are fed."""
        modules = {id(spec): module for spec, module in self._parts.modules}
        return [(spec, modules.get(id(spec))) for spec in self.spec.layers]

    @property
    def params(self) -> dict[str, tuple[Tensor, ...]]:
        """Layer name -> blobs in Caffe's order, for every layer in net order (empty without blobs).

        A blob borrowed in another shape (share_mode PERMISSIVE) shows in the borrower's.
        """
        names = [spec.name for spec in self.spec.layers]
        return {name: self.module(name).shaped_blobs if name in self._parts.keys else () for name in names}

    @property
    def shared(self) -> dict[str, str]:
        """Borrowed blobs ("layer/index") -> the blob that owns them."""
        return dict(self._parts.owners.borrowed)

    @property
    def learnable(self) -> list[Learnable]:
        """The owned blobs in net order with their multipliers: the solver's parameters."""
        params = self.params

        def learnable(name: str, index: int, m: Multipliers) -> Learnable:
            module, blob = self.module(name), params[name][index]
            groups = module.group if isinstance(module, Convolution | Deconvolution) and index == 0 else 1
            mults = m.lr_mult, m.decay_mult, m.force_mult
            return Learnable(name, index, blob, *mults, m.force_view, groups, m.sparse)

        return [learnable(*place, m) for place, m in self._parts.owners.multipliers.items()]

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
                raise spec_of(self.spec, name).fail(f"has blobs {expected}, the training net's are {found}")
            for index, blob in enumerate(other.module(name).blobs):
                self.module(name).share_blob(index, blob)
        return ignored

    def _apply(self, fn: Any, recurse: bool = True) -> Net:
        super()._apply(fn, recurse)
        # moving replaces buffers one by one; borrowed ones must stay the owner's
        for borrower, owner in self._parts.owners.borrowed.items():
            # from the right: layers' names may have slashes
            (name, index), (owner_name, owner_index) = borrower.rsplit("/", 1), owner.rsplit("/", 1)
            self.module(name).share_blob(int(index), self.module(owner_name).blobs[int(owner_index)])
        return self

    def place(self, device: torch.device) -> Net:
        """Moves the net to `device` and its weights into the memory layout that is fastest there."""
        # first: which layout is fastest is a matter of the device
        self.to(device)
        for name in self._parts.keys:
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
        # of all first; the file then has the last word on single layers
        super().train(mode)
        for spec, module in self._parts.modules:
            if spec.message.HasField("phase"):
                module.train(spec.phase == TRAIN)
        return self

    # -- running

    def reset_state(self) -> None:
        """Zeros what layers carry from one forward to the next (recurrent hidden state), as in a new net."""
        reset_state(module for _, module in self._parts.modules)

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
            # inside `behind`: statistics move when the whole pass is through, not of one that failed half way
            return self._select(self._run(given, extra), extra)

    def forward_loss(
        self, inputs: Mapping[str, Tensor] | None = None, /, blobs: Sequence[str] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total loss (sum of loss_weight * loss, 0-d) and the output blobs, with `blobs` that layers read."""
        with self.sums.behind():
            env = self._run(inputs or {}, blobs, fused=True)
        return self.total_loss(env), self._select(env, blobs)

    def total_loss(self, env: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum over every element of every loss blob in `env`, 0-d."""
        total: Tensor | None = None
        for name, weight in self._plan.losses:
            if name not in env:
                raise ForceregError(f"total_loss needs blob '{name}', not an output; add it by blobs=['{name}']")
            blob = env[name]
            # an addition or product that changes nothing would be a launch all the same
            term = blob if blob.dim() == 0 else blob.sum()
            term = term if weight == 1 else term * weight
            total = term if total is None else total + term
        return torch.zeros(()) if total is None else total

    @property
    def loss_weights(self) -> dict[str, float]:
        """Loss blob -> weight."""
        return dict(self._plan.losses)

    def _select(self, env: Mapping[str, Tensor], extra: Sequence[str]) -> dict[str, Tensor]:
        for name in extra:
            if name not in env:
                raise ForceregError(f"net has no blob '{name}'{did_you_mean(name, self.shapes)}")
        return {name: env[name] for name in (*self.spec.outputs, *extra)}

    def _run(self, inputs: Mapping[str, Tensor], keep: Sequence[str], fused: bool = False) -> dict[str, Tensor]:
        env = checked(inputs, {name: self.shapes[name] for name in self.inputs}, self.spec.name)
        supply(self.feeds.values(), env)
        missing = [name for name in self.inputs if name not in env]
        if missing:
            needed = f"net '{self.spec.name}' needs input blobs {', '.join(missing)}"
            raise ForceregError(f"{needed}; give one tensor each or a data layer")
        around, sizes = self.around, {name: env[name].shape for name in self.inputs}
        # one by one where somebody sees what is in between, or torch records it, which wants a layer as a layer
        fused = around is None and (fused or not keep) and not recording()
        for step in self._plan.fused if fused else self._plan.steps:
            spec = step.spec
            bottoms = [env[name] for name in spec.bottoms]
            # labels, and bottoms for which the file says propagate_down: false
            for index in step.cut:
                bottoms[index] = bottoms[index].detach()
            module, *rest = (getattr(self.layers, key) for key in step.keys)
            try:
                if rest:
                    tops = run_fused((module, *rest), bottoms)
                elif self.batches > 1 and module.per_batch:
                    # a loss is of its own batch: a mean over all would be another number
                    tops = module.each(self.batches, *bottoms)
                else:
                    tops = module(*bottoms) if around is None else around(spec, module, bottoms)
            except (RuntimeError, IndexError, MemoryError, ForceregError) as error:
                more = resized(sizes, self.shapes, self.feeds)
                told = explained(error, spec, bottoms, None if rest else module, more)
                # so that it keeps its own traceback
                if told is error:
                    raise
                raise told from error
            if len(spec.tops) == 1:
                env[spec.tops[0]] = tops
            else:
                env.update(zip(spec.tops, tops, strict=True))
            # what nobody reads any more makes room during the pass
            for name in step.dead:
                if name not in keep:
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
