"""Nets by chance over the types with a meaning at inference, with awkward parameters: `net_text(random.Random(7))`."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from forcereg.net.module import Net

Shape = tuple[int, ...]


class Bottom(NamedTuple):
    name: str
    shape: Shape


class Made(NamedTuple):
    """A layer: what it says besides its name, how many tops it has, and whether it may work in place."""

    body: str
    bottoms: Sequence[Bottom]
    tops: int = 1
    in_place: bool = False


Chance = random.Random
Maker = Callable[[Chance, Sequence[Bottom]], Made]
FILL = 'weight_filler { type: "gaussian" std: 0.4 } bias_filler { type: "gaussian" std: 0.3 }'
SMALL = 'filler { type: "uniform" min: -1 max: 1.5 }'


def _pick(chance: Chance, blobs: Sequence[Bottom]) -> Bottom:
    """A blob, often the newest, so that chains come about."""
    return blobs[-1] if chance.random() < 0.5 else chance.choice(blobs)


def _flag(chance: Chance) -> str:
    return chance.choice(["true", "false"])


def _axis(chance: Chance, x: Bottom, first: int = 0) -> int:
    """An axis from `first` on, from either end."""
    axis = chance.randrange(min(first, len(x.shape) - 1), len(x.shape))
    return axis - chance.choice([0, len(x.shape)])


def _alike(chance: Chance, blobs: Sequence[Bottom], x: Bottom, most: int = 3) -> list[Bottom]:
    same = [one for one in blobs if one.shape == x.shape]
    return [x, *(chance.choice(same) for _ in range(chance.randrange(1, most)))]


def _geometry(chance: Chance, axes: int) -> str:
    """Kernel, stride, pad and dilation, all in one or each by itself."""
    words = []
    for name, sizes in (("kernel_size", [1, 2, 3]), ("stride", [1, 2, 3]), ("pad", [0, 1, 2]), ("dilation", [1, 1, 2])):
        times = 1 if chance.random() < 0.6 else axes
        words += [f"{name}: {chance.choice(sizes)}" for _ in range(times)]
    return " ".join(words)


def _convolution(kind: str) -> Maker:
    def make(chance: Chance, blobs: Sequence[Bottom]) -> Made:
        x = _pick(chance, blobs)
        axis = chance.choice([1, 1, 1, _axis(chance, x)])
        axes = len(x.shape) - axis % len(x.shape) - 1
        group = chance.choice([1, 1, 2, x.shape[axis]]) if axis < len(x.shape) else 1
        several = _alike(chance, blobs, x) if chance.random() < 0.1 else [x]
        return Made(
            f'type: "{kind}" convolution_param {{ num_output: {group * chance.randrange(1, 4)} group: {group} '
            f"axis: {axis} bias_term: {_flag(chance)} {_geometry(chance, axes)} {FILL} }}",
            several, len(several),
        )  # fmt: skip

    return make


def _im2col(chance: Chance, blobs: Sequence[Bottom]) -> Made:
    x = _pick(chance, blobs)
    return Made(f'type: "Im2col" convolution_param {{ {_geometry(chance, len(x.shape) - 2)} }}', [x])


def _product(chance: Chance, blobs: Sequence[Bottom]) -> Made:
    x = _pick(chance, blobs)
    return Made(
        f'type: "InnerProduct" inner_product_param {{ num_output: {chance.randrange(1, 6)} axis: {_axis(chance, x)} '
        f"transpose: {_flag(chance)} bias_term: {_flag(chance)} {FILL} }}", [x],
    )  # fmt: skip


def _pooling(chance: Chance, blobs: Sequence[Bottom]) -> Made:
    """Not STOCHASTIC, which divides by sums: of values with both signs they come near 0."""
    x, method = _pick(chance, blobs), chance.choice(["MAX", "AVE"])
    tops = 1 + (method == "MAX" and chance.random() < 0.2)
    if chance.random() < 0.15:
        return Made(f'type: "Pooling" pooling_param {{ pool: {method} global_pooling: true }}', [x], tops)
    choices = {"kernel_h": [1, 2, 3, 5], "kernel_w": [1, 2, 3], "stride_h": [1, 2, 3], "stride_w": [1, 2, 4]}
    sizes = {name: chance.choice(values) for name, values in choices.items()}
    pads = {"pad_h": chance.randrange(sizes["kernel_h"]), "pad_w": chance.randrange(sizes["kernel_w"])}
    sizes |= pads if chance.random() < 0.6 else {}
    words = " ".join(f"{name}: {size}" for name, size in sizes.items())
    return Made(
        f'type: "Pooling" pooling_param {{ pool: {method} round_mode: {chance.choice(["CEIL", "FLOOR"])} {words} }}',
        [x], tops,
    )  # fmt: skip


def _plain(body: str, in_place: bool = True) -> Maker:
    """A layer of one bottom whose numbers in braces are drawn from a few."""

    def make(chance: Chance, blobs: Sequence[Bottom]) -> Made:
        text = body
        while "?" in text:
            text = text.replace("?", str(chance.choice([0, 0.5, 1, 1, 2, 0.25])), 1)
        return Made(text.replace("!", _flag(chance)), [_pick(chance, blobs)], 1, in_place)

    return make


def _power(chance: Chance, blobs: Sequence[Bottom]) -> Made:
    power, scale, shift = (chance.choice(values) for values in ([1, 2, 3, 0], [1, 0, -0.5, 2], [0, 0, 1, -2]))
    return Made(
        f'type: "Power" power_param {{ power: {power} scale: {scale} shift: {shift} }}', [_pick(chance, blobs)], 1, True
    )


def _lrn(chance: Chance, blobs: Sequence[Bottom]) -> Made:
    region = chance.choice(["ACROSS_CHANNELS", "WITHIN_CHANNEL"])
    return Made(
        f'type: "LRN" lrn_param {{ local_size: {chance.choice([1, 3, 5, 9, 21])} alpha: {chance.choice([1, 0.1, 3])} '
        f"beta: {chance.choice([0.75, 0.5, 1.3])} k: {chance.choice([1, 2])} norm_region: {region} }}",
        [_pick(chance, blobs)],
    )


def _spread(kind: str, param: str) -> Maker:
    """Scale or Bias: by a blob of some axes, or by a bottom whose sizes are found in another's."""

    def make(chance: Chance, blobs: Sequence[Bottom]) -> Made:
        x = _pick(chance, blobs)
        extra = f"bias_term: {_flag(chance)} bias_{SMALL}" if kind == "Scale" else ""
        fits = [(one, axis) for one in blobs for axis in range(len(x.shape))
                if one.shape == x.shape[axis : axis + len(one.shape)]]  # fmt: skip
        if fits and chance.random() < 0.6:
            other, axis = chance.choice(fits)
            return Made(f'type: "{kind}" {param} {{ axis: {axis} {extra} }}', [x, other], 1, True)
        axis = _axis(chance, x)
        most = len(x.shape) - axis % len(x.shape)
        words = f"axis: {axis} num_axes: {chance.choice([-1, *range(most + 1)])} {SMALL} {extra}"
        return Made(f'type: "{kind}" {param} {{ {words} }}', [x], 1, True)

    return make


