"""What a net's layers are: `forcereg summary`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from forcereg.net.load import shape_net
from forcereg.net.summary import Summary, summarize
from forcereg.schema.rules import stage_names
from forcereg.system.arguments import checked
from forcereg.system.paths import StrPath


@checked
def summary(
    model: StrPath | Any,
    *,
    phase: str = "TEST",
    level: int = 0,
    stage: str | Sequence[str] = (),
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    allow_python_layers: bool = False,
) -> Summary:
    """A net's layers: output shapes, parameters, multiply-accumulates (MACs) for one item, bytes of the outputs.

    `model`: a path, prototxt text or NetParameter; no values are made. `phase`, `level`, `stage`: which layers.
    `input_shapes`: blob -> shape, of inputs, and of data layers' tops, whose sources are then not opened. The result
    has `.rows`, one a layer, the totals `.params`, `.statistics`, `.macs` and `.memory`, and `.report()`, all of it for
    JSON. Raises ForceregError for anything wrong in the net.

    >>> net = forcereg.summary("deploy.prototxt")
    >>> net.params, net.macs
    (2019, 21792)
    >>> [(row.name, row.macs) for row in net.rows if row.macs]
    [('conv1', 2592), ('conv2', 18432), ('ip', 768)]
    """
    stages = stage_names(stage)
    net = shape_net(model, phase, level, stages, input_shapes=input_shapes, allow_python_layers=allow_python_layers)
    return summarize(net)
