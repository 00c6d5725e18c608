"""Older forms of nets and solvers to today's: V0 and V1 layers, inputs outside layers, renamed fields.

Pure functions; the argument stays as it is. They do what Caffe does when it reads a file, except that inline
nets of a solver are upgraded too, and that fields of forks are put into Caffe's words where it has some for them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from forcereg.errors import ForceregError, slip, storable
from forcereg.schema import NetParameter, SolverParameter, V1LayerParameter
from forcereg.schema.scan import shown
from forcereg.schema.synonyms import in_caffes_words

Lines = tuple[int | None, ...]


def _camel(enum_name: str) -> str:
    return "".join(word.capitalize() for word in enum_name.split("_"))


V1_TYPES: dict[str, str] = {name: _camel(name) for name in V1LayerParameter.LayerType.DESCRIPTOR.values_by_name} | {
    "NONE": "",
    "ABSVAL": "AbsVal",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "LRN": "LRN",
    "MVN": "MVN",
    "RELU": "ReLU",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "TANH": "TanH",
}
"""V1 layer type -> today's."""

SOLVER_TYPES = {
    "SGD": "SGD",
    "NESTEROV": "Nesterov",
    "ADAGRAD": "AdaGrad",
    "RMSPROP": "RMSProp",
    "ADADELTA": "AdaDelta",
    "ADAM": "Adam",
}
"""solver_type -> type."""

_IMAGE = "source scale meanfile cropsize mirror batchsize"
_FILTER = "kernelsize pad stride"
_WEIGHTS = "num_output biasterm weight_filler bias_filler"
V0_TYPES = {
    "accuracy": ("ACCURACY", "", ""),
    "bnll": ("BNLL", "", ""),
    "concat": ("CONCAT", "concat_param", "concat_dim"),
    "conv": ("CONVOLUTION", "convolution_param", f"{_WEIGHTS} {_FILTER} group"),
    "data": ("DATA", "data_param", f"{_IMAGE} rand_skip"),
    "dropout": ("DROPOUT", "dropout_param", "dropout_ratio"),
    "euclidean_loss": ("EUCLIDEAN_LOSS", "", ""),
    "flatten": ("FLATTEN", "", ""),
    "hdf5_data": ("HDF5_DATA", "hdf5_data_param", "source batchsize"),
    "hdf5_output": ("HDF5_OUTPUT", "", ""),
    "im2col": ("IM2COL", "convolution_param", _FILTER),
    "images": ("IMAGE_DATA", "image_data_param", f"{_IMAGE} rand_skip shuffle_images new_height new_width"),
    "infogain_loss": ("INFOGAIN_LOSS", "infogain_loss_param", "source"),
    "innerproduct": ("INNER_PRODUCT", "inner_product_param", _WEIGHTS),
    "lrn": ("LRN", "lrn_param", "local_size alpha beta k"),
    "multinomial_logistic_loss": ("MULTINOMIAL_LOGISTIC_LOSS", "", ""),
    "pool": ("POOLING", "pooling_param", f"{_FILTER} pool"),
    "relu": ("RELU", "", ""),
    "sigmoid": ("SIGMOID", "", ""),
    "softmax": ("SOFTMAX", "", ""),
    "softmax_loss": ("SOFTMAX_LOSS", "", ""),
    "split": ("SPLIT", "", ""),
    "tanh": ("TANH", "", ""),
    "window_data": (
        "WINDOW_DATA",
        "window_data_param",
        f"{_IMAGE} det_fg_threshold det_bg_threshold det_fg_fraction det_context_pad det_crop_mode",
    ),
}
"""V0 type -> V1 type, the message its options move to, and which these are."""
_V0_RENAMED = {
    "batchsize": "batch_size",
    "biasterm": "bias_term",
    "cropsize": "crop_size",
    "kernelsize": "kernel_size",
    "meanfile": "mean_file",
    "shuffle_images": "shuffle",
}
_V0_KEPT = ("blobs", "blobs_lr", "weight_decay", "hdf5_output_param")
_V0_NET = ("name", "force_backward", "input", "input_dim")
_LEFT_OUT = "left out, as Caffe does; remove it"
_INPUT_FIELDS = ("input", "input_shape", "input_dim")
_DATA_PARAMS = {"Data": "data_param", "ImageData": "image_data_param", "WindowData": "window_data_param"}
_TRANSFORM = ("scale", "mean_file", "crop_size", "mirror")


class Upgraded(NamedTuple):
    """A net with `layer` entries only, the source line of each, and what was left out of it, one line each."""

    net: Any
    lines: Lines
    warnings: tuple[str, ...]


