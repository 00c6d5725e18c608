"""What a text says that is no prototxt: each mistake, whatever the runtime calls it, in our own words with a fix."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google.protobuf
import pytest

import forcereg.layers
import forcereg.net.module  # noqa: F401  (registers all types)
from forcereg import registry
from forcereg.errors import ForceregError
from forcereg.schema.blobs import read_blob
from forcereg.schema.settings import with_settings
from forcereg.schema.text import parse_net, parse_solver, read_net, read_solver
from forcereg.schema.types import BUILT_IN

RUNTIME = re.compile(r"message type|field named|protobuf|tokeni|octal float|Couldn|codec|_pb2|enum type", re.IGNORECASE)
"""Words of the library's, which are none of ours."""


OCTAL, OLD_RUNTIME = re.compile("-?0[0-9].*"), google.protobuf.__version__.startswith("4.")
"""The oldest runtime reads 010 as 10, later ones and Caffe refuse it."""


def refused(read: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(ForceregError) as caught:
        read(*args)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400
    assert not RUNTIME.search(text), text
    return text


def layer(text: str) -> str:
    return refused(parse_net, f'layer {{name:"l" type: "ELU" {text} }}', "n").removeprefix("n:1:")


@pytest.mark.parametrize(
    ("value", "fix"),
    [
        ("010", "; write 10 (or 8)"),
        ("-010", "; write -10 (or -8)"),
        ("00", "; write 0"),
        ("09", "; write 9"),
        ("01.5", "; write 1.5"),
        ("0x10", "; write 16"),
        ('"2.5"', "; write 2.5"),
        ("'1e3'", "; write 1000"),
        ("one", ""),
        ("1e", ""),
        ("1.2.3", ""),
        ("--1", ""),
        ("$x", ""),
        ("True", ""),
        ("0" * 500, ""),
        ("infinit", ""),
    ],
)
def test_numbers(value: str, fix: str) -> None:
    if OCTAL.fullmatch(value) and OLD_RUNTIME:
        assert parse_net(f"layer {{ power_param {{ scale: {value} }} }}").message.layer[0].power_param.scale == float(
            value
        )
        return
    found = "$" if value == "$x" else value if len(value) < 40 else f"{value[:37]}..."
    assert layer(f"power_param {{ scale: {value} }}") == f"50: found '{found}', expected a number for 'scale'{fix}"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("3.0", "an integer for 'num_output'; write 3"),
        ("1e2", "an integer for 'num_output'; write 100"),
        ("08", "an integer for 'num_output'; write 8"),
        ('"3"', "an integer for 'num_output'; write 3"),
        ("3.5", "an integer for 'num_output'"),
        ("-3.0", "an integer for 'num_output'"),
        ("-1", "an integer from 0 to 4294967295 for 'num_output'"),
        ("4294967296", "an integer from 0 to 4294967295 for 'num_output'"),
        ("040000000000", "an integer from 0 to 4294967295 for 'num_output'"),
        ("9" * 5000, "an integer from 0 to 4294967295 for 'num_output'"),
    ],
)
def test_integers(value: str, told: str) -> None:
    found = value if len(value) < 40 else f"{value[:37]}..."
    assert layer(f"convolution_param {{ num_output: {value} }}") == f"61: found '{found}', expected {told}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        # assignments, brackets, separators
        ("power_param { scale = 2 }", "49: found '='; write scale: VALUE"),
        ("power_param = { scale: 2 }", "41: found '='; write power_param { ... }"),
        ("power_param ( scale: 2 )", "41: found '(', expected \"{\" for 'power_param'"),
        ("power_param { scale: [2] }", "50: found '[', expected one value for 'scale', without brackets"),
        ("power_param { scale: 2 >", "52: found '>', expected '}' for the block opened in line 1"),
        ("loss_weight: [1, 2,]", "48: found ']' after a comma, expected a value; remove the comma"),
        ("loss_weight: [1 2]", "45: found '2', expected \",\" or \"]\" for 'loss_weight'"),
        (
            "loss_weight: 1 2",
            "44: found '2', expected a field name; write loss_weight: again before each further value",
        ),
        ('top: "a", "b"', "39: found '\"b\"', expected a field name; write top: again before each further value"),
        ("power_param { scale: 1,5 }", "52: found '5', expected a field name; write scale: 1.5"),
        ("convolution_param { num_output: 1,000 }", "63: found '000', expected a field name; write num_output: 1000"),
        ("power_param { scale: 1/256 }", "51: found '/'; there is no arithmetic here, write 0.00390625"),
        ("power_param { scale: 2 * 3 }", "52: found '*'; there is no arithmetic here, write 6"),
        ("power_param { scale: 1/0 }", "51: found '/'; there is no arithmetic here, write the result"),
        ('top: "a";;', "38: found ';', expected a field name; remove it"),
        ('top "a"', '33: found \'"a"\', expected ":" for \'top\'; write top: "a"'),
        ('top:: "a"', "33: found ':', expected a string in quotes for 'top'"),
        ('"top": "a"', "34: found ':' behind \"top\", which is a value; a field name has no quotes"),
        # other languages
        ("power_param { // x", "43: found '//'; comments begin with #"),
        ("/* x */", "29: found '/*'; comments begin with #"),
        ('- top: "x"', "29: found '-', expected a field name (is this YAML or a diff?)"),
        ('+top: "x"', "29: found '+top', expected a field name (is this YAML or a diff?)"),
        ("propagate_down: yes", "45: found 'yes', expected true or false for 'propagate_down'; write true"),
        ("propagate_down: FALSE", "45: found 'FALSE', expected true or false for 'propagate_down'; write false"),
        ('propagate_down: "true"', "45: found '\"true\"', expected true or false for 'propagate_down'; write true"),
        ("[a.b]: 1", "32: found 'b' after '[', expected a field name; no field of Caffe's is written in brackets"),
        ("phase: {", "36: found '{', expected one of TRAIN, TEST for 'phase'"),
        ("phase: train", "36: 'train' is no value of Phase; did you mean \"TRAIN\"?"),
        # characters
        ("top: “a”", "34: found '“' (left double quotation mark); write \""),
        ("top: ‘a’", "34: found '‘' (left single quotation mark); write '"),
        ("power_param { scale: −2 }", "50: found '−' (minus sign); write -"),
        ("power_param { scale：2 }", "48: found '：' (fullwidth colon); write :"),
        ("to\u200bp: 2", "29: found 'to' before 'U+200B' (zero width space); remove it"),
        ("tоp: 2", "29: found 't' before 'о' (cyrillic small letter o); write an ASCII letter"),
        # strings
        ('top: "\\xff"', "34: found \"\\xff\", which is not UTF-8, expected a string in UTF-8 for 'top'"),
        (
            'top: "\\U99999999"',
            "34: found '\"\\U99999999\"', expected whole escape sequences (\"\\\\\" for a backslash) for 'top'",
        ),
        ("top: \"a' ", "34: found '\"a'  }', expected a closing quote on the same line for 'top'"),
    ],
)  # fmt: skip
def test_habits(text: str, told: str) -> None:
    assert layer(text if "{ //" in text or ">" in text or "{" not in text or "}" in text else f"{text} }}") == told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            '{ "name": "x" }',
            "1:1: found '{', expected a field name; a prototxt has no brackets around it (is this JSON?)",
        ),
        ("from caffe import layers", "1:1: 'from' is no field of NetParameter; is this Python?"),
        ('syntax = "proto2";', "1:1: 'syntax' is no field of NetParameter; is this a .proto file?"),
        (
            'name: "a"\n<<<<<<< HEAD\nname: "b"\n=======\n',
            "2:1: found '<<<<<<<', the mark of a merge conflict; keep one of the two sides and remove the marks",
        ),
        (
            "layer {\n}\n=======\n",
            "3:1: found '=======', the mark of a merge conflict; keep one of the two sides and remove the marks",
        ),
        (
            "layer {} # old\r layer {}",
            "1:15: a carriage return (CR) ends no line, so that what is behind it is a comment too; "
            "save the file with line ends LF or CRLF",
        ),
        ('layer {\n name: "x"', "2:8: the block opened in line 1 is never closed; add a }"),
    ],
)  # fmt: skip
def test_whole_texts(text: str, told: str) -> None:
    assert refused(parse_net, text, "n") == f"n:{told}"


