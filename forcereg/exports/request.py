"""What is to be exported and how, and what came of it: what every target takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forcereg.exports.proof import Proof
from forcereg.net.deploy.files import DeployedNet, made_for_use
from forcereg.net.module import Net
from forcereg.system.events import Tell
from forcereg.system.paths import StrPath

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Request:
    """`net` and `weights` as for `deploy`, `out` the file to write; the options of `forcereg export` under their names.

    `options`: those that only some targets have, by name, as far as they aren't at their defaults. `tested`: gives the
    test net of the net for use, which feeds itself, and how many of its batches are to be looked at.
    """

    net: StrPath | Any
    weights: StrPath | None
    out: Path
    tell: Tell
    batch: int | None = None
    outputs: Sequence[str] = ()
    input_shapes: Mapping[str, Sequence[int]] | None = None
    level: int = 0
    stages: Sequence[str] = ()
    allow_python_layers: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    tested: Callable[[DeployedNet], tuple[Net, int]] | None = None

    def deployed(self) -> DeployedNet:
        """The net for use, and its weights. Raises ForceregError as `deploy`."""
        return made_for_use(
            self.net,
            self.weights,
            self.tell.warn,
            batch=self.batch,
            outputs=self.outputs,
            input_shapes=self.input_shapes,
            level=self.level,
            stages=self.stages,
            allow_python_layers=self.allow_python_layers,
        )


@dataclass(frozen=True)
class Exported:
    """What was written: `paths` of the files, the first by the name that was asked for, and `summary`, a phrase.

    `inputs`, `outputs`: blob -> shape, with names for sizes that are open. `preparation`: input -> what its data layer
    made of pixels, which is up to the caller. `notes`: what is to be known of it. `proof`: what was compared, None if
    nothing was. `scores`: output of the test net -> its mean by our net, and by the file.

    >>> forcereg.export("net_iter_20.caffemodel.h5", "net.npz").paths
    ('net.npz',)
    """

    paths: tuple[str, ...]
    summary: str
    inputs: Mapping[str, Shape] = field(default_factory=dict)
    outputs: Mapping[str, Shape] = field(default_factory=dict)
    preparation: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    proof: Proof | None = None
    scores: Mapping[str, tuple[float, float]] = field(default_factory=dict)
