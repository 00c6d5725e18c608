"""BatchNorm's statistics after a cut: those that plain PyTorch finds over the same batches, and what they gain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forcereg.errors import ForceregError
from forcereg.lowrank.decompose import LowrankNet, Selection, decompose, prepare
from forcereg.lowrank.ranks import by_list
from forcereg.net.load import load_net
from forcereg.schema.text import NetFile, net_from_message, parse_net, read_solver
from forcereg.solver.state import pack
from forcereg.study.moments import TrainingData
from forcereg.study.recalibrate import gather, recalibrate, recalibrated
from tests.solver.nets import IMAGE_DATA, IMAGES, write_images, write_solver

BATCHES = 7


def conv(name: str, bottom: str, more: str = "") -> str:
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" convolution_param '
        f'{{ num_output: 6 kernel_size: 3 weight_filler {{ type: "xavier" }} }} {more} }}'
    )


def norm(name: str, bottom: str, more: str = "") -> str:
    """BatchNorm and a Scale, in place."""
    blobs = f'bottom: "{bottom}" top: "{bottom}"'
    scale = f'layer {{ name: "{name}_s" type: "Scale" {blobs} scale_param {{ bias_term: true }} }}'
    return f'layer {{ name: "{name}" type: "BatchNorm" {blobs} {more} }}' + scale


DATA = (
    'layer { name: "data" type: "DummyData" top: "data" dummy_data_param { shape { dim: 5 dim: 2 dim: 9 dim: 9 } '
    "data_filler { type: 'uniform' min: -1 max: 3 } } }"
)
DROP = 'layer { name: "drop" type: "Dropout" bottom: "c1" top: "c1" }'
TEXT = DATA + conv("c1", "data") + norm("n1", "c1") + DROP + conv("c2", "c1") + norm("n2", "c2")


def trained(text: str) -> tuple[NetFile, dict[str, dict[int, np.ndarray]]]:
    """A net and weights whose statistics are of some passes."""
    net = load_net(text, phase="TRAIN", seed=1)
    for _ in range(3):
        net()
    return parse_net(text), pack(net)


def cut(text: str, ranks: tuple[int, ...] = (1, 1)) -> tuple[NetFile, LowrankNet]:
    """The net, harshly decomposed."""
    file, weights = trained(text)
    made = decompose(file, weights, by_list(ranks))
    return net_from_message(made.net), made


@torch.no_grad()
def by_torch(weights: dict[str, dict[int, np.ndarray]], batches: list[Tensor]) -> list[nn.BatchNorm2d]:
    """The statistics of both BatchNorms of the cut net by torch's own layers: momentum None is the plain mean."""
    blobs = {
        name: {i: torch.from_numpy(np.array(v, np.float32)) for i, v in of.items()} for name, of in weights.items()
    }
    found = [nn.BatchNorm2d(6, momentum=None) for _ in range(2)]
    for x in batches:
        for number, one in enumerate(found, 1):
            x = F.conv2d(F.conv2d(x, blobs[f"c{number}_lowrank"][0]), *blobs[f"c{number}_linear"].values())
            scale, shift = blobs[f"n{number}_s"].values()
            x = one(x) * scale[:, None, None] + shift[:, None, None]
    return found


