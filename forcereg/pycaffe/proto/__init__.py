"""The package of `caffe_pb2`, as in Caffe."""

from __future__ import annotations

from forcereg.pycaffe.proto import caffe_pb2

__all__ = ["caffe_pb2"]
