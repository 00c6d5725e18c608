"""Prototxts by chance: nets from the schema itself, and damage that keeps a text near to one that is right."""

from __future__ import annotations

import random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from forcereg import registry
from forcereg.schema import LayerParameter
from forcereg.schema.place import CLOSING, OPENING, tokens

NUMBERS = (
    *("0", "1", "-1", "2", "3", "7", "33", "1000", "65536", "2147483647", "2147483648", "-2147483649", "4294967295"),
    *("4294967296", "9223372036854775807", "9223372036854775808", "-9223372036854775808", "9" * 400, "0.5", "1e-45"),
    *(
        "1e38",
        "1e39",
        "-1e400",
        "nan",
        "inf",
        "-inf",
        "010",
        "-09",
        "0x10",
        "1_0",
        "1e3",
        ".5",
        "5.",
        "1f",
        "+1",
        "--1",
    ),
)
STRINGS = (
    *(
        '""',
        "''",
        '"x"',
        '"\\n"',
        '"\\xff"',
        '"\\0"',
        '"\\u00e9"',
        '"\\ud800"',
        '"é网"',
        '"/"',
        '"."',
        '"../x"',
        '"%s"',
    ),
    *('"{}"', '"' + "a" * 3000 + '"', '"a" "b"', '"unclosed', "'unclosed", '"\\"', '"\\q"', '"\x1b[31m"', '"x/1"'),
)
WORDS = (
    *("true", "false", "True", "yes", "TRAIN", "TEST", "MAX", "AVE", "SUM", "layer", "layers", "param", "include"),
    *("exclude", "name", "type", "bottom", "top", "phase", "stage", "not_stage", "min_level", "max_level", "blobs_lr"),
    *("blobs", "input", "input_dim", "input_shape", "state", "foo", "foo_param", "weight_filler", "None", "é"),
)
JUNK = (
    *(
        "{",
        "}",
        "<",
        ">",
        "[",
        "]",
        ":",
        "::",
        "=",
        ",",
        ";",
        "#",
        "//",
        "/*",
        "*/",
        "(",
        ")",
        "-",
        "+",
        "$",
        "@",
        "\\",
    ),
    *("“", "”", "‘", "：", "\u00a0", "\u200b", "\ufeff", "\u2028", "\x85", "\r", "\t", "\0", "\x1b", "\n", "<<<<<<<"),
    *("=======", ">>>>>>>", "[a.b]", "[type.googleapis.com/x]", "{{", "}}", "\ud800", "a\u0301"),
)
RULES = (
    *("include { phase: TRAIN }", "include { phase: TEST }", 'include { stage: "s0" }', 'exclude { stage: "s0" }'),
    *(
        'include { not_stage: "s1" }',
        "include { min_level: 1 }",
        "include { max_level: 1 }",
        "exclude { }",
        "include {}",
    ),
    *("exclude { phase: TEST }", 'include { phase: TEST stage: "s1" min_level: -1 max_level: 0 }'),
)


def any_token(chance: random.Random) -> str:
    return chance.choice(chance.choice((NUMBERS, STRINGS, WORDS, JUNK)))


# -- nets from the schema


def made_net(chance: random.Random) -> str:
    """A small net of any types, its parameters' fields set by chance."""
    shapes = chance.choice((((2, 3, 8, 8), (2,)), ((2, 6), (2, 1)), ((4, 2, 3), (4, 2))))
    text = "".join(
        f'layer {{ name: "in{i}" type: "Input" top: "b{i}" input_param {{ shape {{ dim: {list(shape)} }} }} }}\n'
        for i, shape in enumerate(shapes)
    )
    blobs = [f"b{i}" for i in range(len(shapes))]
    for index in range(chance.randint(1, 4)):
        text += made_layer(chance, f"l{index}", blobs)
    return text


def made_layer(chance: random.Random, name: str, blobs: list[str]) -> str:
    """A layer that reads some of `blobs`, to which its tops are added."""
    kind = chance.choice(sorted({*registry.layer, *registry.source}))
    about = registry.layer.about(kind) if kind in registry.layer else registry.source.about(kind)
    bottoms = chance.sample(blobs, min(len(blobs), chance.choice((0, 1, 1, 1, 2, 2))))
    tops = [f"{name}_{i}" for i in range(chance.choice((0, 1, 1, 1, 2)))] if chance.random() < 0.9 else bottoms[:1]
    lines = [f'name: "{name}"', f'type: "{kind}"']
    lines += [f'bottom: "{bottom}"' for bottom in bottoms] + [f'top: "{top}"' for top in tops]
    for param in about.params:
        field = LayerParameter.DESCRIPTOR.fields_by_name[param.partition(".")[0]]
        lines.append(f"{field.name} {{ {made_fields(chance, field.message_type)} }}")
    lines += [chance.choice(RULES)] * (chance.random() < 0.15)
    lines += ["param { lr_mult: 1 }"] * chance.choice((0, 0, 0, 1, 2))
    lines += [f"loss_weight: {chance.choice(NUMBERS)}"] * (chance.random() < 0.1)
    blobs += tops
    return f"layer {{ {' '.join(lines)} }}\n"


