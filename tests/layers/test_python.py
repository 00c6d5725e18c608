"""Type Python with classes written for pycaffe."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from forcereg.net.load import load_net, meta_net
from forcereg.net.summary import summarize
from forcereg.schema import TRAIN
from forcereg.schema.text import parse_net
from forcereg.solver.loop import Solver
from tests.layers.nets import apply, noise, run
from tests.layers.python_nets import LAYERS, UserModule, python, python_net
from tests.small_nets import ip
from tests.solver.nets import batch, blobs_of, write_solver


@pytest.fixture
def mylayers(user_module: UserModule) -> Path:
    """mylayers.py in the working directory."""
    return user_module("mylayers", LAYERS)


# -- what the user's code computes


@pytest.mark.parametrize("weight", [1, 0.5])
def test_euclidean_loss_equals_the_built_in_one(mylayers: Path, weight: float) -> None:
    a, b = (noise(4, 3, seed=seed).float().requires_grad_() for seed in (1, 2))
    net = python_net(python("EuclideanLoss", (4, 3), (4, 3), more=f"loss_weight: {weight}"))
    (expected,) = apply("EuclideanLoss", "", a, b)
    wanted = torch.autograd.grad(weight * expected, (a, b))
    loss, outputs = net.forward_loss({"x0": a, "x1": b})
    torch.testing.assert_close(loss, weight * expected)
    torch.testing.assert_close(outputs["y0"], expected.reshape(1))
    torch.testing.assert_close(torch.autograd.grad(loss, (a, b)), wanted)


def test_only_wanted_gradients_are_asked_for(mylayers: Path) -> None:
    a, b = noise(4, 3).float().requires_grad_(), noise(4, 3, seed=1).float()
    net = python_net(python("EuclideanLoss", (4, 3), (4, 3)))
    run(net, a, b)[0].sum().backward()
    torch.testing.assert_close(a.grad, (a.detach() - b) / 4)
    bottom = net.module("l")._bottom
    assert np.abs(bottom[0].diff).min() > 0 and not bottom[1].diff.any()


def test_learnable_blobs_against_numeric_gradients(mylayers: Path) -> None:
    net = python_net(python("Stretch", (2, 3, 4), param_str="1.5")).double()
    x, probe = noise(2, 3, 4).requires_grad_(), noise(2, 3, 4, seed=9)
    weight, bias = net.params["l"]
    assert weight.tolist() == [1, 2, 3] and bias.tolist() == [0, 0, 0]
    assert weight.dtype == torch.float64
    (y,) = run(net, x)
    torch.testing.assert_close(y, x * (1.5 * weight)[:, None])
    found = torch.autograd.grad((y * probe).sum(), (x, weight, bias))
    for leaf, gradient in zip((x, weight, bias), found, strict=True):
        numeric = torch.empty_like(gradient)
        for index in np.ndindex(*leaf.shape):
            values = []
            for step in (1e-4, -1e-4):
                with torch.no_grad():
                    leaf[index] += step
                    values.append((run(net, x)[0] * probe).sum())
                    leaf[index] -= step
            numeric[index] = (values[0] - values[1]) / 2e-4
        torch.testing.assert_close(gradient, numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_forward_may_write_to_its_blobs(mylayers: Path, dtype: torch.dtype) -> None:
    """Whether numpy can use the blob's memory or gets a copy of it, as on a GPU."""
    net = python_net(python("Mean", (2,))).to(dtype)
    x = torch.tensor([1, 3], dtype=dtype)
    found = [run(net, x)[0] for _ in range(3)]
    assert [top.item() for top in found] == [1, 1.5, 1.75] and found[0].dtype == dtype
    assert net.params["l"][0].item() == 1.75


def test_data_layer_without_bottoms(mylayers: Path) -> None:
    net = python_net(python("Counter", tops=2))
    assert net.shapes == {"y0": (1, 3), "y1": (1,)}
    assert summarize(net).batch == 1
    first, second = net(), net()
    assert first["y0"].tolist() == [[1, 1, 1]] * 2
    assert second["y0"].tolist() == [[2, 2, 2]] * 3
    assert second["y1"].tolist() == [0, 1, 2]


def test_macs_are_for_one_of_the_items_that_a_data_layer_makes(user_module: UserModule) -> None:
    user_module(
        "mylayers",
        """
        import caffe

        class Four(caffe.Layer):
            def setup(self, bottom, top): top[0].reshape(4, 3)
            def reshape(self, bottom, top): pass
            def forward(self, bottom, top): pass
        """,
    )
    found = summarize(python_net(python("Four") + ip("ip", "y0", "z", 5)))
    assert (found.batch, found.macs) == (4, 15)


