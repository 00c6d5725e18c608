"""A tour through what Caffe's own notebooks do, each on a net of a second: their code, and what it must find."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.pycaffe.workshop import CLASSES, images

pytestmark = pytest.mark.usefixtures("installed")


# -- classification: the net, a picture, the transformer, the best classes, what is inside


def test_classification(workshop: Path) -> None:
    import caffe

    caffe.set_mode_cpu()
    net = caffe.Net(str(workshop / "deploy.prototxt"), str(workshop / "bands.caffemodel"), caffe.TEST)
    mu = np.array([0.0])
    transformer = caffe.io.Transformer({"data": net.blobs["data"].data.shape})
    transformer.set_transpose("data", (2, 0, 1))
    transformer.set_mean("data", mu)
    transformer.set_raw_scale("data", 255 / 256)
    net.blobs["data"].reshape(3, 1, 12, 12)
    for label in range(3):
        # larger than the net's input, as photographs are
        image = np.kron(caffe.io.load_image(str(workshop / f"band_{label}.png"), color=False), np.ones((2, 2, 1)))
        net.blobs["data"].data[label] = transformer.preprocess("data", image)
    output = net.forward()
    assert [CLASSES[row.argmax()] for row in output["prob"]] == list(CLASSES)
    best = output["prob"][1].argsort()[::-1][:2]
    assert output["prob"][1][best[0]] > 0.8

    shapes = [(name, blob.data.shape) for name, blob in net.blobs.items()]
    assert shapes[0] == ("data", (3, 1, 12, 12)) and shapes[1] == ("conv1", (3, 6, 8, 8))
    weights = [(name, param[0].data.shape, param[1].data.shape) for name, param in net.params.items()]
    assert weights[0] == ("conv1", (6, 1, 5, 5), (6,))


# -- net surgery: fully connected layers become convolutions, and the net takes images of any size

CONNECTED = """
name: "CaffeNetConnected"
input: "data" input_shape { dim: 2 dim: 3 dim: 15 dim: 15 }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 4 kernel_size: 3 stride: 2 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { kernel_size: 3 stride: 2 } }
layer { name: "norm1" type: "LRN" bottom: "pool1" top: "norm1" }
layer { name: "fc6" type: "InnerProduct" bottom: "norm1" top: "fc6"
  inner_product_param { num_output: 8 weight_filler { type: "xavier" } bias_filler { type: "uniform" } } }
