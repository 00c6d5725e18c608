"""What a net can be exported as: the ending of the file's name decides. One line a target."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from forcereg.errors import UsageError
from forcereg.exports import pt2
from forcereg.exports.onnx import OPTIONS, write_onnx
from forcereg.exports.pt2 import write_program
from forcereg.exports.request import Exported, Request
from forcereg.net.convert import convert_model
from forcereg.net.deploy.files import opened
from forcereg.net.held import is_path
from forcereg.net.read import read_weights
from forcereg.schema.text import is_text
from forcereg.snapshot import ModelFile

NET_OPTIONS = frozenset({"batch", "outputs", "input_shapes", "level", "stage"})
"""What says how the net for use is made."""


@dataclass(frozen=True)
class Target:
    """Writes files of a kind; `takes`: the options that have a meaning for it."""

    write: Callable[[Request], Exported]
    takes: frozenset[str]


def _net(request: Request) -> Exported:
    """The net for use as a prototxt, as `forcereg deploy` makes it, and its weights beside."""
    made = request.deployed()
    paths = made.write(str(request.out).removesuffix(".prototxt"))
    sizes = {name: shape for name, shape in made.outputs.items() if shape is not None}
    return Exported(tuple(paths.values()), "a net for use", made.inputs, sizes, made.preparation)


def _model(request: Request) -> Exported:
    """The weights in another format, as `forcereg convert` writes them, with the text of the net."""
    net, file = request.net, None
    if request.weights is None and is_path(net) and not is_text(os.fspath(net)):
        model: ModelFile | None = read_weights(net)  # Caffe's have no text, and need none here
    else:
        file, model = opened(net, request.weights, request.tell.warn)
    if model is None:
        raise UsageError(f"{net}: is a net without weights; give them by --weights FILE, or a snapshot in its place")
    done = convert_model(model, request.out, file)
    return Exported((str(request.out),), done.summary, notes=done.remarks)


TARGETS = {
    ".onnx": Target(write_onnx, NET_OPTIONS | OPTIONS),
    ".prototxt": Target(_net, NET_OPTIONS),
    ".caffemodel.h5": Target(_model, frozenset()),
    ".caffemodel": Target(_model, frozenset()),
    ".pt2": Target(write_program, NET_OPTIONS | pt2.OPTIONS),
    ".safetensors": Target(_model, frozenset()),
    ".npz": Target(_model, frozenset()),
}
"""Ending of a name -> what is written."""


def target_of(out: Path) -> tuple[str, Target]:
    """The target by a file's name. Raises UsageError for an ending that is none."""
    for ending, target in TARGETS.items():
        if out.name.endswith(ending) and out.name != ending:
            return ending, target
    raise UsageError(f"--out is '{out}'; expected a name that ends in {', '.join(TARGETS)}")
