"""The `.onnx` target: the net for use, its BatchNorms folded, written layer by layer, proved, and only then named."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forcereg.errors import ForceregError, UsageError
from forcereg.exports.dims import Open, batch_axes, sizes_of
from forcereg.exports.graph import Varying
from forcereg.exports.model import MISSING, Written, check_types, to_model
from forcereg.exports.proof import Comparison, Proof, Runtime, random_inputs
from forcereg.exports.request import Exported, Request
from forcereg.lowrank.fold import fold_bn
from forcereg.net.convert import everywhere
from forcereg.net.deploy.files import DeployedNet
from forcereg.net.module import Net
from forcereg.schema import TEST
from forcereg.schema.rules import net_state
from forcereg.schema.spec import build_spec
from forcereg.schema.text import net_from_message
from forcereg.snapshot import ModelFile, load_into
from forcereg.system.files import replace_file
from forcereg.version import __version__

OPSET = 22
"""The version of ONNX's operators."""
OLDEST = 13
"""The oldest version that can be asked for: before it Softmax meant something else."""
OPTIONS = frozenset({"dynamic", "opset", "fold", "verify", "with_transform", "rgb", "solver", "iterations"})
ONE_FILE = 2**31 - 2**20
"""Bytes of constants up to which they fit into one file: protobuf ends at 2 GiB."""


@dataclass(frozen=True)
class Ready:
    """A net for use with its weights: `plain` as it is, `net` what is written, `folds`: layer -> what went into it."""

    plain: Net
    net: Net
    folds: dict[str, list[str]]


def write_onnx(request: Request) -> Exported:
    """Writes `request.out`. Raises ForceregError; then nothing has its name that had it not before."""
    options = request.options
    opset = int(options.get("opset") or OPSET)
    check_opset(opset)
    deployed = request.deployed()
    ready = prepared(deployed, fold=bool(options.get("fold", True)), allow=request.allow_python_layers)
    written, open_axes, notes = _written(ready.net, request, opset, about(deployed))
    data = _external(written.proto, request.out)
    proof = None
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(replace_file(request.out))
        staged = None if data is None else stack.enter_context(replace_file(data))
        _save(written.proto, path, staged, data)
        if options.get("verify", True):
            proof = _prove(ready, written, open_axes, path, staged, data)
    nodes = f"{written.nodes} nodes of opset {opset}"
    return Exported(
        paths=(str(request.out), *([str(data)] if data else [])),
        summary=nodes,
        inputs=_shapes(written.proto.graph.input),
        outputs=_shapes(written.proto.graph.output),
        preparation=deployed.preparation,
        notes=notes,
        proof=proof,
    )


def check_opset(opset: int) -> None:
    """Raises ForceregError for a version that isn't known here, or without the library."""
    try:
        from onnx import defs
    except ImportError:
        raise ForceregError(MISSING) from None
    if not OLDEST <= opset <= defs.onnx_opset_version():
        raise UsageError(f"--opset is {opset}; expected {OLDEST} to {defs.onnx_opset_version()}")


def prepared(deployed: DeployedNet, fold: bool, allow: bool) -> Ready:
    """The net for use, built with its weights, as it is and with its BatchNorms folded. Raises ForceregError."""
    model, name = deployed.model, deployed.file.name
    held = everywhere(model, deployed.file.message, deployed.file) if model is not None else {}
    blobs = {layer.name: held.get(layer.name, {}) for layer in deployed.net.layer}
    plain = loaded(deployed.net, blobs, name, allow)
    if model is None and any(plain.params.values()):
        raise UsageError(f"{name}: its layers have weights; give them by --weights FILE, or a snapshot in its place")
    check_types(plain)
    message, weights, folds = fold_bn(deployed.net, blobs) if fold else (deployed.net, blobs, {})
    return Ready(plain, loaded(message, weights, name, allow) if folds else plain, folds)


def loaded(message: Any, blobs: Mapping[str, Mapping[int, np.ndarray]], name: str, allow: bool) -> Net:
    """A net of the TEST phase with these weights. Raises ForceregError."""
    file = net_from_message(message, name)
    net = Net(build_spec(file, net_state(TEST), None), allow_python_layers=allow)
    if blobs:
        model = ModelFile(Path(name), {layer: dict(own) for layer, own in blobs.items()}, {})
        load_into(net.params, model, net.shared)
    return net


