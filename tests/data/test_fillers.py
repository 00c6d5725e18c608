"""Fillers: Caffe's recorded statistics and exact values, and their checks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forcereg.net.load import load_net
from forcereg.schema.text import parse_net
from tests.golden_cases import Case, golden_cases
from tests.layers.nets import layer_error, layer_net


def draws(case: Case, count: int) -> np.ndarray:
    name, index = case.attrs["param"].rsplit("/", 1)
    nets = (load_net(case.attrs["prototxt"], seed=seed) for seed in range(count))
    return np.stack([net.params[name][int(index)].detach().numpy() for net in nets])


@pytest.mark.parametrize("case", golden_cases("fillers"))
def test_recorded_filler(case: Case) -> None:
    attrs = case.attrs
    values = draws(case, 1 if attrs["exact"] else int(attrs["draws"]))
    assert values.shape[1:] == tuple(attrs["shape"])
    if attrs["exact"]:
        np.testing.assert_allclose(values[0], case.load("values"), rtol=1e-6)
        return
    kind = parse_net(f"layer {{ convolution_param {{ weight_filler {{ {attrs['filler']} }} }} }}").message
    kind = kind.layer[0].convolution_param.weight_filler.type
    assert values.std() == pytest.approx(attrs["std"], rel=0.03)
    assert values.mean() == pytest.approx(attrs["mean"], abs=5 * attrs["std"] / values.size**0.5 + 1e-7)
    assert np.abs(values).mean() == pytest.approx(attrs["mean_abs"], rel=0.03)
    assert (values == 0).mean() == pytest.approx(attrs["fraction_zero"], abs=0.03)
    if kind in ("uniform", "xavier"):
        bound = max(abs(attrs["min"]), abs(attrs["max"]))
        assert np.abs(values).max() == pytest.approx(bound, rel=0.01)
        assert (values.min() < 0) == (attrs["min"] < 0)
    if kind == "positive_unitball":
        assert values.min() >= 0
        np.testing.assert_allclose(values.reshape(-1, values[0, 0].size).sum(1), 1, atol=1e-5)


def weight_of(filler: str, shape: tuple[int, int, int], group: int = 1, seed: int | None = 0) -> torch.Tensor:
    """A convolution weight of (outputs, inputs, kernel, kernel) with this filler."""
    outputs, inputs, kernel = shape
    param = f"num_output: {outputs} group: {group} kernel_size: {kernel} weight_filler {{ {filler} }}"
    net = layer_net("Convolution", f"convolution_param {{ {param} }}", (1, inputs, kernel, kernel), seed=seed)
    return net.params["l"][0]


@pytest.mark.parametrize(
    ("kernel", "line"),
    [
        (1, [1]),
        (2, [0.5, 0.5]),
        (3, [0.5, 1, 0.5]),
        (4, [0.25, 0.75, 0.75, 0.25]),
        (5, [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3]),
    ],
)
def test_bilinear(kernel: int, line: list[float]) -> None:
    weight = weight_of("type: 'bilinear'", (2, 1, kernel)).detach().numpy()
    for plane in weight.reshape(-1, kernel, kernel):
        np.testing.assert_allclose(plane, np.outer(line, line), atol=1e-6)


@pytest.mark.parametrize(
    ("norm", "bound"), [("FAN_IN", 3 / 18), ("FAN_OUT", 3 / 36), ("AVERAGE", 3 / 27)], ids=lambda v: str(v)
)
def test_variance_norm(norm: str, bound: float) -> None:
    """A (4, 2, 3, 3) weight: fan in 18, fan out 36."""
    peak = max(
        weight_of(f"type: 'xavier' variance_norm: {norm}", (4, 2, 3), seed=seed).abs().max().item()
        for seed in range(20)
    )
    assert bound**0.5 * 0.98 < peak <= bound**0.5


def test_fans_swap_with_transpose() -> None:
    peaks = []
    for flag in ("false", "true"):
        param = f"num_output: 5 transpose: {flag} weight_filler {{ type: 'xavier' }}"
        net = layer_net("InnerProduct", f"inner_product_param {{ {param} }}", (1, 500))
        peaks.append(net.params["l"][0].abs().max().item())
    assert peaks[0] == pytest.approx((3 / 500) ** 0.5, rel=0.02)
    assert peaks[1] == pytest.approx((3 / 5) ** 0.5, rel=0.02)


def test_a_seed_draws_the_same_and_another_differs() -> None:
    first, again, other = (weight_of("type: 'gaussian'", (4, 2, 3), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_without_a_seed_fillers_are_random() -> None:
    assert not torch.equal(*(weight_of("type: 'gaussian'", (4, 2, 3), seed=None) for _ in range(2)))


def test_a_filler_of_a_0_axis_blob() -> None:
    for kind in ("xavier", "msra", "positive_unitball"):
        net = layer_net("Scale", f"scale_param {{ num_axes: 0 filler {{ type: '{kind}' }} }}", (2, 3))
        assert net.params["l"][0].shape == ()


@pytest.mark.parametrize(
    ("filler", "message"),
    [
        ("type: 'xaver'", "unknown filler type 'xaver'; did you mean \"xavier\"?"),
        ("type: 'qqqqqqq'", "known are bilinear, constant, gaussian"),
        ("type: 'gaussian' std: 0", "gaussian filler has std 0; expected > 0"),
        ("type: 'gaussian' std: -1", "gaussian filler has std -1; expected > 0"),
        ("type: 'gaussian' sparse: 5", "gaussian filler has sparse 5, more than the 4 outputs"),
        ("type: 'xavier' sparse: 2", "filler 'xavier' takes no `sparse`"),
        ("type: 'uniform' min: 2 max: 1", "uniform filler has min 2 > max 1"),
        ("type: 'bilinear'", "bilinear filler needs a 4-axis blob with a square kernel; found [4, 2, 3, 2]"),
    ],
)
def test_bad_fillers(filler: str, message: str) -> None:
    param = f"num_output: 4 kernel_h: 3 kernel_w: 2 weight_filler {{ {filler} }}"
    assert message in layer_error("Convolution", f"convolution_param {{ {param} }}", (1, 2, 5, 5))


BLOBS = "blobs {{ shape {{ dim: 2 dim: 3 }} {data} }} blobs {{ shape {{ dim: 2 }} data: 7 data: 8 }}"


def test_blobs_written_in_the_net_win_over_fillers() -> None:
    values = " ".join(f"data: {i}" for i in range(6))
    param = "inner_product_param { num_output: 2 weight_filler { type: 'gaussian' } }"
    net = layer_net("InnerProduct", f"{BLOBS.format(data=values)} {param}", (1, 3))
    assert net.params["l"][0].tolist() == [[0, 1, 2], [3, 4, 5]] and net.params["l"][1].tolist() == [7, 8]


@pytest.mark.parametrize(
    ("data", "outputs", "message"),
    [
        ("data: 1 data: 2", 2, "blob 0 holds 2 values in shape [2, 3]; expected one value each"),
        ("data: [1, 2, 3, 4, 5, 6]", 4, "gives blobs [[2, 3], [2]]; expected [[4, 3], [4]], or none"),
    ],
)
def test_bad_blobs_in_the_net(data: str, outputs: int, message: str) -> None:
    param = f"{BLOBS.format(data=data)} inner_product_param {{ num_output: {outputs} }}"
    assert message in layer_error("InnerProduct", param, (1, 3))
