"""What a net costs, and nets made of it: in the phase that it is deployed in, and in training where that differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forcereg.cost import Cost, Shapes
from forcereg.errors import ForceregError, did_you_mean
from forcereg.lowrank.rewrite import Weights
from forcereg.net.load import phase_net
from forcereg.net.module import Net
from forcereg.net.summary import cost_of
from forcereg.schema import TEST, TRAIN
from forcereg.schema.rules import included, net_state
from forcereg.schema.spec import stands
from forcereg.schema.text import NetFile


@dataclass(frozen=True)
class View:
    """A net in one phase: `state` is what its layers' rules are matched against; `net` has shapes but no values."""

    state: Any
    net: Net

    @property
    def fed(self) -> Shapes:
        """Shapes of what the net is fed, for others that are fed like it."""
        return {name: self.net.shapes[name] for name in self.net.inputs}

    def like(self, file: NetFile, root: Path, allow_python_layers: bool) -> Net:
        """Another net that is fed like this one. Raises ForceregError if it can't be built."""
        return phase_net(file, self.state, self.fed, None, root, allow_python_layers)

    def cost(self, file: NetFile, root: Path, allow_python_layers: bool) -> Cost | None:
        """Of another net that is fed like this one, None if it can't be built."""
        try:
            return cost_of(self.like(file, root, allow_python_layers))
        except ForceregError:
            return None


@dataclass(frozen=True)
class Accounts:
    """What costs are of: the TEST net, what is deployed; the TRAIN net where there is no TEST net.

    `state`: that of the net. `view`: None where shapes are unknown. `train`: the TRAIN net beside the TEST net, None if
    it can't be built.
    """

    state: Any
    view: View | None
    train: View | None
    root: Path
    allow_python_layers: bool

    @property
    def shapes(self) -> Shapes | None:
        """Of all blobs."""
        return None if self.view is None else self.view.net.shapes

    @property
    def fed(self) -> Shapes | None:
        """Of what the net is fed."""
        return None if self.view is None else self.view.fed

    @property
    def phase(self) -> str:
        """TRAIN or TEST."""
        return "TEST" if self.state.phase == TEST else "TRAIN"

    def cost(self, file: NetFile, weights: Weights) -> Cost:
        """Of a net that is fed like this one; without shapes MACs are None, and values are counted in `weights`."""
        if self.view is not None and (known := self.view.cost(file, self.root, self.allow_python_layers)):
            return known
        kept = [layer for layer in file.message.layer if included(layer, self.state)]
        # a BatchNorm's first three are statistics; NVCaffe's has two more, which are learned
        first = {layer.name: 3 if layer.type == "BatchNorm" else 0 for layer in kept}  # learned blob
        blobs = [(name, index, values) for name in first for index, values in weights.get(name, {}).items()]
        return Cost(None, sum(values.size for name, index, values in blobs if index >= first[name]))

    def in_training(self, file: NetFile) -> Cost | None:
        """Of its TRAIN net, where `cost` is of the TEST net; None if it can't be known."""
        return None if self.train is None else self.train.cost(file, self.root, self.allow_python_layers)


def accounts(
    file: NetFile,
    given: Mapping[str, Sequence[int]] | None = None,
    known: Mapping[str, Sequence[int]] | None = None,
    root: Path | None = None,
    allow_python_layers: bool = False,
    test_state: Any = None,
) -> Accounts:
    """How to account for a net. `given`, `known`: as for `load.phase_net`; `test_state`: the solver's, for its rules.

    Raises ForceregError for shapes given of what is no input, or that no layer can take.
    """
    root = root or Path.cwd()
    views: dict[int, View] = {}
    errors: dict[int, ForceregError] = {}
    # the phase once more behind the net's own state, which may name another
    states = {phase: net_state(phase, file.message.state, net_state(phase)) for phase in (TEST, TRAIN)}
    if test_state is not None:
        states[TEST] = net_state(TEST, states[TEST], test_state, net_state(TEST))
    for phase, state in states.items():
        try:
            views[phase] = View(state, phase_net(file, state, given, known, root, allow_python_layers))
        except ForceregError as error:  # a phase without layers, a data source that is not here, code that may not run
            errors[phase] = error
    if given:
        _check_given(file, given, views, errors)
    view = views.get(TEST) or views.get(TRAIN)
    # without shapes: whether there is a TEST net at all
    state = view.state if view else states[TEST if stands(file, states[TEST], root) else TRAIN]
    train = views.get(TRAIN) if view is not None and state.phase == TEST else None
    return Accounts(state, view, train, root, allow_python_layers)


def _check_given(
    file: NetFile,
    given: Mapping[str, Sequence[int]],
    views: Mapping[int, View],
    errors: Mapping[int, ForceregError],
) -> None:
    if not views:
        raise errors[TEST if TEST in errors else TRAIN]
    inputs = [name for view in views.values() for name in view.net.inputs]
    for name in given:
        if name not in inputs:
            hint = did_you_mean(name, inputs) or f"; inputs are {', '.join(dict.fromkeys(inputs)) or 'none'}"
            raise ForceregError(f"{file.name}: a shape is given for '{name}', which is no input here{hint}")
