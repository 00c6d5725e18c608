"""The MemoryData layer: batches of arrays that the caller supplies, in order, over and over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcereg.data.feed import Feed, FeedContext, LabelRange, first_nonfinite
from forcereg.errors import ForceregError, did_you_mean
from forcereg.registry import source
from forcereg.schema.scan import shown
from forcereg.schema.spec import LayerSpec


@source("MemoryData", "memory_data_param", limits="arrays by set_input_arrays; no transform_param on them, as in Caffe")
class MemoryFeed(Feed):
    """Tops data (batch_size, channels, height, width) and label (batch_size, 1, 1, 1), from `set_arrays`.

    Raises ForceregError for sizes of 0 and for other tops. transform_param has no effect on arrays, as in Caffe,
    which is said.
    """

    def __init__(self, spec: LayerSpec, ctx: FeedContext) -> None:
        param = spec.message.memory_data_param
        if len(spec.tops) != 2:
            raise spec.fail(f"has {len(spec.tops)} tops; expected data and label")
        for field in ("batch_size", "channels", "height", "width"):
            if getattr(param, field) == 0:
                raise spec.fail(f"memory_data_param.{field} is missing or 0; expected at least 1")
        if spec.message.HasField("transform_param"):
            spec.warn("transform_param has no effect on MemoryData's arrays (nor in Caffe)")
        self.spec, self.tops, self.device = spec, spec.tops, ctx.device
        self.batch = ctx.shard.batch(spec, int(param.batch_size))
        self.item = (int(param.channels), int(param.height), int(param.width))
        self.shapes = ((self.batch, *self.item), (self.batch, 1, 1, 1))
        self.row = 0
        self.limits: tuple[LabelRange, ...] = ()
        self._arrays: tuple[Tensor, Tensor] | None = None

    def set_arrays(self, data: Any, labels: Any) -> None:
        """Supplies `data` (n, channels, height, width) and n `labels` of any shape, arrays or tensors of numbers.

        n is a multiple of batch_size. Batches start with the first item; only the first arrays after
        `load_state_dict` go on at its position. float32 on the layer's device is used without a copy.
        Raises ForceregError, and keeps what was there, if something doesn't fit.
        """
        images, marks = self._tensor("data", data), self._tensor("labels", labels)
        if images.shape[1:] != self.item or images.dim() != 4:
            expected = ", ".join(map(str, self.item))
            raise self.spec.fail(f"data has shape {list(images.shape)}; expected [n, {expected}]")
        count = len(images)
        if count == 0 or count % self.batch:
            raise self.spec.fail(f"data has {count} items; expected a multiple of batch_size {self.batch}")
        if marks.numel() != count:
            raise self.spec.fail(f"{marks.numel()} labels {list(marks.shape)} for {count} items; expected one each")
        for limit in self.limits:
            bad = limit.first_bad(marks.cpu().numpy().ravel())
            if bad is not None:
                raise self.spec.fail(f"label {marks.flatten()[bad]:g} of item {bad} found, expected {limit}")
        # a restored position is for the first arrays; those that follow are new data, which begin at their first item
        self.row = self.row % count if self._arrays is None else 0
        self._arrays = images, marks.reshape(count, 1, 1, 1)

    def _tensor(self, what: str, values: Any) -> Tensor:
        if not isinstance(values, Tensor):
            kind = type(values).__name__
            try:
                numbers = np.asarray(values)
            except ValueError as error:  # lists of different lengths
                raise self.spec.fail(f"{what} is a {kind}; expected an array of numbers ({error})") from error
            if numbers.dtype.kind not in "biuf":
                raise self.spec.fail(f"{what} is a {kind} of {numbers.dtype}; expected an array of numbers")
            # torch takes no negative strides, and warns of arrays that can't be written to
            values = torch.from_numpy(np.require(numbers, np.float32, ["C", "W"]))
        return values.detach().to(self.device, torch.float32)

    def next(self) -> tuple[Tensor, ...]:
        """The next batch, the caller's own. Raises ForceregError before the first `set_arrays`."""
        self.check_given()
        assert self._arrays is not None
        rows = slice(self.row, self.row + self.batch)
        images, labels = self._arrays
        self.row = rows.stop % len(images)
        # layers may work in place, and the arrays are the caller's
        return images[rows].clone(), labels[rows].clone()

    def check_given(self) -> None:
        """Raises ForceregError before the first `set_arrays`."""
        if self._arrays is None:
            data, label = self.tops
            calls = f"net.set_input_arrays(data, labels) or net({data}=..., {label}=...)"
            raise self.spec.fail(f"has no data yet; give it in Python by {calls}")

    def skip(self, batches: int) -> None:
        """See Feed."""
        if self._arrays is not None:
            self.row = (self.row + batches * self.batch) % len(self._arrays[0])

    def find_nonfinite(self, most: int | None = None) -> str | None:
        """See Feed."""
        for top, values in zip(self.tops, self._arrays or (), strict=False):
            rows = values[:most].cpu().numpy()
            if (bad := first_nonfinite(rows)) is not None:
                return f"{self.spec.where}: array '{shown(top)}', item {bad // rows[0].size}: {rows.flat[bad]:g}"
        return None

    def limit_labels(self, count: int, ignore: int | None, consumer: str, top: str = "") -> None:
        """See Feed; checked by `set_arrays`."""
        if top != self.tops[0]:
            self.limits = (*self.limits, LabelRange(count, ignore, consumer))

    def state_dict(self) -> dict[str, Any]:
        """The position; the arrays stay the caller's."""
        return {"row": self.row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Feed. Without arrays so far, the first ones that come go on from here."""
        self.row = int(state["row"]) % (len(self._arrays[0]) if self._arrays else 1 << 62)


def memory_feed(feeds: Mapping[str, Feed], layer: str | None) -> MemoryFeed:
    """The MemoryData feed called `layer`, or the only one. Raises ForceregError."""
    found = {name: feed for name, feed in feeds.items() if isinstance(feed, MemoryFeed)}
    if layer is None and len(found) == 1:
        return next(iter(found.values()))
    if layer in found:
        return found[layer]
    if not found:
        raise ForceregError("the net has no MemoryData layer; give its inputs by name, like net(data=...)")
    if layer is None:
        raise ForceregError(f"the net has several MemoryData layers; name one: layer={' or '.join(map(repr, found))}")
    hint = did_you_mean(layer, found) or f"; known are {', '.join(found)}"
    raise ForceregError(f"the net has no MemoryData layer '{layer}'{hint}")
