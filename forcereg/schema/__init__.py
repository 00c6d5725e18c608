"""Caffe's messages: every message of proto/caffe.proto as a class of its name.

    from forcereg.schema import NetParameter, SolverParameter, TRAIN

They are made at import from caffe.desc, the compiled form of the .proto (scripts/build_schema.py), so one
file serves every protobuf runtime from 4.25 on. The descriptor pool is private: another package's caffe.proto
in the same process does not clash.
"""

from __future__ import annotations

import copyreg
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

TRAIN, TEST = 0, 1

(_file,) = FileDescriptorSet.FromString(files(__name__).joinpath("caffe.desc").read_bytes()).file
_pool = DescriptorPool()
_pool.AddSerializedFile(_file.SerializeToString())
_classes: dict[str, Any] = {
    _message.name: GetMessageClass(_pool.FindMessageTypeByName(f"{_file.package}.{_message.name}"))
    for _message in _file.message_type
}
globals().update(_classes)
__all__ = ["TEST", "TRAIN", *_classes]


def _restore(name: str, data: bytes) -> Any:
    return _classes[name].FromString(data)


def _reduce(message: Any) -> tuple[Any, ...]:
    return _restore, (message.DESCRIPTOR.name, message.SerializeToString())


# classes made at run time cannot be found again by the pickle module; nets hold messages and must pickle
for _class in _classes.values():
    copyreg.pickle(_class, _reduce)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...
