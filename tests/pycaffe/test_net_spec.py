"""caffe.NetSpec, L and P, and the messages that they make."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format

from forcereg.pycaffe import net_spec
from forcereg.pycaffe.net_spec import NetSpec, to_proto
from forcereg.pycaffe.proto import caffe_pb2

L, P = net_spec.layers, net_spec.params

LENET = """
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  transform_param { scale: 0.00390625 } data_param { source: "lmdb" batch_size: 64 backend: LMDB } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 20 kernel_size: 5 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "InnerProduct1" type: "InnerProduct" bottom: "pool" top: "InnerProduct1"
  inner_product_param { num_output: 10 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "InnerProduct1" bottom: "label" top: "loss" loss_weight: 0.5
  loss_param { normalization: VALID } }
layer { name: "quiet" type: "Silence" bottom: "pool" }
"""


def lenet() -> NetSpec:
    n = NetSpec()
    n.data, n.label = L.Data(
        source="lmdb", backend=P.Data.LMDB, batch_size=np.int64(64), ntop=2, transform_param=dict(scale=1 / 256),
        include=dict(phase=caffe_pb2.TRAIN),
    )  # fmt: skip
    n.conv = L.Convolution(
        n.data, num_output=20, kernel_size=5, weight_filler=dict(type="xavier"),
        param=[dict(lr_mult=1), dict(lr_mult=np.float32(2))],
    )  # fmt: skip
    n.relu = L.ReLU(n.conv, in_place=True)
    n.pool = L.Pooling(n.relu, pool=P.Pooling.MAX, kernel_size=2, stride=2)
    ip = L.InnerProduct(n.pool, num_output=10)
    n.loss = L.SoftmaxWithLoss(ip, n.label, loss_weight=0.5, loss_param=dict(normalization=P.Loss.VALID))
    n.quiet = L.Silence(n.pool, ntop=0)
    return n


def test_a_net_as_users_write_it() -> None:
    found = lenet().to_proto()
    assert found == text_format.Parse(LENET, caffe_pb2.NetParameter())
    assert text_format.Parse(str(found), caffe_pb2.NetParameter()) == found


def names(net: Any) -> list[tuple[str, list[str]]]:
    return [(layer.name, list(layer.top)) for layer in net.layer]


def test_without_names_layers_are_counted_by_type() -> None:
    data = L.Input()
    one = L.ReLU(L.ReLU(data), in_place=True)
    assert names(to_proto(one, L.Sigmoid(one))) == [
        ("Input1", ["Input1"]), ("ReLU1", ["ReLU1"]), ("ReLU2", ["ReLU1"]), ("Sigmoid1", ["Sigmoid1"])
    ]  # fmt: skip
    assert names(one.to_proto())[0] == ("Input1", ["Input1"])


def test_a_layer_has_its_first_top_s_name() -> None:
    n = NetSpec()
    _, n.b = L.Split(L.Input(), ntop=2)
    assert names(n.to_proto())[1] == ("Split1", ["Split1", "b"])


def test_of_two_names_the_last_wins_in_the_first_s_place() -> None:
    n = NetSpec()
    n.a = L.Input()
    n.b = L.ReLU(n.a)
    n.c = n["a"]
    assert names(n.to_proto()) == [("c", ["c"]), ("b", ["b"])]
    assert n.to_proto().layer[1].bottom == ["c"]


def test_any_text_is_a_name() -> None:
    n = NetSpec()
    n["conv/3x3"] = L.Input()
    assert names(n.to_proto()) == [("conv/3x3", ["conv/3x3"])] and n["conv/3x3"] is n.tops["conv/3x3"]


def test_keywords_name_and_top() -> None:
    found = L.ReLU(L.Input(), name="mine", top="more").to_proto().layer[1]
    assert (found.name, list(found.top)) == ("mine", ["ReLU1", "more"])


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: L.Convolution(L.Input(), kernel_size=[3, 5], num_output=1), id="list"),
        pytest.param(lambda: L.Convolution(L.Input(), kernel_size=(3, 5), num_output=1), id="tuple"),
        pytest.param(lambda: L.Convolution(L.Input(), kernel_size=np.array([3, 5]), num_output=1), id="array"),
        pytest.param(
            lambda: L.Convolution(L.Input(), convolution_param=dict(kernel_size=[3, 5], num_output=1)), id="dict"
        ),
    ],
)
def test_repeated_fields(make: Callable[[], Any]) -> None:
    param = make().to_proto().layer[1].convolution_param
    assert (list(param.kernel_size), param.num_output) == ([3, 5], 1)


def test_whole_floats() -> None:
    # the quotients of a script of Python 2
    made = L.Convolution(L.Input(), num_output=64 / 2, kernel_size=[np.float32(3), 10 / 2]).to_proto().layer[1]
    assert (made.convolution_param.num_output, list(made.convolution_param.kernel_size)) == (32, [3, 5])
    with pytest.raises(TypeError):
        L.Convolution(L.Input(), num_output=63 / 2).to_proto()
    assert L.Dropout(L.Input(), dropout_ratio=1.0).to_proto().layer[1].dropout_param.dropout_ratio == 1


def test_shapes_of_an_input() -> None:
    one = L.Input(shape=dict(dim=[1, 3])).to_proto().layer[0]
    two = L.Input(shape=[dict(dim=[1, 3]), dict(dim=[2])], ntop=2)[0].to_proto().layer[0]
    assert [list(shape.dim) for shape in one.input_param.shape] == [[1, 3]]
    assert [list(shape.dim) for shape in two.input_param.shape] == [[1, 3], [2]]


def test_enums_by_name_and_flags_of_numpy() -> None:
    layer = L.Pooling(L.Input(), pool="AVE", global_pooling=np.bool_(True)).to_proto().layer[1]
    assert layer.pooling_param.pool == P.Pooling.AVE and layer.pooling_param.global_pooling


def test_an_empty_dict_sets_nothing() -> None:
    assert (
        not L.Convolution(L.Input(), weight_filler={}).to_proto().layer[1].convolution_param.HasField("weight_filler")
    )


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        pytest.param(dict(colour=1), AttributeError, id="no-field"),
        pytest.param(dict(stride=[]), IndexError, id="empty"),
        pytest.param(dict(num_output=None), TypeError, id="none"),
        pytest.param(dict(num_output="x"), TypeError, id="text"),
    ],
)
def test_what_can_t_be_assigned(keywords: dict[str, Any], error: type[Exception]) -> None:
    top = L.Convolution(L.Input(), **keywords)
    with pytest.raises(error, match="LayerParameter" if error is AttributeError else None):
        top.to_proto()


@pytest.mark.parametrize("name", ["Deconvolution", "SoftmaxWithLoss", "LSTM"])
def test_types_without_a_message_of_their_own(name: str) -> None:
    with pytest.raises(AttributeError, match="LayerParameter"):
        getattr(L, name)(L.Input(), num_output=1).to_proto()


def test_inputs_are_tops() -> None:
    with pytest.raises(TypeError, match=r"Concat input 1 is not a Top \(type is <class 'int'>\)"):
        L.Concat(L.Input(), 3)


def test_what_is_not_there() -> None:
    n = NetSpec()
    with pytest.raises(KeyError):
        n.missing  # noqa: B018 (that it raises is the test)
    n.both = L.Data(ntop=2)
    with pytest.raises(AttributeError):
        n.to_proto()
    for name in ("Nothing", "Pooling"):
        with pytest.raises(AttributeError):
            getattr(P, name).NOTHING  # noqa: B018


def test_a_spec_copies() -> None:
    assert copy.copy(lenet()).to_proto().layer[0].name == "data"
    assert copy.deepcopy(lenet()).to_proto() == lenet().to_proto()


def test_functions() -> None:
    quiet = L.Silence(L.Input(), ntop=0)
    assert isinstance(quiet, net_spec.Function) and quiet.tops == () and quiet.type_name == "Silence"
    top = L.ReLU(quiet.inputs[0], in_place=True, negative_slope=0.1)
    assert (top.fn.ntop, top.fn.in_place, top.fn.params, top.n) == (1, True, {"negative_slope": 0.1}, 0)


def test_nets_are_deeper_than_the_stack() -> None:
    top = L.Input()
    for _ in range(3000):
        top = L.ReLU(top, in_place=True)
    layers = top.to_proto().layer
    assert len(layers) == 3001 and layers[-1].top == ["Input1"]


# -- the messages


def test_enums_and_descriptors() -> None:
    assert (caffe_pb2.TRAIN, caffe_pb2.TEST, caffe_pb2.Phase.Name(1), caffe_pb2.Phase.Value("TRAIN")) == (
        0,
        1,
        "TEST",
        0,
    )
    assert (P.Data.LMDB, P.Eltwise.SUM, P.Loss.VALID, P.Pooling.MAX) == (1, 1, 1, 0)
    kinds = caffe_pb2._V1LAYERPARAMETER_LAYERTYPE.values_by_number
    assert kinds[caffe_pb2.V1LayerParameter.CONVOLUTION].name == "CONVOLUTION"
    assert caffe_pb2._LAYERPARAMETER is caffe_pb2.LayerParameter.DESCRIPTOR
    assert caffe_pb2.NetParameter.DESCRIPTOR.full_name == "caffe.NetParameter"


def test_every_message_is_there() -> None:
    messages = caffe_pb2.DESCRIPTOR.message_types_by_name
    assert len(messages) > 60 and all(getattr(caffe_pb2, name).DESCRIPTOR is one for name, one in messages.items())
