"""A snapshot and its net, read together: as they are for whoever decomposes, splits or deploys them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forcereg.errors import ForceregError
from forcereg.net.held import held, in_memory, is_path
from forcereg.net.load import meta_nets, net_root
from forcereg.schema.text import NetFile, parse_net, read_net
from forcereg.snapshot import (
    LoadReport,
    ModelFile,
    matched,
    model_of,
    modern,
    read,
    remark,
    suited,
    suited_to,
)
from forcereg.system.paths import StrPath, find_root, learned_nets

Warn = Callable[[str], None]


@dataclass(frozen=True)
class ReadNet:
    """A snapshot's weights in the form of its net, that net, and the root of its relative paths.

    `given`: the net's file, where it isn't the net that the snapshot holds.
    """

    model: ModelFile
    file: NetFile
    root: Path
    given: StrPath | None = None


def read_net_of(
    snapshot: StrPath | Any,
    model: StrPath | None = None,
    given: Mapping[str, Sequence[int]] | None = None,
    warn: Warn = warnings.warn,
    said: tuple[str, str] = ("snapshot", "--model"),
) -> ReadNet:
    """A snapshot with the net of `model`, a prototxt, or the one that it holds itself; `given`: shapes of inputs.

    The snapshot may be in memory (see `held`). `said`: what errors call the two. Warns of what they don't have in
    common. Raises ForceregError for files that can't be read or don't fit.
    """
    weights, root = (read_weights(snapshot), None) if is_path(snapshot) else held(snapshot, said[0])
    file, found = asked_net(model, weights, given, warn, said[1])
    if root is None or model is not None:
        root = found
    return ReadNet(in_form(weights, file, warn), file, root, model)


def read_weights(snapshot: StrPath) -> ModelFile:
    """The model file, also through a solver state's learned_net. Raises ForceregError."""
    found = read(os.fspath(snapshot))
    if isinstance(found, ModelFile):
        return found
    # as for a solver's net: the state may lie in another folder than the run's
    root = find_root(found.learned_net, str(snapshot))
    return model_of(found, learned_nets(root, found.learned_net, str(snapshot)))


def asked_net(
    model: StrPath | None,
    weights: ModelFile,
    given: Mapping[str, Sequence[int]] | None = None,
    warn: Warn = warnings.warn,
    option: str = "--model",
) -> tuple[NetFile, Path]:
    """The net of --model or of the snapshot, and the root of its relative paths. Raises ForceregError.

    `given`: shapes of inputs. `option`: what errors call `model`.
    """
    text = weights.attrs.get("forcereg_net")
    if model is None and text is None:
        raise ForceregError(f"{weights.path}: holds no net text (Caffe wrote it?); give it by {option} net.prototxt")
    file = read_net(os.fspath(model)) if model is not None else parse_net(str(text), held_name(weights))
    for line in file.warnings:
        warn(line)
    compare(weights, file, warn)
    root = net_root(file)
    if model is not None:
        # the net that a snapshot holds is the one that its weights were in
        check_fit(weights, file, root, {**(weights.input_shapes or {}), **(given or {})})
    return file, root


def held_name(weights: ModelFile) -> str:
    """What the net is called that a snapshot holds: a net in memory is its own."""
    return str(weights.path) if in_memory(weights.path) else f"<net in {weights.path}>"


LEARNED = frozenset({"BatchNorm", "Convolution", "Deconvolution", "Embed", "InnerProduct", "LSTM", "PReLU", "RNN"})
"""Types of layers that never are without weights."""


def compare(weights: ModelFile, file: NetFile, warn: Warn = warnings.warn) -> None:
    """Warns of layers that the snapshot or the net alone has weights for. Raises ForceregError if it is all of them."""
    if not any(weights.layers.values()):
        return  # which no command can use, and every one tells
    layers = {layer.name: layer for layer in file.message.layer}
    fresh = [
        name
        for name, layer in layers.items()
        # a blob with a name may be another layer's
        if layer.type in LEARNED and not weights.layers.get(name) and not any(spec.name for spec in layer.param)
    ]
    loaded = [name for name, blobs in weights.layers.items() if blobs and name in layers]
    ignored = [name for name in weights.layers if name not in layers]
    if text := remark([(weights, LoadReport(tuple(loaded), tuple(ignored), tuple(fresh)))]):
        warn(text)


def check_fit(weights: ModelFile, file: NetFile, root: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """Raises ForceregError for blobs of another number or shape than the net's, as far as its shapes can be known.

    `shapes`: of its inputs.
    """
    for net in meta_nets(file, shapes, root):
        matched(net.params, suited(weights, net), net.shared)


def in_form(weights: ModelFile, file: NetFile, warn: Warn = warnings.warn) -> ModelFile:
    """A snapshot's weights in the form of their net; warns of what has changed."""
    found = suited_to(weights, file.message.layer)
    for text in found.remarks:
        warn(f"{weights.path}: {text}")
    return modern(found, {layer.name: layer.type for layer in file.message.layer})
