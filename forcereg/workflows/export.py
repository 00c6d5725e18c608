"""A trained net as a file for other programs: `forcereg export`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forcereg.errors import UsageError
from forcereg.exports.request import Exported, Request
from forcereg.exports.targets import target_of
from forcereg.schema.rules import stage_names
from forcereg.system.arguments import checked
from forcereg.system.events import Observer, Tell
from forcereg.system.paths import StrPath, listed


@checked
def export(
    net: StrPath | Any,
    out: StrPath,
    *,
    weights: StrPath | None = None,
    batch: int | None = None,
    dynamic: str | Sequence[str] = (),
    opset: int | None = None,
    fold: bool = True,
    verify: bool = True,
    outputs: str | Sequence[str] = (),
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    level: int = 0,
    stage: str | Sequence[str] = (),
    allow_python_layers: bool = False,
    observer: Observer | None = None,
) -> Exported:
    """Writes a net's TEST phase for use as `out`, whose ending says as what: .onnx, .prototxt, .caffemodel(.h5),
    .safetensors, .npz.

    `net`, `weights`, `outputs`, `input_shapes`, `level`, `stage`: as for `deploy`, which makes the net. `batch`: size
    of axis 0 of the inputs, None to leave it open. Of ONNX: `dynamic`: "H" and "W" for those axes of images that stay
    open too; `opset`: the version of its operators, None for the newest that ONNX Runtime, OpenVINO and OpenCV take;
    `fold`: BatchNorms with their Scales go into the convolution before them; `verify`: the file is run by ONNX Runtime
    and each blob compared with ours before it gets its name.

    The result has `.paths`, `.inputs` and `.outputs`, blob -> shape, `.preparation` as of `deploy`, `.notes`, and
    `.proof` with `.blobs`, `.difference`, the largest, `.blob` and `.magnitude`. Raises UsageError for an ending or
    option that isn't known, ForceregError for a layer that the target has nothing for, and for a file that differs.

    >>> done = forcereg.export("net_iter_20.caffemodel.h5", "net.onnx")
    >>> done.inputs, done.outputs
    ({'data': ('batch', 1, 8, 8)}, {'prob': ('batch', 3)})
    >>> done.proof.difference < 1e-5
    True
    """
    ending, target = target_of(Path(out))
    # those that not every target has, as far as something else than the default was given
    some = {"dynamic": tuple(listed(dynamic)), "opset": opset, "fold": fold, "verify": verify}
    usual = {"dynamic": (), "opset": None, "fold": True, "verify": True}
    given = {name: value for name, value in some.items() if value != usual[name]}
    shaping = {"batch": batch, "outputs": listed(outputs), "input_shapes": input_shapes, "level": level, "stage": stage}
    for name in (*given, *(name for name, value in shaping.items() if value)):
        if name not in target.takes:
            flag = f"--{'no-' if some.get(name) is False else ''}{name.removesuffix('s').replace('_', '-')}"
            raise UsageError(f"{flag} has no meaning for {ending}; leave it out")
    request = Request(
        net,
        weights,
        Path(out),
        Tell(observer),
        batch=batch,
        outputs=listed(outputs),
        input_shapes=input_shapes,
        level=level,
        stages=stage_names(stage),
        allow_python_layers=allow_python_layers,
        options=given,
    )
    return target.write(request)
