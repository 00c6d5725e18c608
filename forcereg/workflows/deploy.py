"""A trained net for use: `forcereg deploy`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from forcereg.net.deploy.files import DeployedNet, made_for_use
from forcereg.schema.rules import stage_names
from forcereg.system.arguments import checked
from forcereg.system.events import Observer, Tell
from forcereg.system.paths import StrPath, listed


@checked
def deploy(
    net: StrPath | Any,
    *,
    weights: StrPath | None = None,
    batch: int | None = None,
    outputs: str | Sequence[str] = (),
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    level: int = 0,
    stage: str | Sequence[str] = (),
    allow_python_layers: bool = False,
    observer: Observer | None = None,
) -> DeployedNet:
    """A net's TEST phase for use: inputs for data, probabilities for losses, no labels.

    `net`: a prototxt, with `weights` its model, or a snapshot, also a net in memory as for `decompose`. Layers keep
    their names, so that weights fit. `batch`: size of axis 0 of the inputs, None for 1, of recurrent nets for the
    file's. `outputs`: blobs to end in, in place of what losses are told. `input_shapes`: blob -> shape, of data that
    isn't here. `level`, `stage`: of the net's state.

    The result has `.net`, a NetParameter, `.inputs` and `.outputs`, blob -> shape, `.preparation`, input -> what its
    data layer made of pixels, which is up to the caller now, `.auxiliary` and `.gone`, layers left out, and
    `.write(prefix)`, which writes the net and the weights that are left. Raises UsageError for `weights` of a snapshot,
    ForceregError for a net that is wrong, or has nothing to give.

    >>> made = forcereg.deploy("net_iter_20.caffemodel.h5", batch=4)
    >>> made.inputs, made.outputs
    ({'data': (4, 1, 8, 8)}, {'prob': (4, 3)})
    >>> made.write("use")
    {'model': 'use.prototxt', 'weights': 'use.caffemodel.h5'}
    """
    return made_for_use(
        net,
        weights,
        Tell(observer).warn,
        batch=batch,
        outputs=listed(outputs),
        input_shapes=input_shapes,
        level=level,
        stages=stage_names(stage),
        allow_python_layers=allow_python_layers,
    )