layer { name: "relu6" type: "ReLU" bottom: "fc6" top: "fc6" }
layer { name: "drop6" type: "Dropout" bottom: "fc6" top: "fc6" }
layer { name: "fc8" type: "InnerProduct" bottom: "fc6" top: "fc8"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "fc8" top: "prob" }
"""


def convolved(text: str) -> str:
    """The same net with convolutions for inner products, for an image of 23 x 27."""
    for name, kernel in (("fc6", 3), ("fc8", 1)):
        text = text.replace(f'name: "{name}" type: "InnerProduct"', f'name: "{name}-conv" type: "Convolution"')
        text = text.replace(
            f'top: "{name}"\n  inner_product_param {{', f'top: "{name}"\n  convolution_param {{ kernel_size: {kernel}'
        )
    return text.replace("dim: 2 dim: 3 dim: 15 dim: 15", "dim: 1 dim: 3 dim: 23 dim: 27").replace("Connected", "Conv")


def test_net_surgery(tmp_path: Path) -> None:
    import caffe

    (tmp_path / "net.prototxt").write_text(CONNECTED)
    (tmp_path / "conv.prototxt").write_text(convolved(CONNECTED))
    net = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST)
    net.save(str(tmp_path / "net.caffemodel"))
    net_full_conv = caffe.Net(str(tmp_path / "conv.prototxt"), str(tmp_path / "net.caffemodel"), caffe.TEST)
    params, params_full_conv = ["fc6", "fc8"], ["fc6-conv", "fc8-conv"]
    fc_params = {pr: (net.params[pr][0].data, net.params[pr][1].data) for pr in params}
    conv_params = {pr: (net_full_conv.params[pr][0].data, net_full_conv.params[pr][1].data) for pr in params_full_conv}
    assert fc_params["fc6"][0].shape == (8, 36) and conv_params["fc6-conv"][0].shape == (8, 4, 3, 3)
    for pr, pr_conv in zip(params, params_full_conv, strict=True):
        conv_params[pr_conv][0].flat = fc_params[pr][0].flat
        conv_params[pr_conv][1][...] = fc_params[pr][1]
    net_full_conv.save(str(tmp_path / "full_conv.caffemodel"))

    image = np.random.default_rng(0).random((1, 3, 23, 27))
    out = caffe.Net(str(tmp_path / "conv.prototxt"), str(tmp_path / "full_conv.caffemodel"), caffe.TEST).forward_all(
        data=image
    )
    assert out["prob"].shape == (1, 5, 3, 4)
    # each place is what the old net says of the window there
    windows = [image[:, :, 4 * y : 4 * y + 15, 4 * x : 4 * x + 15] for y in range(3) for x in range(4)]
    expected = net.forward_all(data=np.concatenate(windows))["prob"]
    np.testing.assert_allclose(out["prob"][0].reshape(5, 12).T[[0, 5]], expected[[0, 5]], rtol=1e-4)


# -- deep dreams: the input follows the gradient of what a layer answers


def test_dream(workshop: Path) -> None:
    import caffe

    text = (workshop / "deploy.prototxt").read_text()
    dreaming = workshop / "dream.prototxt"
    dreaming.write_text("force_backward: true\n" + text)
    net = caffe.Classifier(str(dreaming), str(workshop / "bands.caffemodel"))
    end, rng = "pool1", np.random.default_rng(0)
    src, dst = net.blobs["data"], net.blobs[end]
    src.reshape(1, 1, 12, 12)
    src.data[0] = rng.random((1, 12, 12)) / 2

    def make_step(step_size: float = 0.05) -> float:
        net.forward(end=end)
        dst.diff[...] = dst.data
        net.backward(start=end)
        g = src.diff[0]
        src.data[...] += step_size / np.abs(g).mean() * g
        return float((dst.data**2).sum())

    energies = [make_step() for _ in range(6)]
    assert all(before < behind for before, behind in pairwise(energies))

    # saliency: the gradient of one score, by central differences
    net.forward()
    diff = np.zeros_like(net.blobs["score"].diff)
    diff[0, 1] = 1
    net.blobs["score"].diff[...] = diff
    saliency = net.backward(start="score", diffs=["conv1"])["data"].copy()
    for place in ((0, 0, 5, 5), (0, 0, 2, 7)):
        scores = []
        for move in (1e-2, -1e-2):
            src.data[place] += move
            net.forward(end="score")
            scores.append(float(net.blobs["score"].data[0, 1]))
            src.data[place] -= move
        assert saliency[place] == pytest.approx((scores[0] - scores[1]) / 2e-2, rel=0.05, abs=1e-3)


# -- learning LeNet: a net by NetSpec, a solver's file, steps with the loss and the accuracy looked at on the way


def lenet(lmdb: Path, batch_size: int) -> Any:
    import caffe
    from caffe import layers as L
    from caffe import params as P

    n = caffe.NetSpec()
    n.data, n.label = L.Data(
        batch_size=batch_size, backend=P.Data.LMDB, source=str(lmdb), transform_param=dict(scale=1.0 / 255), ntop=2
    )
    n.conv1 = L.Convolution(n.data, kernel_size=5, num_output=4, weight_filler=dict(type="xavier"))
    n.pool1 = L.Pooling(n.conv1, kernel_size=2, stride=2, pool=P.Pooling.MAX)
    n.fc1 = L.InnerProduct(n.pool1, num_output=16, weight_filler=dict(type="xavier"))
    n.relu1 = L.ReLU(n.fc1, in_place=True)
    n.score = L.InnerProduct(n.relu1, num_output=3, weight_filler=dict(type="xavier"))
    n.loss = L.SoftmaxWithLoss(n.score, n.label)
    return n.to_proto()


def test_learning_lenet(workshop: Path, tmp_path: Path) -> None:
    import caffe
    from caffe.proto import caffe_pb2

    for phase, batch in (("train", 20), ("test", 30)):
        (tmp_path / f"{phase}.prototxt").write_text(str(lenet(workshop / f"{phase}_lmdb", batch)))
    s = caffe_pb2.SolverParameter(
        train_net=str(tmp_path / "train.prototxt"), base_lr=0.05, lr_policy="inv", momentum=0.9
    )
    s.gamma, s.power, s.weight_decay, s.random_seed, s.test_initialization = 1e-4, 0.75, 5e-4, 1, False
    s.test_net.append(str(tmp_path / "test.prototxt"))
    s.test_iter.append(2)
    s.test_interval, s.max_iter, s.snapshot_prefix = 500, 100, str(tmp_path / "lenet")
    (tmp_path / "solver.prototxt").write_text(str(s))

    solver = caffe.get_solver(str(tmp_path / "solver.prototxt"))
    assert [(k, v.data.shape) for k, v in solver.net.blobs.items()][:2] == [("data", (20, 1, 12, 12)), ("label", (20,))]
    solver.net.forward()
    solver.test_nets[0].forward()
    niter, test_interval = 20, 10
    train_loss, test_acc = np.zeros(niter), np.zeros(int(np.ceil(niter / test_interval)) + 1)
    output = np.zeros((niter, 8, 3))
    for it in range(niter):
        solver.step(1)
        train_loss[it] = solver.net.blobs["loss"].data
        solver.test_nets[0].forward(start="conv1")
        output[it] = solver.test_nets[0].blobs["score"].data[:8]
        if it % test_interval == 0 or it == niter - 1:
            correct = 0
            for _ in range(2):
                solver.test_nets[0].forward()
                correct += sum(
                    solver.test_nets[0].blobs["score"].data.argmax(1) == solver.test_nets[0].blobs["label"].data
                )
            test_acc[(it + test_interval - 1) // test_interval] = correct / 60.0
    assert train_loss[-5:].mean() < train_loss[:5].mean() / 2 and test_acc[-1] > 0.8
    assert not np.array_equal(output[0], output[-1]) and solver.iter == niter
    assert solver.net.params["conv1"][0].diff[:, 0].reshape(4, 5, 5).any()


# -- Siamese: pairs by a data layer in Python, weights shared by name

PAIRS = """
import json
import random
import caffe
import numpy as np

