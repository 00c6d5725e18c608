"""A net as a picture: `forcereg draw`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forcereg.errors import ForceregError, UsageError, printable
from forcereg.net.draw import RANKDIRS, dot, graph, has_graphviz, picture, text_tree
from forcereg.net.load import net_file, net_spec, shape_net
from forcereg.schema.rules import stage_names
from forcereg.system.arguments import checked
from forcereg.system.events import Observer, Tell
from forcereg.system.files import write_bytes, write_text
from forcereg.system.paths import StrPath

GRAPHICS = ("svg", "png", "pdf")


@checked
def draw(
    model: StrPath | Any,
    out: StrPath,
    *,
    phase: str = "TEST",
    level: int = 0,
    stage: str | Sequence[str] = (),
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    rankdir: str = "TB",
    display_lrm: bool = False,
    allow_python_layers: bool = False,
    observer: Observer | None = None,
) -> Path:
    """Draws a net's layers and how data flows through them; the path of what was written.

    `model`: a path, prototxt text or NetParameter. `out` ends in .svg, .png or .pdf, which need graphviz (its command
    `dot`; without it a text tree is written, to .txt, with a warning), .dot or .txt. `phase`, `level`, `stage` and
    `input_shapes` as for `summary`; where shapes can't be known it is drawn without them, with a warning. `rankdir`:
    where data flows in a picture, TB (to the bottom), BT, LR or RL. `display_lrm`: with the lr_mult of weights and
    bias. Raises UsageError for another ending or rankdir, ForceregError for anything wrong in the net and where `out`
    can't be written.

    >>> print(forcereg.draw("deploy.prototxt", "net.txt").read_text())
    bands (TEST)
    data   Input         1x1x8x8
    conv1  Convolution   1x8x6x6
    relu1  ReLU          1x8x6x6
    conv2  Convolution   1x16x4x4
    relu2  ReLU          1x16x4x4
    ip     InnerProduct  1x3
    prob   Softmax       1x3
    """
    tell, out = Tell(observer), Path(out)
    kind = out.suffix.removeprefix(".").lower()
    if kind not in (*GRAPHICS, "dot", "txt"):
        raise UsageError(f"OUT is '{out}'; expected a name that ends in .svg, .png, .pdf, .dot or .txt")
    if rankdir not in RANKDIRS:
        raise UsageError(f"rankdir is '{rankdir}'; expected one of {', '.join(RANKDIRS)}")
    file, stages = net_file(model), stage_names(stage)
    spec = net_spec(file, phase, level, stages)
    try:
        # data that isn't here, or code that may not run, hides the shapes, not the layers
        net = shape_net(file, phase, level, stages, input_shapes=input_shapes, allow_python_layers=allow_python_layers)
        shapes = net.shapes
    except ForceregError as error:
        tell.warn(f"drawn without shapes: {error}")
        shapes = {}
    nodes = graph(spec.layers, shapes, display_lrm)
    title = printable(f"{spec.name or 'net'} ({phase.upper()})")
    if kind in GRAPHICS and not has_graphviz():
        tell.warn(f"graphviz's `dot` is not installed: no {kind}, but a text tree")
        out, kind = out.with_suffix(".txt"), "txt"
    if kind in GRAPHICS:
        write_bytes(out, picture(dot(nodes, title, rankdir), kind))
    else:
        write_text(out, f"{title}\n{text_tree(nodes)}" if kind == "txt" else dot(nodes, title, rankdir))
    return out
