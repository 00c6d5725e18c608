"""Fine-tuning as Caffe's notebooks do it: weights of another task, frozen layers, labels by a layer in Python."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.pycaffe.workshop import images

pytestmark = pytest.mark.usefixtures("installed")

BANDS = """
import caffe
import numpy as np

class Bands(caffe.Layer):
    def setup(self, bottom, top):
        params = eval(self.param_str)
        assert "source" in params and len(top) == 2 and len(bottom) == 0
        held = np.load(params["source"])
        self.images, self.labels, self.row, self.batch = held["images"], held["labels"], 0, params["batch_size"]
        top[0].reshape(self.batch, *self.images.shape[1:])
        top[1].reshape(self.batch, self.labels.shape[1])

    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        for place in range(self.batch):
            top[0].data[place, ...], top[1].data[place, ...] = self.images[self.row], self.labels[self.row]
            self.row = (self.row + 1) % len(self.images)

    def backward(self, top, propagate_down, bottom):
        pass
"""


def test_fine_tuning(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import caffe
    from caffe import layers as L
    from caffe import params as P

    name = "bands_of_the_tour"
    (tmp_path / f"{name}.py").write_text(BANDS)
    monkeypatch.syspath_prepend(str(tmp_path))
    pixels, labels = images(60, 5)
    several = np.stack([labels != 2, labels != 0, labels == 1], 1)
    np.savez(tmp_path / "bands.npz", images=pixels / 256.0, labels=several)
    n = caffe.NetSpec()
    given = dict(source=str(tmp_path / "bands.npz"), batch_size=30)
    n.data, n.label = L.Python(module=name, layer="Bands", ntop=2, param_str=str(given))
    frozen = [dict(lr_mult=0, decay_mult=0)] * 2
    n.conv1 = L.Convolution(n.data, num_output=6, kernel_size=5, param=frozen)
    n.bn1 = L.BatchNorm(n.conv1)
    n.scale1 = L.Scale(n.bn1, in_place=True, bias_term=True, param=frozen)
    n.relu1 = L.ReLU(n.scale1, in_place=True)
    n.pool1 = L.Pooling(n.relu1, pool=P.Pooling.MAX, kernel_size=2, stride=2)
    n.ip1 = L.InnerProduct(n.pool1, num_output=12)
    n.__setattr__("score_bands", L.InnerProduct(L.ReLU(n.ip1), num_output=3, weight_filler=dict(type="xavier")))
    n.loss = L.SigmoidCrossEntropyLoss(n.score_bands, n.label)
    (tmp_path / "net.prototxt").write_text(str(n.to_proto()))
    (tmp_path / "solver.prototxt").write_text(
        f'train_net: "{tmp_path}/net.prototxt" test_net: "{tmp_path}/net.prototxt" test_iter: 1 test_interval: 1000'
        ' base_lr: 0.1 momentum: 0.9 lr_policy: "fixed" random_seed: 1 max_iter: 3 test_initialization: false'
    )
    solver = caffe.SGDSolver(str(tmp_path / "solver.prototxt"))
    solver.net.copy_from(str(workshop / "bands.caffemodel"))
    solver.test_nets[0].share_with(solver.net)
    own = caffe.Net(str(workshop / "deploy.prototxt"), str(workshop / "bands.caffemodel"), caffe.TEST)
    scales = solver.net.params["scale1"][0].data.copy()
    assert np.array_equal(solver.test_nets[0].params["ip1"][0].data, own.params["ip1"][0].data)

    def right() -> float:
        solver.test_nets[0].forward()
        gt, est = (solver.test_nets[0].blobs[blob].data > 0 for blob in ("label", "score_bands"))
        return float(np.mean([np.mean(one == other) for one, other in zip(gt, est, strict=True)]))

    before = right()
    # more than max_iter, which ends `solve` only
    solver.step(25)
    assert solver.iter == 25 and right() > max(before, 0.9)
    assert np.array_equal(solver.net.params["conv1"][0].data, own.params["conv1"][0].data)
    assert np.array_equal(solver.net.params["scale1"][0].data, scales)
    assert not np.array_equal(solver.net.params["ip1"][0].data, own.params["ip1"][0].data)
    del sys.modules[name]
