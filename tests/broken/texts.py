"""Files that are no nets, and nets whose text is wrong: syntax, fields, numbers, old forms."""

from __future__ import annotations

import io
import random

import h5py

from forcereg.schema import LayerParameter, NetParameter
from tests.broken.case import NET, Case, Content

TEN_MB = 10_000_000


def _case(id: str, net: Content, expected: str, commands: tuple[str, ...] = ("check", "train")) -> Case:
    return Case(id, net, expected, commands)


def _many(text: str) -> bytes:
    """10 MB of `text`, over and over."""
    return text.encode() * (TEN_MB // len(text))


def _noise() -> bytes:
    return random.Random(0).randbytes(100_000)


def _hdf5() -> bytes:
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file["data"] = [1.0]
    return image.getvalue()


def _binary(**fields: object) -> bytes:
    return NetParameter(name="n", layer=[LayerParameter(name="l" * 9, **fields)]).SerializeToString()


def _long(place: str, expected: str) -> Case:
    """A net with ten million characters where a name should be."""
    text = NET + 'layer { name: "NAME" type: "TYPE" bottom: "BOTTOM" bottom: "y" top: "TOP" }'
    return _case(f"long-{place.lower()}", lambda: text.replace(place, "a" * TEN_MB).encode(), expected)


def _layer(text: str) -> str:
    return f'{NET}layer {{ name: "l" type: "Pooling" bottom: "x" top: "z" {text} }}'


def _bad(id: str, text: str, expected: str) -> Case:
    """One wrong thing in the fourth line of a net."""
    return _case(id, _layer(text), f"net.prototxt:4:{expected}")


FILES = [
    _case("empty", "", "net.prototxt: the net has no layers"),
    _case("folder", NET, "'.': cannot be read: it is a folder", ("folder",)),
    _case("missing", NET, 'no.prototxt: no such file; did you mean "net.prototxt"?', ("missing",)),
    _case("only-a-name", 'name: "n"', "net.prototxt: the net has no layers"),
    _case("only-comments", lambda: _many("# layer {}\n"), "net.prototxt: the net has no layers"),
    _case("10MB-of-braces", lambda: _many("{"), "net.prototxt:1:65: blocks are nested more than 64 deep"),
    _case("10MB-of-closing-braces", lambda: _many("}"), "net.prototxt:1:1: found '}', expected"),
    _case("10MB-of-nested-layers", lambda: _many("layer {"), "net.prototxt:1:455: blocks are nested more than 64"),
    _case("10MB-of-open-layers", lambda: _many("layer {\n"), "net.prototxt:65:7: blocks are nested more than 64"),
    _case("10MB-of-brackets", lambda: b"layer: " + _many("["), "net.prototxt:1:9: found '[', expected"),
    _case("10MB-of-quotes", lambda: _many('"'), "net.prototxt:1:1: found '\"\"', expected"),
    _case("10MB-open-string", lambda: b'name: "' + _many("a"), "expected a closing quote"),
    _case("10MB-of-escapes", lambda: b'name: "' + _many("\\q"), 'net.prototxt:1:8: "\\q" is no escape sequence'),
    _case("10MB-of-letters", lambda: _many("a"), "net.prototxt:1:1: 'aaa"),
    _case("10MB-of-digits", lambda: b"input_dim: " + _many("9"), "net.prototxt:1:12: found '999"),
    _case("10MB-of-NULs", lambda: _many("\0"), "net.prototxt: neither prototxt (byte 0 is 0x00) nor a binary net"),
    _case("10MB-of-newlines", lambda: _many("\n"), "net.prototxt: the net has no layers"),
    _case("noise", _noise, "net.prototxt: neither prototxt (byte "),
    _case("NUL-in-text", NET + "\0", "neither prototxt (byte "),
    _case("control-character", NET + "\x1b[2J", "neither prototxt (byte "),
    _case(
        "Latin-1",
        NET.encode() + b'name: "caf\xe9"',
        "net.prototxt:4:11: byte 0xe9 is not UTF-8; save the file as UTF-8",
    ),
    _case("UTF-16", NET.encode("utf-16"), "net.prototxt:1:1: text in UTF-16, expected UTF-8"),
    _case("HDF5", _hdf5, "net.prototxt: an HDF5 file, expected a net"),
    _case("truncated-binary", lambda: _binary(type="ReLU")[:-3], "neither prototxt (byte "),
    _case("binary-without-type", _binary, "layer 'lllllllll': type is missing"),
    _case("binary-of-unknown-type", lambda: _binary(type="ReLv"), "unknown layer type 'ReLv'; did you mean \"ReLU\"?"),
    _case("a-solver-as-net", 'base_lr: 0.1\nlr_policy: "fixed"', "is this a solver file?", ("summary", "train")),
    _long("NAME", "net.prototxt:4: layer 'aaaaaaaaaaaaaaaaa"),
    _long("BOTTOM", "net.prototxt:4: layer 'NAME': unknown bottom blob 'aaaaaaaaaaaaaaaaa"),
    _case("long-type", lambda: NET.replace("InnerProduct", "a" * TEN_MB).encode(), "unknown layer type 'aaaaaaaaaaa"),
    _case("long-top", lambda: NET.replace('"x"', f'"{"a" * TEN_MB}"').replace("dim: 3", "dim: -3").encode(), "aaaaaaa"),
]

SYNTAX = [
    _bad("unknown-field", "poolin_param {}", "56: 'poolin_param' is no field of LayerParameter; did you mean"),
    _bad("misplaced-field", "kernel_size: 3", "56: 'kernel_size' is no field of LayerParameter; it belongs in"),
    _bad("unknown-enum", "pooling_param { pool: MOX }", "78: 'MOX' is no value of PoolMethod; did you mean \"MAX\"?"),
    _bad("enum-in-quotes", 'pooling_param { pool: "MAX" }', '78: found "MAX", expected MAX, without quotes'),
    _bad("enum-by-unknown-number", "pooling_param { pool: 99 }", "78: '99' is no value of PoolMethod"),
    _bad("enum-by-huge-number", "pooling_param { pool: 9999999999 }", "78: "),
    _bad("number-in-quotes", 'pooling_param { kernel_size: "3" }', "85: found '\"3\"', expected an integer"),
    _bad("number-with-fraction", "pooling_param { kernel_size: 3.5 }", "85: found '3.5', expected an integer"),
    _bad("negative-uint32", "pooling_param { kernel_size: -1 }", "85: found '-1', expected"),
    _bad(
        "over-uint32",
        "pooling_param { kernel_size: 4294967296 }",
        "85: found '4294967296', expected an integer from 0",
    ),
    _bad(
        "over-int32",
        "concat_param { axis: 2147483648 }",
        "77: found '2147483648', expected an integer from -",
    ),
    _bad("word-for-number", "loss_weight: one", "69: found 'one', expected a number for 'loss_weight'"),
    _bad("word-for-bool", "propagate_down: maybe", "72: found 'maybe', expected true or false"),
    _bad("name-without-quotes", "top: pool", "61: found 'pool', expected a string in quotes for 'top'"),
    _bad("string-over-a-line", 'top: "po\nol"', "61: "),
    _bad("set-twice", 'name: "m"', "62: 'name' is set twice in one LayerParameter; remove one"),
    _bad("no-value", "phase:", "63: found '}', expected one of TRAIN, TEST"),
    _bad("message-for-number", "loss_weight { a: 1 }", "68: "),
    _bad("number-for-message", "pooling_param: 3", "71: "),
    _case("unclosed", f"{NET}layer {{ name: 'l'\n", "the block opened in line 4 is never closed; add a }"),
    _case("closed-twice", f"{NET}}}\n", "net.prototxt:4:1: found '}'"),
    _case("no-colon", 'layer { name "x" }', "net.prototxt:1:14: "),
    _case("over-int64", "layer { input_param { shape { dim: 9223372036854775808 } } }", ":1:36: found '9"),
    _case("half-a-character", 'name: "\\ud83d"', "net.prototxt:1:7: "),
]

OLD_FORMS = [
    _case("both-forms", f"{NET}layers {{}}", "net.prototxt:4: `layer` (line 1) and `layers` in one net"),
    _case(
        "V1-unknown-type", "layers { type: CONV }", "net.prototxt:1:16: 'CONV' is no value of LayerType", ("summary",)
    ),
    _case("V1-type-in-quotes", 'layers { type: "RELU" }', "expected RELU, without quotes"),
    _case("V1-without-type", 'layers { name: "l" }', "net.prototxt:1: layer 'l': type is missing"),
    _case("V0-unknown-type", 'layers { layer { name: "l" type: "konv" } }', "unknown layer type 'konv'"),
    _case("V0-and-V1", 'layers { layer { name: "l" type: "relu" } } layers {}', "two old forms are mixed"),
    _case("V0-padding", 'layers { layer { name: "p" type: "padding" } }', "a padding layer has one bottom and one top"),
    _case(
        "input-without-4-dims", f'{NET}input: "i" input_dim: 1', "1 input, but 1 input_dim; expected one input_shape"
    ),
    _case(
        "input-too-large", f'input: "i" input_shape {{ dim: {1 << 40} }} {NET}', "top 'i' would have shape [1099511627"
    ),
    _case("input-negative", f'input: "i" input_shape {{ dim: -1 }} {NET}', "shape [-1] has a negative dim"),
]

CASES = [*FILES, *SYNTAX, *OLD_FORMS]
