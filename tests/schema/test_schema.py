"""The schema is Caffe's: against the table of both trees' fields, and the compiled form against the source."""

from __future__ import annotations

import copy
import csv
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorSet

import forcereg.schema as schema

TOP = Path(__file__).resolve().parents[2]
with Path(__file__).with_name("caffe_schema.tsv").open() as table:
    ROWS = list(csv.DictReader(table, delimiter="\t"))
FILE = FileDescriptorSet.FromString((TOP / "forcereg/schema/caffe.desc").read_bytes()).file[0]
MESSAGES = {message.name: message for message in FILE.message_type}
ENUMS = {enum.name: enum for enum in FILE.enum_type} | {
    f"{name}.{enum.name}": enum for name, message in MESSAGES.items() for enum in message.enum_type
}
# where the two trees use one number twice, and what a binary net of the fork would break
OURS = {
    ("SolverParameter", "force_type"): {"number": 1041},
    ("SolverParameter", "force_decay"): {"number": 1042},
    ("LayerParameter", "sparsify_param"): {"number": 1147},
    ("LayerParameter", "symmetric_rectify_param"): {"number": 1148},
    ("ClipParameter", "min"): {"label": "optional"},
    ("ClipParameter", "max"): {"label": "optional"},
}
FORKS = {
    "BlobProto": {
        "raw_data_type": (10, "optional", "BlobProto.RawType", ""),
        "raw_data": (12, "optional", "bytes", ""),
    },
    "BatchNormParameter": {
        "scale_filler": (5, "optional", "FillerParameter", ""),
        "bias_filler": (6, "optional", "FillerParameter", ""),
        "scale_bias": (7, "optional", "bool", ""),
    },
    "ConvolutionParameter": {
        "conv_mode": (21, "optional", "ConvolutionParameter.ConvMode", "LOWERED_GEMM"),
        "hole": (16001, "repeated", "uint32", ""),
        "hole_h": (16002, "optional", "uint32", ""),
        "hole_w": (16003, "optional", "uint32", ""),
    },
    "InnerProductParameter": {"gemm_mode": (7, "optional", "InnerProductParameter.GemmMode", "GEMM")},
    "LayerParameter": {
        "own_fields": (16000, "optional", "string", ""),
        "connectivity_mode": (1012, "optional", "LayerParameter.ConnectivityMode", "CONNECTED"),
    },
    "SolverParameter": {
        "block_group_decay": (1043, "optional", "float", 0.0),
        "breadth_decay": (1044, "optional", "float", 0.0),
        "kernel_shape_decay": (1045, "optional", "float", 0.0),
        "prune_threshold": (1046, "optional", "float", 1e-4),
        "measure_threshold": (1047, "optional", "float", 1e-4),
        "max_threshold_factor": (1048, "optional", "float", 1.0),
        "force_ramp": (16000, "optional", "int32", "0"),
        "force_release": (16001, "optional", "int32", "0"),
        "force_until": (16002, "optional", "float", ""),
        "force_metric": (16003, "optional", "string", "weights"),
        "force_metric_interval": (16004, "optional", "int32", "500"),
        "warmup_iter": (16005, "optional", "int32", "0"),
        "warmup_start_lr": (16006, "optional", "float", ""),
        "eta_min": (16007, "optional", "float", 0.0),
        "pct_start": (16008, "optional", "float", 0.3),
        "div_factor": (16009, "optional", "float", 25.0),
        "ema_decay": (16011, "optional", "float", 0.0),
        "final_div_factor": (16010, "optional", "float", 1e4),
    },
    "ParamSpec": {
        "force_view": (16000, "optional", "ParamSpec.ForceView", "FILTERS"),
        "breadth_decay_mult": (1005, "optional", "float", 0.0),
        "kernel_shape_decay_mult": (1006, "optional", "float", 0.0),
        "block_group_lasso": (7, "repeated", "BlockGroupLassoSpec", ""),
        "regularization_type": (8, "optional", "string", ""),
        "decay_proto": (9, "optional", "string", ""),
    },
    "BlockGroupLassoSpec": {
        "xdimen": (1, "optional", "uint32", "1"),
        "ydimen": (2, "optional", "uint32", "1"),
        "block_decay_mult": (3, "optional", "float", 1.0),
    },
    "DropoutParameter": {"scale_train": (2, "optional", "bool", "true")},
    "PoolingParameter": {
        "torch_pooling": (40, "optional", "bool", ""),
        "ceil_mode": (16001, "optional", "bool", ""),
    },
}
"""Of other forks, and our own: message -> field -> number, label, type, default. Numbers are theirs or private ones."""
FORK_ENUMS = {
    "BlobProto.RawType",
    "ConvolutionParameter.ConvMode",
    "InnerProductParameter.GemmMode",
    "LayerParameter.ConnectivityMode",
    "ParamSpec.ForceView",
}
FORK_MESSAGES = {"BlockGroupLassoSpec"}


