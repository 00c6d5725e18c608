"""torch.nn.Modules as layers: named by type Python, or registered as types of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import forcereg
from forcereg import registry
from forcereg.errors import ForceregError
from forcereg.net.load import load_net, shape_net
from forcereg.net.module import Net
from forcereg.solver.loop import Solver
from tests.layers.nets import gradcheck, layer_net, layer_text, noise, run
from tests.layers.python_nets import UserModule
from tests.small_nets import module_copies
from tests.solver.nets import batch, blobs_of, write_solver

MODULES = """
    import torch
    from torch import nn

    class Low(nn.Module):
        '''A low-rank pair with running statistics.'''

        def __init__(self, channels, rank, bias=True):
            super().__init__()
            self.scale = nn.Parameter(torch.full((rank,), 2.0))
            self.down = nn.Conv2d(channels, rank, (3, 1), bias=bias)
            self.up = nn.Conv2d(rank, channels, (1, 3), bias=False)

        def forward(self, x):
            return self.up(self.down(x) * self.scale[:, None, None])

    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)
            self.register_buffer("scratch", torch.zeros(3), persistent=False)

        def forward(self, x):
            return self.norm(x)

    class Halves(nn.Module):
        def forward(self, x):
            half = x.shape[1] // 2
            return x[:, :half], x[:, half:].argmax(1)

    class Positive(nn.Module):
        '''What meta tensors can't do: its shape depends on the values.'''

        def forward(self, x):
            return torch.rand(int((x >= 0).sum()))

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3, bias=False)
            self.b = nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    class Fails(nn.Module):
        def forward(self, x):
            if x.device.type == "meta" or not x.any():
                return x
            raise KeyError("late")

    class Picky(nn.Module):
        def forward(self, x):
            raise ValueError("early")

    class Schedule(nn.Module):
        '''Computes with values while it is made.'''

        def __init__(self):
            super().__init__()
            self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]
            self.gain = nn.Parameter(torch.tensor(self.rates))

        def forward(self, x):
            return x * self.gain * self.rates[1]

    class Nothing(nn.Module):
        def forward(self, x):
            return None