def test_carriage_returns_that_hide_nothing() -> None:
    text = 'layer { name: "a" # comment\r\n type: "ReLU" }\r# the end\r\r\n'
    assert [one.type for one in parse_net(text).message.layer] == ["ReLU"]
    assert len(parse_net('layer { name: "a" }\rlayer { name: "b" }\r').message.layer) == 2


# -- a layer's type and its format come before its fields

OWN = "for a type of your own, registered by forcereg.layer(NAME), and give --import MODULE"
OLD = "`layers` is the old format; write `layer {`"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('layer { type: "ReLU" relo_param {} }', "1:22: 'relo_param' is no field of LayerParameter; did you mean"),
        ('layer { type: "ReLU" power_param { foo: 1 } }', "1:36: 'foo' is no field of PowerParameter"),
        ("layer { qqqq: 1 }", "1:9: 'qqqq' is no field of LayerParameter"),
        ('layers { type: "Input" }', f'1:16: found "Input", a type of the new format; {OLD}'),
        ('layers { type: "RELU" }', '1:16: found "RELU", expected RELU, without quotes'),
        (
            "layers { type: Convolution }",
            f"1:16: 'Convolution' is no value of LayerType; did you mean \"CONVOLUTION\"? ({OLD})",
        ),
        ("layers { type: MINE name: 'm' }", f"1:16: 'MINE' is no value of LayerType, of layer 'm'; {OLD} {OWN}"),
        (
            'layers { name: "b" type: BN }',
            f"1:26: 'BN' is no value of LayerType, of layer 'b', it is of SegNet's fork; {OLD} {OWN}",
        ),
        (
            "layers { type: BATCH_NORM name: 'b' }",
            f"1:16: 'BATCH_NORM' is no value of LayerType, of layer 'b'; {OLD} with type: \"BatchNorm\"",
        ),
        (
            "layers { type: POOLING3D name: 'p' }",
            f"1:16: 'POOLING3D' is no value of LayerType, of layer 'p'; {OLD} {OWN}",
        ),
        (
            'layers { bn_param {} name: "x" type: BN }',
            f"1: layer 'x': 'BN' is no type of the old format, it is of SegNet's fork; {OLD} {OWN}",
        ),
        (
            "layers { type: CONVOLUTION param { lr_mult: 1 } }",
            f"1:34: found '{{', expected a name in quotes for 'param'; {OLD}",
        ),
        (
            "layers { type: CONVOLUTION param: { lr_mult: 1 } }",
            f"1:35: found '{{', expected a name in quotes for 'param'; {OLD}",
        ),
        (
            "layers { input_param {} }",
            f"1:10: 'input_param' is no field of the old format; {OLD}",
        ),
        ("layer { type: CONVOLUTION }", "expected a string in quotes for 'type'; write \"Convolution\""),
        ("layer { blobs_lr: 1 }", "1:9: 'blobs_lr' is no field of LayerParameter but of the old format `layers`; "),
        ("layer { weight_decay: 1 }", "of the old format `layers`; write param { decay_mult: 1 }, one for each blob"),
        ('layer { param: "w" }', "1:16: found '\"w\"', expected \"{\" for 'param'; write param { name: \"w\" }"),
        (
            'layer { name: "a" }\nlayers { type: RELU }',
            "n:2: `layer` (line 1) and `layers` in one net; `layers` is the old format, make all of them `layer {",
        ),
        (
            "layers { type: RELU }\n\nlayer { }",
            "n:1: `layer` (line 3) and `layers` in one net; `layers` is the old format",
        ),
    ],
)  # fmt: skip
def test_formats_and_types(text: str, told: str) -> None:
    said = refused(parse_net, text, "n")
    assert told in said and said.startswith("n:")
    solver = f"net_param {{ {text} }}"
    if "layer`" not in told or "in one net" not in told:
        assert told.split(": ", 1)[-1] in refused(parse_solver, solver, "s")


