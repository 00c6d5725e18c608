"""Second moments of layers' inputs, and what decompositions gain by them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import forcereg.net.moments as moments
from forcereg.errors import ForceregError, UsageError
from forcereg.lowrank.decompose import Selection, prepare
from forcereg.lowrank.ladder import Ladder
from forcereg.lowrank.methods import RIDGE
from forcereg.net.load import load_net
from forcereg.net.module import Net
from forcereg.net.moments import input_moments
from forcereg.schema.text import parse_net, read_solver
from forcereg.solver.state import pack
from forcereg.study.moments import TrainingData, prepare_aware
from tests.solver.nets import IMAGES, write_images, write_solver

BATCHES = 3


def noise(*dims: int) -> str:
    shape = " ".join(f"dim: {n}" for n in dims)
    return (
        'layer { name: "data" type: "DummyData" top: "data" dummy_data_param { '
        f"data_filler {{ type: 'gaussian' mean: 0.3 }} shape {{ {shape} }} }} }}"
    )


def layer(kind: str, param: str) -> str:
    filler = "weight_filler { type: 'gaussian' } bias_term: false"
    field = "inner_product_param" if kind == "InnerProduct" else "convolution_param"
    return f'layer {{ name: "one" type: "{kind}" bottom: "data" top: "one" {field} {{ {param} {filler} }} }}'


def net_of(dims: tuple[int, ...], kind: str, param: str) -> Net:
    return load_net(noise(*dims) + layer(kind, param), seed=1)


@torch.no_grad()
def responses(net: Net, groups: int) -> Tensor:
    """(groups, N / groups, n): the layer's tops over the batches that `input_moments` saw of a net like this."""
    axis = net.module("one").axis
    tops = [net()["one"].double().movedim(axis, 0).flatten(1) for _ in range(BATCHES)]
    return torch.cat(tops, 1).unflatten(0, (groups, -1))


# (dims, type, parameters, groups); num_output is K, so that the outputs tell all of the moments
LAYERS = [
    pytest.param((4, 2, 6, 7), "Convolution", "num_output: 18 kernel_size: 3", 1, id="2-axes"),
    pytest.param(
        (4, 2, 7, 9), "Convolution", "num_output: 12 kernel_h: 3 kernel_w: 2 stride: 2 pad: 1", 1, id="stride"
    ),
    pytest.param((3, 2, 9, 9), "Convolution", "num_output: 8 kernel_size: 2 dilation: 3 pad: 2", 1, id="dilation"),
    pytest.param((4, 6, 5, 5), "Convolution", "num_output: 24 kernel_size: 2 group: 3 pad: 1", 3, id="groups"),
    pytest.param((5, 3, 11), "Convolution", "num_output: 12 kernel_size: 4 stride: 3", 1, id="1-axis"),
    pytest.param((2, 2, 4, 5, 3), "Convolution", "num_output: 16 kernel_size: 2", 1, id="3-axes"),
    pytest.param((2, 1, 3, 4, 3, 4), "Convolution", "num_output: 16 kernel_size: 2 pad: 1", 1, id="4-axes"),
    pytest.param((2, 3, 2, 5, 5), "Convolution", "num_output: 8 axis: 2 kernel_size: 2", 1, id="channels-behind"),
    pytest.param((8, 2, 3, 2), "InnerProduct", "num_output: 12", 1, id="inner-product"),
    pytest.param((2, 5, 3, 2), "InnerProduct", "num_output: 6 axis: 2", 1, id="inner-product-of-rows"),
    pytest.param((8, 6), "InnerProduct", "num_output: 6 transpose: true", 1, id="inner-product-transposed"),
]


