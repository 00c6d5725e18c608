"""Windows of images to class scores, as R-CNN takes them: `caffe.Detector`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from forcereg.pycaffe.image_net import ImageNet
from forcereg.pycaffe.interpolate import resize_image
from forcereg.pycaffe.io import load_image

SELECTIVE_SEARCH = "selective_search_ijcv_with_python"
"""The module of other people that proposes windows; it runs MATLAB."""


class Detector(ImageNet):
    """A net for use, whose first input takes windows of images, warped to its size, and whose first output is scores.

    `context_pad`: pixels of the input, on each side, that show what is around the window (a square input is assumed);
    what lies outside of the image is the mean. The others are `caffe.io.Transformer`'s settings.
    """

    def __init__(
        self,
        model_file: Any,
        pretrained_file: Any,
        mean: np.ndarray | None = None,
        input_scale: Any = None,
        raw_scale: Any = None,
        channel_swap: Sequence[int] | None = None,
        context_pad: int | None = None,
    ) -> None:
        super().__init__(model_file, pretrained_file, mean, input_scale, raw_scale, channel_swap)
        self.configure_crop(context_pad)

    def detect_windows(self, images_windows: Iterable[tuple[Any, Iterable[Any]]]) -> list[dict[str, Any]]:
        """The scores of windows (ymin, xmin, ymax, xmax) of image files, given as pairs of a file and its windows.

        A dict each: `window`, `prediction`, `filename`. Raises OSError for a file that is no image.
        """
        found: list[dict[str, Any]] = []
        crops: list[np.ndarray] = []
        color = self.crop_dims[2] != 1
        for filename, windows in images_windows:
            image = load_image(filename, color)
            for window in windows:
                # one that is an input already would be scaled in place, and the image with it
                crops.append(np.array(self.crop(image, np.asarray(window))))
                found.append({"window": window, "filename": filename})
        if not found:
            return []
        for one, prediction in zip(found, self.scores(crops), strict=True):
            one["prediction"] = prediction
        return found

    def detect_selective_search(self, image_fnames: Iterable[str]) -> list[dict[str, Any]]:
        """`detect_windows` of the windows that selective search proposes. Raises ImportError without its module."""
        names = list(image_fnames)
        try:
            search = importlib.import_module(SELECTIVE_SEARCH)
        except ImportError as error:
            reason = f"{SELECTIVE_SEARCH} cannot be imported ({error}); install it, with MATLAB, or list the windows"
            raise ImportError(f"selective search: {reason}") from None
        windows = search.get_windows([os.path.abspath(name) for name in names], cmd="selective_search_rcnn")
        return self.detect_windows(zip(names, windows, strict=False))

    def crop(self, im: np.ndarray, window: Any) -> np.ndarray:
        """The window (ymin, xmin, ymax, xmax) of an image (H, W, K).

        With `context_pad` it has the input's size (h, w, K), and shows what is around, too, and the mean. Raises
        AssertionError for a window without a pixel of the image.
        """
        if not self.context_pad:
            top, left, bottom, right = (int(edge) for edge in window)
            part = im[top:bottom, left:right]
            assert part.size, f"window {_shown(window)} has no pixel of its image, {im.shape[0]}x{im.shape[1]}"
            return part
        size = int(self.crop_dims[1])
        rows = _Span(window[0], window[2], im.shape[0], size, self.context_pad)
        columns = _Span(window[1], window[3], im.shape[1], size, self.context_pad)
        found = min(rows.stop - rows.start, columns.stop - columns.start, rows.length, columns.length)
        assert found > 0, f"window {_shown(window)} has no pixel of its image, {im.shape[0]}x{im.shape[1]}"
        crop = np.ones(tuple(self.crop_dims), np.float32) * self.crop_mean
        part = im[rows.start : rows.stop, columns.start : columns.stop]
        crop[rows.place, columns.place] = resize_image(part, (rows.length, columns.length))
        return crop

    def configure_crop(self, context_pad: int | None) -> None:
        """Sets `context_pad`, `crop_dims` (h, w, K) and `crop_mean`, the mean as images have it, zeros without one."""
        name, transformer = self.inputs[0], self.transformer
        order = np.argsort(transformer.transpose[name])
        self.context_pad = context_pad
        self.crop_dims = np.array(self.blobs[name].data.shape[1:])[order]
        self.crop_mean = np.zeros(tuple(self.crop_dims), np.float32)
        if name in transformer.mean:
            mean = transformer.mean[name]
            if name in transformer.channel_swap:
                mean = mean[np.argsort(transformer.channel_swap[name]), :, :]
            self.crop_mean = mean.transpose(order) / transformer.raw_scale.get(name, 1)


def _shown(window: Any) -> str:
    return ", ".join(f"{edge:g}" for edge in window)


class _Span:
    """One axis of R-CNN's rule: [start, stop) of the image becomes `length` pixels at `place` of an input of `size`."""

    def __init__(self, first: float, last: float, limit: int, size: int, pad: int) -> None:
        half = (last - first + 1) / 2
        # as much larger as the input is than what the window itself shall fill
        reach = half * size / (size - 2 * pad)
        low, high = np.round([first + half - reach, first + half + reach])
        scale = size / (high - low + 1)
        before = round(max(0, -low) * scale)
        self.start, self.stop = (int(edge) for edge in np.clip([low, high], 0, limit))
        self.length = min(round((self.stop - self.start + 1) * scale), size - before)
        self.place = slice(before, before + self.length)
