"""Images to what a net's inputs take, and back: `caffe.io.Transformer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from forcereg.pycaffe.interpolate import resize_image


class Transformer:
    """What turns images (H, W, K) into inputs (C, H, W) of a net; `inputs` are their shapes (N, C, H, W), tuples.

    Each setting is by the input's name, and those that weren't made change nothing. Every method raises Exception for
    a name that isn't in `inputs`.
    """

    def __init__(self, inputs: Mapping[str, tuple[int, ...]]) -> None:
        self.inputs = inputs
        self.transpose: dict[str, Sequence[int]] = {}
        self.channel_swap: dict[str, Sequence[int]] = {}
        self.raw_scale: dict[str, Any] = {}
        self.mean: dict[str, np.ndarray] = {}
        self.input_scale: dict[str, Any] = {}

    def preprocess(self, in_: str, data: np.ndarray) -> np.ndarray:
        """The input (C, H, W), float32, of an image: resized, transposed, channels swapped, scaled, mean off, scaled.

        As in Caffe it need not be a copy: a float32 image that has the input's size and whose channels aren't swapped
        is itself scaled.
        """
        self._check(in_)
        found = np.asarray(data).astype(np.float32, copy=False)
        size = self.inputs[in_][2:]
        if found.shape[:2] != size:
            found = resize_image(found, size)
        if in_ in self.transpose:
            found = found.transpose(self.transpose[in_])
        if in_ in self.channel_swap:
            found = found[list(self.channel_swap[in_]), :, :]
        if in_ in self.raw_scale:
            found *= self.raw_scale[in_]
        if in_ in self.mean:
            found -= self.mean[in_]
        if in_ in self.input_scale:
            found *= self.input_scale[in_]
        return found

    def deprocess(self, in_: str, data: np.ndarray) -> np.ndarray:
        """The image of an input, `preprocess` backwards but for the size; axes of length 1 are left out."""
        self._check(in_)
        found = data.copy().squeeze()
        if in_ in self.input_scale:
            found /= self.input_scale[in_]
        if in_ in self.mean:
            found += self.mean[in_]
        if in_ in self.raw_scale:
            found /= self.raw_scale[in_]
        if in_ in self.channel_swap:
            found = found[np.argsort(self.channel_swap[in_]), :, :]
        if in_ in self.transpose:
            found = found.transpose(np.argsort(self.transpose[in_]))
        return found

    def set_transpose(self, in_: str, order: Sequence[int]) -> None:
        """The order of an image's axes in the input: (2, 0, 1). Raises Exception for another number."""
        self._check(in_)
        if len(order) != len(self.inputs[in_]) - 1:
            raise Exception(f"the order {order} needs one axis fewer than {in_}, whose shape is {self.inputs[in_]}")
        self.transpose[in_] = order

    def set_channel_swap(self, in_: str, order: Sequence[int]) -> None:
        """The order of an image's channels in the input: (2, 1, 0) for B, G, R. Raises Exception for another number."""
        self._check(in_)
        if len(order) != self.inputs[in_][1]:
            raise Exception(f"the order {order} needs as many channels as {in_}, whose shape is {self.inputs[in_]}")
        self.channel_swap[in_] = order

    def set_raw_scale(self, in_: str, scale: Any) -> None:
        """What to multiply images by before the mean is taken off: 255 for a net that has learned from such numbers."""
        self._check(in_)
        self.raw_scale[in_] = scale

    def set_mean(self, in_: str, mean: np.ndarray) -> None:
        """What to take off: one number a channel (C,), or an image (C, H, W), resized to the input's size.

        It is in the input's order and scale. Raises ValueError for other shapes.
        """
        self._check(in_)
        channels, *size = self.inputs[in_][1:]
        if mean.ndim == 1:
            if mean.shape[0] != channels:
                raise ValueError(f"Mean channels incompatible with input: {mean.shape[0]}, {in_} has {channels}.")
            mean = mean[:, None, None]
        else:
            shape = (1, *mean.shape) if mean.ndim == 2 else mean.shape
            if len(shape) != 3:
                raise ValueError(f"Mean shape invalid: {mean.shape}; expected (C,) or (C, H, W)")
            if shape != tuple(self.inputs[in_][1:]):
                mean = resize_image(mean.transpose(1, 2, 0), size).transpose(2, 0, 1)
        self.mean[in_] = mean

    def set_input_scale(self, in_: str, scale: Any) -> None:
        """What to multiply inputs by in the end."""
        self._check(in_)
        self.input_scale[in_] = scale

    def _check(self, in_: str) -> None:
        if in_ not in self.inputs:
            raise Exception(f"{in_} is not one of the net inputs: {self.inputs}")