def made_fields(chance: random.Random, message: Any, depth: int = 0) -> str:
    """Some fields of a message with values of their kinds, mostly sane."""
    some = [field for field in message.fields if chance.random() < (0.35 if depth == 0 else 0.6)]
    return " ".join(
        f"{field.name}: {made_value(chance, field, depth)}"
        for field in some
        for _ in range(chance.choice((1, 1, 2)) if field.name in ("shape", "kernel_size", "slice_point", "dim") else 1)
        if depth < 3
    )


def made_value(chance: random.Random, field: Any, depth: int) -> str:
    if field.message_type is not None:
        return f"{{ {made_fields(chance, field.message_type, depth + 1)} }}"
    if field.enum_type is not None:
        return str(chance.choice(list(field.enum_type.values_by_name)))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return chance.choice(("true", "false"))
    if field.type == FieldDescriptor.TYPE_STRING:
        if field.name == "type":
            return f'"{chance.choice([*registry.filler, "x"])}"'
        return chance.choice(STRINGS[:12])
    sane = chance.random() < 0.85
    return chance.choice(("0", "1", "2", "3", "5")) if sane else chance.choice(NUMBERS)


# -- damage


def damaged(chance: random.Random, text: str) -> str:
    """`text` with one to four mutations of its tokens, lines or blocks."""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        text = chance.choice((_token, _token, _value, _line, _block, _name, _rule, _inserted))(chance, text)
    return text


def _spans(text: str) -> list[tuple[int, int]]:
    return [(at, at + len(token)) for token, at in tokens(text)] or [(0, len(text))]


def _token(chance: random.Random, text: str) -> str:
    """A token dropped, doubled, exchanged with another or replaced by any."""
    spans = _spans(text)
    first, last = chance.choice(spans)
    kind = chance.randrange(4)
    if kind == 0:
        return text[:first] + text[last:]
    if kind == 1:
        return text[:last] + " " + text[first:]
    if kind == 2:
        return text[:first] + any_token(chance) + text[last:]
    (a, b), (c, d) = sorted((chance.choice(spans), (first, last)))
    return text if b > c else text[:a] + text[c:d] + text[b:c] + text[a:b] + text[d:]


def _value(chance: random.Random, text: str) -> str:
    """Another value of the same or any kind behind a colon."""
    spans = _spans(text)
    places = [i + 1 for i, (a, b) in enumerate(spans[:-1]) if text[a:b] == ":"]
    if not places:
        return text
    first, last = spans[chance.choice(places)]
    old = text[first:last]
    same = STRINGS if old[:1] in ("'", '"') else NUMBERS if old[:1].isdigit() else WORDS
    return text[:first] + (chance.choice(same) if chance.random() < 0.7 else any_token(chance)) + text[last:]


def _line(chance: random.Random, text: str) -> str:
    lines = text.split("\n")
    at, to = chance.randrange(len(lines)), chance.randrange(len(lines))
    kind = chance.randrange(4)
    if kind == 0:
        lines[at], lines[to] = lines[to], lines[at]
    elif kind == 1:
        lines.insert(to, lines[at])
    elif kind == 2:
        lines.insert(to, lines.pop(at))
    else:
        del lines[at]
    return "\n".join(lines)


def _block(chance: random.Random, text: str) -> str:
    """A block moved into another, dropped, opened or closed otherwise, or its field renamed."""
    spans = _spans(text)
    marks = [(a, b) for a, b in spans if text[a:b] in OPENING or text[a:b] in CLOSING]
    if not marks:
        return text
    first, last = chance.choice(marks)
    replaced = chance.choice(("{", "}", "<", ">", "", "{ {", "} }", "[{", "}]", ": {", f"{{ {chance.choice(WORDS)}: "))
    return text[:first] + replaced + text[last:]


def _name(chance: random.Random, text: str) -> str:
    """`layer` <-> `layers`, or one string written where another stood."""
    spans = _spans(text)
    kind = chance.choice(("layer", "string"))
    chosen = [(a, b) for a, b in spans if (text[a:b] == "layer" if kind == "layer" else text[a] in "\"'")]
    if not chosen:
        return text
    (first, last), (a, b) = chance.choice(chosen), chance.choice(chosen)
    return text[:first] + ("layers" if kind == "layer" else text[a:b]) + text[last:]


def _rule(chance: random.Random, text: str) -> str:
    """Rules for a layer."""
    heads = [b for a, b in _spans(text) if text[a:b] == "{"]
    at = chance.choice(heads or [0])
    return text[:at] + " " + " ".join(chance.sample(RULES, chance.choice((1, 1, 2)))) + " " + text[at:]


def _inserted(chance: random.Random, text: str) -> str:
    at = chance.choice(_spans(text))[chance.randrange(2)]
    return text[:at] + chance.choice(("", " ")) + any_token(chance) + chance.choice(("", " ")) + text[at:]


def encoded(chance: random.Random, text: str) -> bytes:
    """The text as a file: mostly UTF-8, sometimes in another encoding, with other line ends or damaged bytes."""
    kind = chance.randrange(20)
    if kind == 0:
        text = text.replace("\n", chance.choice(("\r\n", "\r", "\r\r\n", "\n\r")))
    elif kind == 1:
        coding = chance.choice(("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "utf-8-sig", "utf-7"))
        return text.encode(coding, "replace")
    elif kind == 2:
        return text.encode("latin-1", "replace") + chance.choice((b"", b"# \xe9", b'name: "\x93x\x94"'))
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    if kind == 3 and data:
        del data[chance.randrange(len(data)) :]
    elif kind == 4 and data:
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data)
