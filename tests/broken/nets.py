"""Nets that parse but don't fit together: rules, names, parameters, loss settings, fillers, and sizes of whole nets."""

from __future__ import annotations

from tests.broken.case import NET, Case, input_layer

X, N = input_layer("x", (2, 6)), "net.prototxt"


def _layer(name: str, kind: str, bottom: str, top: str, more: str = "") -> str:
    return f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{top}" {more} }}\n'


def _ip(name: str, bottom: str, top: str, more: str = "num_output: 3", param: str = "") -> str:
    return _layer(name, "InnerProduct", bottom, top, f"{param} inner_product_param {{ {more} }}")


def _filled(filler: str, more: str = "num_output: 3") -> str:
    return X + _ip("l", "x", "y", f"{more} weight_filler {{ {filler} }}")


TEST_ONLY, BOTH = ("summary", "check", "test"), "include { phase: TEST } exclude { phase: TRAIN }"

RULES = [
    Case(
        "include-and-exclude", NET + _layer("l", "ReLU", "y", "y", BOTH), f"{N}:4: layer 'l': has include and exclude"
    ),
    Case("no-layer-in-TEST", X.replace("top:", "include { phase: TRAIN } top:"), "is left in phase TEST", TEST_ONLY),
    Case("no-layer-in-TRAIN", X.replace("top:", "include { phase: TEST } top:"), "is left in phase TRAIN", ("train",)),
    Case("level-nobody-has", X.replace("top:", "include { min_level: 2147483647 } top:"), f"{N}: no layer is left in"),
    Case(
        "bottom-of-the-other-phase",
        NET + _layer("l", "ReLU", "z", "z", "include { phase: TEST }"),
        f"{N}:4: layer 'l': unknown bottom blob 'z'",
        TEST_ONLY,
    ),
]

NAMES = [
    Case("unknown-bottom", X + _ip("l", "X1", "y"), f"{N}:2: layer 'l': unknown bottom blob 'X1'; did you mean \"x\"?"),
    Case("unknown-bottom-unlike-any", X + _ip("l", "what", "y"), "unknown bottom blob 'what'; known here are x"),
    Case("unknown-bottom-empty", X + _ip("l", "", "y"), f"{N}:2: layer 'l': unknown bottom blob ''"),
    Case("bottom-of-its-own", X + _ip("l", "y", "y"), "unknown bottom blob 'y'; it is written only further down"),
    Case(
        "bottom-written-later", X + _ip("a", "y", "z") + _ip("b", "x", "y"), "layer 'a': unknown bottom blob 'y'; it is"
    ),
    Case("bottom-with-line-break", X + _ip("l", "a\\n\\x1b[2Jb", "y"), "unknown bottom blob 'a\\n\\x1b[2Jb'; known"),
    Case("bottom-with-unicode-break", X + _ip("l", "a\u2028b\x85c", "y"), "unknown bottom blob 'a\\u2028b\\x85c'"),
    Case("type-with-line-break", X + _layer("l", "Re\\nLU", "x", "y"), "unknown layer type 'Re\\nLU'; did you mean"),
    Case(
        "layer-name-with-line-break", X + _layer("a\\nb", "No", "x", "y"), f"{N}:2: layer 'a\\nb': unknown layer type"
    ),
    Case(
        "known-blobs-by-the-thousand",
        "".join(input_layer(f"{i}", (1,)) for i in range(9000)) + _ip("l", "what", "y"),
        f"{N}:9001: layer 'l': unknown bottom blob 'what'; known here are",
        ("summary",),
    ),
    Case(
        "branches-by-the-thousand",
        input_layer("0", (1,))
        + "".join(
            _layer(f"{i}", "ReLU", f"{i - 1}", f"{i}") * (i > 0) + _layer(f"b{i}", "ReLU", f"{i}", f"b{i}")
            for i in range(2000)
        ),
        "the net branches too deep for a text tree; draw it as .dot",
        ("draw",),
    ),
    Case(
        "unnamed-layers-by-the-thousand",
        "".join(f'layer {{ type: "Input" top: "{i}" input_param {{ shape {{}} }} }}\n' for i in range(9000))
        + _ip("l", "8999", "y", ""),
        f"{N}:9001: layer 'l': num_output is missing",
        ("summary",),
    ),
    Case(
        "duplicate-top",
        X + _ip("a", "x", "y") + _ip("b", "x", "y"),
        f"{N}:3: layer 'b': top blob 'y' is already written",
    ),
    Case(
        "duplicate-top-of-one-layer",
        X + 'layer { name: "l" type: "Slice" bottom: "x" top: "y" top: "y" }',
        f"{N}:2: layer 'l': top blob 'y' is already written by layer 'l'",
    ),
    Case(
        "in-place-with-consumer",
        X + _ip("a", "x", "y") + _layer("b", "ReLU", "y", "y") + _ip("c", "y", "z") + _layer("l", "ReLU", "y", "y"),
        f"{N}:5: layer 'l': changes blob 'y' in place, but that is also read elsewhere",
    ),
    Case(
        "in-place-of-a-loss",
        X + _ip("a", "x", "y", param="loss_weight: 1") + _layer("l", "ReLU", "y", "y"),
        f"{N}:3: layer 'l': changes blob 'y' in place",
    ),
    Case(
        "duplicate-name-with-weights",
        X + _ip("l", "x", "y") + _ip("l", "y", "z"),
        f"{N}:3: layer 'l': the name is taken by {N}:2: layer 'l'",
        TEST_ONLY,
    ),
    Case(
        "duplicate-name-of-data", X + NET.replace('"d"', '"x"').replace('top: "x"', 'top: "z"'), "the name is taken by"
    ),
    Case("no-type", X + 'layer { name: "l" bottom: "x" top: "y" }', f"{N}:2: layer 'l': type is missing; set for"),
    Case(
        "misspelt-type", X + _layer("l", "Convolutional", "x", "y"), "unknown layer type 'Convolutional'; did you mean"
    ),
    Case("type-in-capitals", X + _layer("l", "RELU", "x", "y"), "unknown layer type 'RELU'; did you mean \"ReLU\"?"),
    Case(
        "type-unlike-any",
        X + _layer("l", "Wavelet77", "x", "y"),
        "unknown layer type 'Wavelet77'; `forcereg layers` lists",
    ),
]

