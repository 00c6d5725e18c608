"""A trained net for use: the TEST net with Input layers for its data, probabilities in place of losses, no labels.

What its results need stays as it is and under its name, so that weights go by name as before. All else goes: labels
and what is made of them, scores, layers of other phases, and auxiliary classifiers, which are losses of less weight
than another one against the same label.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from forcereg.errors import ForceregError, did_you_mean
from forcereg.layers.module import layer_class
from forcereg.net.deploy.graph import LOSSES, Blob, Graph, Head, strongest
from forcereg.net.deploy.inputs import data_shapes, preparation
from forcereg.net.deploy.make import Plan, Shape, unread
from forcereg.net.load import net_file, net_root, net_spec, shape_net
from forcereg.schema import TEST, TRAIN, NetState
from forcereg.schema.rules import net_state
from forcereg.schema.scan import shown
from forcereg.schema.spec import LayerSpec, kept_layers
from forcereg.schema.text import NetFile, net_from_message

__all__ = ["Deployed", "deploy"]

RECURRENT = frozenset({"LSTM", "LSTMUnit", "RNN"})
"""Their data have time on axis 0, and no batch there."""


@dataclass(frozen=True)
class Deployed:
    """A net for use: `net` is its NetParameter, `inputs` and `outputs` are its blobs with their shapes.

    Outputs that were asked for may be read by other layers; their shapes are None where a layer can't be built here.
    `preparation`: input -> what its data layer made of pixels, which callers do now. `auxiliary`: losses whose results
    were left out. `gone`: layers of the TEST net that aren't in it. `sources`: input -> the data layer in its place.
    """

    net: Any = field(repr=False)
    inputs: dict[str, Shape]
    outputs: dict[str, Shape | None]
    preparation: dict[str, str]
    auxiliary: tuple[str, ...]
    gone: tuple[str, ...]
    sources: dict[str, LayerSpec] = field(default_factory=dict, repr=False)


def deploy(
    model: str | os.PathLike[str] | Any,
    *,
    batch: int | None = None,
    outputs: Sequence[str] = (),
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    known_shapes: Mapping[str, Sequence[int]] | None = None,
    weighted: Iterable[str] = (),
    level: int = 0,
    stages: Sequence[str] = (),
    allow_python_layers: bool = False,
) -> Deployed:
    """The net for use of a net's TEST phase: a path, prototxt text, NetParameter or NetFile.

    `batch`: size of axis 0 of every input; None for 1 where a data layer is replaced, and for the file's in nets with
    recurrent layers and nets that can't be built with 1. `outputs`: blobs to end in, in place of what losses are told.
    `input_shapes`: blob -> shape, in place of what the source or the file says, batch too; `known_shapes` the same
    where the source is absent. `weighted`: names of layers known to hold weights, which own types may.
    Raises ForceregError for a net that is wrong, or has nothing to give. A net with layers of unknown types, or Python
    ones that may not run, is made without building it, with a warning.
    """
    file = net_file(model)
    graph = _graph(file, TEST, level, stages, weighted)
    if outputs:
        plan = Plan(graph, _asked(graph, file, outputs), [], list(graph.heads()))
        auxiliary: list[Head] = []
    else:
        # the TEST net may score without a loss: then the training net's tells what is to be made of the blob
        found = list(graph.heads()) or list(_of_training(graph, _graph(file, TRAIN, level, stages, weighted)))
        heads, auxiliary = strongest(found)
        plan = Plan(graph, graph.outputs() or ([] if heads else graph.scored()), heads, auxiliary)
    if not plan.outputs:
        raise ForceregError(f"{file.name}: the TEST net has nothing to give: no blob that learned layers make")
    shapes = _shapes(plan, file, input_shapes or {}, known_shapes or {}, allow_python_layers)
    net, made = _built(plan, file, shapes, input_shapes or {}, batch, allow_python_layers)
    names, ends = {layer.name for layer in net.layer}, unread(net)
    fed = [layer for layer in net.layer if layer.type == "Input"]
    done = {top: preparation(graph.layers[index], shapes[top]) for index, tops in plan.data.items() for top in tops}
    return Deployed(
        net=net,
        inputs={layer.top[0]: tuple(layer.input_param.shape[0].dim) for layer in fed},
        outputs={name: made.get(name) for name in plan.outputs if outputs or name in ends},
        preparation={top: text for top, text in done.items() if text},
        auxiliary=tuple(dict.fromkeys(head.spec.name for head in auxiliary)),
        gone=tuple(dict.fromkeys(spec.name for spec in graph.layers if spec.name not in names)),
        sources={top: graph.layers[index] for index, tops in plan.data.items() for top in tops},
    )


def _graph(file: NetFile, phase: int, level: int, stages: Sequence[str], weighted: Iterable[str]) -> Graph:
    """The layers of a phase; those of TEST are checked first. Raises ForceregError."""
    # the training net is only looked at, and may name what isn't here any more
    root = net_spec(file, phase, level, stages).root if phase == TEST else net_root(file)
    state = net_state(phase, file.message.state, NetState(phase=phase, stage=list(stages)))
    if level:
        state.level = level
    return Graph(kept_layers(file, state, root), frozenset(weighted))


def _asked(graph: Graph, file: NetFile, names: Sequence[str]) -> list[Blob]:
    for name in names:
        if name not in graph.last:
            raise ForceregError(
                f"{file.name}: the TEST net has no blob '{shown(name)}'{did_you_mean(name, graph.last)}"
            )
        if not graph.is_use(graph.last[name]):
            raise ForceregError(
                f"{file.name}: blob '{shown(name)}' is a loss or a score, which needs labels; name what it is told"
            )
    return [graph.last[name] for name in names]


def _of_training(graph: Graph, training: Graph) -> Iterable[Head]:
    """The training net's losses about blobs that the TEST net has, too."""
    for head in training.heads():
        layer, slot = head.blob
        name = training.layers[layer].tops[slot]
        if head.spec.type in LOSSES and name in graph.last:
            yield Head(head.spec, len(graph.layers) + head.at, graph.last[name], head.kind)


