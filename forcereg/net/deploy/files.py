"""A net for use, to be written beside what it was made of."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forcereg.errors import UsageError, printable
from forcereg.net.deploy import Deployed
from forcereg.net.deploy import deploy as engine
from forcereg.net.deploy.weights import write_weights
from forcereg.net.held import in_binary, is_path
from forcereg.net.made import FORMATS, default_prefix
from forcereg.net.read import Warn, read_net_of
from forcereg.schema.text import NetFile, is_text, read_net, to_text
from forcereg.snapshot import ModelFile
from forcereg.system.arguments import checked
from forcereg.system.files import write_text
from forcereg.system.paths import StrPath

ENDING = ".prototxt"


@dataclass(frozen=True)
class DeployedNet(Deployed):
    """A net for use (see `Deployed`), of `file` and, where there were weights, of `model`; `read`: what was named."""

    file: NetFile = field(kw_only=True, repr=False)
    model: ModelFile | None = field(kw_only=True, repr=False)
    read: tuple[Path, ...] = field(kw_only=True)

    @checked
    def write(self, prefix: StrPath | None = None) -> dict[str, str]:
        """Writes PREFIX.prototxt and, where weights were read, those that are left, in their format; the paths.

        prefix: None for `<name>_deploy` beside what was read. Raises UsageError where that would be overwritten,
        ForceregError if the system refuses.
        """
        if prefix is None and not self.read:
            raise UsageError("prefix is missing: the net was in memory, so there is no file to write beside")
        prefix = default_prefix(str(self.read[0]).removesuffix(ENDING), "deploy") if prefix is None else prefix
        paths = {"model": Path(f"{prefix}{ENDING}")}
        if self.model is not None:
            form = "binary" if in_binary(self.model.path) else "hdf5"
            paths["weights"] = Path(f"{prefix}{FORMATS[form]}")
        for path in paths.values():
            if path.resolve() in self._sources():
                raise UsageError(f"{path} is what was read; give another name by --out")
        heads = [f"{(self.read or (Path(self.file.name),))[0].name}: for use, by forcereg deploy"]
        heads += [f"{name}: {text}" for name, text in self.preparation.items()]
        text = "".join(f"# {printable(head)}\n" for head in heads) + to_text(self.net)
        if self.model is not None:
            # first: cut short here, no net is left beside an older run's weights
            write_weights(paths["weights"], text, self.inputs, self.model, self.file, form)
        write_text(paths["model"], text)
        return {name: str(path) for name, path in paths.items()}

    def _sources(self) -> set[Path]:
        return {path.resolve() for path in (*self.read, *([self.model.path] if self.model else []))}


def made_for_use(
    net: StrPath | Any,
    weights: StrPath | None,
    warn: Warn,
    *,
    batch: int | None = None,
    outputs: Sequence[str] = (),
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    level: int = 0,
    stages: Sequence[str] = (),
    allow_python_layers: bool = False,
) -> DeployedNet:
    """The net for use of a prototxt or snapshot, and its weights where there are any; arguments as for `deploy`.

    `warn` is told what doesn't fit together. Raises UsageError for `weights` of a snapshot, ForceregError as `deploy`.
    """
    file, model = opened(net, weights, warn)
    done = engine(
        file,
        batch=batch,
        outputs=outputs,
        input_shapes=input_shapes,
        known_shapes=model.input_shapes if model else None,
        weighted=[name for name, blobs in model.layers.items() if blobs] if model else (),
        level=level,
        stages=stages,
        allow_python_layers=allow_python_layers,
    )
    # for `write`, which overwrites none of them
    read = tuple(Path(path) for path in (net, weights) if path is not None and is_path(path))
    return DeployedNet(**vars(done), file=file, model=model, read=read)


def opened(net: StrPath | Any, weights: StrPath | None, warn: Warn) -> tuple[NetFile, ModelFile | None]:
    """The net of a prototxt or snapshot, and its weights where there are any. Raises ForceregError."""
    if is_path(net) and is_text(os.fspath(net)):
        if weights is None:
            return read_net(os.fspath(net)), None
        found = read_net_of(weights, net, warn=warn)
    elif weights is not None:
        named = net if is_path(net) else f"a {type(net).__name__}"
        raise UsageError(f"{named} is a snapshot, which has weights; leave out --weights, or give its net's prototxt")
    else:
        found = read_net_of(net, warn=warn)
    return found.file, found.model
