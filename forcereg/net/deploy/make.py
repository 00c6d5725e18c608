"""Composing the net for use: which layers it has, under which names, and what it is fed."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from forcereg.net.deploy.graph import Blob, Graph, Head
from forcereg.schema import LayerParameter, NetParameter
from forcereg.schema.spec import LayerSpec

Shape = tuple[int, ...]
RANDOM = frozenset({"uniform", "gaussian", "positive_unitball", "xavier", "msra"})
"""Fillers whose values no net for use keeps: its weights are learned."""


class Plan:
    """The layers of a net for use.

    `ends`: blobs to end in. Of `heads` those of a kind become layers, unless the net has such a layer already, and
    those of `others` whose probabilities are read. `data`: data layer's position -> those of its tops that are read.
    `outputs`: the names of what the net is to give, some of which it may go on with.
    """

    def __init__(self, graph: Graph, ends: Sequence[Blob], heads: Sequence[Head], others: Sequence[Head]) -> None:
        self.graph = graph
        there = {head: found for head in heads if head.kind and (found := self._there(head)) is not None}
        # reversed twice: of equal ones the first stays, in its place
        new = list({(head.kind, head.blob, _axis_of(head.spec)): head
                    for head in reversed(heads) if head.kind and head not in there}.values())[::-1]  # fmt: skip
        ends = [*ends, *there.values(), *(head.blob for head in heads if not head.kind)]
        needed = graph.needed([*ends, *(head.blob for head in new)], [*heads, *others])
        read = [head for head in (*heads, *others) if head.kind and (head.at, 1) in needed]
        self.made = {head.at: head for head in sorted({*new, *read}, key=lambda head: head.at)}
        self.kept = {layer for layer, _ in needed} - self.made.keys()
        self.data = {
            index: [top for slot, top in enumerate(graph.layers[index].tops) if (index, slot) in needed]
            for index in sorted(self.kept)
            if graph.is_data(index)
        }
        self.inputs = [top for tops in self.data.values() for top in tops]
        self._taken = {graph.layers[index].name for index in self.kept if index not in self.data}
        self._names = self._named()
        tops = [self._names[at][1] if at in self.made else graph.layers[at].tops[slot] for at, slot in ends]
        self.outputs = list(dict.fromkeys([*tops, *(self._names[head.at][1] for head in new)]))

    def _there(self, head: Head) -> Blob | None:
        """What a layer makes of a head's blob that is just the one to be made."""
        for index, spec in enumerate(self.graph.layers):
            if (
                spec.type == head.kind
                and self.graph.sources[index] == (head.blob,)
                and _axis_of(spec) == _axis_of(head.spec)
            ):
                return (index, 0)
        return None

    def _named(self) -> dict[int, tuple[str, str]]:
        """Name and top of each layer that a head becomes: "prob" for the only one, as Caffe's nets for use have it."""
        layers = self.graph.layers
        taken = self._taken | {top for index in self.kept for top in layers[index].tops}
        names = {}
        for at, head in self.made.items():
            name = "prob" if len(self.made) == 1 and "prob" not in taken else f"{head.spec.name}_prob"
            while name in taken:
                name += "_"
            taken.add(name)
            names[at] = (name, head.spec.tops[1] if head.kind == "Softmax" and len(head.spec.tops) > 1 else name)
        return names

    def net(self, name: str, shapes: Mapping[str, Shape]) -> Any:
        """The NetParameter, fed by inputs of these shapes."""
        net = NetParameter(name=name) if name else NetParameter()
        for index in sorted({*self.kept, *self.made}):
            if index in self.made:
                net.layer.append(_probabilities(self.made[index], *self._names[index]))
            elif index in self.data:
                net.layer.extend(_inputs(self.data[index], shapes, self._taken))
            else:
                net.layer.append(plain(self.graph.layers[index].message))
        if spare := [top for top in unread(net) if top not in self.outputs and top not in self.inputs]:
            # or they would be outputs
            net.layer.add(name="silence", type="Silence", bottom=spare)
        return net


def unread(net: Any) -> list[str]:
    """The blobs that no layer reads: the outputs of the net, in its order."""
    left: dict[str, None] = {}
    for layer in net.layer:
        for bottom in layer.bottom:
            left.pop(bottom, None)
        left |= dict.fromkeys(layer.top)
    return list(left)


def _axis_of(spec: LayerSpec) -> int:
    """The axis of classes in a loss or Softmax."""
    message = spec.message
    return int((message.infogain_loss_param if spec.type == "InfogainLoss" else message.softmax_param).axis)


def _probabilities(head: Head, name: str, top: str) -> Any:
    layer = LayerParameter(name=name, type=head.kind, bottom=[head.spec.bottoms[0]], top=[top])
    if head.kind == "Softmax" and _axis_of(head.spec) != layer.softmax_param.axis:
        layer.softmax_param.axis = _axis_of(head.spec)
    return layer


def _inputs(tops: Sequence[str], shapes: Mapping[str, Shape], taken: Container[str]) -> Iterator[Any]:
    for top in tops:
        layer = LayerParameter(name=f"{top}_input" if top in taken else top, type="Input", top=[top])
        layer.input_param.shape.add(dim=shapes[top])
        yield layer


def plain(message: Any) -> Any:
    """A layer without what only training, or the choice of a phase, needs. One that says `phase` is in use as in TEST:
    dumps of binary models say TRAIN of every layer."""
    layer = LayerParameter()
    layer.CopyFrom(message)
    for field in ("include", "exclude", "phase", "propagate_down", "loss_weight", "blobs"):
        layer.ClearField(field)
    if not any(spec.name for spec in layer.param):
        layer.ClearField("param")
    _without_random(layer)
    return layer


def _without_random(message: Any) -> None:
    for field, value in message.ListFields():
        if field.message_type is None or hasattr(value, "extend"):
            continue
        if field.message_type.name == "FillerParameter" and value.type in RANDOM:
            message.ClearField(field.name)
        else:
            _without_random(value)
