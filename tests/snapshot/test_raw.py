"""Models whose values lie as bytes in one type: NVIDIA's fork and OpenCV's shrinkCaffeModel write half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from forcereg.data.mean import read_mean
from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from forcereg.schema import BlobProto, NetParameter
from forcereg.schema.blobs import read_blob
from forcereg.snapshot import read, read_model, read_state
from tests.snapshot.test_content import PROPERTY, one_line

TYPES = {"DOUBLE": (0, "<f8"), "FLOAT": (1, "<f4"), "FLOAT16": (2, "<f2")}
DIFF = b"\x58\x02\x6a\x04\x00\x01\x02\x03"  # 11: its type, 13: the diffs


def raw(values: np.ndarray, kind: int | None, more: bytes = b"") -> bytes:
    """A BlobProto as those programs write it, field by field: 7 the shape, 10 the type, 12 the values."""
    shape = BlobProto(shape={"dim": values.shape}).SerializeToString()
    content = values.tobytes()
    assert len(content) < 128 * 128
    size = bytes([len(content) & 127 | 128, len(content) >> 7])
    return shape + (b"" if kind is None else bytes([10 << 3, kind])) + b"\x62" + size + content + more


def model(path: Path, blobs: list[bytes], old: bool = False) -> Path:
    """A model of one layer `ip` with these blobs."""
    net = NetParameter()
    layer = net.layers.add(name="ip") if old else net.layer.add(name="ip")
    for blob in blobs:
        layer.blobs.append(BlobProto.FromString(blob))
    path.write_bytes(net.SerializeToString())
    return path


@pytest.mark.parametrize("old", [False, True], ids=["layer", "layers"])
@pytest.mark.parametrize("name", TYPES)
@PROPERTY
@given(st.data())
def test_values_come_as_float32(name: str, old: bool, tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    number, kind = TYPES[name]
    values = data.draw(arrays(kind, st.sampled_from([(3,), (2, 3), (1, 2, 1, 4)])))
    path = model(tmp_path_factory.getbasetemp() / "m.caffemodel", [raw(values, number, DIFF)], old)
    found = read_model(path)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found.layers["ip"][0], values.astype(np.float32))
    assert found.layers["ip"][0].dtype == np.float32 and not found.diffs and not found.legacy


def test_a_net_runs_with_them(tmp_path: Path) -> None:
    text = """
        layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 4 } } }
        layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 3 } }
    """
    weight, bias = np.linspace(-1, 1, 12).reshape(3, 4).astype("<f2"), np.array([1, 2, 3], "<f2")
    net = load_net(text, model(tmp_path / "m.caffemodel", [raw(weight, 2), raw(bias, 2)]))
    found = [blob.detach().numpy() for blob in net.params["ip"]]
    assert np.array_equal(found[0], weight.astype(np.float32)) and found[1].tolist() == [1, 2, 3]


def test_four_old_axes(tmp_path: Path) -> None:
    blob = BlobProto(num=1, channels=1, height=2, width=3, raw_data_type="FLOAT16", raw_data=bytes(12))
    found = read_model(model(tmp_path / "m", [blob.SerializeToString()]))
    assert found.legacy and found.layers["ip"][0].shape == (1, 1, 2, 3)


def test_plain_values_come_first(tmp_path: Path) -> None:
    blob = BlobProto(shape={"dim": [2]}, data=[1, 2], raw_data_type="FLOAT", raw_data=bytes(8))
    assert read_model(model(tmp_path / "m", [blob.SerializeToString()])).layers["ip"][0].tolist() == [1, 2]


def test_a_states_history(tmp_path: Path) -> None:
    blob = raw(np.array([1, -2], "<f2"), 2)
    (tmp_path / "s").write_bytes(b"\x08\x03\x12\x01m\x1a" + bytes([len(blob)]) + blob)
    assert read_state(tmp_path / "s").history[0].tolist() == [1, -2]


def test_blobs_in_files_of_their_own(tmp_path: Path) -> None:
    values = np.arange(12, dtype="<f2").reshape(3, 2, 2)
    (tmp_path / "b").write_bytes(raw(values, 2))
    assert np.array_equal(read_blob(tmp_path / "b", "matrix"), values) and np.array_equal(
        read_mean(tmp_path / "b"), values
    )
    (tmp_path / "b").write_bytes(raw(values, 3))
    for call in (lambda: read_blob(tmp_path / "b", "matrix"), lambda: read_mean(tmp_path / "b")):
        with pytest.raises(ForceregError, match="raw_data of type INT; expected DOUBLE, FLOAT, FLOAT16"):
            call()
    (tmp_path / "b").write_bytes(BlobProto(shape={"dim": [1]}, raw_data_type=2, raw_data=b"abc").SerializeToString())
    with pytest.raises(ForceregError, match="ends in 1 bytes of a 2-byte number"):
        read_blob(tmp_path / "b", "matrix")


@pytest.mark.parametrize(
    ("blob", "expected"),
    [
        pytest.param(raw(np.zeros(3, "<i4"), 3), "raw_data of type INT; expected DOUBLE, FLOAT, FLOAT16", id="int"),
        pytest.param(raw(np.zeros(3, "<u4"), 4), "raw_data of type UINT; expected", id="uint"),
        pytest.param(raw(np.zeros(3, "<f4"), 9), "raw_data of an unknown type; expected", id="unknown"),
        pytest.param(raw(np.zeros(3, "<f4"), None), "raw_data of an unknown type; expected", id="no-type"),
        pytest.param(raw(np.zeros(3, "<f4"), 2), "holds 6 values in shape [3]; expected one value each", id="longer"),
        pytest.param(raw(np.zeros(3, "<f2"), 1), "damaged or truncated", id="part-of-a-number"),
        pytest.param(
            BlobProto(shape={"dim": [4]}, raw_data_type=2, raw_data=bytes(2)).SerializeToString(),
            "holds 1 values in shape [4]; expected one value each",
            id="shorter",
        ),
    ],
)
def test_what_they_cannot_be(blob: bytes, expected: str, tmp_path: Path) -> None:
    assert expected in one_line(model(tmp_path / "m", [blob]), read)
