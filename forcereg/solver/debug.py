"""debug_info: the mean absolute value of every blob and gradient of a pass, as Caffe logs them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from forcereg.layers import Layer
from forcereg.layers.neuron import ReLU
from forcereg.net.module import Net
from forcereg.schema.spec import LayerSpec

Row = dict[str, Any]
"""direction ("Forward", "Backward"), layer, kind ("top", "param", "bottom"), blob (name, or a param's number),
of ("data", "diff") and value."""


class Watch:
    """Reads what passes through `net` inside its block: forwards by `rows`, then, behind a backward, its gradients.

    The device is read when `rows` or `norms` is called.
    """

    def __init__(self, net: Net) -> None:
        self._net = net
        self._feeds = {top: name for name, feed in net.feeds.items() for top in feed.tops}
        self._found: list[tuple[Row, Tensor]] = []
        self._layers: list[tuple[LayerSpec, Layer, dict[str, Tensor]]] = []
        self._seen = set[str]()

    def __enter__(self) -> Watch:
        self._around = self._net.around
        self._net.around = self._run
        return self

    def __exit__(self, *_: object) -> None:
        self._net.around = self._around

    @torch.no_grad()
    def _note(self, direction: str, layer: str, kind: str, blob: str, of: str, value: Tensor) -> None:
        row = {"direction": direction, "layer": layer, "kind": kind, "blob": blob, "of": of}
        self._found.append((row, value.detach().abs().mean(dtype=torch.float32)))

    def _run(self, spec: LayerSpec, module: Layer, bottoms: list[Tensor]) -> Any:
        for name, blob in zip(spec.bottoms, bottoms, strict=True):
            if name in self._feeds and name not in self._seen:
                self._seen.add(name)
                self._note("Forward", self._feeds[name], "top", name, "data", blob)
        diffs = dict[str, Tensor]()
        if not (isinstance(module, ReLU) and module.overwrite):
            # a view of its own for this reader: of a split blob each has its part of the gradient
            bottoms = [blob.view_as(blob) if blob.requires_grad else blob for blob in bottoms]
        for name, blob in zip(spec.bottoms, bottoms, strict=True):
            if blob.requires_grad:
                blob.register_hook(partial(diffs.__setitem__, name))
        tops = module(*bottoms) if self._around is None else self._around(spec, module, bottoms)
        for name, top in zip(spec.tops, (tops,) if isinstance(tops, Tensor) else tops, strict=True):
            self._note("Forward", spec.name, "top", name, "data", top)
        self._net.sums.add()  # as if the layer itself had
        for index, blob in enumerate(module.blobs):
            self._note("Forward", spec.name, "param", str(index), "data", blob)
        if torch.is_grad_enabled():
            self._layers.append((spec, module, diffs))
        return tops

    def rows(self, scale: Tensor | None = None) -> list[Row]:
        """All readings since the last call, in Caffe's order; gradients are divided by `scale`."""
        for spec, module, diffs in reversed(self._layers):
            for name, diff in diffs.items():
                self._note("Backward", spec.name, "bottom", name, "diff", _unscaled(diff, scale))
            if diffs or any(blob.grad is not None for blob in module.blobs):
                for index, blob in enumerate(module.blobs):
                    if blob.grad is not None:
                        self._note("Backward", spec.name, "param", str(index), "diff", _unscaled(blob.grad, scale))
        found, self._found, self._layers, self._seen = self._found, [], [], set()
        order = {top: place for place, top in enumerate(self._feeds)}  # data layers first, by their tops
        found.sort(key=lambda one: order[one[0]["blob"]] if one[0]["layer"] in self._net.feeds else len(order))
        # one read of the device for all rows
        values = torch.stack([value for _, value in found]).tolist() if found else []
        return [{**row, "value": value} for (row, _), value in zip(found, values, strict=True)]

    def norms(self, scale: Tensor | None = None) -> dict[str, tuple[float, float]]:
        """L1 and L2 norm of all learnable weights and, second, of their gradients."""
        blobs = [one.blob.detach() for one in self._net.learnable]
        diffs = [_unscaled(one.blob.grad, scale) for one in self._net.learnable if one.blob.grad is not None]
        return {f"L{p}": (_norm(blobs, p), _norm(diffs, p)) for p in (1, 2)}

    def told(self, scale: Tensor | None = None) -> dict[str, Any]:
        """The fields of a debug event: `rows`, and behind a backward pass `norms`."""
        rows = self.rows(scale)
        return {
            "rows": rows,
            "norms": self.norms(scale) if any(row["direction"] == "Backward" for row in rows) else None,
        }


def _unscaled(diff: Tensor, scale: Tensor | None) -> Tensor:
    return diff if scale is None else diff / scale


def _norm(tensors: Sequence[Tensor], p: int) -> float:
    each = [torch.linalg.vector_norm(tensor.float(), p) for tensor in tensors]
    return float(torch.linalg.vector_norm(torch.stack(each), p)) if each else 0.0
