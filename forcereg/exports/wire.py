"""An ONNX model as the bytes of its file, weights from where they lie: protobuf's own way copies them four times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
"""Numbers of the fields ModelProto.graph, GraphProto.initializer and TensorProto.raw_data."""


@dataclass
class Constant:
    """A TensorProto without its values, and these; None once they lie in another file."""

    head: Any
    values: np.ndarray | None

    @property
    def raw(self) -> memoryview:
        """The values as bytes, in ONNX's order."""
        if self.values is None:
            return memoryview(b"")
        ordered = np.ascontiguousarray(self.values, self.values.dtype.newbyteorder("<"))
        return ordered.reshape(-1).view(np.uint8).data


def pieces(proto: Any, constants: Iterable[Constant]) -> Iterator[bytes | memoryview]:
    """A ModelProto whose graph has these constants beside its own, piece by piece."""
    rest = type(proto)()
    rest.CopyFrom(proto)
    rest.ClearField("graph")
    fields = [_field(constant) for constant in constants]
    graph = proto.graph.SerializeToString()
    size = len(graph) + sum(len(piece) for field in fields for piece in field)
    yield rest.SerializeToString() + _opening(GRAPH, size) + graph
    for field in fields:
        yield from field


def _field(constant: Constant) -> tuple[bytes, memoryview]:
    """An initializer of a graph: all in front of its values, and these."""
    head, raw = constant.head.SerializeToString(), constant.raw
    if constant.values is not None:
        head += _opening(RAW_DATA, len(raw))
    return _opening(INITIALIZER, len(head) + len(raw)) + head, raw


def _opening(field: int, size: int) -> bytes:
    """What stands in front of a field of bytes: its number with wire type 2, and how many there are."""
    found = bytearray([field << 3 | 2])
    while size > 0x7F:
        found.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*found, size])
