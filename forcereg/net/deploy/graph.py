"""Which layers of a TEST net belong to its use: what it is to give, and all that is made of data on the way there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from forcereg.schema.spec import LayerSpec, is_loss
from forcereg.schema.types import BUILT_IN

Blob: TypeAlias = tuple[int, int]
"""The layer that writes it, and its top: what changes a blob in place writes another one."""

LOSSES = {
    "SoftmaxWithLoss": ((0,), "Softmax"),
    "InfogainLoss": ((0,), "Softmax"),
    "SigmoidCrossEntropyLoss": ((0,), "Sigmoid"),
    "MultinomialLogisticLoss": ((0,), ""),  # of probabilities
    "HingeLoss": ((0,), ""),
    "ContrastiveLoss": ((0, 1), ""),
}
"""Type of a loss -> which bottoms the net has computed, and the layer type that makes probabilities of them."""
_LEARNED = """
    BatchNorm Bias Convolution Deconvolution Embed InnerProduct LSTM Parameter PReLU RNN Scale SymmetricRectify
"""
LEARNED = frozenset(_LEARNED.split())
"""Layer types with weights; Bias and Scale of two bottoms have none."""
# by name, for types that aren't ours: SSD's DetectionEvaluate and the like
_SCORES = re.compile("accuracy|evaluat", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Head:
    """What the net has computed for a loss, and the layer type that makes probabilities of it ('': it is the result).

    `at`: the loss's position among the layers, or behind all of them for one of another phase.
    """

    spec: LayerSpec
    at: int
    blob: Blob
    kind: str = ""


@dataclass
class Graph:
    """Layers of one phase, without Splits, and who reads what. `weighted`: names of layers that hold weights."""

    layers: Sequence[LayerSpec]
    weighted: frozenset[str] = frozenset()
    sources: list[tuple[Blob, ...]] = field(default_factory=list)
    last: dict[str, Blob] = field(default_factory=dict)
    readers: dict[Blob, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for index, spec in enumerate(self.layers):
            self.sources.append(tuple(self.last[bottom] for bottom in spec.bottoms))
            for blob in self.sources[-1]:
                self.readers.setdefault(blob, []).append(index)
            self.last.update({top: (index, slot) for slot, top in enumerate(spec.tops)})
        self._learned, self._fed, self._tainted = self._followed()
        self.side = frozenset(self._side())
        """Data that reach nothing learned, and no output: labels, and what else only losses and scores are told."""

    # -- what a layer is

    def is_data(self, index: int) -> bool:
        """Whether it brings blobs into the net."""
        spec = self.layers[index]
        return bool(spec.tops) and not spec.bottoms and spec.type != "Parameter"

    def is_learned(self, index: int) -> bool:
        """Whether it has weights, as far as its type, its `param` entries or a snapshot tell."""
        spec = self.layers[index]
        if spec.type in LEARNED:
            return len(spec.bottoms) < 2 or spec.type not in ("Bias", "Scale")
        return spec.name in self.weighted or (spec.type not in BUILT_IN - {"Python"} and bool(spec.message.param))

    def judges(self, index: int) -> bool:
        """Whether it is there to compare the net's results with labels, or to write them somewhere."""
        spec = self.layers[index]
        if is_loss(spec.type) or _SCORES.search(spec.type):
            return True
        read = any((index, slot) in self.readers for slot in range(len(spec.tops)))
        ends = not spec.tops or any(spec.loss_weights)
        return ends and not read and not self.is_learned(index) and spec.type != "Silence"

    def _followed(self) -> tuple[list[bool], list[frozenset[Blob]], list[bool]]:
        """Of each layer: whether it is made of learned ones, of which data, and whether of a loss or score."""
        learned: list[bool] = []
        fed: list[frozenset[Blob]] = []
        tainted: list[bool] = []
        for index in range(len(self.layers)):
            sources = self.sources[index]
            learned.append(self.is_learned(index) or any(learned[layer] for layer, _ in sources))
            fed.append(frozenset().union(*(self._data_of(blob, fed) for blob in sources)))
            judged = (tainted[layer] or (self.judges(layer) and not self._is_softmax((layer, top)))
                      for layer, top in sources)  # fmt: skip
            tainted.append(any(judged))
        return learned, fed, tainted

    def _data_of(self, blob: Blob, fed: Sequence[frozenset[Blob]]) -> frozenset[Blob]:
        return frozenset({blob}) if self.is_data(blob[0]) else fed[blob[0]]

    def _is_softmax(self, blob: Blob) -> bool:
        """Whether it is the second top of a loss: its probabilities."""
        layer, top = blob
        return top == 1 and LOSSES.get(self.layers[layer].type, ((), ""))[1] == "Softmax"

    def learned(self, blob: Blob) -> bool:
        """Whether something with weights made it."""
        return self._learned[blob[0]]

    def data_of(self, blob: Blob) -> frozenset[Blob]:
        """The data that it is made of."""
        return self._data_of(blob, self._fed)

    # -- what the net is to give

    def outputs(self) -> list[Blob]:
        """What nobody reads and what is made of the learned, losses and scores aside; all that nobody reads in a net
        without losses and scores."""
        judged = any(self.judges(index) for index in range(len(self.layers)))
        found = []
        for index, spec in enumerate(self.layers):
            if self.is_data(index) or self.judges(index) or self._tainted[index]:
                continue
            if self._learned[index] or not judged:
                found += [(index, slot) for slot in range(len(spec.tops)) if (index, slot) not in self.readers]
        return found

    def heads(self) -> Iterator[Head]:
        """What losses, and what else ends the net, are told of its results."""
        for index, spec in enumerate(self.layers):
            if self.judges(index) and not self._tainted[index] and not _SCORES.search(spec.type):
                slots, kind = LOSSES.get(spec.type, ((), ""))
                for slot in slots:
                    yield Head(spec, index, self.sources[index][slot], kind)
                if not slots:
                    yield from (Head(spec, index, blob) for blob in self.results(index))

    def results(self, index: int) -> list[Blob]:
        """Those of a layer's bottoms that the net has computed: learned, and not of what only losses are told.

        Of one that is both, what it is made of. The first bottom if there is none.
        """
        found: list[Blob] = []
        waiting = [blob for blob in reversed(self.sources[index]) if self.learned(blob)]
        while waiting:
            blob = waiting.pop()
            if self.data_of(blob).isdisjoint(self.side):
                found.append(blob)
            else:
                waiting += [one for one in reversed(self.sources[blob[0]]) if self.learned(one)]
        return list(dict.fromkeys(found)) or list(self.sources[index][:1])

    def _side(self) -> Iterator[Blob]:
        reaching = [self.data_of((index, 0)) for index in range(len(self.layers)) if self.is_learned(index)]
        reaching += [self.data_of(blob) for blob in self.outputs()]
        useful = frozenset().union(*reaching)
        for index, spec in enumerate(self.layers):
            if self.is_data(index):
                yield from {(index, slot) for slot in range(len(spec.tops))} - useful

    def scored(self) -> list[Blob]:
        """What losses and scores are told first."""
        return [blob for index in range(len(self.layers)) if self.judges(index) for blob in self.sources[index][:1]]

    def is_use(self, blob: Blob) -> bool:
        """Whether it can be had without labels: no loss or score, nor made of one."""
        return self._is_softmax(blob) or not (self.judges(blob[0]) or self._tainted[blob[0]])

    def needed(self, ends: Iterable[Blob], heads: Iterable[Head]) -> set[Blob]:
        """All blobs on the way to these. Of a loss whose probabilities are read: what it makes them of."""
        of_losses = {head.at: head.blob for head in heads if head.kind}
        found: set[Blob] = set()
        waiting = list(ends)
        while waiting:
            blob = waiting.pop()
            if blob not in found:
                found.add(blob)
                waiting += [of_losses[blob[0]]] if blob[0] in of_losses else self.sources[blob[0]]
        return found


def strongest(heads: Sequence[Head]) -> tuple[list[Head], list[Head]]:
    """Heads that stay and auxiliary ones: those of less weight than another loss against the same label.

    Bottom 1 is the label, where the loss's type says that the first one is the net's.
    """

    def label(head: Head) -> str | None:
        return head.spec.bottoms[1] if head.spec.type in LOSSES and len(head.spec.bottoms) > 1 else None

    most: dict[str, float] = {}
    for head in heads:
        if (name := label(head)) is not None:
            most[name] = max(most.get(name, 0.0), _weight(head))
    kept = [head for head in heads if (name := label(head)) is None or _weight(head) >= most[name]]
    return kept, [head for head in heads if head not in kept]


def _weight(head: Head) -> float:
    return abs(head.spec.loss_weights[0]) if head.spec.loss_weights else 1.0
