"""Copying a model's blobs into a net, by layer name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.snapshot.content import ModelFile, fitted

Copies: TypeAlias = list[tuple[Tensor, np.ndarray]]
"""Tensors and what is to be copied into them, all of it checked."""


_NONE = np.empty(0, np.float32)


@dataclass(frozen=True)
class LoadReport:
    """Layer names: whose blobs were copied, which the net lacks, and which the file lacks.

    `remarks`: what was done to blobs so that they fit, a line each.
    """

    loaded: tuple[str, ...]
    ignored: tuple[str, ...]
    fresh: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """What to print: remarks, Caffe's line for every ignored layer, then one line each for the other two kinds."""
        lines = [*self.remarks, *(f"Ignoring source layer {name}" for name in self.ignored)]
        lines.append(f"Loaded layers: {', '.join(self.loaded) or 'none; no layer of the file has weights here'}")
        if self.fresh:
            lines.append(f"Layers left as initialised: {', '.join(self.fresh)}")
        return lines


def joined(reports: Iterable[LoadReport]) -> LoadReport:
    """The report of one model over several nets that share their layers of equal name."""
    every = list(reports)
    # dicts, which keep the nets' order and drop repeats
    loaded = dict.fromkeys(name for report in every for name in report.loaded)
    fresh = dict.fromkeys(name for report in every for name in report.fresh if name not in loaded)
    # only what no net has: train and test nets share most layers
    ignored = [name for name in every[0].ignored if all(name in report.ignored for report in every)]
    remarks = dict.fromkeys(text for report in every for text in report.remarks)
    return LoadReport(tuple(loaded), tuple(ignored), tuple(fresh), tuple(remarks))


def remark(found: Sequence[tuple[ModelFile, LoadReport]]) -> str:
    """What to warn of where these models were loaded in turn, in one line; empty if there is nothing.

    What was done to their blobs, layers of theirs that hold weights and that the net lacks, and layers of the net that
    none of them has; nothing for a net without weights. Raises ForceregError for a model of which no layer is in the
    net.
    """
    texts: list[str] = []
    left: set[str] | None = None
    for model, report in found:
        held = [name for name, blobs in model.layers.items() if blobs]
        if not report.loaded and report.fresh:
            raise _strange(model, held, report.fresh)
        lost = tuple(name for name in held if name in report.ignored)
        lines = LoadReport((), lost if report.loaded else (), (), report.remarks).lines()[:-1]
        left = set(report.fresh) if left is None else left.intersection(report.fresh)
        # at the last model: an earlier one needn't have what a later one brings
        if model is found[-1][0] and left:
            lines.append(LoadReport((), (), tuple(name for name in report.fresh if name in left)).lines()[-1])
        if lines:
            texts.append(f"{model.path}: {'; '.join(lines)}")
    return "; ".join(texts)


def _strange(model: ModelFile, held: Sequence[str], needed: Sequence[str]) -> ForceregError:
    """The error for a model whose layers with weights (`held`) are all others than the net's (`needed`)."""
    return ForceregError(
        f"{model.path}: none of its layers with weights is in the net: it has {_listed(held)}, the net has "
        f"{_listed(needed)}; they go by name, so give the model of this net or rename layers"
    )


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most]) or "none"
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown


def load_into(params: Mapping[str, Sequence[Tensor]], model: ModelFile, shared: Mapping[str, str]) -> LoadReport:
    """Copy a model's blobs by layer name into `params` (every layer of the net), in place.

    Raises ForceregError as `matched`, before anything is copied.
    """
    copies, report = matched(params, model, shared)
    take_over(copies)
    return report


def take_over(copies: Copies) -> None:
    """Copy all of it, in place."""
    with torch.no_grad():
        for target, values in copies:
            # those of a file may be read-only, which from_numpy warns of
            exact = np.float64 if target.dtype == torch.float64 else np.float32
            target.copy_(torch.from_numpy(np.require(values, exact, ["C", "W"])))


def matched(
    params: Mapping[str, Sequence[Tensor]], model: ModelFile, shared: Mapping[str, str]
) -> tuple[Copies, LoadReport]:
    """What `load_into` copies and reports.

    In a layer that the file has, only a blob borrowed from another layer may be missing (`shared`: borrowed
    "layer/i" -> its owner), and a layer without blobs counts as absent.
    Raises ForceregError for another number or shape of blobs.
    """
    copies: Copies = []
    loaded, fresh = [], []
    for name, targets in params.items():
        blobs = model.layers.get(name)
        if blobs:
            copies += _of_layer(name, targets, blobs, model, shared)
            loaded.append(name)
        # a layer that only borrows gets its weights with their owner
        elif any(f"{name}/{i}" not in shared for i in range(len(targets))):
            fresh.append(name)
    ignored = tuple(name for name in model.layers if name not in params)
    return copies, LoadReport(tuple(loaded), ignored, tuple(fresh), model.remarks)


def _of_layer(
    layer: str,
    targets: Sequence[Tensor],
    blobs: Mapping[int, np.ndarray],
    model: ModelFile,
    shared: Mapping[str, str],
) -> Copies:
    """(target, values) for the blobs of one layer, all checked."""
    rename = "give the net that the file is of, or rename the layer in the net to start it fresh"
    if {len(blobs), len(targets)} == {3, 5} and (blobs.get(2, _NONE).shape, tuple(targets[2].shape)) == ((1,), (1,)):
        rename = (
            "a BatchNorm of 5 blobs is NVCaffe's, with scale and shift inside (scale_bias: true); one of 3 has a Scale "
            "layer behind it; give the net that the file is of"
        )
    # before shapes: too many blobs are another kind of layer, and the better hint
    if max(blobs) >= len(targets):
        raise ForceregError(
            f"{model.path}: layer {layer!r} has a blob {max(blobs)} in the file, "
            f"but only {len(targets)} blobs in the net; {rename}"
        )
    copies = []
    for index, target in enumerate(targets):
        where, expected = f"{model.path}: layer {layer!r} blob {index}", tuple(target.shape)
        if index in blobs:
            values = fitted(blobs[index], expected, model.legacy)
            if values is None:
                raise ForceregError(f"{where}: shape {blobs[index].shape} in the file, {expected} in the net; {rename}")
            copies.append((target, values))
        elif f"{layer}/{index}" not in shared:
            raise ForceregError(f"{where}: not in the file (has {sorted(blobs)}), and not shared in the net; {rename}")
    return copies


def modern(model: ModelFile, types: Mapping[str, str]) -> ModelFile:
    """A legacy model with as many axes in its blobs as they have today; others as they are.

    `types`: layer name -> type. Convolutions have weights of four axes, InnerProduct of two, all else has one.
    """
    if not model.legacy:
        return model
    # files of those days say 1 x 1 x ... for what has fewer axes today
    axes = {"Convolution": 4, "Deconvolution": 4, "InnerProduct": 2}
    layers = {
        name: {
            index: _without_ones(values, 1 if index else axes.get(types.get(name, ""), 1))
            for index, values in blobs.items()
        }
        for name, blobs in model.layers.items()
    }
    return replace(model, layers=layers, legacy=False)


def _without_ones(values: np.ndarray, axes: int) -> np.ndarray:
    """The values without leading axes of length 1, as long as there are more than `axes`."""
    surplus = 0
    # leading ones only: a 1 further on may be an input channel
    while values.ndim - surplus > axes and values.shape[surplus] == 1:
        surplus += 1
    return values.reshape(values.shape[surplus:])