def test_in_place(mylayers: Path) -> None:
    x = noise(3, 2).float().requires_grad_()
    text = python("Clamp", (3, 2)).replace('top: "y0"', 'top: "x0"')
    net = python_net(text)
    before = x.detach().clone()
    y = net(x0=x)["x0"]
    assert torch.equal(x.detach(), before)
    torch.testing.assert_close(y, before.clamp(min=0))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, (before > 0).float())


def test_constant_top_and_phase(mylayers: Path) -> None:
    net = python_net(python("Anchors", (1,)))
    x = torch.zeros(1, requires_grad=True)
    first = net(x0=x)["y0"]
    assert first.tolist() == [[1, 2], [3, 4]] and not first.requires_grad
    assert net.train()(x0=x)["y0"].tolist() == [[1, 2], [3, 10]]
    assert first.tolist() == [[1, 2], [3, 4]]
    assert python_net(python("Anchors", (1,)), phase="TRAIN").module("l").user.phase == TRAIN


def test_reshape_follows_the_batch_and_a_memory_format(mylayers: Path) -> None:
    net = python_net(python("Clamp", (2, 3, 4, 4)).replace('top: "y0"', 'top: "x0"'))
    for items in (2, 5, 1):
        x = noise(items, 3, 4, 4).float().to(memory_format=torch.channels_last)
        torch.testing.assert_close(net(x0=x)["x0"], x.clamp(min=0))


def test_shapes_without_memory(mylayers: Path) -> None:
    file = parse_net(python("Stretch", (2, 3, 4), param_str="2"))
    assert meta_net(file, TRAIN, allow_python_layers=True).shapes["y0"] == (2, 3, 4)


def test_torch_values_in_a_net_without_memory(user_module: UserModule) -> None:
    user_module(
        "mylayers",
        """
        import caffe
        import torch

        class Ramp(caffe.Layer):
            def setup(self, bottom, top): self.ramp = torch.linspace(0, 1, 5).numpy()
            def reshape(self, bottom, top): top[0].reshape(*self.ramp.shape)
            def forward(self, bottom, top): top[0].data[...] = self.ramp
        """,
    )
    assert meta_net(parse_net(python("Ramp")), TRAIN, allow_python_layers=True).shapes["y0"] == (5,)


def test_module_beside_the_net_file(user_module: UserModule, tmp_path: Path) -> None:
    folder = tmp_path / "nets"
    folder.mkdir()
    user_module("mylayers", LAYERS).rename(folder / "besidelayers.py")
    (folder / "net.prototxt").write_text(python("Anchors").replace("mylayers", "besidelayers"))
    assert load_net("nets/net.prototxt", allow_python_layers=True)()["y0"].shape == (2, 2)


@pytest.mark.parametrize("name", ["deepcopy", "pickle"])
def test_copies(mylayers: Path, name: str) -> None:
    net = python_net(python("Stretch", (2, 3, 4), param_str="2"))
    x = noise(2, 3, 4).float()
    (expected,) = run(net, x)
    twin = copy.deepcopy(net) if name == "deepcopy" else pickle.loads(pickle.dumps(net))
    with torch.no_grad():
        net.params["l"][0].zero_()
    torch.testing.assert_close(run(twin, x)[0], expected)
    assert twin.module("l").user is not net.module("l").user


# -- blobs


BLOB = """
    import caffe

    class Looker(caffe.Layer):
        def setup(self, bottom, top):
            b = bottom[0]
            shapes = tuple(b.shape), tuple(top[0].shape)
            self.seen = (b.num, b.channels, b.height, b.width, b.count, *shapes, top[0].count)

        def reshape(self, bottom, top):
            top[0].reshape(2, 3)
            top[0].data[...] = 7
            top[0].reshape(3, 2)
            self.kept = top[0].data.copy()
            top[0].reshape(7)
            self.dropped = top[0].data.copy()
            top[0].reshape()

        def forward(self, bottom, top):
            top[0].data[...] = 1
"""


def test_blob_attributes(user_module: UserModule) -> None:
    user_module("mylayers", BLOB)
    net = python_net(python("Looker", (5, 4)))
    user = net.module("l").user
    assert user.seen == (5, 4, 1, 1, 20, (5, 4), (), 0)
    assert user.kept.tolist() == [[7, 7]] * 3 and user.dropped.tolist() == [0] * 7
    assert net.shapes["y0"] == () and run(net, torch.zeros(5, 4))[0].item() == 1