def _eltwise(chance: Chance, blobs: Sequence[Bottom]) -> Made:
    several = _alike(chance, blobs, _pick(chance, blobs), 4)
    operation = chance.choice(["SUM", "SUM", "PROD", "MAX"])
    coeffs = " ".join(f"coeff: {chance.choice([1, -1, 0.5, 0])}" for _ in several) if chance.random() < 0.5 else ""
    words = coeffs if operation != "PROD" else ""
    return Made(f'type: "Eltwise" eltwise_param {{ operation: {operation} {words} }}', several, 1, True)


def _concat(chance: Chance, blobs: Sequence[Bottom]) -> Made:
    x = _pick(chance, blobs)
    axis = _axis(chance, x)
    at = axis % len(x.shape)
    fits = [one for one in blobs if len(one.shape) == len(x.shape)
            and one.shape[:at] + one.shape[at + 1 :] == x.shape[:at] + x.shape[at + 1 :]]  # fmt: skip
    return Made(f'type: "Concat" concat_param {{ axis: {axis} }}', [x, *chance.choices(fits, k=chance.randrange(3))])


def _slice(chance: Chance, blobs: Sequence[Bottom]) -> Made:
    x = _pick(chance, blobs)
    axis = _axis(chance, x, chance.choice([0, 1]))
    size = x.shape[axis]
    points = sorted(chance.sample(range(1, size), min(size - 1, chance.randrange(3))))
    words = " ".join(f"slice_point: {point}" for point in points)
    return Made(f'type: "Slice" slice_param {{ axis: {axis} {words} }}', [x], len(points) + 1)


