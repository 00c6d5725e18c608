"""The `.onnx` target: the net for use, its BatchNorms folded, written layer by layer, proved, and only then named."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from forcereg.errors import ForceregError, UsageError
from forcereg.exports.dims import Open, batch_axes, sizes_of
from forcereg.exports.graph import Varying
from forcereg.exports.model import MISSING, Written, check_types, to_model
from forcereg.exports.pixels import Pixels, pixels_of
from forcereg.exports.proof import Comparison, Runtime, random_inputs
from forcereg.exports.ready import Ready, about, prepared
from forcereg.exports.request import Exported, Request
from forcereg.exports.scores import scored
from forcereg.exports.wire import Constant
from forcereg.net.deploy.files import DeployedNet
from forcereg.net.module import Net
from forcereg.net.sparse import convolutions
from forcereg.system.files import replace_file

OPSET = 28
"""The newest version of ONNX's operators that ONNX Runtime 1.32, OpenVINO 2026.4 and OpenCV 5.0 all take: each golden
case's file was run by each of them at versions 13, 18 and 21 to 28, and none took fewer at 28 than at any other."""
OLDEST = 13
"""The oldest version that can be asked for: before it Softmax meant something else."""
OPTIONS = frozenset({"dynamic", "opset", "fold", "verify", "with_transform", "rgb", "solver", "iterations"})
ONE_FILE = 2**31 - 2**20
"""Bytes of constants up to which they fit into one file: protobuf ends at 2 GiB."""
PAGE = 4096
"""At multiples of it constants begin in a file of their own, as runtimes map them."""


def write_onnx(request: Request) -> Exported:
    """Writes `request.out`. Raises ForceregError; then nothing has its name that had it not before."""
    options = request.options
    opset = _opset(options.get("opset"))
    deployed = request.deployed()
    ready = prepared(deployed, fold=bool(options.get("fold", True)), allow=request.allow_python_layers)
    check_types(ready.plain)
    pixels = pixels_of(deployed, bool(options.get("with_transform")), bool(options.get("rgb")))
    written, open_axes, notes = _written(ready, request, opset, about(deployed), pixels)
    graph = written.proto.graph
    with _staged(written, request.out) as (path, beside, paths):
        done = Exported(
            paths=paths,
            summary=f"{written.nodes} nodes of opset {opset}",
            inputs=_shapes(graph.input),
            outputs=_shapes(graph.output),
            preparation={**deployed.preparation, **{name: one.told for name, one in pixels.items()}},
            notes=notes,
        )
        if options.get("verify", True):
            runtime = Runtime(path, written.tops.values(), beside)
            comparison = Comparison(written, runtime, ready.plain, ready.folds)
            _random_batches(comparison, ready, open_axes, pixels)
            scores = _scores(comparison, request, deployed, pixels) if request.tested else {}
            done = replace(done, proof=comparison.prove(), scores=scores)
    return done


def _opset(asked: Any) -> int:
    """The version of ONNX's operators. Raises ForceregError for one that isn't known here, or without the library."""
    if find_spec("onnx") is None:
        raise ForceregError(MISSING)
    opset = int(asked or OPSET)
    if not OLDEST <= opset <= OPSET:
        raise UsageError(f"--opset is {opset}; expected {OLDEST} to {OPSET}")
    return opset


def _written(
    ready: Ready, request: Request, opset: int, about: Mapping[str, str], pixels: Mapping[str, Pixels]
) -> tuple[Written, Open, tuple[str, ...]]:
    """The model, the axes that stay open, and what is to be said. Raises ForceregError."""
    net = ready.net

    def made(axes: Open) -> Written:
        return to_model(net, sizes_of(net, axes), axes, opset, about, pixels, ready.outputs)

    spatial, notes = _spatial(net, request.options.get("dynamic", ())), _remarks(net)
    if request.batch is None:
        try:
            axes = {name: {**batch, **spatial.get(name, {})} for name, batch in batch_axes(net).items()}
            return made(axes), axes, notes
        except Varying as error:
            notes = (*notes, f"the batch is fixed: with another one the net {error}")
    try:
        return made(spatial), spatial, notes
    except Varying as error:
        fix = "; leave out --dynamic" if spatial else ""
        raise ForceregError(f"{net.spec.filename}: a size would be open, but the net {error}{fix}") from None