SHARED = 'param {{ name: "w" {} }}'.format
PARAMS = [
    Case(
        "surplus-params", X + _ip("l", "x", "y", param="param {} param {} param {}"), "has 3 param entries for 2 blobs"
    ),
    Case(
        "params-without-blobs", X + _layer("l", "ReLU", "x", "y", "param { lr_mult: 1 }"), "1 param entries for 0 blobs"
    ),
    Case(
        "shared-of-other-shape",
        X + _ip("a", "x", "y", param=SHARED("")) + _ip("l", "y", "z", param=SHARED("")),
        f"{N}:3: layer 'l': blob 0 [3, 3] shares param 'w' with layer 'a' [3, 6]; they need the same shape",
    ),
    Case(
        "shared-of-other-count",
        X + _ip("a", "x", "y", param=SHARED("")) + _ip("l", "y", "z", param=SHARED("share_mode: PERMISSIVE")),
        "they need the same count",
    ),
    Case(
        "shared-with-other-lr",
        X + _ip("a", "x", "y", param=SHARED("lr_mult: 1")) + _ip("l", "x", "z", param=SHARED("lr_mult: 2")),
        "shared param 'w' has lr_mult 2, layer 'a' gives 1; use one",
    ),
]

LOSSES = [
    Case(
        "surplus-loss-weight",
        X + _ip("l", "x", "y", param="loss_weight: 1 loss_weight: 2"),
        f"{N}:2: layer 'l': has 2 loss_weight entries for 1 tops; give one per top",
    ),
    Case(
        "surplus-propagate-down",
        X + _ip("l", "x", "y", param="propagate_down: true propagate_down: false"),
        "has 2 propagate_down entries for 1 bottoms",
    ),
    Case(
        "loss-of-one-bottom", X + _layer("l", "SoftmaxWithLoss", "x", "y"), "has 1 bottom blobs; type SoftmaxWithLoss"
    ),
]

FILLERS = [
    Case("filler-unknown", _filled('type: "xavjer"'), f"{N}:2: layer 'l': unknown filler type 'xavjer'; did you mean"),
    Case(
        "filler-unlike-any", _filled('type: "zz"'), "unknown filler type 'zz'; known are bilinear, constant, gaussian"
    ),
    Case(
        "filler-of-bias", X + _ip("l", "x", "y", 'num_output: 3 bias_filler { type: "no" }'), "unknown filler type 'no'"
    ),
    Case("gaussian-std-0", _filled('type: "gaussian" std: 0'), "gaussian filler has std 0; expected > 0"),
    Case(
        "gaussian-std-nan", _filled('type: "gaussian" std: nan'), "weight_filler.std is nan; expected a finite number"
    ),
    Case(
        "gaussian-sparse",
        _filled('type: "gaussian" sparse: 4'),
        "gaussian filler has sparse 4, more than the 3 outputs",
    ),
    Case("xavier-sparse", _filled('type: "xavier" sparse: 1'), "filler 'xavier' takes no `sparse`; only gaussian does"),
    Case("uniform-backwards", _filled('type: "uniform" min: 1 max: 0'), "uniform filler has min 1 > max 0"),
    Case("uniform-nan", _filled('type: "uniform" min: nan'), "weight_filler.min is nan; expected a finite"),
    Case("uniform-infinite", _filled('type: "uniform" max: inf'), "weight_filler.max is inf; expected a finite"),
    Case("constant-nan", _filled("value: nan"), "layer 'l': inner_product_param.weight_filler.value is nan; expected"),
    Case("uniform-too-wide", _filled('type: "uniform" min: -3e38 max: 3e38'), "uniform filler has min -3e+38"),
    Case("bilinear-of-2-axes", _filled('type: "bilinear"'), "bilinear filler needs a 4-axis blob with a square kernel"),
    Case(
        "filler-after-a-huge-blob",
        X + _ip("a", "x", "y", "num_output: 30000000") + _ip("l", "x", "z", "num_output: 0"),
        f"{N}:3: layer 'l': num_output is missing",
    ),
]

CASES = [*RULES, *NAMES, *PARAMS, *LOSSES, *FILLERS]