def number(row: dict[str, str]) -> int:
    return int(row["number_in_BVLC"] if row["number_in_BVLC"] != "-" else row["number_in_fork"])


def default(kind: str, text: str) -> object:
    return float(text) if text and kind in ("float", "double") else text


def wanted_field(row: dict[str, str]) -> dict[str, object]:
    kind = row["type"].removeprefix("message ").removeprefix("enum ")
    field = {"number": number(row), "label": row["label"], "type": kind}
    field |= {"default": default(kind, row["default"]), "packed": row["packed"] == "yes"}
    return field | OURS.get((row["message"], row["field"]), {})


def found_field(field: FieldDescriptorProto) -> dict[str, object]:
    kind = field.type_name.removeprefix(".caffe.")
    kind = kind or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    label = FieldDescriptorProto.Label.Name(field.label).removeprefix("LABEL_").lower()
    found = {"number": field.number, "label": label, "type": kind}
    return found | {"default": default(kind, field.default_value), "packed": field.options.packed}


@pytest.mark.parametrize("name", sorted(FORK_MESSAGES | {row["message"] for row in ROWS if row["kind"] == "field"}))
def test_message_has_the_fields_of_both_trees(name: str) -> None:
    wanted = {row["field"]: wanted_field(row) for row in ROWS if row["message"] == name}
    assert not wanted.keys() & FORKS.get(name, {}).keys()
    keys = ("number", "label", "type", "default")
    wanted |= {field: dict(zip(keys, made, strict=True), packed=False) for field, made in FORKS.get(name, {}).items()}
    assert {field.name: found_field(field) for field in MESSAGES[name].field} == wanted


@pytest.mark.parametrize("name", sorted({row["message"] for row in ROWS if row["kind"] == "enum_value"}))
def test_enum_has_the_values_of_both_trees(name: str) -> None:
    wanted = {row["field"]: number(row) for row in ROWS if row["message"] == name}
    assert {value.name: value.number for value in ENUMS[name].value} == wanted


def test_nothing_is_in_the_schema_that_neither_tree_has() -> None:
    assert set(MESSAGES) - FORK_MESSAGES | set(ENUMS) - FORK_ENUMS == {row["message"] for row in ROWS}
    assert set(ENUMS) >= FORK_ENUMS
    assert not any(message.nested_type for message in MESSAGES.values())


def test_private_numbers_of_the_forks_fields_clash_with_neither_tree() -> None:
    for name, fields in FORKS.items():
        taken = {row[tree] for row in ROWS if row["message"] == name for tree in ("number_in_BVLC", "number_in_fork")}
        assert not taken & {str(number) for number, *_ in fields.values()}


def test_numbers_that_the_trees_share_are_where_they_differ() -> None:
    """The exceptions above are exactly the clashes in the table (and Clip's two bounds)."""
    fields = [row for row in ROWS if row["kind"] == "field"]
    bvlc = {(row["message"], row["number_in_BVLC"]): row["field"] for row in fields}
    clashes = {
        (row["message"], row["field"])
        for row in fields
        if row["number_in_BVLC"] == "-" and (row["message"], row["number_in_fork"]) in bvlc
    }
    assert clashes == {key for key, change in OURS.items() if "number" in change}


def test_compiled_schema_is_current(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools compiles the schema: pip install grpcio-tools")
    fresh = tmp_path / "caffe.desc"
    script = TOP / "scripts/build_schema.py"
    subprocess.run([sys.executable, script, fresh], check=True, capture_output=True)
    built = FileDescriptorSet.FromString(fresh.read_bytes())
    assert built == FileDescriptorSet(file=[FILE]), "run scripts/build_schema.py"


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_every_message_is_a_class_of_the_module(name: str) -> None:
    assert name in schema.__all__
    assert getattr(schema, name)().DESCRIPTOR.full_name == f"caffe.{name}"


def test_phases() -> None:
    state = schema.NetState(phase=schema.TRAIN)
    assert (schema.TRAIN, schema.TEST) == (0, 1)
    assert (state.phase, schema.NetState().phase) == (schema.TRAIN, schema.TEST)


def test_the_pool_is_private() -> None:
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("caffe.NetParameter")


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_messages_inside_others_copy_and_pickle(again: object) -> None:
    net = schema.NetParameter()
    layer = net.layer.add(name="conv1", type="Convolution")
    layer.convolution_param.kernel_size.append(5)
    assert callable(again)
    assert again(layer) == layer
    assert isinstance(again(layer), schema.LayerParameter)


def test_importing_the_parser_does_not_import_torch() -> None:
    code = "import sys, forcereg.schema.text, forcereg.system.paths; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=TOP, check=True)