def upgrade_net(
    net: Any, name: str = "<net>", lines: Sequence[int | None] = (), input_line: int | None = None
) -> Upgraded:
    """`net` in today's form.

    `lines[i]` is the line of layer i of `net`, in whichever form it has; () if there are none. `input_line` is that of
    its first `input`, for the layer made of these. Raises ForceregError, beginning with `name`, for a net without
    layers or one that mixes forms.
    """
    if net.layer and net.layers:
        raise ForceregError(f"{name}: `layer` and `layers` in one net; make all of them `layer {{ ... }}`")
    count = len(net.layer) or len(net.layers)
    kept: list[int | None] = list(lines) if len(lines) == count else [None] * count
    warnings: list[str] = []
    # in Caffe's order: V0 becomes V1 first
    if any(layer.HasField("layer") for layer in net.layers):
        net, kept = _from_v0(net, name, kept, warnings)
    result = NetParameter()
    for field, value in net.ListFields():
        if field.name not in ("layer", "layers", *_INPUT_FIELDS):
            _put(result, field.name, value)
    shapes = _input_shapes(net, f"{name}:{input_line}" if input_line else name)
    if shapes:
        layer = result.layer.add(name="input", type="Input", top=net.input)
        for dims in shapes:
            layer.input_param.shape.add(dim=dims)
        # the layer that is made stands in front, and so does its line
        kept.insert(0, input_line)
    # one of the two is empty
    result.layer.extend(net.layer)
    for old in net.layers:
        _from_v1(old, result.layer.add())
    if not result.layer:
        raise ForceregError(f"{name}: the net has no layers")
    for layer in result.layer:
        _freeze_batch_norm(layer)
        in_caffes_words(layer)
    return Upgraded(result, tuple(kept), tuple(warnings))


def upgrade_solver(solver: Any, name: str = "<solver>", lost: list[str] | None = None) -> Any:
    """`solver` with `type` instead of `solver_type`, upgraded inline nets and a snapshot_prefix.

    What is left out of these nets goes into `lost`, one line each. An unset snapshot_prefix becomes the solver's own
    path without extension, absolute so that no root moves it (`name` is that path, or something in <> for text without
    a file). Raises ForceregError.
    """
    result = SolverParameter()
    result.CopyFrom(solver)
    if result.HasField("solver_type"):
        old = SolverParameter.SolverType.Name(result.solver_type)
        if result.HasField("type"):
            raise ForceregError(
                f'{name}: solver_type {old} and type "{shown(result.type)}" are both set; remove solver_type'
            )
        result.type = SOLVER_TYPES[old]
        result.ClearField("solver_type")
    inline = [(getattr(result, field), field) for field in ("net_param", "train_net_param") if result.HasField(field)]
    inline += [(net, f"test_net_param {i}") for i, net in enumerate(result.test_net_param)]
    for net, field in inline:
        # Caffe doesn't, and trains a net without layers
        upgraded = upgrade_net(net, f"{name}: {field}")
        net.CopyFrom(upgraded.net)
        if lost is not None:
            lost += upgraded.warnings
    # as BVLC's Caffe does; the fork has no such default
    if not result.snapshot_prefix and not name.startswith("<"):
        result.snapshot_prefix = storable(os.path.splitext(os.path.abspath(name))[0])
    return result


def _from_v0(net: Any, name: str, lines: Sequence[int | None], warnings: list[str]) -> tuple[Any, list[int | None]]:
    """V0 -> V1. Caffe keeps _V0_NET of such nets, and so do we; what is lost goes into `warnings`."""
    result = NetParameter()
    for field, value in net.ListFields():
        if field.name in _V0_NET:
            _put(result, field.name, value)
        elif field.name != "layers":
            warnings.append(f"{name}: '{field.name}' is no field of a net in this old form; {_LEFT_OUT}")
    kept = []
    paddings: dict[str, Any] = {}  # top of a padding layer -> that layer
    for old, line in zip(net.layers, lines, strict=True):
        where = f"{name}{f':{line}' if line else ''}: layer '{shown(old.layer.name or old.name, 80)}'"
        if not old.HasField("layer"):
            raise ForceregError(f"{where}: has no `layer` block inside, unlike others; two old forms are mixed")
        padding = _padding_before(old, paddings, where)
        # whoever writes the blob anew ends the padding
        for top in old.top:
            paddings.pop(top, None)
        beside = [field.name for field, _ in old.ListFields() if field.name not in ("layer", "bottom", "top", "name")]
        warnings += (f"{where}: '{field}' stands beside `layer`, not in it; {_LEFT_OUT}" for field in beside)
        if old.layer.type == "padding":
            if len(old.bottom) != 1 or len(old.top) != 1:
                raise ForceregError(f"{where}: a padding layer has one bottom and one top")
            warnings += _strays(old.layer, ("pad",), where)
            paddings[old.top[0]] = old
            continue
        new = result.layers.add(name=old.layer.name, bottom=old.bottom, top=old.top)
        warnings += _from_v0_layer(old.layer, new, where)
        if padding is not None:
            _take_over(padding, new, V0_TYPES[old.layer.type][1])
        kept.append(line)
    return result, kept


