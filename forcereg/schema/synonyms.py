"""Fields of forks that say what Caffe says in another way: put into Caffe's words where one layer can say it."""

from __future__ import annotations

from typing import Any

from forcereg.schema import PoolingParameter

CEIL, FLOOR = (PoolingParameter.RoundMode.Value(name) for name in ("CEIL", "FLOOR"))
HOLES = ("hole", "hole_h", "hole_w")
ROUNDING = {"ceil_mode": {True: CEIL, False: FLOOR}, "torch_pooling": {True: FLOOR, False: CEIL}}
"""Field of pooling_param -> its value -> Caffe's round_mode."""


def in_caffes_words(layer: Any) -> None:
    """Changes the layer: DeepLab's `hole` becomes `dilation`, `ceil_mode` and `torch_pooling` become `round_mode`.

    What contradicts or doubles Caffe's own field stays as it is, for the layer to refuse (see `left_over`).
    """
    if layer.HasField("convolution_param"):
        _hole(layer.convolution_param)
    if layer.HasField("pooling_param"):
        _rounding(layer.pooling_param)


def is_affine(param: Any) -> bool:
    """Whether a batch_norm_param is of NVCaffe's form, with a scale and a shift inside: by `scale_bias` or a filler."""
    has_filler = param.HasField("scale_filler") or param.HasField("bias_filler")
    return bool(param.scale_bias if param.HasField("scale_bias") else has_filler)


def left_over(param: Any) -> str:
    """What is wrong with a convolution_param or pooling_param that still has such a field; '' for all others."""
    names = [field.name for field, _ in param.ListFields() if field.name in HOLES or field.name in ROUNDING]
    if not names:
        return ""
    if names[0] in ROUNDING:
        modes = ("round_mode", *ROUNDING)
        said = " and ".join(f"{name} {_said(param, name)}" for name in modes if param.HasField(name))
        return f"{said} contradict each other; give round_mode alone"
    if param.dilation:
        return f"gives {' and '.join(names)} and dilation, which mean the same; give dilation alone"
    if names[0] == "hole":
        return f"gives {' and '.join(names)}; use one form, dilation: H dilation: W"
    return f"gives {names[0]} alone; give dilation: H dilation: W"


def _hole(param: Any) -> None:
    pair = [getattr(param, name) for name in ("hole_h", "hole_w") if param.HasField(name)]
    if param.dilation or (param.hole and pair) or len(pair) == 1:
        return
    param.dilation.extend(param.hole or pair)
    for name in HOLES:
        param.ClearField(name)


def _rounding(param: Any) -> None:
    given = [name for name in ROUNDING if param.HasField(name)]
    modes = {ROUNDING[name][getattr(param, name)] for name in given}
    if param.HasField("round_mode"):
        modes.add(param.round_mode)
    # two that say different things: left for the layer to refuse
    if len(modes) != 1 or not given:
        return
    (param.round_mode,) = modes
    for name in given:
        param.ClearField(name)


def _said(param: Any, name: str) -> str:
    value = getattr(param, name)
    return PoolingParameter.RoundMode.Name(value) if name == "round_mode" else str(value).lower()
