"""What Classifier and Detector share: a net that takes images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from forcereg.pycaffe.net import Net
from forcereg.pycaffe.transformer import Transformer
from forcereg.schema import TEST


class ImageNet(Net):
    """A net for use, and the transformer of its first input; colours come last in images, first in inputs."""

    def __init__(
        self,
        model_file: Any,
        pretrained_file: Any,
        mean: np.ndarray | None,
        input_scale: Any,
        raw_scale: Any,
        channel_swap: Sequence[int] | None,
    ) -> None:
        super().__init__(model_file, TEST, weights=pretrained_file)
        name = self.inputs[0]
        self.transformer = Transformer({name: self.blobs[name].data.shape})
        self.transformer.set_transpose(name, (2, 0, 1))
        if mean is not None:
            self.transformer.set_mean(name, mean)
        if input_scale is not None:
            self.transformer.set_input_scale(name, input_scale)
        if raw_scale is not None:
            self.transformer.set_raw_scale(name, raw_scale)
        if channel_swap is not None:
            self.transformer.set_channel_swap(name, channel_swap)

    def scores(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """The first output of every image, each preprocessed, in as many batches as it takes."""
        name = self.inputs[0]
        batch = np.stack([self.transformer.preprocess(name, image) for image in images])
        found: np.ndarray = self.forward_all(**{name: batch})[self.outputs[0]]
        return found
