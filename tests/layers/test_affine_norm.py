"""NVCaffe's BatchNorm, with scale and shift inside: what BatchNorm and a Scale with bias compute, in one layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from forcereg.net.load import load_net
from forcereg.net.module import Net
from forcereg.solver.loop import Solver
from tests.conftest import RunCli
from tests.layers.nets import gradcheck, layer_error, layer_net, layer_text, noise, run
from tests.small_nets import inputs

FILLERS = "scale_filler { type: 'uniform' min: 0.5 max: 2 } bias_filler { type: 'gaussian' std: 1 }"
SHAPES = [(4, 3), (4, 3, 2, 5), (6,), (2, 3, 4)]


def affine(more: str = "") -> str:
    return f"batch_norm_param {{ moving_average_fraction: 0.9 eps: 0.01 scale_bias: true {FILLERS} {more} }}"


def pair(shape: tuple[int, ...], phase: str, more: str = "") -> Net:
    """Caffe's two layers in place of one."""
    norm = f"batch_norm_param {{ moving_average_fraction: 0.9 eps: 0.01 {more} }}"
    scale = 'layer { name: "s" type: "Scale" bottom: "y0" top: "y0" scale_param { bias_term: true axis: AXIS } }'
    axes = "1" if len(shape) > 1 else "0 num_axes: 0"
    return load_net(f"{layer_text('BatchNorm', norm, shape)}\n{scale.replace('AXIS', axes)}", phase=phase)


def twins(shape: tuple[int, ...], phase: str, more: str = "") -> tuple[Net, Net]:
    """The one layer and the two, with the same blobs, in float64."""
    one, two = layer_net("BatchNorm", affine(more), shape, phase=phase).double(), pair(shape, phase, more).double()
    with torch.no_grad():
        for blob, value in zip(one.params["l"][:3], (0.4, 2.0, 1.5), strict=True):
            blob.copy_(torch.arange(1, blob.numel() + 1).double() * value)
        for blob, other in zip((*two.params["l"], *two.params["s"]), one.params["l"], strict=True):
            blob.copy_(other.reshape(blob.shape))
    return one, two