def test_every_type_is_known_without_torch() -> None:
    """The list lags behind nothing that forcereg itself registers."""
    ours = {
        name
        for kind in (registry.layer, registry.source)
        for name in kind
        if getattr(kind.get(name), "__module__", "").startswith("forcereg.")
    }
    assert ours == BUILT_IN


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("base_lr=010", "found '010', expected a number for 'base_lr'; write 10 (or 8)"),
        ("max_iter=1e3", "found '1e3', expected an integer for 'max_iter'; write 1000"),
        ("max_iter=9999999999", "expected an integer from -2147483648 to 2147483647 for 'max_iter'"),
        ("solver_mode=gpus", "'gpus' is no value of SolverMode; did you mean \"GPU\"?"),
        ("debug_info=yes", "found 'yes', expected true or false for 'debug_info'; write true"),
        ("train_state={stage: a}", "found 'a', expected a string in quotes for 'stage'; write \"a\""),
        ("train_state={stage: “a”}", "found '“' (left double quotation mark); write \""),
        ("stepvalue=[1,2,]", "found ']' after a comma, expected a value; remove the comma"),
        ('net="\\xff"', "is not UTF-8, expected a string in UTF-8 for 'net'"),
        ("base_lr=1 // x", "found '//'; comments begin with #"),
    ],
)
def test_settings(setting: str, told: str) -> None:
    if OLD_RUNTIME and setting == "base_lr=010":
        return
    solver = parse_solver('net: "n"', "s")
    said = refused(with_settings, solver, [setting])
    assert said.startswith(f"--set {setting}: ") and said.endswith(told)