class PairData(caffe.Layer):
    def setup(self, bottom, top):
        params = json.loads(self.param_str)
        self.batch_size = params["batch_size"]
        held = np.load(params["source"])
        self.images, self.labels = held["images"], held["labels"]
        self.rng = np.random.RandomState(params.get("seed", 0))
        if len(top) != 3:
            raise Exception("Need two images and whether they are alike.")

    def reshape(self, bottom, top):
        top[0].reshape(self.batch_size, *self.images.shape[1:])
        top[1].reshape(self.batch_size, *self.images.shape[1:])
        top[2].reshape(self.batch_size)

    def forward(self, bottom, top):
        one, two = self.rng.randint(len(self.images), size=(2, self.batch_size))
        top[0].data[...] = self.images[one] / 256.
        top[1].data[...] = self.images[two] / 256.
        top[2].data[...] = self.labels[one] == self.labels[two]

    def backward(self, top, propagate_down, bottom):
        pass
"""


def test_siamese(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import caffe
    from caffe import layers as L

    name = "pairs_of_the_tour"
    (tmp_path / f"{name}.py").write_text(PAIRS)
    monkeypatch.syspath_prepend(str(tmp_path))
    pixels, labels = images(60, 3)
    np.savez(tmp_path / "pairs.npz", images=pixels, labels=labels)
    n = caffe.NetSpec()
    n.left, n.right, n.sim = L.Python(
        module=name,
        layer="PairData",
        ntop=3,
        param_str='{"batch_size": 24, "source": "%s"}' % (tmp_path / "pairs.npz"),
    )
    for side in ("left", "right"):
        shared = [dict(name=f"fc_{kind}", lr_mult=rate) for kind, rate in (("w", 1), ("b", 2))]
        n[f"feat_{side}"] = L.InnerProduct(n[side], num_output=2, weight_filler=dict(type="xavier"), param=shared)
    n.loss = L.ContrastiveLoss(n.feat_left, n.feat_right, n.sim, margin=1)
    (tmp_path / "net.prototxt").write_text(str(n.to_proto()))
    (tmp_path / "solver.prototxt").write_text(
        f'net: "{tmp_path}/net.prototxt" base_lr: 0.02 momentum: 0.9 lr_policy: "fixed" random_seed: 1 max_iter: 60'
    )
    solver = caffe.SGDSolver(str(tmp_path / "solver.prototxt"))
    losses = []
    for _ in range(60):
        solver.step(1)
        losses.append(float(solver.net.blobs["loss"].data))
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) / 2
    left, right = (solver.net.params[f"feat_{side}"][0].data for side in ("left", "right"))
    assert np.array_equal(left, right) and solver.net.layers[0].type == "Python"
    del sys.modules[name]


# -- FCN: scores scaled up and cropped to the image by their coordinates


def test_fcn(tmp_path: Path) -> None:
    import caffe
    from caffe import layers as L
    from caffe.coord_map import crop

    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 3, 20, 24]))
    n.conv1 = L.Convolution(n.data, kernel_size=3, num_output=4, pad=10, weight_filler=dict(type="xavier"))
    n.relu1 = L.ReLU(n.conv1, in_place=True)
    n.pool1 = L.Pooling(n.relu1, kernel_size=2, stride=2)
    n.score_fr = L.Convolution(n.pool1, kernel_size=3, num_output=5, weight_filler=dict(type="xavier"))
    n.upscore = L.Deconvolution(
        n.score_fr, param=[dict(lr_mult=0)],
        convolution_param=dict(num_output=5, group=5, kernel_size=4, stride=2, bias_term=False,
                               weight_filler=dict(type="bilinear")),
    )  # fmt: skip
    n.score = crop(n.upscore, n.data)
    (tmp_path / "fcn.prototxt").write_text(str(n.to_proto()))
    net = caffe.Net(str(tmp_path / "fcn.prototxt"), caffe.TEST)
    offset = n.score.fn.params["crop_param"]["offset"]
    for size in ((20, 24), (17, 31)):
        net.blobs["data"].reshape(1, 3, *size)
        net.blobs["data"].data[...] = np.random.default_rng(0).random((1, 3, *size))
        out = net.forward()["score"]
        assert out.shape == (1, 5, *size)
        whole = net.blobs["upscore"].data[:, :, offset[0] :, offset[0] :]
        assert np.array_equal(out, whole[:, :, : size[0], : size[1]])
    assert offset == [8]  # 9 of conv1, half of it less a quarter, 1 less, doubled and one and a half


# -- several labels from HDF5: a solver, its steps, and the share of labels that are right


def test_labels_from_hdf5(tmp_path: Path) -> None:
    import caffe
    from caffe import layers as L

    pixels, labels = images(90, 4)
    several = np.stack([labels != 2, labels != 0, labels == 1], 1).astype(np.float32)
    with h5py.File(tmp_path / "train.h5", "w") as f:
        f["data"], f["label"] = pixels.reshape(90, -1).astype(np.float32) / 256, several
    (tmp_path / "train.txt").write_text(f"{tmp_path}/train.h5\n")
    n = caffe.NetSpec()
    n.data, n.label = L.HDF5Data(batch_size=30, source=str(tmp_path / "train.txt"), ntop=2)
    n.ip = L.InnerProduct(n.data, num_output=3, weight_filler=dict(type="xavier"))
    n.loss = L.SigmoidCrossEntropyLoss(n.ip, n.label)
    (tmp_path / "net.prototxt").write_text(str(n.to_proto()))
    (tmp_path / "solver.prototxt").write_text(
        f'train_net: "{tmp_path}/net.prototxt" base_lr: 0.05 momentum: 0.9 lr_policy: "fixed" random_seed: 1'
        f' max_iter: 60 snapshot_prefix: "{tmp_path}/s" snapshot_after_train: false'
    )
    solver = caffe.get_solver(str(tmp_path / "solver.prototxt"))
    solver.solve()
    solver.net.forward()
    right = (solver.net.blobs["ip"].data > 0) == (solver.net.blobs["label"].data > 0)
    assert solver.iter == 60 and right.mean() > 0.9
