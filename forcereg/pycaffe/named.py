"""A net's passes with arrays by name: of one batch, or of as many as the arrays fill."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Protocol

import numpy as np

from forcereg.layers.pycaffe.blob import Blob
from forcereg.layers.pycaffe.vectors import StringVec
from forcereg.pycaffe.chain import Chain
from forcereg.pycaffe.mappings import Old

Arrays = dict[str, Any]


class Passing(Protocol):
    """What of a Net is read here."""

    _chain: Chain

    @property
    def blobs(self) -> Mapping[str, Blob]:
        """See Net."""

    @property
    def inputs(self) -> list[str]:
        """See Net."""

    @property
    def outputs(self) -> list[str]:
        """See Net."""

    @property
    def bottom_names(self) -> Mapping[str, list[str]]:
        """See Net."""

    @property
    def top_names(self) -> Mapping[str, list[str]]:
        """See Net."""

    @property
    def _layer_names(self) -> StringVec: ...

    def _batch(self, blobs: Mapping[str, Any]) -> Iterator[Arrays]: ...


def forward(net: Passing, more: Any, start: str | None, end: str | None, given: Mapping[str, Any]) -> Arrays:
    """See Net.forward."""
    first = 0 if start is None else _number(net, start)
    last = len(net._chain.stages) - 1 if end is None else _number(net, end)
    wanted = [*(net.outputs if end is None else net.top_names[end]), *_listed("blobs", more)]
    if given:
        if set(given) != set(net.inputs):
            raise Exception("Input blob arguments do not match net inputs.")
        for name, values in given.items():
            if values.shape[0] != net.blobs[name].shape[0]:
                raise Exception("Input is not batch sized")
            net.blobs[name].data[...] = values
    net._chain.forward(first, last)
    return Old((name, net.blobs[name].data) for name in wanted)


def backward(net: Passing, more: Any, start: str | None, end: str | None, given: Mapping[str, Any]) -> Arrays:
    """See Net.backward."""
    first = len(net._chain.stages) - 1 if start is None else _number(net, start)
    last = 0 if end is None else _number(net, end)
    wanted = [*(net.inputs if end is None else net.bottom_names[end]), *_listed("diffs", more)]
    if given:
        if set(given) != set(net.outputs):
            raise Exception("Top diff arguments do not match net outputs.")
        for name, values in given.items():
            if values.shape[0] != net.blobs[name].shape[0]:
                raise Exception("Diff is not batch sized")
            net.blobs[name].diff[...] = values
    net._chain.backward(first, last)
    return Old((name, net.blobs[name].diff) for name in wanted)


def _number(net: Passing, layer: str) -> int:
    return list(net._layer_names).index(layer)


def _listed(what: str, names: Any) -> list[str]:
    if isinstance(names, str):
        raise TypeError(f"{what} is a text; expected a list of names")
    return list(names or ())


def batches(net: Passing, given: Mapping[str, Any]) -> Iterator[Arrays]:
    """Arrays of any length in pieces of the net's batch, the last one filled up with zeros.

    The batch is that of the net's first blob.
    """
    count = len(next(iter(given.values())))
    size = next(iter(net.blobs.values())).shape[0]
    for start in range(0, count - count % size, size):
        yield {name: values[start : start + size] for name, values in given.items()}
    left = count % size
    if left:
        yield {name: _padded(values[-left:], size - left) for name, values in given.items()}


def _padded(rows: Any, missing: int) -> np.ndarray:
    return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]))])


def forward_all(net: Passing, more: Any, given: Mapping[str, Any]) -> Arrays:
    """See Net.forward_all."""
    rows: dict[str, list[Any]] = {name: [] for name in [*net.outputs, *_listed("blobs", more)]}
    for batch in net._batch(given):
        _gather(rows, forward(net, more, None, None, batch))
    return _cut(rows, len(next(iter(given.values()))))


def forward_backward_all(net: Passing, more: Any, diffs: Any, given: Mapping[str, Any]) -> tuple[Arrays, Arrays]:
    """See Net.forward_backward_all."""
    outs: dict[str, list[Any]] = {name: [] for name in [*net.outputs, *_listed("blobs", more)]}
    grads: dict[str, list[Any]] = {name: [] for name in [*net.inputs, *_listed("diffs", diffs)]}
    sides = [{name: given[name] for name in names if name in given} for names in (net.inputs, net.outputs)]
    pieces = [net._batch(side) if side else iter(()) for side in sides]
    for inputs, tops in zip_longest(*pieces, fillvalue={}):
        _gather(outs, forward(net, more, None, None, inputs))
        _gather(grads, backward(net, diffs, None, None, tops))
    count = len(next(iter(given.values())))
    return _cut(outs, count), _cut(grads, count)


def _gather(rows: dict[str, list[Any]], found: Mapping[str, np.ndarray]) -> None:
    for name, values in found.items():
        # a scalar has no rows to iterate, which is a TypeError
        rows[name].extend(values.copy())


def _cut(rows: Mapping[str, Sequence[Any]], count: int) -> Arrays:
    """As arrays, without the rows of the first one that go beyond `count`."""
    pad = len(next(iter(rows.values()))) - count
    arrays: Iterable[tuple[str, np.ndarray]] = ((name, np.asarray(values)) for name, values in rows.items())
    return Old((name, values[:-pad] if pad else values) for name, values in arrays)
