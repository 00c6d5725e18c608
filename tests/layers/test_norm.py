"""LRN, MVN, BatchNorm, Scale and Bias against direct formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forcereg.net.load import load_net
from tests.layers.nets import apply, gradcheck, layer_error, layer_net, layer_text, noise, run


def direct_lrn(x: np.ndarray, size: int, alpha: float, beta: float, k: float, within: bool) -> np.ndarray:
    y, half = np.zeros_like(x), size // 2
    for n, c, i, j in np.ndindex(*x.shape):
        if within:
            patch = x[n, c, max(i - half, 0) : i + half + 1, max(j - half, 0) : j + half + 1]
            scale = 1 + alpha * (patch**2).sum() / size**2
        else:
            scale = k + alpha / size * (x[n, max(c - half, 0) : c + half + 1, i, j] ** 2).sum()
        y[n, c, i, j] = x[n, c, i, j] * scale**-beta
    return y


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4)),
    st.sampled_from([1, 3, 5, 7, 101, 4294967295]),
    st.sampled_from([0.0, 0.5, 2.0]),
    st.sampled_from([0.25, 0.75, 1.0]),
    st.sampled_from([1.0, 2.0]),
    st.booleans(),
)
def test_lrn(shape: tuple[int, ...], size: int, alpha: float, beta: float, k: float, within: bool) -> None:
    region = "WITHIN_CHANNEL" if within else "ACROSS_CHANNELS"
    param = f"lrn_param {{ local_size: {size} alpha: {alpha} beta: {beta} k: {k} norm_region: {region} }}"
    x = noise(*shape)
    (y,) = apply("LRN", param, x)
    np.testing.assert_allclose(y.numpy(), direct_lrn(x.numpy(), size, alpha, beta, k, within), rtol=1e-12)


@pytest.mark.parametrize("beta", [0.75, 0.5])
@pytest.mark.parametrize("size", [1, 3, 9])
@pytest.mark.parametrize("region", ["WITHIN_CHANNEL", "ACROSS_CHANNELS"])
def test_lrn_gradient(region: str, size: int, beta: float) -> None:
    param = f"lrn_param {{ local_size: {size} beta: {beta} k: 2 norm_region: {region} }}"
    net = layer_net("LRN", param, (2, 4, 3, 2))
    assert gradcheck(net, noise(2, 4, 3, 2).requires_grad_())


def test_a_nan_stays_in_its_lrn_windows() -> None:
    x = noise(1, 6, 2, 2)
    x[0, 0, 0, 0] = torch.nan
    (y,) = apply("LRN", "lrn_param { local_size: 3 }", x)
    assert y.isnan().nonzero().tolist() == [[0, 0, 0, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("param", "shape", "message"),
    [
        ("local_size: 4", (1, 2, 3, 3), "local_size is 4; expected an odd number"),
        ("local_size: 0", (1, 2, 3, 3), "local_size is 0; expected an odd number"),
        ("", (2, 3), "must have 4 axes"),
    ],
)
def test_bad_lrn(param: str, shape: tuple[int, ...], message: str) -> None:
    assert message in layer_error("LRN", f"lrn_param {{ {param} }}", shape)


# -- MVN


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4), (2, 3), (4,)], ids=str)
@pytest.mark.parametrize("across", [False, True], ids=["channels", "across"])
@pytest.mark.parametrize("eps", [1e-9, 0.5])
def test_mvn(shape: tuple[int, ...], across: bool, eps: float) -> None:
    x, grad = noise(*shape).requires_grad_(), noise(*shape, seed=1)
    param = f"mvn_param {{ across_channels: {str(across).lower()} eps: {eps} }}"
    (y,) = apply("MVN", param, x)
    y.backward(grad)
    rows = int(np.prod(shape[: 1 if across else 2]))
    flat, g = x.detach().numpy().reshape(rows, -1), grad.numpy().reshape(rows, -1)
    scale = flat.std(1, keepdims=True) + np.float32(eps)
    expected = (flat - flat.mean(1, keepdims=True)) / scale
    back = (g - g.mean(1, keepdims=True) - expected * (g * expected).mean(1, keepdims=True)) / scale
    np.testing.assert_allclose(y.detach().numpy().reshape(rows, -1), expected, atol=1e-12)
    np.testing.assert_allclose(x.grad.numpy().reshape(rows, -1), back, atol=1e-9)


@pytest.mark.parametrize("across", ["true", "false"])
def test_mvn_mean_alone(across: str) -> None:
    net = layer_net("MVN", f"mvn_param {{ normalize_variance: false across_channels: {across} }}", (2, 3, 2, 2))
    x = noise(2, 3, 2, 2).requires_grad_()
    (y,) = run(net, x)
    torch.testing.assert_close(y, x - x.mean((1, 2, 3) if across == "true" else (2, 3), keepdim=True))
    assert gradcheck(net, x)


def test_mvn_gradient_is_the_derivative_where_eps_is_small() -> None:
    assert gradcheck(layer_net("MVN", "", (2, 3, 2, 2)), noise(2, 3, 2, 2).requires_grad_())


def test_mvn_of_constants_and_of_no_images() -> None:
    x = torch.full((1, 2, 3, 3), 7.0).requires_grad_()
    net = layer_net("MVN", "", (1, 2, 3, 3))
    (y,) = run(net, x)
    assert y.tolist() == torch.zeros(1, 2, 3, 3).tolist()
    y.sum().backward()
    assert x.grad.isfinite().all()
    assert run(net, torch.ones(0, 2, 3, 3))[0].shape == (0, 2, 3, 3)


def test_mvn_of_five_axes() -> None:
    assert "must have at most 4 axes" in layer_error("MVN", "", (1, 2, 3, 3, 3))


# -- BatchNorm


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2, 5), (6,), (2, 3, 4)], ids=str)
def test_batch_norm_trains_and_sums(shape: tuple[int, ...]) -> None:
    param = "batch_norm_param { moving_average_fraction: 0.9 eps: 0.01 }"
    net = layer_net("BatchNorm", param, shape, phase="TRAIN").double()
    x, channels = noise(*shape), shape[1] if len(shape) > 1 else 1
    flat = x.reshape(shape[0], channels, -1).transpose(0, 1).reshape(channels, -1)
    if len(shape) == 1:
        flat = x.reshape(1, -1)
    (y,) = run(net, x)
    spread = (flat.var(1, unbiased=False) + 0.01).sqrt()
    view = (1, channels, *(1 for _ in shape[2:])) if len(shape) > 1 else (1,)
    torch.testing.assert_close(y, (x - flat.mean(1).view(view)) / spread.view(view))
    run(net, x)
    mean, variance, factor = net.params["l"]
    torch.testing.assert_close(mean, 1.9 * flat.mean(1))
    torch.testing.assert_close(variance, 1.9 * flat.var(1))
    torch.testing.assert_close(factor, torch.tensor([1.9]).double())
    net.eval()
    (y,) = run(net, x)
    torch.testing.assert_close(y, (x - flat.mean(1).view(view)) / (flat.var(1) + 0.01).sqrt().view(view))
    torch.testing.assert_close(factor, torch.tensor([1.9]).double())


def test_batch_norm_sums_update_without_gradients_too() -> None:
    net = layer_net("BatchNorm", "", (4, 3), phase="TRAIN")
    with torch.no_grad():
        run(net, noise(4, 3).float())
    assert net.params["l"][2].item() == 1


def test_batch_norm_of_one_value_per_channel() -> None:
    net = layer_net("BatchNorm", "", (1, 3), phase="TRAIN")
    (y,) = run(net, torch.tensor([[5.0, 6.0, 7.0]]))
    assert y.tolist() == [[0, 0, 0]]
    mean, variance, factor = net.params["l"]
    assert (mean.tolist(), variance.tolist(), factor.tolist()) == ([5, 6, 7], [0, 0, 0], [1])


def test_batch_norm_with_factor_zero_uses_zero_statistics() -> None:
    (y,) = apply("BatchNorm", "batch_norm_param { eps: 0.25 }", torch.ones(2, 3))
    assert y.tolist() == [[2, 2, 2], [2, 2, 2]]


@pytest.mark.parametrize(
    ("flag", "phase", "uses_sums"),
    [("true", "TRAIN", True), ("false", "TEST", False), (None, "TRAIN", False), (None, "TEST", True)],
)
def test_use_global_stats_wins_over_the_phase(flag: str | None, phase: str, uses_sums: bool) -> None:
    param = f"batch_norm_param {{ use_global_stats: {flag} }}" if flag else ""
    net = layer_net("BatchNorm", param, (4, 3), phase=phase)
    (y,) = run(net, noise(4, 3).float() + 9)
    assert (abs(y.mean()) > 1) == uses_sums
    assert net.params["l"][2].item() == (0 if uses_sums else 1)


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("shape", [(3, 2), (2, 2, 3), (4,)], ids=str)
def test_batch_norm_gradient(phase: str, shape: tuple[int, ...]) -> None:
    net = layer_net("BatchNorm", "batch_norm_param { eps: 0.1 }", shape, phase=phase)
    net.params["l"][2].fill_(2)
    net.params["l"][1].fill_(3)
    assert gradcheck(net, noise(*shape).requires_grad_())


def test_batch_norm_blobs_are_buffers() -> None:
    net = layer_net("BatchNorm", "", (4, 3))
    assert [tuple(blob.shape) for blob in net.params["l"]] == [(3,), (3,), (1,)]
    assert not any(isinstance(blob, torch.nn.Parameter) for blob in net.params["l"])
    assert [(m.lr_mult, m.force_mult) for m in net.learnable] == [(0, 0)] * 3


def test_batch_norm_param_entry_with_a_rate_warns() -> None:
    with pytest.warns(UserWarning, match="layer 'l': blob 0 is a statistic; its lr_mult 1 is taken as 0"):
        net = load_net(layer_text("BatchNorm", "param { lr_mult: 1 }", (4, 3)))
    assert net.learnable[0].lr_mult == 0


# -- Scale


@pytest.mark.parametrize(
    ("param", "gamma"),
    [
        ("", (3,)),
        ("axis: 0", (2,)),
        ("axis: -1", (5,)),
        ("axis: 1 num_axes: 2", (3, 4)),
        ("axis: 0 num_axes: -1", (2, 3, 4, 5)),
        ("num_axes: 0", ()),
        ("axis: 2 num_axes: -1", (4, 5)),
    ],
)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_scale(param: str, gamma: tuple[int, ...], bias: bool) -> None:
    shape = (2, 3, 4, 5)
    net = layer_net("Scale", f"scale_param {{ {param} bias_term: {str(bias).lower()} }}", shape).double()
    blobs = net.params["l"]
    assert [tuple(blob.shape) for blob in blobs] == [gamma] * (1 + bias)
    assert bool((blobs[0] == 1).all()) and not any(bool(blob.any()) for blob in blobs[1:])
    with torch.no_grad():
        for i, blob in enumerate(blobs):
            blob.copy_(noise(*gamma, seed=i + 1))
    x = noise(*shape).requires_grad_()
    (y,) = run(net, x)
    axis = {"axis: 0": 0, "axis: -1": 3, "axis: 2 num_axes: -1": 2, "axis: 0 num_axes: -1": 0}.get(param, 1)
    spread = [blob.detach().reshape(*gamma, *(1 for _ in shape[axis + len(gamma) :])) for blob in blobs]
    torch.testing.assert_close(y, x * spread[0] + (spread[1] if bias else 0))
    assert gradcheck(net, x)


@pytest.mark.parametrize(
    ("shapes", "axis", "view"),
    [
        (((2, 3, 4), (2,)), 0, (2, 1, 1)),
        (((2, 3, 4), (3, 4)), 1, (1, 3, 4)),
        (((2, 3, 4), ()), 1, (1, 1, 1)),
        (((5,), ()), 1, (1,)),
    ],
    ids=str,
)
def test_scale_by_the_second_bottom(shapes: tuple[tuple[int, ...], ...], axis: int, view: tuple[int, ...]) -> None:
    net = layer_net("Scale", f"scale_param {{ axis: {axis} bias_term: true }}", *shapes)
    assert [tuple(blob.shape) for blob in net.params["l"]] == [shapes[1]]
    x, multiplier = noise(*shapes[0]).requires_grad_(), noise(*shapes[1], seed=1).requires_grad_()
    (y,) = run(net.double(), x, multiplier)
    torch.testing.assert_close(y, x * multiplier.reshape(view))
    assert gradcheck(net, x, multiplier)


@pytest.mark.parametrize(
    ("param", "beta"),
    [
        ("", (3,)),
        ("axis: 0", (2,)),
        ("axis: -1", (5,)),
        ("axis: -3 num_axes: 2", (3, 4)),
        ("axis: 0 num_axes: -1", (2, 3, 4, 5)),
        ("num_axes: 0", ()),
        ("axis: 2 num_axes: -1", (4, 5)),
    ],
)
def test_bias(param: str, beta: tuple[int, ...]) -> None:
    shape = (2, 3, 4, 5)
    net = layer_net("Bias", f"bias_param {{ {param} filler {{ type: 'gaussian' }} }}", shape).double()
    (blob,) = net.params["l"]
    assert tuple(blob.shape) == beta
    assert bool(blob.any())
    x = noise(*shape).requires_grad_()
    (y,) = run(net, x)
    axis = {"axis: 0": 0, "axis: -1": 3, "axis: 2 num_axes: -1": 2, "axis: 0 num_axes: -1": 0}.get(param, 1)
    expected = x + blob.detach().reshape(*beta, *(1 for _ in shape[axis + len(beta) :]))
    torch.testing.assert_close(y, expected)
    assert gradcheck(net, x)


@pytest.mark.parametrize(
    ("shapes", "axis", "view"),
    [
        (((2, 3, 4), (2,)), 0, (2, 1, 1)),
        (((2, 3, 4), (3, 4)), 1, (1, 3, 4)),
        (((2, 3, 4), (3,)), -2, (1, 3, 1)),
        (((2, 3, 4), ()), 1, (1, 1, 1)),
        (((5,), ()), 1, (1,)),
    ],
    ids=str,
)
def test_bias_of_the_second_bottom(shapes: tuple[tuple[int, ...], ...], axis: int, view: tuple[int, ...]) -> None:
    net = layer_net("Bias", f"bias_param {{ axis: {axis} }}", *shapes)
    assert net.params["l"] == ()
    x, beta = noise(*shapes[0]).requires_grad_(), noise(*shapes[1], seed=1).requires_grad_()
    torch.testing.assert_close(run(net, x, beta)[0], x + beta.reshape(view))
    assert gradcheck(net, x, beta)


@pytest.mark.parametrize(
    ("param", "shapes", "message"),
    [
        ("axis: 4", ((2, 3),), "axis 4 is outside its 2-axis bottom"),
        ("num_axes: 3", ((2, 3),), "num_axes 3 from axis 1 exceeds its 2-axis bottom"),
        ("num_axes: -2", ((2, 3),), "num_axes -2"),
        ("", ((2, 3), (4,)), "bias [4] doesn't fit bottom [2, 3] from axis 1"),
        ("", ((2, 3), (3, 4)), "bias [3, 4] doesn't fit"),
    ],
)
def test_bad_bias(param: str, shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    assert message in layer_error("Bias", f"bias_param {{ {param} }}", *shapes)


def test_scale_fillers() -> None:
    param = "filler { value: 4 } bias_term: true bias_filler { value: 0.5 }"
    (y,) = apply("Scale", f"scale_param {{ {param} }}", torch.ones(1, 2))
    assert y.tolist() == [[4.5, 4.5]]


@pytest.mark.parametrize(
    ("param", "shapes", "message"),
    [
        ("axis: 4", ((2, 3),), "axis 4 is outside its 2-axis bottom"),
        ("num_axes: 3", ((2, 3),), "num_axes 3 from axis 1 exceeds its 2-axis bottom"),
        ("num_axes: -2", ((2, 3),), "num_axes -2"),
        ("", ((2, 3), (4,)), "multiplier [4] doesn't fit bottom [2, 3] from axis 1"),
        ("", ((2, 3), (3, 4)), "multiplier [3, 4] doesn't fit"),
    ],
)
def test_bad_scale(param: str, shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    assert message in layer_error("Scale", f"scale_param {{ {param} }}", *shapes)


def test_scale_bias_has_its_own_param_entry() -> None:
    net = layer_net("Scale", "param { lr_mult: 0 } param { lr_mult: 3 } scale_param { bias_term: true }", (2, 3))
    gamma, beta = net.params["l"]
    assert (gamma.requires_grad, beta.requires_grad) == (False, True)
    assert [m.lr_mult for m in net.learnable] == [0, 3]


def test_batch_norm_and_scale_normalise() -> None:
    text = layer_text("BatchNorm", "", (64, 3)) + (
        '\nlayer { name: "s" type: "Scale" bottom: "y0" top: "y0" scale_param { bias_term: true } }'
    )
    net = load_net(text, phase="TRAIN")
    y = net(x0=noise(64, 3).float() * 5 + 2)["y0"]
    assert y.mean().item() == pytest.approx(0, abs=1e-6)
    assert y.var(unbiased=False).item() == pytest.approx(1, abs=1e-4)
