"""Layers as pycaffe's users write them, and nets of one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from forcereg.net.load import load_net
from forcereg.net.module import Net
from tests.layers.nets import layer_text

UserModule = Callable[[str, str], Path]

LAYERS = """
    import caffe
    import numpy as np

    class EuclideanLoss(caffe.Layer):
        def setup(self, bottom, top):
            if len(bottom) != 2:
                raise Exception("Need two inputs to compute distance.")

        def reshape(self, bottom, top):
            if bottom[0].count != bottom[1].count:
                raise Exception("Inputs must have the same dimension.")
            self.diff = np.zeros_like(bottom[0].data, dtype=np.float32)
            top[0].reshape(1)

        def forward(self, bottom, top):
            self.diff = bottom[0].data - bottom[1].data
            top[0].data[...] = np.sum(self.diff ** 2) / bottom[0].num / 2.

        def backward(self, top, propagate_down, bottom):
            for i in range(2):
                if not propagate_down[i]:
                    continue
                sign = 1 if i == 0 else -1
                bottom[i].diff[...] = sign * top[0].diff[0] * self.diff / bottom[i].num

    class Stretch(caffe.Layer):
        '''y = x * (w * factor) + b, per channel.'''

        def setup(self, bottom, top):
            self.factor = float(self.param_str)
            assert self.param_str_ == self.param_str
            self.blobs.add_blob(bottom[0].channels)
            self.blobs.add_blob(bottom[0].shape[1])
            self.blobs[0].data[...] = 1 + np.arange(bottom[0].channels)

        def reshape(self, bottom, top):
            top[0].reshape(*bottom[0].shape)

        def forward(self, bottom, top):
            scale = self.blobs[0].data * self.factor
            top[0].data[...] = bottom[0].data * scale[:, None] + self.blobs[1].data[:, None]

        def backward(self, top, propagate_down, bottom):
            self.blobs[0].diff[...] += self.factor * (top[0].diff * bottom[0].data).sum(axis=(0, 2))
            self.blobs[1].diff[...] += top[0].diff.sum(axis=(0, 2))
            if propagate_down[0]:
                bottom[0].diff[...] = top[0].diff * (self.blobs[0].data * self.factor)[:, None]

    class Mean(caffe.Layer):
        '''Keeps a running mean in its blob, which no gradient changes.'''

        def setup(self, bottom, top):
            self.blobs.add_blob(1)
            top[0].reshape(1)

        def reshape(self, bottom, top):
            pass

        def forward(self, bottom, top):
            self.blobs[0].data[...] = 0.5 * self.blobs[0].data + 0.5 * bottom[0].data.mean()
            top[0].data[...] = self.blobs[0].data

    class Counter(caffe.Layer):
        '''Batches of 2, 3, 4, ... items, shaped in forward.'''

        def setup(self, bottom, top):
            self.calls = 0
            top[0].reshape(1, 3)
            top[1].reshape(1)

        def reshape(self, bottom, top):
            pass

        def forward(self, bottom, top):
            self.calls += 1
            top[0].reshape(self.calls + 1, 3)
            top[0].data[...] = self.calls
            top[1].reshape(self.calls + 1)
            top[1].data[...] = np.arange(self.calls + 1)

        def backward(self, top, propagate_down, bottom):
            pass

    class Clamp(caffe.Layer):
        '''Works in place: top's values are bottom's.'''

        def setup(self, bottom, top):
            pass

        def reshape(self, bottom, top):
            pass

        def forward(self, bottom, top):
            top[0].data[top[0].data < 0] = 0

        def backward(self, top, propagate_down, bottom):
            bottom[0].diff[...] = top[0].diff * (bottom[0].data > 0)

    class Anchors(caffe.Layer):
        '''Fills its top once; no gradient; TRAIN and TEST differ.'''

        def setup(self, bottom, top):
            top[0].reshape(2, 2)
            top[0].data[...] = [[1, 2], [3, 4]]

        def reshape(self, bottom, top):
            pass

        def forward(self, bottom, top):
            if self.phase == caffe.TRAIN:
                top[0].data[1, 1] = 10
"""


def python(name: str, *shapes: tuple[int, ...], more: str = "", param_str: str = "", tops: int = 1) -> str:
    """A net of one Python layer of module mylayers."""
    param = f"python_param {{ module: 'mylayers' layer: '{name}' param_str: '{param_str}' }} {more}"
    return layer_text("Python", param, *shapes, tops=tops)


def python_net(text: str, phase: str = "TEST") -> Net:
    return load_net(text, phase=phase, allow_python_layers=True)