def test_settings_that_cannot_be_shown() -> None:
    said = refused(with_settings, parse_solver('net: "n"', "s"), ["base_lr=\x1b[31m"])
    assert said == r"--set base_lr=\x1b[31m: found '\x1b', expected a number for 'base_lr'"


# -- files

NET = 'layer { name: "a" type: "ReLU" bottom: "x" top: "y" }\n'
WIDE = "1:1: text in {}, expected UTF-8; save the file as UTF-8 (without NULs)"


@pytest.mark.parametrize("read", [read_net, read_solver])
@pytest.mark.parametrize(
    ("data", "told"),
    [
        pytest.param(NET.encode("utf-16"), WIDE.format("UTF-16"), id="UTF-16"),
        pytest.param(NET.encode("utf-16-le"), WIDE.format("UTF-16"), id="UTF-16-LE"),
        pytest.param(NET.encode("utf-16-be"), WIDE.format("UTF-16"), id="UTF-16-BE"),
        pytest.param(NET.encode("utf-32"), WIDE.format("UTF-32"), id="UTF-32"),
        pytest.param(NET.encode("utf-32-le"), WIDE.format("UTF-32"), id="UTF-32-LE"),
        pytest.param(NET.encode("utf-32-be"), WIDE.format("UTF-32"), id="UTF-32-BE"),
        pytest.param("\ufeff网络".encode("utf-16-le"), WIDE.format("UTF-16"), id="no-NUL"),
        pytest.param(b"name: \x93x\x94", "1:7: byte 0x93 is not UTF-8; save the file as UTF-8, with \"", id="1252"),
        pytest.param(b"\n\n<!DOCTYPE html>\n<html>", "3:1: a web page, expected ", id="html"),
        pytest.param(b"<?xml version='1.0'?>", "1:1: an XML file, expected ", id="xml"),
        pytest.param(b"404: Not Found", "1:1: a web server's answer, expected ", id="404"),
        pytest.param(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n",
            "1:1: a Git LFS pointer, expected ",
            id="lfs",
        ),
        pytest.param(b"diff --git a/x b/x\n", "1:1: a diff, expected ", id="diff"),
        pytest.param(b"PK\x03\x04\x14\0", "a zip file (a PyTorch model?), expected ", id="zip"),
        pytest.param(b"\x1f\x8b\x08\0", "a gzip file, expected ", id="gzip"),
        pytest.param(b"\x89PNG\r\n\x1a\n\0", "a PNG image, expected ", id="png"),
        pytest.param(b"{\\rtf1\\ansi", "a text with formats (RTF), expected ", id="rtf"),
    ],
)  # fmt: skip
def test_other_files(tmp_path: Path, read: Callable[..., Any], data: bytes, told: str) -> None:
    (tmp_path / "n").write_bytes(data)
    said = refused(read, tmp_path / "n")
    assert said.startswith(f"{tmp_path}/n:") and told in said


@pytest.mark.parametrize("read", [read_net, read_solver, lambda path: read_blob(path, "blob")])
def test_pipes_and_devices_are_not_waited_for(tmp_path: Path, read: Callable[..., Any]) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, kind in ((tmp_path / "fifo", "a pipe"), (Path("/dev/zero"), "a device"), (tmp_path, "a folder")):
        said = refused(read, path)
        assert f"it is {kind}, expected a regular file" in said and str(path) in said


@pytest.mark.parametrize(
    ("head", "size", "told"),
    [
        (b"# text\n", 10 << 30, "10,737,418,240 bytes; a prototxt has at most 67,108,864"),
        (b"\x0a\x01n\0", 10 << 30, "10,737,418,240 bytes; a binary net has at most 2,147,483,647"),
    ],
)
def test_files_too_large(tmp_path: Path, head: bytes, size: int, told: str) -> None:
    with open(tmp_path / "n", "wb") as file:
        file.write(head + b" " * 70_000 if head.startswith(b"#") else head)
        file.truncate(size)  # takes no room on the disk
    for read in (read_net, read_solver):
        assert refused(read, tmp_path / "n").endswith(told)
    assert "it has 10,737,418,240 bytes, expected at most" in refused(
        lambda path: read_blob(path, "blob"), tmp_path / "n"
    )
