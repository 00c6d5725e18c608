"""Rank clipping: training that gives the layers of a decomposed net fewer ranks as soon as their weights allow it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.layers.weighted import Convolution
from forcereg.lowrank.clipping import Kind, cut
from forcereg.lowrank.factor import PAIR
from forcereg.lowrank.merge import Chain
from forcereg.net.module import Net
from forcereg.schema.spec import LayerSpec, NetSpec
from forcereg.schema.text import parse_net, to_text
from forcereg.snapshot import ModelFile, StateFile
from forcereg.solver.chains import chains_of
from forcereg.solver.prefix import probe_prefix
from forcereg.solver.run import Nets, Run
from forcereg.solver.saved import CLIPPED
from forcereg.solver.state import to_array
from forcereg.solver.steps import Steps
from forcereg.system.files import check_writable, write_text


@dataclass(frozen=True)
class Pair:
    """The layers `first` and `second` in place of a layer `name`, and how their weights are matrices."""

    name: str
    first: str
    second: str
    groups: int
    transposed: bool

    def rank(self, blob: np.ndarray | Tensor) -> int:
        """The total rank, from the first layer's weight."""
        return int(blob.shape[1 if self.transposed else 0])

    def matrices(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """The weights, or what has their shapes, as (groups, R, K) and (groups, N, R)."""
        first, second = (one.mT if self.transposed else one for one in (first, second))
        return tuple(one.reshape(self.groups, len(one) // self.groups, -1) for one in (first, second))  # type: ignore[return-value]

    def blobs(self, matrices: tuple[Tensor, Tensor], first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """`matrices` back, of another rank than that of `first` and `second`, which they came from."""
        if self.transposed:
            return matrices[0][0].mT, matrices[1][0].mT
        return matrices[0].reshape(-1, *first.shape[1:]), matrices[1].reshape(len(second), -1, *second.shape[2:])


class RankClipping:
    """Reduces ranks of a run's nets at each test interval, before the tests, from the first one to before `until`.

    Each layer gets the smallest rank that keeps `share` of its squared norm; its history is projected, see
    forcereg.lowrank.clipping. Snapshots hold the net with its ranks; a solver of the whole net goes on from them.
    Raises ForceregError if the solver has no test interval, its nets no pair of layers that can be reduced, or the
    snapshots' folder can't be written.
    """

    def __init__(self, run: Run, nets: Nets, steps: Steps, share: float, until: int | None = None) -> None:
        self._run, self._nets, self._steps = run, nets, steps
        self.share, self.until = share, until
        if run.param.test_interval < 1:
            raise ForceregError(f"{run.name}: rank clipping looks at ranks every test_interval iterations; set it")
        self.pairs = _common_pairs(list(nets))
        if not self.pairs:
            raise ForceregError(
                f"{nets.train.spec.filename}: rank clipping needs layers X_lowrank -> X_linear that learn and share "
                "nothing; make them by `forcereg decompose --snapshot S --error 0 --even-if-dearer`"
            )
        if run.param.snapshot_prefix:
            run.group.once(lambda: probe_prefix(run.prefix(), run.param, run.name))
            run.group.once(lambda: check_writable(self._written()))
        # of the first net that this sees: a resumed run raises them to the snapshot's (see fitted)
        self.full = self.ranks
        self.last = -1
        self._tell_what_stays()

    def _tell_what_stays(self) -> None:
        tell, names = self._run.tell, {pair.name for pair in self.pairs}
        for chain in chains_of(self._nets.train):
            if chain.name not in names:
                why = "only X_lowrank -> X_linear that learn and share nothing are reduced"
                tell.emit("note", text=f"Rank clipping leaves {' -> '.join(chain.parts)} as they are: {why}")
        if self.until is not None and self.until <= (every := self._run.param.test_interval):
            tell.warn(f"no rank will be reduced: the first look is at iteration {every}, clip-until is {self.until}")

    @property
    def ranks(self) -> dict[str, int]:
        """Layer before the decomposition -> its rank now."""
        return {pair.name: pair.rank(self._nets.train.params[pair.first][0]) for pair in self.pairs}

    def due(self, iteration: int) -> bool:
        """Whether ranks are to be looked at in this iteration."""
        # a snapshot among the tests holds what was cut before them: who goes on from it runs the tests alone again
        return iteration % self._run.param.test_interval == 0 and iteration != self.last

    def clip(self, iteration: int) -> None:
        """Reduces what can be reduced, and tells the ranks. The losses before `iteration` have to be finite."""
        before = self.ranks
        # decompositions differ in their last bits from one machine to the next: every rank gets what rank 0 found
        found, shares = self._run.group.once(self._found) if self._may_reduce(iteration) else ({}, {})
        if found:
            self._install(found)
        self.last = iteration
        self._tell(iteration, {name: {"before": before[name], "kept": kept} for name, kept in shares.items()})

    def _tell(self, iteration: int, more: Mapping[str, dict[str, float]]) -> None:
        layers = [{"layer": name, "rank": rank, **more.get(name, {})} for name, rank in self.ranks.items()]
        self._run.tell.emit("ranks", iteration=iteration, layers=layers)

    def _may_reduce(self, iteration: int) -> bool:
        return iteration > 0 and (self.until is None or iteration < self.until)

    def _found(self) -> tuple[Values, dict[str, float]]:
        """What `_install` takes for the layers that can be reduced, and what share of its norm each keeps."""
        values: Values = {}
        shares = {}
        for pair in self.pairs:
            # the weight comes first in each, then its history: one projection is found from it and used on all
            first, second = self._held(pair.first), self._held(pair.second)
            reduced = cut(*pair.matrices(first[0][1], second[0][1]), self.share)
            if reduced is None:
                continue
            shares[pair.name] = reduced.share
            for (kind, one), (_, other) in zip(first, second, strict=True):
                projected = reduced.project(kind, *pair.matrices(one, other))
                for layer, blob in zip((pair.first, pair.second), pair.blobs(projected, one, other), strict=True):
                    values.setdefault(layer, []).append(to_array(blob))
        return values, shares

    def _held(self, layer: str) -> list[tuple[Kind, Tensor]]:
        """A layer's weight, its history and its average, and how to project each."""
        history = [(_kind(held), tensor) for held, tensor in self._steps.updater.history_of(layer, 0)]
        average = [] if self._steps.average is None else [(Kind.WEIGHT, self._steps.average.of(layer, 0))]
        return [(Kind.WEIGHT, self._nets.train.params[layer][0].detach()), *history, *average]

    @torch.no_grad()
    def _install(self, values: Values) -> None:
        """Gives the layers named in `values` these weights and history, and all nets the ranks that they have."""
        # shapes first: history of the new ones is made by the update, and filled below
        self._resize({layer: blobs[0] for layer, blobs in values.items()})
        for layer, arrays in values.items():
            for (_, tensor), array in zip(self._held(layer), arrays, strict=True):
                tensor.copy_(torch.from_numpy(array))

    def _resize(self, weights: Mapping[str, Any]) -> None:
        """Gives all nets the ranks of `weights`, layer -> weight. What has another shape then is yet to be filled."""
        ranks = {pair.first: pair.rank(weights[pair.first]) for pair in self.pairs if pair.first in weights}
        for net in self._nets:
            net.adopt(_with_ranks(net.spec, ranks))
        # adopting gave the test nets blobs of their own
        self._nets.share()
        self._steps.renew()

    @contextlib.contextmanager
    def fitted(self, state: StateFile, model: ModelFile) -> Iterator[None]:
        """The nets get the ranks of a snapshot, and their own again if the block can't go on from it."""
        layers = [layer for pair in self.pairs for layer in (pair.first, pair.second)]
        # copies on the host: the ranks that the snapshot brings take these tensors' place
        before = {layer: [to_array(tensor.clone()) for _, tensor in self._held(layer)] for layer in layers}
        saved = {
            pair.first: model.layers[pair.first][0]
            for pair in self.pairs
            if self._fits(pair, model.layers.get(pair.first, {}).get(0))
        }
        self._resize(saved)
        try:
            yield
        except ForceregError:
            self._install(before)
            raise
        self.last = (state.extra or {}).get(CLIPPED, -1)
        self.full = {name: max(rank, self.full[name]) for name, rank in self.ranks.items()}

    def _fits(self, pair: Pair, found: np.ndarray | None) -> bool:
        own = self._nets.train.params[pair.first][0]
        return found is not None and found.ndim == own.dim() and found.size > 0 and pair.rank(found) % pair.groups == 0

    def _written(self) -> Path:
        return Path(f"{self._run.prefix()}_clipped.prototxt")

    def finish(self, iteration: int) -> None:
        """Writes the net with its ranks beside the snapshots, and tells the ranks."""
        run, ranks = self._run, self.ranks
        self._tell(iteration, {})
        text = ", ".join(f"{name} {rank} of {self.full[name]}" for name, rank in ranks.items())
        if run.param.snapshot_prefix:
            path = self._written()
            run.group.once(lambda: write_text(path, self._nets.train.spec.text))
            text += f"; the net with these ranks is {path}"
        run.tell.emit("note", text=f"Ranks at the end: {text}")


Values = dict[str, list[np.ndarray]]
"""Layer -> its weight, each tensor of the weight's history, and the weight's average."""


@contextlib.contextmanager
def fitted(clipping: RankClipping | None, state: StateFile, model: ModelFile) -> Iterator[None]:
    """Around taking over a snapshot: with rank clipping nets get its ranks; without, an error tells if it had any."""
    try:
        with contextlib.nullcontext() if clipping is None else clipping.fitted(state, model):
            yield
    except ForceregError as error:
        if clipping is None and CLIPPED in (state.extra or {}):
            raise ForceregError(f"{error}; it was saved with --rank-clipping: give that again") from error
        raise


def _kind(held: str) -> Kind:
    """What a solver type says that it `holds`, as one of the kinds that are projected differently."""
    if "squares" not in held:
        return Kind.GRADIENT
    # AdaDelta also holds squares of steps, which change as weights do; all others are squares of gradients
    return Kind.SQUARED_STEP if "update" in held else Kind.SQUARED_GRADIENT


def _common_pairs(nets: list[Net]) -> list[Pair]:
    """The pairs of the first net, the training net, that are so in each of the others that has the layers."""
    found = [{pair.name: pair for pair in _pairs(net)} for net in nets]
    # a frozen layer's rank has to stay, so that its weight does
    learning = {one.layer for one in nets[0].learnable if one.index == 0 and one.lr_mult}
    return [
        pair
        for pair in found[0].values()
        if learning.issuperset((pair.first, pair.second))
        and all(
            pairs.get(pair.name) == pair or not {pair.first, pair.second}.intersection(net.params)
            for net, pairs in zip(nets, found, strict=True)
        )
    ]


def _pairs(net: Net) -> Iterator[Pair]:
    """The pairs of one net that compute, per group, C A x."""
    for chain in chains_of(net):
        if chain.slots == PAIR and (groups := _groups(net, chain)):
            spec = net.module(chain.parts[0]).spec
            transposed = spec.type == "InnerProduct" and spec.message.inner_product_param.transpose
            first, second = chain.parts
            yield Pair(chain.name, first, second, groups, transposed)


def _groups(net: Net, chain: Chain) -> int:
    """The groups of both layers; 0 if they differ, or the second one is more than a combination at each position."""
    first, second = (net.module(part) for part in chain.parts)
    if not isinstance(first, Convolution) or not isinstance(second, Convolution):
        return 1
    g = second.geometry
    # with a window the second layer mixes positions, and its weight is no matrix C of C A x
    neutral = {*g.kernel, *g.stride} <= {1} and not any(g.pad) and first.axis == second.axis
    return first.group if neutral and first.group == second.group else 0


def _with_ranks(spec: NetSpec, ranks: Mapping[str, int]) -> NetSpec:
    """The spec, and its text, with other num_outputs."""
    # from the text and not from the layers, which are those of one phase only: the file written at the end holds all
    net = parse_net(spec.text, spec.filename).message
    for layer in net.layer:
        if layer.name in ranks:
            _set_outputs(layer, ranks[layer.name])
    layers = tuple(_layer_with_rank(one, ranks[one.name]) if one.name in ranks else one for one in spec.layers)
    return replace(spec, layers=layers, text=to_text(net))


def _layer_with_rank(spec: LayerSpec, rank: int) -> LayerSpec:
    message = type(spec.message)()
    message.CopyFrom(spec.message)
    _set_outputs(message, rank)
    return replace(spec, message=message)


def _set_outputs(layer: Any, count: int) -> None:
    param = layer.inner_product_param if layer.type == "InnerProduct" else layer.convolution_param
    param.num_output = count
