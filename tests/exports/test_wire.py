"""The bytes of a model are what protobuf reads as the same model."""

from __future__ import annotations

import numpy as np
import pytest

from forcereg.exports.wire import Constant, pieces

onnx = pytest.importorskip("onnx")


def test_a_model_with_constants_of_all_lengths() -> None:
    """Lengths are written in groups of 7 bits: at 128 and 16,384 bytes one more is needed."""
    numpy_helper, helper = onnx.numpy_helper, onnx.helper
    shapes = [(), (0,), (1,), (31,), (32,), (2, 16), (8, 512), (3, 0, 2), (4096,), (700_000,)]
    arrays = [np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for shape in shapes]
    arrays += [np.arange(6, dtype=np.int64).reshape(2, 3).T, np.ones(3, ">f4")]
    whole = helper.make_model(helper.make_graph([], "net", [], []), producer_name="forcereg")
    constants = []
    for index, values in enumerate(arrays):
        kind = helper.np_dtype_to_tensor_dtype(values.dtype.newbyteorder("="))
        constants.append(Constant(onnx.TensorProto(name=f"c{index}", dims=values.shape, data_type=kind), values))
    found = onnx.load_from_string(b"".join(pieces(whole, constants)))
    assert (found.producer_name, found.graph.name) == ("forcereg", "net")
    assert [one.name for one in found.graph.initializer] == [f"c{index}" for index in range(len(arrays))]
    for one, values in zip(found.graph.initializer, arrays, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(one), values)
        assert one.HasField("raw_data")
