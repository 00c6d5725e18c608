"""What research scripts did with a net from Python: maps of what counts, styles, detectors' layers."""

# as users write it
# mypy: disable-error-code="no-untyped-def,no-untyped-call,import-not-found"

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pycaffe.nets import net_of

pytestmark = pytest.mark.usefixtures("installed")

PICTURES = """
force_backward: true
input: "data" input_dim: 2 input_dim: 3 input_dim: 12 input_dim: 12
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "gaussian" std: 0.3 } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "conv2" type: "Convolution" bottom: "conv1" top: "conv2"
  convolution_param { num_output: 6 kernel_size: 3 weight_filler { type: "gaussian" std: 0.3 } } }
layer { name: "gap" type: "Pooling" bottom: "conv2" top: "gap" pooling_param { pool: AVE global_pooling: true } }
layer { name: "fc" type: "InnerProduct" bottom: "gap" top: "fc"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""


@pytest.fixture
def net(tmp_path: Path) -> Any:
    net = net_of(PICTURES, tmp_path)
    net.blobs["data"].data[...] = np.random.default_rng(0).normal(size=(2, 3, 12, 12))
    return net


def test_class_activation_maps(net: Any) -> None:
    net.forward()
    net.blobs["fc"].diff[...] = 0
    net.blobs["fc"].diff[:, 2] = 1
    net.backward(start="fc", end="gap")
    activations, gradients = net.blobs["conv2"].data, net.blobs["conv2"].diff
    # Grad-CAM's weights are, behind a global average, those of CAM
    weights = gradients.sum((2, 3))
    np.testing.assert_allclose(weights[0], net.params["fc"][0].data[2], rtol=1e-5)
    maps = (weights[:, :, None, None] * activations).sum(1)
    np.testing.assert_allclose(maps.mean((1, 2)), net.blobs["fc"].data[:, 2], rtol=1e-4)


def test_guided_backprop(net: Any) -> None:
    net.forward()
    net.blobs["conv1"].diff[...] = np.random.default_rng(1).normal(size=net.blobs["conv1"].data.shape)
    given = net.blobs["conv1"].diff.copy()
    net.blobs["conv1"].diff[...] = np.maximum(given, 0)
    net.backward(start="relu1", end="relu1")
    # in place, so that the blob's gradient is now that of the ReLU's bottom
    np.testing.assert_array_equal(net.blobs["conv1"].diff, np.maximum(given, 0) * (net.blobs["conv1"].data > 0))
    guided = net.backward(start="conv1")["data"]
    assert guided.shape == (2, 3, 12, 12) and np.abs(guided).sum() > 0


def test_style_by_gram_matrices(net: Any) -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="scripts take L-BFGS from SciPy")
    net.blobs["data"].reshape(1, 3, 12, 12)

    def gram(name):
        features = net.blobs[name].data[0].reshape(net.blobs[name].channels, -1)
        return features @ features.T, features

    net.forward(end="conv2")
    wanted = {name: gram(name)[0].copy() for name in ("conv1", "conv2")}

    def objective(x):
        net.blobs["data"].data[0] = x.reshape(3, 12, 12)
        net.forward(end="conv2")
        net.blobs["conv2"].diff[...] = 0
        loss = 0.0
        # the features of conv1 are what the ReLU in place left there, so its gradient goes in behind the ReLU
        for name, start, end in (("conv2", "conv2", "conv2"), ("conv1", "relu1", "conv1")):
            found, features = gram(name)
            loss += float(((found - wanted[name]) ** 2).sum()) / 4
            net.blobs[name].diff[0] += ((found - wanted[name]) @ features).reshape(net.blobs[name].diff.shape[1:])
            net.backward(start=start, end=end)
        return loss, net.blobs["data"].diff[0].ravel().astype(float)

    start = np.random.default_rng(2).normal(size=3 * 12 * 12)
    before, slope = objective(start)
    step = 1e-3 * slope / np.linalg.norm(slope)
    rise = (objective(start + step)[0] - objective(start - step)[0]) / 2
    np.testing.assert_allclose(rise, slope @ step, rtol=0.01)
    found = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=dict(maxiter=8))
    assert found.fun < before / 2


ROI_LAYERS = """
import caffe
import numpy as np
import yaml


class RoIDataLayer(caffe.Layer):
    def set_roidb(self, roidb):
        self._roidb, self._cur = roidb, 0

    def setup(self, bottom, top):
        self._classes = yaml.load(self.param_str, Loader=yaml.SafeLoader)['num_classes']
        self._name_to_top_map = {'data': 0, 'rois': 1, 'labels': 2}
        top[0].reshape(1, 3, 8, 8)
        top[1].reshape(1, 5)
        top[2].reshape(1)

    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        count = self._roidb[self._cur % len(self._roidb)]
        self._cur += 1
        labels = np.arange(count) % self._classes
        blobs = {'data': np.ones((1, 3, 8, 8)), 'rois': np.zeros((count, 5)), 'labels': labels}
        for name, blob in blobs.items():
            top_ind = self._name_to_top_map[name]
            top[top_ind].reshape(*blob.shape)
            top[top_ind].data[...] = blob.astype(np.float32, copy=False)

    def backward(self, top, propagate_down, bottom):
        pass


class Pool(caffe.Layer):
    def setup(self, bottom, top):
        pass

    def reshape(self, bottom, top):
        top[0].reshape(bottom[1].num, bottom[0].channels)

    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data.mean((2, 3))[bottom[1].data[:, 0].astype(int)]

    def backward(self, top, propagate_down, bottom):
        assert not propagate_down[1]
        bottom[0].diff[...] = 0
        for roi, diff in zip(bottom[1].data, top[0].diff):
            bottom[0].diff[int(roi[0])] += diff[:, None, None] / bottom[0].height / bottom[0].width
"""


def test_a_detector_s_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("yaml", reason="such layers read their settings by PyYAML")
    import caffe
    from caffe import layers as L

    name = "layers_of_a_detector"
    (tmp_path / f"{name}.py").write_text(ROI_LAYERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    n = caffe.NetSpec()
    n.data, n.rois, n.labels = L.Python(module=name, layer="RoIDataLayer", param_str="'num_classes': 2", ntop=3)
    n.conv = L.Convolution(n.data, num_output=4, kernel_size=3, weight_filler=dict(type="xavier"))
    n.pool = L.Python(n.conv, n.rois, module=name, layer="Pool")
    n.cls_score = L.InnerProduct(n.pool, num_output=2, weight_filler=dict(type="gaussian", std=0.01))
    n.loss_cls = L.SoftmaxWithLoss(n.cls_score, n.labels, loss_weight=1)
    (tmp_path / "train.prototxt").write_text(str(n.to_proto()))
    (tmp_path / "solver.prototxt").write_text(
        f'train_net: "{tmp_path}/train.prototxt" base_lr: 0.01 lr_policy: "fixed" iter_size: 2 snapshot: 0'
    )
    solver = caffe.SGDSolver(str(tmp_path / "solver.prototxt"))
    solver.net.layers[0].set_roidb([4, 7, 2])
    before = solver.net.params["conv"][0].data.copy()
    rows = []
    while solver.iter < 3:
        solver.step(1)
        rows.append(solver.net.blobs["cls_score"].num)
    # two passes an iteration
    assert rows == [7, 4, 2] and solver.net.blobs["rois"].data.shape == (2, 5)
    assert not np.array_equal(before, solver.net.params["conv"][0].data)
    del sys.modules[name]