def _written(net: Net, request: Request, opset: int, about: Mapping[str, str]) -> tuple[Written, Open, tuple[str, ...]]:
    """The model, the axes that stay open, and what is to be said. Raises ForceregError."""
    spatial = _spatial(net, request.options.get("dynamic", ()))
    if request.batch is None:
        try:
            axes = {name: {**batch, **spatial.get(name, {})} for name, batch in batch_axes(net).items()}
            return to_model(net, sizes_of(net, axes), axes, opset, about), axes, ()
        except Varying as error:
            fixed = f"the batch is fixed: with another one the net {error}"
    try:
        written = to_model(net, sizes_of(net, spatial), spatial, opset, about)
    except Varying as error:
        raise ForceregError(f"{request.net}: its sizes can't stay open: the net {error}; leave out --dynamic") from None
    return written, spatial, (fixed,) if request.batch is None else ()


def _spatial(net: Net, letters: Any) -> Open:
    """The open axes of images for --dynamic. Raises UsageError."""
    known = {"H": (2, "height"), "W": (3, "width")}
    if wrong := [letter for letter in letters if letter not in known]:
        raise UsageError(f"--dynamic is '{','.join(letters)}'; '{wrong[0]}' is none of H and W")
    images = [name for name in net.inputs if len(net.shapes[name]) == 4]
    if letters and not images:
        raise UsageError("--dynamic is for inputs of images (N, C, H, W), of which this net has none")
    return {name: dict(known[letter] for letter in letters) for name in images} if letters else {}


def about(deployed: DeployedNet) -> dict[str, str]:
    """The file's metadata: where it comes from."""
    found = {"forcereg_version": __version__, "source": str(deployed.read[0] if deployed.read else deployed.file.name)}
    model = deployed.model
    if model is not None:
        checksum = hashlib.sha256()
        if model.path.is_file():
            with open(model.path, "rb") as file:
                checksum = hashlib.file_digest(file, "sha256")
            found["weights_sha256"] = checksum.hexdigest()
        if text := model.attrs.get("forcereg_decomposed"):
            found["decomposed"] = text
    return found


def _external(proto: Any, path: Path) -> Path | None:
    """Where the constants go that one file can't hold; None where it can."""
    size = sum(len(constant.raw_data) for constant in proto.graph.initializer)
    return path.with_name(f"{path.name}.data") if size > ONE_FILE else None


def _save(proto: Any, path: Path, staged: Path | None, data: Path | None) -> None:
    """Writes the model, with constants in `staged`, which will be called `data`."""
    if staged is not None and data is not None:
        with open(staged, "wb") as file:
            for constant in proto.graph.initializer:
                _move(constant, file, data.name)
    path.write_bytes(proto.SerializeToString())


def _move(constant: Any, file: Any, name: str) -> None:
    """One constant's values into the file beside, at a multiple of a page, as runtimes map it."""
    from onnx import TensorProto

    file.seek(-file.tell() % 4096, 1)
    entries = {"location": name, "offset": str(file.tell()), "length": str(len(constant.raw_data))}
    file.write(constant.raw_data)
    constant.ClearField("raw_data")
    for key, value in entries.items():
        constant.external_data.add(key=key, value=value)
    constant.data_location = TensorProto.EXTERNAL


def _prove(
    ready: Ready, written: Written, open_axes: Open, path: Path, staged: Path | None, data: Path | None
) -> Proof:
    """Runs the file on random inputs: of the net's sizes, and of others where they are open. Raises ForceregError."""
    runtime = Runtime(path, written.tops.values(), staged, data)
    comparison = Comparison(written, runtime, ready.plain, ready.folds)
    shapes = {name: ready.plain.shapes[name] for name in ready.plain.inputs}
    others = {
        name: tuple(size + (1 if axis == 0 else 32) if axis in open_axes.get(name, {}) else size
                    for axis, size in enumerate(shape))
        for name, shape in shapes.items()
    }  # fmt: skip
    for seed, sizes in enumerate((shapes, others) if others != shapes else (shapes,)):
        comparison.add(random_inputs(ready.plain, sizes, seed))
    return comparison.prove()


def _shapes(values: Any) -> dict[str, tuple[int | str, ...]]:
    return {
        value.name: tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in values
    }