def _crop(chance: Chance, blobs: Sequence[Bottom]) -> Made:
    x = _pick(chance, blobs)
    axis = _axis(chance, x)
    at = axis % len(x.shape)
    fits = [one for one in blobs if len(one.shape) >= len(x.shape)
            and all(a <= b for a, b in zip(one.shape[at : len(x.shape)], x.shape[at:], strict=True))]  # fmt: skip
    other = chance.choice(fits)
    offsets = [chance.randint(0, x.shape[k] - other.shape[k]) for k in range(at, len(x.shape))]
    words = " ".join(f"offset: {offset}" for offset in offsets)
    return Made(f'type: "Crop" crop_param {{ axis: {axis} {words} }}', [x, other])


def _flatten(chance: Chance, blobs: Sequence[Bottom]) -> Made:
    x = _pick(chance, blobs)
    axis = _axis(chance, x)
    end = chance.randrange(axis % len(x.shape), len(x.shape)) - chance.choice([0, len(x.shape)])
    return Made(f'type: "Flatten" flatten_param {{ axis: {axis} end_axis: {end} }}', [x])


def _reshape(chance: Chance, blobs: Sequence[Bottom]) -> Made:
    x = _pick(chance, blobs)
    rank = len(x.shape)
    start = chance.randint(0, rank)
    number = chance.randint(0, rank - start)
    dims: list[int] = []
    for index in range(number):
        size = x.shape[start + index]
        divisor = chance.choice([one for one in range(1, size + 1) if size % one == 0])
        dims += chance.choice([[0], [size], [divisor, size // divisor]]) if len(dims) == index else [size]
    if number == 0:
        dims = [1] * chance.randrange(2)
    elif chance.random() < 0.5:
        dims[chance.randrange(len(dims))] = -1
        if chance.random() < 0.3 and len(dims) > 1:
            del dims[-1 if dims[-1] != -1 else 0]
    words = " ".join(f"dim: {dim}" for dim in dims)
    axis = start - chance.choice([0, rank + 1])
    return Made(f'type: "Reshape" reshape_param {{ axis: {axis} num_axes: {number} shape {{ {words} }} }}', [x])


def _tile(chance: Chance, blobs: Sequence[Bottom]) -> Made:
    x = _pick(chance, blobs)
    return Made(f'type: "Tile" tile_param {{ axis: {_axis(chance, x)} tiles: {chance.randrange(1, 4)} }}', [x])


def _softmax(chance: Chance, blobs: Sequence[Bottom]) -> Made:
    x = _pick(chance, blobs)
    return Made(f'type: "Softmax" softmax_param {{ axis: {_axis(chance, x)} }}', [x], 1, True)


def _arg_max(chance: Chance, blobs: Sequence[Bottom]) -> Made:
    """Of an input: among values that layers make, rounding decides between equal ones."""
    x = chance.choice([one for one in blobs if not one.name.startswith("b")])
    axis = f"axis: {_axis(chance, x)}" if chance.random() < 0.6 else ""
    top_k, values = chance.choice([1, 1, 2, 3]), _flag(chance)
    return Made(f'type: "ArgMax" argmax_param {{ {axis} top_k: {top_k} out_max_val: {values} }}', [x])


def _reduction(chance: Chance, blobs: Sequence[Bottom]) -> Made:
    x, operation = _pick(chance, blobs), chance.choice(["SUM", "ASUM", "SUMSQ", "MEAN"])
    coeff = chance.choice([1, 0.5, -2, 0])
    return Made(
        f'type: "Reduction" reduction_param {{ operation: {operation} axis: {_axis(chance, x)} coeff: {coeff} }}', [x]
    )


def _spp(chance: Chance, blobs: Sequence[Bottom]) -> Made:
    height, method = chance.randrange(1, 4), chance.choice(["MAX", "AVE"])
    return Made(f'type: "SPP" spp_param {{ pyramid_height: {height} pool: {method} }}', [_pick(chance, blobs)])


def _recurrent(kind: str, tops: int) -> Maker:
    def make(chance: Chance, blobs: Sequence[Bottom]) -> Made:
        x = chance.choice([one for one in blobs if len(one.shape) > 1])
        cont = chance.choice([one for one in blobs if one.shape == x.shape[:2] and one.name.startswith("cont")])
        statics = [one for one in blobs if one.shape[:1] == x.shape[1:2] and len(one.shape) > 1]
        static = [chance.choice(statics)] if statics and chance.random() < 0.4 else []
        hidden = [one for one in blobs if len(one.shape) == 3 and one.shape[:2] == (1, x.shape[1])]
        if hidden and chance.random() < 0.5:
            first = chance.choice(hidden)
            state = [first, *(one for one in [first] * (tops - 1))]
            return Made(
                f'type: "{kind}" recurrent_param {{ num_output: {first.shape[2]} expose_hidden: true {FILL} }}',
                [x, cont, *static, *state], 1 + tops,
            )  # fmt: skip
        return Made(
            f'type: "{kind}" recurrent_param {{ num_output: {chance.randrange(1, 4)} {FILL} }}', [x, cont, *static]
        )

    return make


def _embed(chance: Chance, blobs: Sequence[Bottom]) -> Made:
    x = chance.choice([one for one in blobs if one.name.startswith("index")])
    return Made(
        f'type: "Embed" embed_param {{ num_output: {chance.randrange(1, 4)} input_dim: 5 bias_term: {_flag(chance)} '
        f"{FILL} }}", [x],
    )  # fmt: skip


def _reindex(chance: Chance, blobs: Sequence[Bottom]) -> Made:
    rows = chance.choice([one for one in blobs if one.name.startswith("rows")])
    return Made('type: "BatchReindex"', [_pick(chance, blobs), rows])


def _filter(chance: Chance, blobs: Sequence[Bottom]) -> Made:
    keep = chance.choice([one for one in blobs if one.name.startswith("keep")])
    fits = [one for one in blobs if one.shape[:1] == keep.shape[:1] and one is not keep]
    several = chance.choices(fits, k=chance.randrange(1, 3))
    return Made('type: "Filter"', [*several, keep], len(several))


def _parameter(chance: Chance, blobs: Sequence[Bottom]) -> Made:
    dims = " ".join(f"dim: {size}" for size in _pick(chance, blobs).shape)
    return Made(f'type: "Parameter" parameter_param {{ shape {{ {dims} }} }}', [])


MAKERS: list[Maker] = [
    _convolution("Convolution"), _convolution("Convolution"), _convolution("Deconvolution"), _im2col, _product,
    _product, _pooling, _pooling, _pooling, _lrn, _lrn, _power, _spread("Scale", "scale_param"),
    _spread("Bias", "bias_param"), _eltwise, _eltwise, _concat, _slice, _crop, _flatten, _reshape, _reshape, _tile,
    _softmax, _arg_max, _reduction, _spp, _embed, _reindex, _filter, _parameter, _recurrent("LSTM", 2),
    _recurrent("RNN", 1),
    _plain('type: "ReLU" relu_param { negative_slope: ? }'),
    _plain('type: "PReLU" prelu_param { channel_shared: ! ' + SMALL + " }"),
    _plain('type: "SymmetricRectify" symmetric_rectify_param { channel_shared: ! ' + SMALL + " }", False),
    _plain('type: "Sparsify" sparsify_param { thre: ? coef: ? }', False),
    _plain('type: "ELU" elu_param { alpha: ? }'), _plain('type: "Sigmoid"'), _plain('type: "TanH"'),
    _plain('type: "AbsVal"', False), _plain('type: "BNLL"'), _plain('type: "Swish" swish_param { beta: ? }', False),
    _plain('type: "Clip" clip_param { min: -? max: ? }'), _plain('type: "Threshold" threshold_param { threshold: ? }'),
    _plain('type: "Exp" exp_param { scale: -? shift: ? base: 2 }'), _plain('type: "Exp" exp_param { scale: 0.1 }'),
    _plain('type: "Log" log_param { scale: ? shift: 9 base: 3 }'), _plain('type: "Log" log_param { shift: 9 }'),
    _plain('type: "Dropout" dropout_param { scale_train: ! }'), _plain('type: "Silence"', False),
    _plain('type: "MVN" mvn_param { across_channels: ! normalize_variance: ! eps: 0.1 }', False),
    _plain('type: "BatchNorm"'),
]  # fmt: skip
BEHIND: list[Maker] = [
    _plain('type: "BatchNorm" batch_norm_param { eps: 0.1 scale_bias: ! }'),
    _plain('type: "Scale" scale_param { bias_term: ! ' + SMALL + " }"),
]
"""What is often behind a layer with weights, and folded into it."""


def _input(name: str, shape: Shape) -> str:
    dims = " ".join(f"dim: {size}" for size in shape)
    return f'layer {{ name: "in {name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }} }}\n'


def _inputs(chance: Chance) -> list[Bottom]:
    n = chance.choice([1, 2, 2, 3])
    size = chance.randrange
    kinds = {
        "image": (n, size(1, 5), size(1, 10), size(1, 10)),
        "image2": (n, size(1, 5), size(4, 10), size(4, 10)),
        "vector": (n, size(1, 7)),
        "line": (n, size(1, 5), size(3, 9)),
        "volume": (n, size(1, 4), size(2, 6), size(2, 6), size(2, 5)),
        "one": (n,),
        "index": (n, size(1, 4)),
        "rows": (n,),
        "keep": (n, 1),
        "sequence": (n, 2, size(1, 4)),
        "cont": (n, 2),
        "before": (1, 2, size(1, 4)),
    }
    chosen = chance.sample(sorted(kinds), chance.randrange(1, 4))
    chosen += ["cont"] if "sequence" in chosen and "cont" not in chosen else []
    chosen += [] if {"image", "image2", "vector", "line", "volume"} & set(chosen) else ["image"]
    return [Bottom(name, kinds[name]) for name in chosen]


def net_text(chance: Chance, layers: int) -> str:
    """A net of up to so many layers; those that don't fit are left out."""
    blobs = _inputs(chance)
    text = "".join(_input(*one) for one in blobs)
    marks = frozenset(one.name for one in blobs if one.name.startswith(("index", "rows", "keep", "cont")))
    number, next_ones = 0, list[Maker]()
    for _ in range(3 * layers):
        try:
            made = next_ones.pop()(chance, blobs[-1:]) if next_ones else chance.choice(MAKERS)(chance, blobs)
        except (IndexError, ValueError, ZeroDivisionError):
            continue
        # what a layer reads as indices stays what it is
        in_place = made.in_place and made.bottoms[0].name not in marks and chance.random() < 0.4
        silent = 'type: "Silence"' in made.body
        tops = [] if silent else [made.bottoms[0].name] if in_place else [f"b{number}_{k}" for k in range(made.tops)]
        ends = "".join(f'bottom: "{one.name}" ' for one in made.bottoms) + "".join(f'top: "{top}" ' for top in tops)
        tried = f'{text}layer {{ name: "l{number}" {ends}{made.body} }}\n'
        try:
            net = load_net(tried)
        except ForceregError:
            continue
        # of rows that a Filter leaves nobody knows whether they fit others
        shapes = [Bottom(top, net.shapes[top]) for top in tops if 'type: "Filter"' not in made.body]
        if any(len(shape) > 6 or torch.Size(shape).numel() > 3000 for _, shape in shapes):
            continue
        text, number = tried, number + 1
        blobs = [*(one for one in blobs if one.name not in tops), *shapes]
        if made.body.startswith(('type: "Convolution', 'type: "InnerProduct')) and chance.random() < 0.4:
            next_ones = BEHIND[::-1]
        if number == layers:
            break
    return text


def filled(text: str, seed: int) -> Net:
    """The net with values from a seed, Parameter's and BatchNorm's too, one in four of which has a factor of 0."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    net = load_net(text, seed=seed)
    with torch.no_grad():
        for spec, module in net.built:
            if spec.type == "Parameter" and module is not None:
                module.weight_blob().normal_()
            if spec.type == "BatchNorm" and module is not None:
                module.weight_blob("mean").normal_()
                module.weight_blob("variance").uniform_(0.5, 2)
                module.weight_blob("factor").fill_(chance.choice([0, 1, 2, 999.98]))
    return net
