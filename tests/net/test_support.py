"""The support table: complete, true to the schema, and the same in forcereg/layers/README.md."""

from __future__ import annotations

import re

import pytest

import forcereg.registry as registry
from forcereg.net.support import supported
from forcereg.schema import LayerParameter
from tests.conftest import TOP, RunCli

CAFFE_TYPES = [
    "AbsVal",
    "Accuracy",
    "ArgMax",
    "BNLL",
    "BatchNorm",
    "BatchReindex",
    "Bias",
    "Clip",
    "Concat",
    "ContrastiveLoss",
    "Convolution",
    "Crop",
    "Data",
    "Deconvolution",
    "Dropout",
    "DummyData",
    "ELU",
    "Eltwise",
    "Embed",
    "EuclideanLoss",
    "Exp",
    "Filter",
    "Flatten",
    "HDF5Data",
    "HDF5Output",
    "HingeLoss",
    "Im2col",
    "ImageData",
    "InfogainLoss",
    "InnerProduct",
    "Input",
    "LRN",
    "LSTM",
    "LSTMUnit",
    "Log",
    "MVN",
    "MemoryData",
    "MultinomialLogisticLoss",
    "PReLU",
    "Parameter",
    "Pooling",
    "Power",
    "Python",
    "RNN",
    "ReLU",
    "Reduction",
    "Reshape",
    "SPP",
    "Scale",
    "Sigmoid",
    "SigmoidCrossEntropyLoss",
    "Silence",
    "Slice",
    "Softmax",
    "SoftmaxWithLoss",
    "Sparsify",
    "Split",
    "Swish",
    "SymmetricRectify",
    "TanH",
    "Threshold",
    "Tile",
    "WindowData",
]


def test_every_type_of_both_caffe_trees_runs() -> None:
    assert len(CAFFE_TYPES) == 63
    assert {*registry.layer, *registry.source} >= set(CAFFE_TYPES)


@pytest.mark.parametrize("kind", [registry.layer, registry.source], ids=["layers", "sources"])
def test_parameters_are_fields_of_the_schema(kind: registry.Registry) -> None:
    for name in kind:
        for param in kind.about(name).params:
            message, _, fields = param.partition(".")
            known = LayerParameter.DESCRIPTOR.fields_by_name[message].message_type.fields_by_name
            assert set(filter(None, fields.split(","))) <= set(known)


def test_every_parameter_message_is_read_by_some_type() -> None:
    read = {param for row in supported() for param in row.params}
    fields = {field.name for field in LayerParameter.DESCRIPTOR.fields if field.name.endswith("_param")}
    assert fields - read == set()


def test_readme_holds_the_table(run_cli: RunCli) -> None:
    readme = (TOP / "forcereg" / "layers" / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- forcereg layers --markdown -->\n(.*?)<!-- end -->", readme, re.DOTALL)
    # by a process of its own: other tests register types in this one
    assert found is not None and found[1].strip() == run_cli("layers", "--markdown").stdout.strip()
