"""A layer's own fields as keyword arguments of a torch module, and in the options of other classes."""

from __future__ import annotations

import typing
from collections.abc import Sequence

import pytest
import torch
from torch import nn

import forcereg
from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from forcereg.schema.text import to_text
from tests.layers.nets import layer_net, layer_text, noise, run
from tests.layers.python_nets import UserModule


class Told(nn.Module):
    """Keeps what it was given."""

    def __init__(
        self,
        order: Sequence[int] = (),
        pair: int | tuple[int, int] = 1,
        axes: list[int] | None = None,
        plain=None,
        sizes=(1,),
        name: str = "",
        big_param: "Missing | None" = None,  # noqa: F821, UP037
    ) -> None:
        super().__init__()
        self.given = {
            key: value
            for key, value in (
                ("order", order), ("pair", pair), ("axes", axes), ("plain", plain), ("sizes", sizes), ("name", name),
                ("big_param", big_param),
            )
        }  # fmt: skip

    def forward(self, x):
        return x


class Any(nn.Module):
    def __init__(self, **options: typing.Any) -> None:
        super().__init__()
        self.given = options

    def forward(self, x):
        return x


@pytest.fixture(autouse=True)
def types(user_module: UserModule) -> None:
    forcereg.layer("Told")(Told)
    forcereg.layer("Any")(Any)


def given(text: str, kind: str = "Any") -> dict[str, object]:
    return dict(layer_net(kind, text, (2, 3)).module("l").inner.given)


def test_fields_become_keywords() -> None:
    assert given("a_param { x: 1 y: 'b' } b_param { z: 0.5 } loose: true") == {
        "x": 1, "y": "b", "z": 0.5, "loose": True
    }  # fmt: skip
    assert given("python_param { param_str: '{\"x\": [1]}' } a_param { y: 2 }") == {"x": [1], "y": 2}
    assert given("convolution_param { num_output: 3 kernel_size: 3 weight_filler { type: 'msra' } pad: 1 pad: 2 }") == {
        "num_output": 3, "kernel_size": 3, "weight_filler": {"type": "msra"}, "pad": [1, 2]
    }  # fmt: skip
    assert given("") == {}


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("order: 0", "order", [0]),
        ("order: 0 order: 2", "order", [0, 2]),
        ("pair: 3", "pair", 3),
        ("pair: 3 pair: 4", "pair", [3, 4]),
        ("pair: [3]", "pair", 3),
        ("axes: 1", "axes", [1]),
        ("plain: 1", "plain", 1),
        ("sizes: 1", "sizes", [1]),
        ("name: 'x'", "name", "x"),
    ],
)
def test_single_values_and_lists(text: str, key: str, value: object) -> None:
    assert given(f"told_param {{ {text} }}", "Told")[key] == value


def test_a_message_as_a_keyword() -> None:
    assert given("big_param { x: 1 y { z: 2 } }", "Told")["big_param"] == {"x": 1, "y": {"z": 2}}


def wrong(kind: str, text: str) -> str:
    with pytest.raises(ForceregError) as caught:
        layer_net(kind, text, (2, 3))
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix("<text>:2: layer 'l': ")


def test_what_a_class_does_not_take() -> None:
    takes = "it takes order, pair, axes, plain, sizes, name, big_param"
    assert wrong("Told", "t_param { ordre: 1 }") == f"'ordre' (in t_param) is no keyword of Told; {takes}"
    assert wrong("Told", "ordre: 1") == f"'ordre' (in the layer) is no keyword of Told; {takes}"
    assert wrong("Any", "a_param { x: 1 } b_param { x: 2 }") == "'x' is given in a_param and in b_param; remove one"
    text = "python_param { param_str: '{\"x\": 1}' } x: 2"
    assert wrong("Any", text) == "'x' is given in param_str and in the layer; remove one"
    assert wrong("Any", 'x: "\\xff"') == '"\\xff" is no string in UTF-8'


def test_permute() -> None:
    @forcereg.layer("Permute")
    class Permute(nn.Module):
        def __init__(self, order: Sequence[int]) -> None:
            super().__init__()
            self.order = order

        def forward(self, x):
            return x.permute(*self.order)

    text = layer_text("Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }", (1, 3, 4, 5))
    x = noise(1, 3, 4, 5).float()
    net = load_net(text)
    assert torch.equal(run(net, x)[0], x.permute(0, 2, 3, 1)) and net.shapes["y0"] == (1, 4, 5, 3)
    assert load_net(to_text(net.spec.layers[-1].message) and net.spec.text).shapes["y0"] == (1, 4, 5, 3)


def test_layers_say_what_they_read() -> None:
    class Norm(forcereg.Layer):
        def __init__(self, spec, shapes) -> None:
            super().__init__(spec, shapes)
            self.found = spec.options
            self.out_shapes = (shapes[0],)

        def forward(self, x):
            return x

    forcereg.layer("Norm", "norm_param.eps power_param image_data_param.label_type")(Norm)
    text = "norm_param { eps: 1e-5 } power_param { scale: 2 } image_data_param { source: 's' label_type: PIXEL }"
    assert layer_net("Norm", text, (2, 3)).module("l").found == {
        "norm_param": {"eps": 1e-5},
        "power_param": {"scale": 2.0},
        "image_data_param": {"source": "s", "label_type": "PIXEL"},
    }
    said = "is no field of Caffe's, and Norm doesn't say that it reads it; register it by forcereg.layer"
    assert wrong("Norm", "norm_parm { eps: 1 }") == f'\'norm_parm\' {said}("Norm", params="norm_parm")'
    assert wrong("Norm", "power_param { scael: 1 }").startswith(f"'power_param.scael' {said}(")
    assert wrong("Norm", "bn_param { scael: 1 }").startswith(f"'bn_param' {said}(")


def test_layers_say_which_fields_they_read() -> None:
    class Norm(forcereg.Layer):
        def __init__(self, spec, shapes) -> None:
            super().__init__(spec, shapes)
            self.out_shapes = (shapes[0],)

    forcereg.layer("Norm", "norm_param.eps")(Norm)
    assert wrong("Norm", "norm_param { eps: 1 esp: 1 }").startswith("'norm_param.esp' is no field of Caffe's, and Norm")
