"""The net for use with its weights, as it is and as it is written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forcereg.errors import UsageError
from forcereg.lowrank.account import PROVENANCE
from forcereg.lowrank.fold import fold_bn
from forcereg.net.convert import everywhere
from forcereg.net.deploy.files import DeployedNet
from forcereg.net.module import Net
from forcereg.schema import TEST
from forcereg.schema.rules import net_state
from forcereg.schema.spec import build_spec
from forcereg.schema.text import net_from_message
from forcereg.snapshot import ModelFile, load_into
from forcereg.version import __version__


@dataclass(frozen=True)
class Ready:
    """A net for use with its weights: `plain` as it is, `net` what is written, `folds`: layer -> what went into it.

    `outputs`: the blobs to give; some may have been asked for that layers go on with.
    """

    plain: Net
    net: Net
    folds: dict[str, list[str]]
    outputs: tuple[str, ...]


def prepared(deployed: DeployedNet, fold: bool, allow: bool) -> Ready:
    """The net for use, built with its weights, as it is and with its BatchNorms folded. Raises ForceregError."""
    model, name = deployed.model, deployed.file.name
    held = everywhere(model, deployed.file.message, deployed.file) if model is not None else {}
    blobs = {layer.name: held.get(layer.name, {}) for layer in deployed.net.layer}
    plain = _loaded(deployed.net, blobs, name, allow)
    if model is None and any(plain.params.values()):
        raise UsageError(f"{name}: its layers have weights; give them by --weights FILE, or a snapshot in its place")
    outputs = tuple(dict.fromkeys((*plain.spec.outputs, *deployed.outputs)))
    message, weights, folds = fold_bn(deployed.net, blobs, outputs) if fold else (deployed.net, blobs, {})
    return Ready(plain, _loaded(message, weights, name, allow) if folds else plain, folds, outputs)


def _loaded(message: Any, blobs: Mapping[str, Mapping[int, np.ndarray]], name: str, allow: bool) -> Net:
    """A net of the TEST phase with these weights. Raises ForceregError."""
    file = net_from_message(message, name)
    net = Net(build_spec(file, net_state(TEST), None), allow_python_layers=allow)
    if any(blobs.values()):
        load_into(net.params, ModelFile(Path(name), {layer: dict(own) for layer, own in blobs.items()}, {}), net.shared)
    return net


def about(deployed: DeployedNet) -> dict[str, str]:
    """Where a file comes from, for its metadata: the net, the checksum of its weights, what was decomposed."""
    found = {"forcereg_version": __version__, "source": str(deployed.read[0] if deployed.read else deployed.file.name)}
    model = deployed.model
    if model is not None and model.path.is_file():
        with open(model.path, "rb") as file:
            found["weights_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    if model is not None and (text := model.attrs.get(PROVENANCE)):
        found["decomposed"] = text
    return found
