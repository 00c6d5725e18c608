"""Caffe's messages and enums, under the names that protoc's module of caffe.proto has: `caffe_pb2.NetParameter()`.

The classes are those of `forcereg.schema`: both trees' fields, and what forks added. Enums that stand outside of
messages are here too, with their values (`Phase`, `TRAIN`, `TEST`), and every descriptor under its old private name
(`_LAYERPARAMETER`, `_V1LAYERPARAMETER_LAYERTYPE`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from forcereg import schema

DESCRIPTOR = schema.NetParameter.DESCRIPTOR.file


def _private(descriptor: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    name = f"{prefix}_{descriptor.name.upper()}"
    yield name, descriptor
    for inner in (*getattr(descriptor, "nested_types", ()), *getattr(descriptor, "enum_types", ())):
        yield from _private(inner, name)


for _descriptor in DESCRIPTOR.message_types_by_name.values():
    globals().update({_descriptor.name: getattr(schema, _descriptor.name)}, **dict(_private(_descriptor, "")))
for _descriptor in DESCRIPTOR.enum_types_by_name.values():
    globals().update({value.name: value.number for value in _descriptor.values})
    globals().update({_descriptor.name: EnumTypeWrapper(_descriptor)}, **dict(_private(_descriptor, "")))

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...