def _remarks(net: Net) -> tuple[str, ...]:
    carrying = [spec.name for spec, module in net.built if module is not None and module.carried()]
    sparse = [spec.name for spec, module in convolutions(net) if module.sparse is not None]
    found = []
    if carrying:
        found.append(f"each run begins with hidden state 0 in {', '.join(carrying)}; expose_hidden: true hands it on")
    if sparse:
        found.append(
            f"conv_mode of {', '.join(sparse)} has no form here: zeros are written, and computed with, as others"
        )
    return tuple(found)


def _spatial(net: Net, letters: Any) -> Open:
    """The open axes of images for --dynamic. Raises UsageError."""
    known = {"H": (2, "height"), "W": (3, "width")}
    if wrong := [letter for letter in letters if letter not in known]:
        raise UsageError(f"--dynamic is '{','.join(letters)}'; '{wrong[0]}' is none of H and W")
    images = [name for name in net.inputs if len(net.shapes[name]) == 4]
    if letters and not images:
        raise UsageError("--dynamic is for inputs of images (N, C, H, W), of which this net has none")
    found: dict[str, dict[int, str]] = {name: {} for name in images if letters}
    for axis, called in (known[letter] for letter in letters):
        alike = len({net.shapes[name][axis] for name in images}) == 1
        for name in images:
            found[name][axis] = called if alike else f"{name}_{called}"
    return found


Staged = tuple[Path, tuple[Path, str] | None, tuple[str, ...]]


@contextlib.contextmanager
def _staged(written: Written, out: Path) -> Iterator[Staged]:
    """Writes the model under a passing name, which becomes `out` when the block ends, and the names that there will be.

    Constants that one file can't hold lie in another: second its passing name and what the first calls it, else None.
    """
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(replace_file(out))
        beside: tuple[Path, str] | None = None
        paths: tuple[str, ...] = (str(out),)
        if sum(len(constant.raw) for constant in written.constants) > ONE_FILE:
            data = out.with_name(f"{out.name}.data")
            # entered behind the other, so that it has its name before that has
            beside, paths = (stack.enter_context(replace_file(data)), data.name), (str(out), str(data))
            with open(beside[0], "wb") as file:
                for constant in written.constants:
                    _move(constant, file, data.name)
        with open(path, "wb") as file:
            file.writelines(written.pieces())
        yield path, beside, paths


def _move(constant: Constant, file: BinaryIO, name: str) -> None:
    """One constant's values into the file called `name`."""
    from onnx import TensorProto

    file.seek(-file.tell() % PAGE, os.SEEK_CUR)
    entries = {"location": name, "offset": str(file.tell()), "length": str(len(constant.raw))}
    file.write(constant.raw)
    constant.values = None
    for key, value in entries.items():
        constant.head.external_data.add(key=key, value=value)
    constant.head.data_location = TensorProto.EXTERNAL


def _random_batches(comparison: Comparison, ready: Ready, open_axes: Open, pixels: Mapping[str, Pixels]) -> None:
    """Compares on random inputs: of the net's sizes, and of others where they are open. Raises ForceregError."""
    shapes = {name: ready.plain.shapes[name] for name in ready.plain.inputs}
    for seed in range(2 if open_axes else 1):
        sizes = {
            name: tuple(
                (size + 32 * seed if axis else 1 + seed) if axis in open_axes.get(name, {}) else size
                for axis, size in enumerate(shape)
            )
            for name, shape in shapes.items()
        }
        fed = random_inputs(ready.plain, sizes, seed, pixels)
        comparison.add({name: pixels[name](x) if name in pixels else x for name, x in fed.items()}, fed)


def _scores(
    comparison: Comparison, request: Request, deployed: DeployedNet, pixels: Mapping[str, Pixels]
) -> dict[str, tuple[float, float]]:
    """Compares on test batches too; output -> its mean by our net and by the file. Raises ForceregError."""
    assert request.tested is not None
    net, batches = request.tested(deployed)
    try:
        return scored(comparison, net, int(request.options.get("iterations") or batches), pixels)
    finally:
        net.close()


def _shapes(values: Any) -> dict[str, tuple[int | str, ...]]:
    return {
        value.name: tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in values
    }
