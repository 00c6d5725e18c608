"""Layers written in Python within caffe.Net: they work on its blobs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import forcereg.pycaffe as caffe
from tests.pycaffe.nets import net_of

LAYERS = """
import caffe
import numpy as np
from caffe.proto import caffe_pb2


class Scale(caffe.Layer):
    def setup(self, bottom, top):
        self.blobs.add_blob(bottom[0].channels)
        self.blobs[0].data[...] = float(self.param_str)
        self.calls = []

    def reshape(self, bottom, top):
        self.calls.append("reshape")
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        self.seen = [type(one).__name__ for one in (bottom, top, bottom[0].shape)]
        top[0].data[...] = bottom[0].data * self.blobs[0].data

    def backward(self, top, propagate_down, bottom):
        self.asked = [type(propagate_down).__name__, list(propagate_down)]
        self.blobs[0].diff[...] += (top[0].diff * bottom[0].data).sum(0)
        if propagate_down[0]:
            bottom[0].diff[...] = top[0].diff * self.blobs[0].data


class Loss(caffe.Layer):
    '''Fills its bottom's gradient in forward already.'''

    def setup(self, bottom, top):
        pass

    def reshape(self, bottom, top):
        top[0].reshape()

    def forward(self, bottom, top):
        top[0].data[...] = (bottom[0].data ** 2).sum() / 2
        bottom[0].diff[...] = bottom[0].data

    def backward(self, top, propagate_down, bottom):
        pass


class Data(caffe.Layer):
    def setup(self, bottom, top):
        self.rows = 0
        top[0].reshape(1, 3)

    def set_rows(self, rows):
        self.rows = rows

    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        top[0].reshape(self.rows, 3)
        top[0].data[...] = self.rows

    def backward(self, top, propagate_down, bottom):
        pass


class Fails(Data):
    def setup(self, bottom, top):
        super(Fails, self).setup(bottom, top)
        if self.param_str == "setup":
            raise KeyError("mine")

    def forward(self, bottom, top):
        raise ZeroDivisionError("mine")
"""


def python(name: str, kind: str, blobs: str, more: str = "") -> str:
    param = f'python_param {{ module: "pylayers" layer: "{kind}" {more} }}'
    return f'layer {{ name: "{name}" type: "Python" {blobs} {param} }}'


NET = "\n".join(
    [
        python("data", "Data", 'top: "x"'),
        python("scale", "Scale", 'bottom: "x" top: "y"', 'param_str: "3"'),
        python("loss", "Loss", 'bottom: "y" top: "l" loss_weight: 1'),
    ]
)


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A net of three Python layers."""
    (tmp_path / "pylayers.py").write_text(LAYERS)
    monkeypatch.delitem(sys.modules, "pylayers", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return net_of(NET, tmp_path, caffe.TRAIN)


def test_they_work_on_the_nets_blobs(net: Any) -> None:
    data, scale, _ = net.layers
    assert data.type == "Python" and data is net.layers[0] and isinstance(scale, caffe.Layer)
    assert (data.phase, scale.param_str, scale.calls) == (0, "3", ["reshape"])
    weight = net.params["scale"][0].data
    assert weight.tolist() == [3, 3, 3]
    data.set_rows(2)
    loss = net.forward()["l"]
    assert loss.shape == () and float(loss) == (3 * 2) ** 2 * 6 / 2
    assert scale.seen == ["RawBlobVec", "RawBlobVec", "IntVec"]
    assert net.blobs["y"].data.tolist() == [[6] * 3] * 2
    net.backward()
    assert net.blobs["y"].diff.tolist() == [[6] * 3] * 2
    assert net.params["scale"][0].diff.tolist() == [24] * 3
    assert scale.asked == ["BoolVec", [False]]
    net.backward()
    assert net.params["scale"][0].diff.tolist() == [48] * 3
    weight[...] = 1
    data.set_rows(4)
    assert float(net.forward()["l"]) == 4**2 * 12 / 2 and net.blobs["y"].diff.shape == (4, 3)


def test_their_weights_are_saved_shared_and_learnt(net: Any, tmp_path: Path) -> None:
    net.params["scale"][0].data[...] = [1, 2, 3]
    for save, name in ((net.save, "w.caffemodel"), (net.save_hdf5, "w.h5")):
        save(str(tmp_path / name))
        other = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST, weights=str(tmp_path / name))
        assert other.params["scale"][0].data.tolist() == [1, 2, 3]
    other.share_with(net)
    net.params["scale"][0].data[...] = 5
    other.layers[0].set_rows(1)
    assert other.forward()["l"] == 5**2 * 3 / 2
    (tmp_path / "solver.prototxt").write_text(
        f'net: "{tmp_path}/net.prototxt" base_lr: 0.01 lr_policy: "fixed" test_iter: 1 test_interval: 2'
    )
    solver: Any = caffe.SGDSolver(str(tmp_path / "solver.prototxt"))
    for one in (solver.net, *solver.test_nets):
        one.layers[0].set_rows(1)
    solver.step(1)
    np.testing.assert_allclose(solver.net.params["scale"][0].data, 3 - 0.01 * 3)
    solver.step(2)
    np.testing.assert_allclose(solver.net.params["scale"][0].data, 3 * 0.99**3, rtol=1e-6)
    solver.step(1)
    np.testing.assert_allclose(solver.net.params["scale"][0].data, 3 * 0.99**4, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "param", "call", "kind"),
    [
        pytest.param("Fails", "setup", lambda net: None, KeyError, id="setup"),
        pytest.param("Fails", "", lambda net: net.forward(), ZeroDivisionError, id="forward"),
        pytest.param("Nothing", "", lambda net: None, RuntimeError, id="no-such-class"),
    ],
)
def test_exceptions_are_their_own(
    net: Any, tmp_path: Path, name: str, param: str, call: Callable[[Any], Any], kind: type[Exception]
) -> None:
    text = python("p", name, 'top: "x"', f'param_str: "{param}"')
    with pytest.raises(kind):
        call(net_of(text, tmp_path))