# -- parameters in training


TRAINED = """
layer { name: "in" type: "Input" top: "x" top: "y" input_param { shape { dim: 4 dim: 3 } shape { dim: 4 dim: 2 } } }
layer { name: "x3" type: "Reshape" bottom: "x" top: "x3" reshape_param { shape { dim: 0 dim: 0 dim: 1 } } }
layer { name: "py" type: "Python" bottom: "x3" top: "py" param { lr_mult: 2 } param { lr_mult: 0 }
  python_param { module: "mylayers" layer: "Stretch" param_str: "0.5" } }
layer { name: "ip" type: "InnerProduct" bottom: "py" top: "ip"
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "Python" bottom: "ip" bottom: "y" top: "loss" loss_weight: 1
  python_param { module: "mylayers" layer: "EuclideanLoss" } }
"""


def trained(root: Path) -> Solver:
    (root / "net.prototxt").write_text(TRAINED)
    extra = 'momentum: 0.9 max_iter: 6 snapshot_prefix: "s" test_iter: 1 test_interval: 2'
    return Solver(write_solver(root, extra), allow_python_layers=True)


def test_training_snapshot_and_resume(mylayers: Path, tmp_path: Path) -> None:
    solver = trained(tmp_path)
    inputs = batch()
    solver.step(3, inputs)
    snapshot = solver.snapshot()
    weight, bias = solver.net.params["py"]
    assert torch.equal(solver.test_nets[0].params["py"][0], weight)
    assert not torch.equal(weight, torch.tensor([1.0, 2, 3])) and not bias.any()
    solver.step(2, inputs)
    resumed = trained(tmp_path)
    resumed.restore(str(snapshot).replace("caffemodel", "solverstate"))
    resumed.step(2, inputs)
    for name, blob in blobs_of(solver).items():
        assert torch.equal(blobs_of(resumed)[name], blob), name


def test_shared_parameters(mylayers: Path) -> None:
    text = python("Stretch", (2, 3, 4), param_str="1", more='param { name: "w" }')
    again = text.splitlines()[-1].replace('name: "l"', 'name: "m"').replace('top: "y0"', 'top: "y1"')
    net = python_net(f"{text}\n{again}")
    assert net.params["m"][0] is net.params["l"][0]
    x = noise(2, 3, 4).float()
    out = net(x0=x)
    torch.testing.assert_close(out["y0"], out["y1"])
    (out["y0"] + out["y1"]).sum().backward()
    torch.testing.assert_close(net.params["l"][0].grad, 2 * x.sum((0, 2)))


# -- caffe itself


def test_caffe_is_served_only_while_needed(user_module: UserModule) -> None:
    user_module(
        "mylayers",
        """
        import caffe
        from caffe.proto import caffe_pb2

        class Late(caffe.Layer):
            def setup(self, bottom, top):
                import caffe
                caffe.set_mode_gpu()
                caffe.set_device(1)
                self.test = caffe.TEST, caffe_pb2.Datum(label=4).label, self.type

            def reshape(self, bottom, top):
                top[0].reshape(1)

            def forward(self, bottom, top):
                pass
        """,
    )
    net = python_net(python("Late"))
    assert net.module("l").user.test == (1, 4, "Python")
    assert "caffe" not in sys.modules


@pytest.mark.parametrize("kind", ["installed", "folder"])
def test_caffe_that_is_there(user_module: UserModule, tmp_path: Path, kind: str) -> None:
    """An installed Caffe keeps all but its Layer; a mere folder of that name is none."""
    (tmp_path / "caffe").mkdir()
    source = "TRAIN, TEST, version = 0, 1, 'real'\nclass Layer:\n    def __init__(self):\n        raise TypeError\n"
    if kind == "installed":
        (tmp_path / "caffe" / "__init__.py").write_text(source)
    sys.path.insert(0, str(tmp_path))
    user_module("mylayers", LAYERS + "\n    version = getattr(caffe, 'version', None) if caffe.__path__ else ''\n"
                if kind == "installed" else LAYERS)  # fmt: skip
    assert python_net(python("Anchors"))()["y0"].shape == (2, 2)
    if kind == "installed":
        assert sys.modules["mylayers"].version == "real"
        with pytest.raises(TypeError):
            sys.modules["caffe"].Layer()