def _padding_before(layer: Any, paddings: dict[str, Any], where: str) -> Any:
    """The padding layer that feeds this one, None if none does."""
    if not any(bottom in paddings for bottom in layer.bottom):
        return None
    if layer.layer.type not in ("conv", "pool") or len(layer.bottom) != 1:
        raise ForceregError(f"{where}: only a conv or pool layer with one bottom can follow a padding layer")
    return paddings[layer.bottom[0]]


def _take_over(padding: Any, layer: Any, param: str) -> None:
    options = getattr(layer, param)
    options.ClearField("pad")
    _put(options, "pad", padding.layer.pad)
    layer.bottom[0] = padding.bottom[0]


def _from_v0_layer(old: Any, new: Any, where: str) -> list[str]:
    """Fills `new`; a warning for each option that the layer type doesn't take."""
    if old.type not in V0_TYPES:
        raise ForceregError(f"{where}: unknown layer type '{shown(old.type)}'{slip(old.type, V0_TYPES)}")
    kind, param, options = V0_TYPES[old.type]
    new.type = V1LayerParameter.LayerType.Value(kind)
    for field, value in old.ListFields():
        if field.name in _V0_KEPT:
            _put(new, field.name, value)
        elif field.name in options.split():
            renamed = _V0_RENAMED.get(field.name, field.name.removeprefix("det_"))
            _put(getattr(new, param), renamed, value)
    return _strays(old, (*_V0_KEPT, *options.split()), where)


def _strays(old: Any, options: Sequence[str], where: str) -> list[str]:
    """What to warn of in a layer that takes these options only."""
    strays = [field.name for field, _ in old.ListFields() if field.name not in ("name", "type", *options)]
    return [f"{where}: '{name}' is no option of a '{old.type}' layer; {_LEFT_OUT}" for name in strays]


def _from_v1(old: Any, new: Any) -> None:
    """V1 -> today: the type by name, what concerns one blob gathered in its `param`, the rest as it is."""
    kind = V1_TYPES[V1LayerParameter.LayerType.Name(old.type)]
    # NONE has no type, and is refused where layers are made
    if kind:
        new.type = kind
    count = max(len(old.param), len(old.blob_share_mode), len(old.blobs_lr), len(old.weight_decay))
    specs = [new.param.add() for _ in range(count)]
    for target, values in (("lr_mult", old.blobs_lr), ("decay_mult", old.weight_decay)):
        for spec, value in zip(specs, values, strict=False):
            setattr(spec, target, value)
    for spec, value in zip(specs, old.blob_share_mode, strict=False):
        spec.share_mode = value  # the two enums have the same numbers
    for spec, value in zip(specs, old.param, strict=False):
        # an empty name shares nothing
        if value:
            spec.name = value
    for field, value in old.ListFields():
        if field.name not in ("type", "param", "blob_share_mode", "blobs_lr", "weight_decay", "layer"):
            _put(new, field.name, value)
    _move_transform(new)


def _move_transform(layer: Any) -> None:
    """scale, mean_file, crop_size, mirror: from the data layer's own message to transform_param."""
    param = _DATA_PARAMS.get(layer.type)
    if param is None or not layer.HasField(param):
        return
    options = getattr(layer, param)
    for name in _TRANSFORM:
        if options.HasField(name):
            setattr(layer.transform_param, name, getattr(options, name))
            options.ClearField(name)


def _input_shapes(net: Any, name: str) -> list[list[int]]:
    """One shape per `input`, [] if there is none: Caffe drops names without shapes."""
    count, dims = len(net.input), net.input_dim
    if net.input_shape:
        shapes, found = [list(shape.dim) for shape in net.input_shape], f"{len(net.input_shape)} input_shape"
    else:
        shapes, found = [list(dims[i : i + 4]) for i in range(0, len(dims), 4)], f"{len(dims)} input_dim"
    if not count or not shapes:
        return []
    if len(shapes) != count or (len(shapes[-1]) != 4 and not net.input_shape):
        expected = "one input_shape or four input_dim per input"
        raise ForceregError(f"{name}: {count} input, but {found}; expected {expected}")
    return shapes


def _freeze_batch_norm(layer: Any) -> None:
    """The three blobs of BatchNorm are statistics: no solver may touch them (of NVCaffe's five the first three)."""
    # only rates: names stay, by which blobs are shared (the fork drops the entries)
    if layer.type == "BatchNorm" and len(layer.param) == 3:
        for spec in layer.param:
            spec.lr_mult = spec.decay_mult = 0


def _put(message: Any, field: str, value: Any) -> None:
    """Set a field of any kind: a message is copied, a repeated field extended (with `value` or its items)."""
    target = getattr(message, field)
    # asked for what it can, because containers differ from runtime to runtime
    if hasattr(target, "extend"):
        target.extend(value if hasattr(value, "extend") else [value])
    elif hasattr(target, "CopyFrom"):
        target.CopyFrom(value)
    else:
        setattr(message, field, value)