@pytest.mark.parametrize(("dims", "kind", "param", "groups"), LAYERS)
@pytest.mark.parametrize("chunk", [moments.CHUNK, 50], ids=["at-once", "in-chunks"])
def test_moments_explain_the_responses(
    dims: tuple[int, ...], kind: str, param: str, groups: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "CHUNK", chunk)
    found = input_moments(net_of(dims, kind, param), ["one"], BATCHES)["one"]
    net = net_of(dims, kind, param)
    weight = net.module("one").weight_blob().detach().double()
    weight = (weight.T if "transpose" in param else weight).flatten(1).unflatten(0, (groups, -1))
    tops = responses(net, groups)
    expected = tops @ tops.mT / tops.shape[-1]
    assert found.dtype == torch.float64 and found.shape[0] == groups
    torch.testing.assert_close(weight @ found @ weight.mT, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("method", ["pca", "svd"])
@pytest.mark.parametrize("groups", [1, 2])
def test_data_aware_is_at_least_as_good_at_every_rank(method: str, groups: int) -> None:
    """The error of the responses, as computed from responses, against that of a decomposition of the weights alone."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(8, 3, 2, 2, generator=generator, dtype=torch.float64)
    # inputs whose directions differ much in power, as behind a ReLU
    mixing = torch.randn(groups, 12, 12, generator=generator, dtype=torch.float64) * torch.logspace(0, -2, 12)
    inputs = torch.randn(groups, 500, 12, generator=generator, dtype=torch.float64) @ mixing
    metric = inputs.mT @ inputs / inputs.shape[1]

    def response(weight: Tensor) -> Tensor:
        return weight.flatten(1).unflatten(0, (groups, -1)) @ inputs.mT

    def error(approximation: Tensor) -> float:
        return float(response(weight - approximation).square().sum() / response(weight).square().sum())

    plain, aware = Ladder(weight, method, groups), Ladder(weight, method, groups, metric)
    gained = 0
    for rank in range(groups, aware.full_rank + 1, groups):
        factors = aware.factors(rank)
        own, others = error(factors.reconstruct()), error(plain.factors(rank).reconstruct())
        assert own == pytest.approx(factors.error, rel=1e-2, abs=10 * RIDGE)
        assert own <= others + 10 * RIDGE
        gained += own < 0.5 * others
    assert gained  # or the metric would be without effect


def test_what_cannot_be_told() -> None:
    net = net_of((4, 2, 6, 6), "Convolution", "num_output: 4 kernel_size: 3")
    with pytest.raises(ForceregError, match="layer 'other' doesn't run in its train phase"):
        input_moments(net, ["other"], 1)
    pooled = 'layer { name: "pool" type: "Pooling" bottom: "data" top: "pool" pooling_param { kernel_size: 2 } }'
    with pytest.raises(ForceregError, match="Convolution and InnerProduct layers only"):
        input_moments(load_net(noise(2, 3, 4, 4) + pooled), ["pool"], 1)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    return write_images(tmp_path)


def weights_of(root: Path) -> dict[str, dict[int, object]]:
    return pack(load_net(root / "net.prototxt", phase="TRAIN", seed=3))


BODY = IMAGES[IMAGES.index('layer {\n  name: "conv"') : IMAGES.index('layer { name: "loss"')]
DEPLOY = 'input: "data" input_shape { dim: 1 dim: 1 dim: 6 dim: 6 } ' + BODY


@pytest.mark.parametrize("net", ["own", "solver", "deploy"])
def test_batches_of_training(trained: Path, net: str) -> None:
    solver = read_solver(write_solver(trained, "max_iter: 1"))
    text = DEPLOY if net == "deploy" else IMAGES
    file = parse_net(text, str(trained / "net.prototxt"))
    selection = Selection(fc=True)
    data = TrainingData(4, None if net == "own" else solver)
    aware = prepare_aware(file, weights_of(trained), None, selection, data)
    plain = prepare(file, weights_of(trained), None, selection)
    assert [one.name for one in aware.candidates] == ["conv", "ip"]
    for one, other in zip(aware.candidates, plain.candidates, strict=True):
        assert one.ladder.error(2) != pytest.approx(other.ladder.error(2), rel=1e-3)


def test_no_training_data(trained: Path) -> None:
    file = parse_net(DEPLOY, "deploy.prototxt")
    with pytest.raises(ForceregError, match=r"deploy\.prototxt: its train phase reads no data"):
        prepare_aware(file, weights_of(trained), None, Selection(), TrainingData(1))


def test_no_method_for_it(trained: Path) -> None:
    file = parse_net(IMAGES, str(trained / "net.prototxt"))
    with pytest.raises(UsageError, match="--data-aware needs a layer to decompose by pca or svd; there is vh"):
        prepare_aware(file, weights_of(trained), None, Selection("vh"), TrainingData(1))
