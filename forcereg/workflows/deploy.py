"""A trained net for use: `forcereg deploy`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forcereg.errors import UsageError
from forcereg.net.deploy import deploy as engine
from forcereg.net.deploy.files import DeployedNet
from forcereg.net.held import is_path
from forcereg.net.read import read_net_of
from forcereg.schema.rules import stage_names
from forcereg.schema.text import NetFile, is_text, read_net
from forcereg.snapshot import ModelFile
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
    tell = Tell(observer)
    file, model = opened(net, weights, tell)
    done = engine(
        file,
        batch=batch,
        outputs=listed(outputs),
        input_shapes=input_shapes,
        known_shapes=model.input_shapes if model else None,
        weighted=[name for name, blobs in model.layers.items() if blobs] if model else (),
        level=level,
        stages=stage_names(stage),
        allow_python_layers=allow_python_layers,
    )
    # for `write`, which overwrites none of them
    read = tuple(Path(path) for path in (net, weights) if path is not None and is_path(path))
    return DeployedNet(**vars(done), file=file, model=model, read=read)


def opened(net: StrPath | Any, weights: StrPath | None, tell: Tell) -> tuple[NetFile, ModelFile | None]:
    """The net of a prototxt or snapshot, and its weights where there are any. Raises ForceregError."""
    if is_path(net) and is_text(os.fspath(net)):
        if weights is None:
            return read_net(os.fspath(net)), None
        found = read_net_of(weights, net, warn=tell.warn)
    elif weights is not None:
        named = net if is_path(net) else f"a {type(net).__name__}"
        raise UsageError(f"{named} is a snapshot, which has weights; leave out --weights, or give its net's prototxt")
    else:
        found = read_net_of(net, warn=tell.warn)
    return found.file, found.model