def test_statistics_are_those_of_plain_pytorch() -> None:
    file, made = cut(TEXT)
    data = TrainingData(BATCHES)
    net = data.net(file, made.weights)
    batches = [net(blobs=["data"])["data"] for _ in range(BATCHES)]
    found = recalibrated(file, made.weights, data)
    for name, expected in zip(("n1", "n2"), by_torch(made.weights, batches), strict=True):
        mean, variance, factor = found[name].values()
        assert factor == BATCHES and not np.array_equal(mean, made.weights[name][0])
        np.testing.assert_allclose(mean / factor, expected.running_mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(variance / factor, expected.running_var, rtol=1e-4, atol=1e-5)
    for name, blobs in made.weights.items():
        if name not in ("n1", "n2"):
            assert all(np.array_equal(found[name][i], values) for i, values in blobs.items())


def test_it_is_repeatable_and_the_seed_tells_the_batches() -> None:
    file, made = cut(TEXT)
    first, again, other = (recalibrated(file, made.weights, TrainingData(2, seed=seed)) for seed in (3, 3, 4))
    assert all(np.array_equal(first[name][0], again[name][0]) for name in ("n1", "n2"))
    assert not np.array_equal(first["n1"][0], other["n1"][0])


@pytest.mark.parametrize("setting", ["use_global_stats: true", "moving_average_fraction: 0.5 eps: 1e-3"])
def test_frozen_statistics_too(setting: str) -> None:
    text = DATA + conv("c1", "data") + norm("n1", "c1") + conv("c2", "c1")
    plain, made = cut(text)
    frozen = net_from_message(plain.message)
    (layer,) = (layer for layer in frozen.message.layer if layer.type == "BatchNorm")
    layer.batch_norm_param.MergeFrom(
        parse_net(f"layer {{ batch_norm_param {{ {setting} }} }}").message.layer[0].batch_norm_param
    )
    expected, found = (recalibrated(file, made.weights, TrainingData(3))["n1"] for file in (plain, frozen))
    assert all(np.array_equal(expected[i], found[i]) for i in range(3))


def test_a_shared_norm_counts_all_its_batches() -> None:
    specs = " ".join(f'param {{ name: "{name}" lr_mult: 0 }}' for name in "mvf")
    text = DATA + conv("c1", "data") + norm("n1", "c1", specs) + conv("c2", "c1") + norm("n2", "c2", specs)
    file, made = cut(text)
    assert "n2" not in made.weights or not made.weights["n2"]
    found = recalibrated(file, made.weights, TrainingData(4))
    assert found["n1"][2] == 8 and not found.get("n2")


def test_a_net_is_left_as_it_was() -> None:
    net = load_net(TEXT, phase="TRAIN", seed=1)
    settings = [(one.training, one.fraction, one.global_stats) for name in ("n1", "n2") for one in [net.module(name)]]
    gather(net, 2)
    assert net.training and net.module("drop").training
    assert settings == [(m.training, m.fraction, m.global_stats) for name in ("n1", "n2") for m in [net.module(name)]]


def test_what_is_not_finite_is_told() -> None:
    file, made = cut(TEXT)
    weights = {**made.weights, "c1_linear": {0: made.weights["c1_linear"][0] * np.inf, 1: made.weights["c1_linear"][1]}}
    with pytest.raises(ForceregError, match="the input of layer 'n1' isn't finite"):
        recalibrated(file, weights, TrainingData(1))


def test_a_net_without_batchnorm() -> None:
    file, made = cut(DATA + conv("c1", "data") + conv("c2", "c1"))
    with pytest.raises(ForceregError, match="the net has no BatchNorm, so there are no statistics"):
        recalibrated(file, made.weights, TrainingData(1))


def test_a_deploy_net_takes_the_solvers_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_images(tmp_path))
    solver = read_solver(write_solver(tmp_path, "max_iter: 1"))
    whole = load_net(IMAGES, phase="TRAIN", seed=1)
    deploy = IMAGES.replace(IMAGE_DATA, 'layer { name: "data" type: "Input" top: "data" input_param '
                            "{ shape { dim: 1 dim: 1 dim: 6 dim: 6 } } }").split('layer { name: "loss"')[0]  # fmt: skip
    found = []
    for text in (IMAGES, deploy):
        prepared = prepare(parse_net(text), pack(whole), None, Selection())
        made = prepared.apply({"conv": 1})
        data = TrainingData(5, solver)
        found.append(recalibrate(made, prepared, pack(whole), {"conv": 1}, data).weights["bn"])
    assert all(np.array_equal(found[0][i], found[1][i]) for i in range(3)) and found[0][2] == 5
