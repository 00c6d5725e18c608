"""Compile proto/caffe.proto into forcereg/schema/caffe.desc: `python scripts/build_schema.py [OUT]`.

Needs grpcio-tools (the `dev` extra). A test compares the committed file with a fresh build.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorSet
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


def build() -> bytes:
    """The serialized FileDescriptorSet of proto/caffe.proto, the same from every version of protoc."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "caffe.desc")
        arguments = ["protoc", f"--proto_path={ROOT / 'proto'}", f"--descriptor_set_out={out}", "caffe.proto"]
        if protoc.main(arguments) != 0:
            raise SystemExit("build_schema: protoc failed")
        schema = FileDescriptorSet.FromString(out.read_bytes())
    for message in schema.file[0].message_type:
        _drop_json_names(message)
    return schema.SerializeToString(deterministic=True)


def _drop_json_names(message: DescriptorProto) -> None:
    # only some versions of protoc write them, and nothing here reads JSON
    for field in message.field:
        field.ClearField("json_name")
    for nested in message.nested_type:
        _drop_json_names(nested)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "forcereg/schema/caffe.desc"
    target.write_bytes(build())
    print(f"wrote {target} ({target.stat().st_size} bytes)")
