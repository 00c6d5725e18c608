"""Images to class scores with one call: `caffe.Classifier`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from forcereg.pycaffe import io
from forcereg.pycaffe.image_net import ImageNet
from forcereg.pycaffe.interpolate import Sizes


class Classifier(ImageNet):
    """A net for use, whose first input takes images (H, W, K) and whose first output is the classes' scores.

    `image_dims` (height, width) is the size that images are brought to before crops of the input's size are taken, by
    default that size; the others are `caffe.io.Transformer`'s settings. Attributes: `transformer`, `crop_dims`,
    `image_dims`.
    """

    def __init__(
        self,
        model_file: Any,
        pretrained_file: Any,
        image_dims: Sequence[int] | None = None,
        mean: np.ndarray | None = None,
        input_scale: Any = None,
        raw_scale: Any = None,
        channel_swap: Sequence[int] | None = None,
    ) -> None:
        super().__init__(model_file, pretrained_file, mean, input_scale, raw_scale, channel_swap)
        self.crop_dims = np.array(self.blobs[self.inputs[0]].data.shape[2:])
        self.image_dims: Sizes = image_dims if image_dims else self.crop_dims

    def predict(self, inputs: Iterable[np.ndarray], oversample: bool = True) -> np.ndarray:
        """(N, classes) scores of N images (H, W, K): means over ten crops, or without `oversample` those of the centre.

        Then they have the shape of the net's first output.
        """
        images = [io.resize_image(image, self.image_dims) for image in inputs]
        if not oversample:
            top, left = io.centre(self.image_dims, self.crop_dims)
            high, wide = self.crop_dims
            crops = np.stack([image[top : top + high, left : left + wide] for image in images])
        else:
            crops = io.oversample(images, self.crop_dims)
        found = self.scores(crops)
        return found.reshape(len(images), 10, -1).mean(1) if oversample else found