def results(net: Net, x: Tensor) -> list[Tensor]:
    """Outputs, gradients and what the pass leaves in the blobs."""
    x = x.clone().requires_grad_()
    y = net(x0=x)["y0"]
    (y * noise(*y.shape, seed=3)).sum().backward()
    blobs = [blob for blobs in net.params.values() for blob in blobs]
    return [y, x.grad, *(blob.grad.reshape(-1) for blob in net.parameters()), *(blob.reshape(-1) for blob in blobs)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("more", ["", "use_global_stats: true", "use_global_stats: false"])
def test_it_computes_what_the_two_layers_do(shape: tuple[int, ...], phase: str, more: str) -> None:
    one, two = twins(shape, phase, more)
    for found, wanted in zip(results(one, noise(*shape)), results(two, noise(*shape)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    if len(shape) > 1:
        assert one.params["l"][3].grad.abs().min() > 0


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_against_the_formula(phase: str) -> None:
    one, _ = twins((4, 3, 2, 5), phase)
    mean, variance, factor, scale, shift = (blob.detach().numpy().copy() for blob in one.params["l"])
    x = noise(4, 3, 2, 5).numpy()
    if phase == "TRAIN":
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
    else:
        mean, variance = mean / factor, variance / factor
    view = (1, 3, 1, 1)
    wanted = (x - mean.reshape(view)) / np.sqrt(variance.reshape(view) + np.float32(0.01))
    wanted = wanted * scale.reshape(view) + shift.reshape(view)
    np.testing.assert_allclose(run(one, torch.from_numpy(x))[0].detach().numpy(), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("shape", [(3, 2), (2, 2, 3), (4,)], ids=str)
def test_gradient(phase: str, shape: tuple[int, ...]) -> None:
    one, _ = twins(shape, phase)
    assert gradcheck(one, noise(*shape).requires_grad_())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blobs(shape: tuple[int, ...]) -> None:
    channels = shape[1] if len(shape) > 1 else 1
    net = layer_net("BatchNorm", "batch_norm_param { scale_bias: true }", shape)
    assert [tuple(blob.shape) for blob in net.params["l"]] == [(channels,)] * 2 + [(1,)] + [(channels,)] * 2
    assert [blob.tolist() for blob in net.params["l"][2:]] == [[0], [1] * channels, [0] * channels]
    assert [isinstance(blob, torch.nn.Parameter) for blob in net.params["l"]] == [False] * 3 + [True] * 2
    assert [(m.lr_mult, m.decay_mult) for m in net.learnable] == [(0, 1)] * 3 + [(1, 1)] * 2


@pytest.mark.parametrize(
    ("fields", "blobs"),
    [
        ("scale_bias: true", 5),
        ("scale_bias: false", 3),
        ("", 3),
        ("scale_filler { value: 2 }", 5),
        ("bias_filler { value: 2 }", 5),
        ("scale_bias: false scale_filler { value: 2 }", 3),
    ],
)
def test_a_filler_alone_says_that_it_scales(fields: str, blobs: int) -> None:
    net = layer_net("BatchNorm", f"batch_norm_param {{ {fields} }}", (2, 3))
    assert len(net.params["l"]) == blobs
    if blobs == 5:
        assert net.params["l"][3].tolist() == [2 if "scale_filler" in fields else 1] * 3
        assert net.params["l"][4].tolist() == [2 if "bias_filler" in fields else 0] * 3


def test_multipliers() -> None:
    entries = " ".join(
        f"param {{ lr_mult: {lr} decay_mult: {decay} }}" for lr, decay in ((0, 0),) * 3 + ((2, 0), (3, 5))
    )
    net = load_net(layer_text("BatchNorm", f"{entries} {affine()}", (2, 3)))
    assert [m.lr_mult for m in net.learnable] == [0, 0, 0, 2, 3]
    assert [m.decay_mult for m in net.learnable[3:]] == [0, 5]
    three = "param { lr_mult: 1 decay_mult: 1 } " * 3
    net = load_net(layer_text("BatchNorm", f"{three} {affine()}", (2, 3)))
    assert [m.lr_mult for m in net.learnable] == [0, 0, 0, 1, 1]
    with pytest.warns(UserWarning, match="blob 0 is a statistic; its lr_mult 1 is taken as 0"):
        load_net(layer_text("BatchNorm", f"param {{ lr_mult: 1 }} {affine()}", (2, 3)))


def test_the_four_blobs_of_an_older_nvcaffe_are_told_apart() -> None:
    text = layer_error("BatchNorm", "param { lr_mult: 1 } " * 2 + "param { lr_mult: 0 } " * 2 + affine(), (2, 3))
    assert text.startswith("has 4 param entries, as for the blobs of NVCaffe 0.15")


NET = """
name: "nvcaffe"
{data}
layer {{ name: "conv" type: "Convolution" bottom: "x" top: "c"
  convolution_param {{ num_output: 4 kernel_size: 3 weight_filler {{ type: "xavier" }} }} }}
{norm}
layer {{ name: "relu" type: "ReLU" bottom: "c" top: "c" }}
layer {{ name: "ip" type: "InnerProduct" bottom: "c" top: "ip"
  inner_product_param {{ num_output: 2 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "y" top: "loss" }}
"""
ONE = 'layer { name: "bn" type: "BatchNorm" bottom: "c" top: "c" batch_norm_param { scale_bias: true } }'
TWO = (
    'layer { name: "bn" type: "BatchNorm" bottom: "c" top: "c" }\n'
    'layer { name: "sc" type: "Scale" bottom: "c" top: "c" scale_param { bias_term: true } }'
)


def solver(folder: Path, norm: str, more: str = "") -> Solver:
    (folder / "net.prototxt").write_text(NET.format(data=inputs(x=(5, 3, 6, 6), y=(5, 2)), norm=norm))
    (folder / "solver.prototxt").write_text(
        'net: "net.prototxt" base_lr: 0.05 momentum: 0.9 weight_decay: 0.01 lr_policy: "fixed" max_iter: 8 '
        f'random_seed: 3 snapshot_prefix: "{folder}/snap" {more}'
    )
    return Solver(folder / "solver.prototxt")


def batches(count: int) -> list[dict[str, Tensor]]:
    return [{"x": noise(5, 3, 6, 6, seed=i).float(), "y": noise(5, 2, seed=9 + i).float()} for i in range(count)]


def trained(one: Solver, given: list[dict[str, Tensor]]) -> list[Tensor]:
    for batch in given:
        one.step(1, inputs=batch)
    return [blob.detach().clone() for blobs in one.net.params.values() for blob in blobs]


def test_training_is_that_of_the_two_layers(tmp_path: Path) -> None:
    found = []
    for name, norm in (("one", ONE), ("two", TWO)):
        (tmp_path / name).mkdir()
        found.append(trained(solver(tmp_path / name, norm), batches(6)))
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["HDF5", "BINARYPROTO"])
def test_snapshots_hold_five_blobs_and_training_goes_on_exactly(kind: str, tmp_path: Path) -> None:
    form = f"snapshot_format: {kind}"
    given = batches(6)
    wanted = trained(solver(tmp_path, ONE, form), given)
    first = solver(tmp_path, ONE, form)
    trained(first, given[:3])
    model = first.snapshot()
    second = solver(tmp_path, ONE, form)
    second.restore(str(model).replace("caffemodel", "solverstate"))
    for here, there in zip(trained(second, given[3:]), wanted, strict=True):
        torch.testing.assert_close(here, there, rtol=0, atol=0)
    net = load_net(tmp_path / "net.prototxt", model)
    for here, there in zip(net.params["bn"], first.net.params["bn"], strict=True):
        torch.testing.assert_close(here, there, rtol=0, atol=0)


def test_binary_snapshots_say_that_only_statistics_never_learn(tmp_path: Path) -> None:
    from forcereg.schema import NetParameter

    model = solver(tmp_path, ONE, "snapshot_format: BINARYPROTO").snapshot()
    layers = {layer.name: layer for layer in NetParameter.FromString(model.read_bytes()).layer}
    message = layers["bn"]
    assert message.batch_norm_param.scale_bias and len(message.blobs) == 5
    assert [param.lr_mult for param in message.param] == [0, 0, 0]


def test_the_command_line(run_cli: RunCli, tmp_path: Path) -> None:
    """The fault that was reported."""
    text = """layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } } }
        layer { name: "bn" type: "BatchNorm" bottom: "data" top: "bn"
          batch_norm_param { moving_average_fraction: 0.9 eps: 0.0001 scale_bias: true } }"""
    (tmp_path / "net.prototxt").write_text(text)
    done = run_cli("summary", "net.prototxt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "6 parameters (24 B) and 7 statistics" in done.stdout


def test_mixed_precision(tmp_path: Path) -> None:
    plain = trained(solver(tmp_path, ONE), batches(3))
    mixed = Solver(tmp_path / "solver.prototxt", amp="bf16")
    for here, there in zip(trained(mixed, batches(3)), plain, strict=True):
        torch.testing.assert_close(here, there, rtol=0.2, atol=0.05)
