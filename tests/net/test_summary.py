"""What `summarize` counts: parameters, statistics, MACs and memory."""

from __future__ import annotations

from math import prod

import pytest

from forcereg.net.load import load_net, shape_net
from forcereg.net.summary import Summary, size, summarize
from forcereg.system.shipped import configs_dir
from tests.small_nets import inputs, ip

CONV = (
    'layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 6 kernel_size: 3 %s } }'
)


def summary(text: str, phase: str = "TEST") -> Summary:
    return summarize(shape_net(text, phase))


@pytest.mark.parametrize(
    ("param", "params", "macs"),
    [
        pytest.param("", 6 * 4 * 9 + 6, 6 * 36 * 8 * 8, id="plain"),
        pytest.param("group: 2", 6 * 2 * 9 + 6, 6 * 18 * 8 * 8, id="group"),
        pytest.param("bias_term: false stride: 2", 6 * 4 * 9, 6 * 36 * 4 * 4, id="stride"),
    ],
)
def test_convolution(param: str, params: int, macs: int) -> None:
    found = summary(inputs(x=(5, 4, 10, 10)) + CONV % param)
    assert (found.batch, found.params, found.macs) == (5, params, macs)


def test_deconvolution_is_counted_as_the_convolution_that_it_transposes() -> None:
    text = inputs(x=(5, 4, 10, 10)) + (CONV % "stride: 2").replace('"Convolution"', '"Deconvolution"')
    assert summary(text).macs == 4 * 6 * 9 * 100


def test_memory_counts_what_is_written_not_what_is_overwritten() -> None:
    relu = 'layer { name: "r" type: "ReLU" bottom: "y" top: "y" }'
    rows = summary(inputs(x=(5, 4)) + ip("ip", "x", "y", 3) + relu).rows
    assert [row.memory for row in rows] == [4 * 20, 4 * 15, 0]


def test_a_shared_parameter_counts_once() -> None:
    shared = ip("a", "x", "y", 4, "param { name: 'w' } param { name: 'b' }")
    again = ip("b", "y", "z", 4, "param { name: 'w' } param { name: 'b' }")
    found = summary(inputs(x=(5, 4)) + shared + again)
    assert [row.params for row in found.rows] == [0, 20, 0] and found.macs == 32
    assert [row.borrowed for row in found.rows] == [0, 0, 20]


def test_statistics_are_not_parameters() -> None:
    bn = 'layer { name: "bn" type: "BatchNorm" bottom: "x" top: "bn" }'
    found = summary(inputs(x=(5, 4, 2, 2)) + bn)
    assert (found.params, found.statistics) == (0, 4 + 4 + 1)


def test_splits_are_left_out() -> None:
    text = inputs(x=(5, 4)) + ip("a", "x", "y", 3) + ip("b", "x", "z", 3)
    assert [row.type for row in summary(text).rows] == ["Input", "InnerProduct", "InnerProduct"]


@pytest.mark.parametrize("deploy", ["mnist/lenet", "cifar10/cifar10_resnet20"])
def test_counts_agree_with_a_real_net(deploy: str) -> None:
    path = configs_dir() / f"examples/{deploy}.prototxt"
    found, net = summarize(shape_net(path)), load_net(path)
    assert found.params == sum(p.numel() for p in net.parameters())
    assert found.statistics == sum(b.numel() for b in net.buffers())
    blobs = {name: shape for row in found.rows for name, shape in row.tops.items()}
    assert {name: shape for name, shape in net.shapes.items() if "_split" not in name} == blobs
    assert found.memory == 4 * sum(prod(shape) for shape in blobs.values())


def test_report_is_plain_data() -> None:
    report = summary(inputs(x=(5, 4)) + ip("ip", "x", "y", 3)).report()
    assert report["totals"] == {"params": 15, "statistics": 0, "macs": 12, "memory": 140}
    assert report["layers"][1]["tops"] == {"y": [5, 3]}


@pytest.mark.parametrize(
    ("count", "text"), [(0, ""), (7, "7 B"), (1536, "1.5 KiB"), (54 << 20, "54 MiB"), (1288490188, "1.20 GiB")]
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text