def _shapes(
    plan: Plan, file: NetFile, given: Mapping[str, Sequence[int]], known: Mapping[str, Sequence[int]], allow: bool
) -> dict[str, Shape]:
    """Of every input. Raises ForceregError for one that can't be found out, and for a shape given for none."""
    for name in given:
        if name not in plan.inputs:
            hint = did_you_mean(name, plan.inputs) or f"; its inputs are {', '.join(plan.inputs) or 'none'}"
            raise ForceregError(f"{file.name}: a shape is given for '{shown(name)}', which the net for use lacks{hint}")
    shapes = {name: tuple(shape) for name, shape in given.items()}
    for index, tops in plan.data.items():
        if left := [top for top in tops if top not in given]:
            shapes |= data_shapes(plan.graph.layers[index], left, known, allow)
    return shapes


def _built(
    plan: Plan,
    file: NetFile,
    shapes: Mapping[str, Shape],
    given: Mapping[str, Sequence[int]],
    batch: int | None,
    allow: bool,
) -> tuple[Any, Mapping[str, Shape]]:
    """The net, and its blobs' shapes as far as code that may run tells. Raises ForceregError if it can't be built."""
    types = {spec.type for spec in plan.graph.layers}
    size = batch or (None if types & RECURRENT else 1)
    written = {top for index, tops in plan.data.items() if plan.graph.layers[index].type == "Input" for top in tops}
    fixed = {*given} if batch else {*given, *written}
    changed = {
        name: shape if size is None or name in fixed or not shape else (size, *shape[1:])
        for name, shape in shapes.items()
    }
    net = plan.net(file.message.name, changed)
    if reason := _unbuildable(net, allow):
        warnings.warn(f"{file.name}: its layers' shapes are not looked at: {reason}", stacklevel=3)
        return net, {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # told where the net is trained
            return net, shape_net(net_from_message(net, file.name), allow_python_layers=allow).shapes
    except ForceregError:
        if batch or changed == shapes:
            raise
    return _built(plan, file, shapes, shapes, None, allow)


def _unbuildable(net: Any, allow: bool) -> str:
    """Why the net can't be built here though nothing need be wrong with it; empty if it can."""
    for spec in net_spec(net_from_message(net), TEST).layers:
        if spec.type == "Input":
            continue
        try:
            runs_code = layer_class(spec).runs_code
        except ForceregError as error:
            return f"layer '{shown(spec.name)}': {str(error).removeprefix(f'{spec.where}: ')}"
        if runs_code and not allow:
            return f"layer '{shown(spec.name)}' runs code that the net names, which --allow-python-layers permits"
    return ""