"""


@pytest.fixture
def modules(user_module: UserModule) -> None:
    """mymodules.py in the working directory."""
    user_module("mymodules", MODULES)


def python(layer: str, *shapes: tuple[int, ...], param_str: str = "", tops: int = 1, more: str = "") -> str:
    """A net of one layer that is a module of mymodules, or of torch.nn if its name has a dot."""
    where, _, name = layer.rpartition(".")
    param = f"python_param {{ module: '{where or 'mymodules'}' layer: '{name}' param_str: '{param_str}' }} {more}"
    return layer_text("Python", param, *shapes, tops=tops)


def python_net(text: str, phase: str = "TEST") -> Net:
    return load_net(text, phase=phase, allow_python_layers=True)


def wrong(text: str) -> str:
    with pytest.raises(ForceregError) as info:
        python_net(text)
    assert "\n" not in str(info.value)
    return str(info.value).split(": ", 2)[2]


@pytest.mark.parametrize(
    ("layer", "param_str", "module", "shape"),
    [
        ("torch.nn.Mish", "", nn.Mish(), (2, 3)),
        ("torch.nn.ELU", '{"alpha": 0.5}', nn.ELU(0.5), (2, 3)),
        ("torch.nn.AvgPool2d", '{"kernel_size": (2, 1), "ceil_mode": True}', nn.AvgPool2d((2, 1), ceil_mode=True),
         (1, 2, 5, 3)),
        ("torch.nn.Flatten", " {} ", nn.Flatten(), (2, 3, 4)),
    ],
    ids=["mish", "json", "literal", "flatten"],
)  # fmt: skip
def test_torch_nn(layer: str, param_str: str, module: nn.Module, shape: tuple[int, ...]) -> None:
    x = noise(*shape)
    net = python_net(python(layer, shape, param_str=param_str))
    torch.testing.assert_close(run(net, x)[0], module(x), rtol=0, atol=0)
    assert net.shapes["y0"] == tuple(module(x).shape)
    assert gradcheck(net, x.requires_grad_())


def test_parameters_are_blobs_in_their_order(modules: None) -> None:
    text = python("Low", (2, 4, 5, 6), param_str='{"channels": 4, "rank": 3}', more="param { } param { lr_mult: 0 }")
    net = python_net(text)
    assert [list(blob.shape) for blob in net.params["l"]] == [[3], [3, 4, 3, 1], [3], [4, 3, 1, 3]]
    assert [blob.requires_grad for blob in net.params["l"]] == [True, False, True, True]
    assert net.params["l"][0].tolist() == [2, 2, 2]
    assert net.shapes["y0"] == (2, 4, 3, 4)
    assert net.module("l").macs == 2 * (3 * 4 * 3 * 3 * 6 + 4 * 3 * 3 * 3 * 4)
    assert gradcheck(net, noise(2, 4, 5, 6).requires_grad_())


def test_without_memory(modules: None) -> None:
    net = shape_net(python("Low", (2, 4, 5, 6), param_str='{"channels": 4, "rank": 3}'), allow_python_layers=True)
    assert net.shapes["y0"] == (2, 4, 3, 4) and all(blob.is_meta for blob in net.params["l"])


def test_values_while_it_is_made(modules: None) -> None:
    text = python("Schedule", (2, 3))
    net = shape_net(text, allow_python_layers=True)
    assert net.shapes["y0"] == (2, 3) and all(blob.is_meta for blob in net.params["l"])
    assert python_net(text).params["l"][0].tolist() == [0, 0.5, 1]


@pytest.mark.parametrize("on_meta", [False, True])
def test_shapes_that_depend_on_values(modules: None, on_meta: bool) -> None:
    text = python("Positive", (2, 3))
    state = torch.get_rng_state()
    net = shape_net(text, allow_python_layers=True) if on_meta else python_net(text)
    assert net.shapes["y0"] == (6,)
    assert torch.equal(torch.get_rng_state(), state)
    if not on_meta:
        assert len(run(net, torch.tensor([[1.0, -1, 1], [-1, -1, -1]]))[0]) == 2


def test_several_tops_and_whole_numbers(modules: None) -> None:
    net = python_net(python("Halves", (2, 6), tops=2))
    x = noise(2, 6).float()
    first, second = run(net, x)
    assert torch.equal(first, x[:, :3]) and second.tolist() == x[:, 3:].argmax(1).tolist()
    assert second.dtype == torch.float32
    assert (net.shapes["y0"], net.shapes["y1"]) == ((2, 3), (2,))


def test_tied_weights_are_one_blob_and_can_be_shared(modules: None) -> None:
    lines = python("Tied", (2, 3), more='param { name: "w" }').splitlines()
    other = lines[-1].replace('name: "l"', 'name: "m"').replace('"y0"', '"y1"')
    net = python_net("\n".join([*lines, other]))
    (weight,) = net.params["l"]
    inner = net.module("m").inner
    assert net.params["m"][0] is weight and inner.a.weight is weight and inner.b.weight is weight
    x = noise(2, 3).float()
    torch.testing.assert_close(net(x0=x)["y1"], x @ weight.T @ weight.T)


def test_unlike_blobs_are_not_shared(modules: None) -> None:
    text = python("Tied", (2, 3), more='param { name: "w" }') + (
        '\nlayer { name: "ip" type: "InnerProduct" bottom: "x0" top: "z" param { name: "w" share_mode: PERMISSIVE } '
        "inner_product_param { num_output: 3 bias_term: false } }"
    )
    lines = text.splitlines()
    conv = lines[2].replace("num_output: 3", "num_output: 9 axis: 2").replace('bottom: "x0"', 'bottom: "r"')
    reshape = (
        'layer { name: "r" type: "Reshape" bottom: "x0" top: "r" reshape_param { shape { dim: 2 dim: 3 dim: 1 } } }'
    )
    swapped = "\n".join([lines[0], reshape, conv, lines[1].replace('name: "w"', 'name: "w" share_mode: PERMISSIVE')])
    assert wrong(swapped).startswith("blob 0 ('a.weight', [3, 3]) of Tied cannot be shared with one of shape [9, 1]")


NORMED = """
layer { name: "in" type: "Input" top: "x" top: "y" input_param { shape { dim: 4 dim: 3 } shape { dim: 4 dim: 2 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip"
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "norm" type: "Python" bottom: "ip" top: "norm" python_param { module: "mymodules" layer: "Norm" } }
layer { name: "loss" type: "EuclideanLoss" bottom: "norm" bottom: "y" top: "loss" }
"""


def trained(root: Path) -> Solver:
    (root / "net.prototxt").write_text(NORMED)
    extra = 'momentum: 0.9 max_iter: 6 snapshot_prefix: "s" test_iter: 1 test_interval: 2'
    return Solver(write_solver(root, extra), allow_python_layers=True)


def test_statistics_are_tested_saved_and_restored(modules: None, tmp_path: Path) -> None:
    solver = trained(tmp_path)
    inputs = batch()
    solver.step(3, inputs)
    weight, bias, mean, variance = solver.net.params["norm"]
    assert mean.abs().min() > 0 and (variance - 1).abs().min() > 0
    tested = solver.test_nets[0]
    assert not tested.training and solver.net.training
    found = tested(inputs, blobs=["ip", "norm"])
    expected = (found["ip"] - mean) / (variance + 1e-5).sqrt() * weight + bias
    torch.testing.assert_close(found["norm"], expected)
    model = solver.snapshot()
    solver.step(2, inputs)
    resumed = trained(tmp_path)
    resumed.restore(str(model).replace("caffemodel", "solverstate"))
    resumed.step(2, inputs)
    for name, blob in blobs_of(solver).items():
        assert torch.equal(blobs_of(resumed)[name], blob), name


@pytest.mark.parametrize("registered", [False, True], ids=["python", "registered"])
def test_copies(user_module: UserModule, registered: bool) -> None:
    if registered:
        forcereg.layer("Linear")(nn.Linear)
    param_str = '{"in_features": 3, "out_features": 2}'
    text = python("torch.nn.Linear", (4, 3), param_str=param_str)
    net = load_net(text.replace('"Python"', '"Linear"')) if registered else python_net(text)
    x = noise(4, 3).float()
    for name, twin in module_copies(net).items():
        assert torch.equal(run(twin, x)[0], run(net, x)[0]), name
        assert twin.params["l"][0] is not net.params["l"][0]


# -- errors


@pytest.mark.parametrize(
    ("layer", "param_str", "text"),
    [
        ("torch.nn.Linear", '{"in_features": 3}', "Linear(in_features=3) raised TypeError: Linear.__init__() missing"),
        (
            "torch.nn.ELU",
            "alpha=1",
            "param_str is 'alpha=1'; expected a module's keyword arguments as a JSON or Python",
        ),
        ("torch.nn.ELU", "[1, 2]", "param_str is '[1, 2]'; expected"),
        ("torch.nn.ELU", "{1: 2}", "param_str is '{1: 2}'; expected"),
        ("torch.nn.ELU", "(" * 5000, "param_str is '(((((((("),
        (
            "torch.nn.LazyLinear",
            '{"out_features": 2}',
            "LazyLinear leaves the size of its parameter 'weight' open; give",
        ),
        (
            "torch.nn.Linear",
            '{"in_features": 4, "out_features": 2}',
            "Linear.forward raised RuntimeError: ",  # whose words differ between versions
        ),
        ("torch.nn.Mesh", "", "Python module 'torch.nn' ("),
        ("torch.nn.ReLU", '{"inplace": True, "x": 1}', "'x' (in param_str) is no keyword of ReLU; it takes inplace"),
        ("Picky", "", "Picky.forward raised ValueError: early (mymodules.py:55)"),
        ("Nothing", "", "Nothing.forward returned NoneType; expected one tensor, one per top"),
        ("Halves", "", "Halves.forward returned Tensor, Tensor; expected one tensor, one per top"),
    ],
)
def test_wrong_when_built(modules: None, layer: str, param_str: str, text: str) -> None:
    assert wrong(python(layer, (2, 3), param_str=param_str)).startswith(text)


def test_wrong_when_run(modules: None) -> None:
    net = python_net(python("Fails", (2, 3)))
    assert not run(net, torch.zeros(2, 3))[0].any()
    with pytest.raises(ForceregError) as info:
        run(net, torch.ones(2, 3))
    assert str(info.value) == "<text>:2: layer 'l': Fails.forward raised KeyError: 'late' (mymodules.py:51)"


def test_a_layer_without_tops(modules: None) -> None:
    assert wrong(python("Halves", (2, 3), tops=0)) == "has 0 top blobs; type Python takes at least 1"


# -- types of the users' own


def test_a_module_as_a_type(user_module: UserModule) -> None:
    assert forcereg.layer("Mish")(nn.Mish) is nn.Mish
    x = noise(2, 3)
    torch.testing.assert_close(run(layer_net("Mish", "", (2, 3)), x)[0], nn.Mish()(x))
    net = layer_net("Mish", "python_param { param_str: '{\"inplace\": false}' }", (2, 3))
    assert gradcheck(net, x.requires_grad_())
    assert registry.layer.about("Mish").params == ("python_param.param_str",)
    assert registry.layer.get("Mish").__doc__ == nn.Mish.__doc__


def test_decorators(user_module: UserModule) -> None:
    @forcereg.layer("Double", "power_param", limits="none")
    class Double(forcereg.Layer):
        """Twice the bottom, times power_param.scale."""

        def __init__(self, spec, shapes) -> None:
            super().__init__(spec, shapes)
            self.factor = 2 * spec.message.power_param.scale
            self.out_shapes = (shapes[0],)

        def forward(self, x):
            return self.factor * x

    @forcereg.layer("Shift")
    class Shift(nn.Module):
        def __init__(self, by: float = 1) -> None:
            super().__init__()
            self.by = nn.Parameter(torch.tensor(float(by)))

        def forward(self, x):
            return x + self.by

    x = noise(2, 3).float()
    assert torch.equal(run(layer_net("Double", "power_param { scale: 3 }", (2, 3)), x)[0], 6 * x)
    assert registry.layer.about("Double") == registry.About(("power_param",), "none")
    net = layer_net("Shift", "python_param { param_str: \"{'by': 4}\" }", (2, 3))
    assert torch.equal(run(net, x)[0], x + 4)
    assert isinstance(Shift(2), nn.Module) and issubclass(Double, forcereg.Layer)


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (lambda x: x, "layer type 'Own' is of type function; expected a torch.nn.Module or forcereg.Layer class"),
        (nn.Mish(), "layer type 'Own' is of type Mish; expected a torch.nn.Module or forcereg.Layer class"),
        (int, "layer type 'Own' is int; expected a torch.nn.Module or forcereg.Layer class"),
    ],
    ids=["function", "instance", "class"],
)
def test_what_is_no_layer(item, text: str) -> None:
    with pytest.raises(ForceregError) as info:
        forcereg.layer("Own")(item)
    assert str(info.value) == text


def test_a_type_that_is_there() -> None:
    with pytest.raises(ValueError, match="layer type 'ReLU' is registered twice"):
        forcereg.layer("ReLU")(nn.ReLU)
