"""BatchNorm, Scale, sum and ReLU as one: which layers are, and that nobody can tell."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from forcereg.net.module import Net
from tests.small_nets import inputs, module_copies

DATA = inputs(x=(4, 3, 5, 5), z=(4, 3, 5, 5))


def line(kind: str, name: str, bottoms: str, top: str, param: str = "") -> str:
    blobs = " ".join(f'bottom: "{bottom}"' for bottom in bottoms.split())
    return f'layer {{ name: "{name}" type: "{kind}" {blobs} top: "{top}" {param} }}'


CONV = line(
    "Convolution",
    "conv",
    "x",
    "c",
    "convolution_param { num_output: 3 kernel_size: 3 pad: 1 weight_filler { type: 'xavier' } }",
)
AFFINE = "bias_term: true filler { type: 'uniform' min: 0.5 max: 2 } bias_filler { type: 'gaussian' std: 1 }"
NORM, RELU = line("BatchNorm", "norm", "c", "c"), line("ReLU", "relu", "c", "c")
SCALE = line("Scale", "scale", "c", "c", f"scale_param {{ {AFFINE} }}")
SELF = line("BatchNorm", "norm", "c", "c", "batch_norm_param { scale_bias: true }")
ADD, ADDED = line("Eltwise", "add", "z c", "a"), line("ReLU", "relu", "a", "a")

FUSED = {
    "scale": [NORM, SCALE],
    "relu": [NORM, RELU],
    "scale_relu": [NORM, SCALE, RELU],
    "no_bias": [NORM, line("Scale", "scale", "c", "c"), RELU],
    "add": [NORM, ADD],
    "add_relu": [NORM, SCALE, ADD, ADDED],
    "second_bottom": [NORM, SCALE, line("Eltwise", "add", "c z", "a"), ADDED],
    "own_tops": [
        line("BatchNorm", "norm", "c", "n"),
        line("Scale", "scale", "n", "s", f"scale_param {{ {AFFINE} }}"),
        line("Eltwise", "add", "s z", "a"),
        line("ReLU", "relu", "a", "r"),
    ],
    "late_bottom": [NORM, SCALE, line("TanH", "tanh", "z", "t"), line("Eltwise", "add", "t c", "a"), ADDED],
    "global": [line("BatchNorm", "norm", "c", "c", "batch_norm_param { use_global_stats: true }"), SCALE, RELU],
    "then_scale": [NORM, RELU, line("Scale", "after", "c", "c", f"scale_param {{ {AFFINE} }}")],
    "loss_weight": [NORM, SCALE, line("ReLU", "relu", "c", "c", "loss_weight: 2")],
    "scales_itself": [SELF, RELU],
    "scales_itself_add": [SELF, ADD, ADDED],
}
ALONE = {
    "last": [NORM],
    "scaled_twice": [SELF, SCALE],
    "slope": [NORM, line("ReLU", "relu", "c", "c", "relu_param { negative_slope: 0.1 }")],
    "read_twice": [line("BatchNorm", "norm", "c", "n"), line("ReLU", "relu", "n", "r"), line("TanH", "tanh", "n", "t")],
    "loss_weight": [
        line("BatchNorm", "norm", "c", "n", "loss_weight: 1"),
        line("Scale", "scale", "n", "s", f"scale_param {{ {AFFINE} }}"),
    ],
    "propagate_down": [NORM, line("ReLU", "relu", "c", "c", "propagate_down: true")],
    "axis": [NORM, line("Scale", "scale", "c", "c", "scale_param { axis: 0 }")],
    "two_axes": [NORM, line("Scale", "scale", "c", "c", "scale_param { num_axes: 2 }")],
    "two_bottoms": [NORM, line("Scale", "scale", "c z", "s", "scale_param { axis: 0 }")],
    "coeff": [NORM, line("Eltwise", "add", "c z", "a", "eltwise_param { coeff: 1 coeff: -1 }")],
    "product": [NORM, line("Eltwise", "add", "c z", "a", "eltwise_param { operation: PROD }")],
    "three": [NORM, line("Eltwise", "add", "c z x", "a")],
    "itself": [NORM, line("Eltwise", "add", "c c", "a")],
}


def built(lines: list[str], phase: str = "TRAIN") -> Net:
    net = load_net("\n".join([DATA, CONV, *lines]), phase=phase, seed=3).double()
    with torch.no_grad():
        for value, blob in enumerate(net.module("norm").blobs, 1):
            blob.fill_(value)
    return net


def values(count: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(count, 3, 5, 5, generator=generator, dtype=torch.float64) for name in ("x", "z")}


def fused(net: Net) -> list[tuple[str, ...]]:
    return [step.keys for step in net._plan.fused if len(step.keys) > 1]


def results(net: Net) -> dict[str, Tensor]:
    """What a pass gives and leaves behind: outputs, loss, gradients and blobs."""
    given = {name: value.requires_grad_() for name, value in values().items()}
    loss, found = net.forward_loss(given)
    (loss + sum(top.square().sum() for top in found.values())).backward()
    leaves = {**given, **dict(net.named_parameters())}
    grads = {f"{name} gradient": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return {"loss": loss, **found, **grads, **net.state_dict()}


def one_by_one(net: Net) -> Net:
    net.around = lambda spec, module, bottoms: module(*bottoms)
    return net


@pytest.mark.parametrize("lines", FUSED.values(), ids=FUSED)
@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_fused_layers_compute_what_they_do_one_by_one(lines: list[str], phase: str) -> None:
    net, plain = built(lines, phase), one_by_one(built(lines, phase))
    expected = [name for name in ("norm", "scale", "add", "relu") if f'name: "{name}"' in " ".join(lines)]
    assert fused(net) == [tuple(expected)]
    torch.testing.assert_close(results(net), results(plain), rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(net(values()), plain(values()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("lines", ALONE.values(), ids=ALONE)
def test_layers_that_must_stay_alone(lines: list[str]) -> None:
    net = built(lines)
    assert not fused(net)
    torch.testing.assert_close(results(net), results(one_by_one(built(lines))), rtol=0, atol=0)


def test_two_branches_that_meet() -> None:
    other = [text.replace('"c"', '"d"').replace('name: "', 'name: "other_') for text in (CONV, NORM, SCALE)]
    lines = [NORM, SCALE, *other, line("Eltwise", "add", "d c", "a"), ADDED]
    net = built(lines)
    assert fused(net) == [("other_norm", "other_scale"), ("norm", "scale", "add", "relu")]
    torch.testing.assert_close(results(net), results(one_by_one(built(lines))), rtol=1e-10, atol=1e-10)


def test_blobs_between_can_be_asked_for() -> None:
    lines = FUSED["own_tops"]
    found = built(lines)(values(), blobs=["n", "s", "a"])
    torch.testing.assert_close(found["r"], found["a"].relu(), rtol=0, atol=0)
    torch.testing.assert_close(found["a"], found["s"] + values()["z"], rtol=0, atol=0)
    torch.testing.assert_close(found["r"], built(lines)(values())["r"], rtol=1e-10, atol=1e-10)


def test_hooks_of_the_modules_are_called() -> None:
    net = built(FUSED["add_relu"])
    seen: list[Any] = []
    for name in ("norm", "add"):
        net.module(name).register_forward_hook(lambda module, bottoms, top: seen.append(module.spec.name))
    expected = built(FUSED["add_relu"])(values())
    torch.testing.assert_close(net(values()), expected, rtol=1e-10, atol=1e-10)
    assert seen == ["norm", "add"]


def test_a_sum_of_unlike_shapes_is_an_error_still() -> None:
    with pytest.raises(ForceregError, match=r"layer 'add': bottoms .* must have one shape"):
        built(FUSED["add_relu"])({"x": values()["x"], "z": values()["z"][:1]})


@pytest.mark.parametrize("copy", ["deepcopy", "pickle", "save"])
def test_copies_fuse_their_own_modules(copy: str) -> None:
    net = built(FUSED["add_relu"])
    twin = module_copies(net)[copy]
    expected = net(values())
    with torch.no_grad():
        net.module("scale").weight.zero_()  # type: ignore[union-attr, operator]
    torch.testing.assert_close(twin(values()), expected, rtol=0, atol=0)
