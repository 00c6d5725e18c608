"""A trained net as a file for other programs: `forcereg export`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from forcereg.errors import UsageError
from forcereg.exports.request import Exported, Request
from forcereg.exports.targets import target_of
from forcereg.net.deploy.files import DeployedNet
from forcereg.net.module import Net
from forcereg.schema.rules import stage_names
from forcereg.schema.text import read_solver
from forcereg.study.evaluate import Evaluator
from forcereg.system.arguments import checked
from forcereg.system.events import Observer, Tell
from forcereg.system.paths import StrPath, listed

USUAL = {"dynamic": (), "fold": True, "verify": True, "with_transform": False, "rgb": False}
"""Defaults that aren't None."""


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
    with_transform: bool = False,
    rgb: bool = False,
    solver: StrPath | None = None,
    iterations: int | None = None,
    outputs: str | Sequence[str] = (),
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    level: int = 0,
    stage: str | Sequence[str] = (),
    allow_python_layers: bool = False,
    observer: Observer | None = None,
) -> Exported:
    """Writes a net's TEST phase for use as `out`, whose ending says as what: .onnx, .prototxt, .caffemodel(.h5),
    .pt2, .safetensors, .npz.

    `net`, `weights`, `outputs`, `input_shapes`, `level`, `stage`: as for `deploy`, which makes the net. `batch`: size
    of axis 0 of the inputs, None to leave it open. Of ONNX: `dynamic`: "H" and "W" for those axes of images that stay
    open too; `opset`: the version of its operators, None for the newest that ONNX Runtime, OpenVINO and OpenCV take;
    `fold`: BatchNorms with their Scales go into the convolution before them; `verify`: the file is run by ONNX Runtime
    and each blob compared with ours before it gets its name; `with_transform`: scale and mean of the net's data layer
    come first, `rgb`: and before them colours turned round, so that the file takes red, green, blue where the net has
    them the other way; `solver`: its test batches, `iterations` (test_iter) of them, are compared too, and scored.

    The result has `.paths`, `.inputs` and `.outputs`, blob -> shape, `.preparation` as of `deploy`, `.notes`, and
    `.proof` with `.blobs`, `.difference`, the largest, `.blob` and `.magnitude`; `.scores` with `solver`, accuracy ->
    ours and the file's. Raises UsageError for an ending or
    option that isn't known, ForceregError for a layer that the target has nothing for, and for a file that differs.

    >>> done = forcereg.export("net_iter_20.caffemodel.h5", "net.onnx")
    >>> done.inputs, done.outputs
    ({'data': ('batch', 1, 8, 8)}, {'prob': ('batch', 3)})
    >>> done.proof.difference < 1e-5
    True
    """
    ending, target = target_of(Path(out))
    # those that not every target has, as far as something else than the default was given
    some = {
        "dynamic": tuple(listed(dynamic)),
        "opset": opset,
        "fold": fold,
        "verify": verify,
        "with_transform": with_transform,
        "rgb": rgb,
        "solver": solver,
        "iterations": iterations,
    }
    given = {name: value for name, value in some.items() if value != USUAL.get(name)}
    shaping = {"batch": batch, "outputs": listed(outputs), "input_shapes": input_shapes, "level": level, "stage": stage}
    for name in (*given, *(name for name, value in shaping.items() if value)):
        if name not in target.takes:
            flag = f"--{'no-' if some.get(name) is False else ''}{name.removesuffix('s').replace('_', '-')}"
            raise UsageError(f"{flag} has no meaning for {ending}; leave it out")
    if solver is not None and not verify:
        raise UsageError("--no-verify runs nothing, so there is nothing to do with --solver; give one of them")
    if iterations is not None and solver is None:
        raise UsageError("--iterations counts the test batches of --solver; give that too")
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
        tested=None if solver is None else partial(_tested, os.fspath(solver), allow_python_layers, Tell(observer)),
    )
    return target.write(request)


def _tested(solver: str, allow_python_layers: bool, tell: Tell, deployed: DeployedNet) -> tuple[Net, int]:
    """The test net of a solver with the weights of a net for use, and its number of batches. Raises ForceregError."""
    evaluator = Evaluator(read_solver(solver), device="cpu", allow_python_layers=allow_python_layers, tell=tell.warn)
    weights = deployed.model.layers if deployed.model is not None else {}
    return evaluator.net(evaluator.test_file or deployed.file, weights)
