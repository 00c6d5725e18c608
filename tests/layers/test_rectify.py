"""PReLU, SymmetricRectify and Sparsify."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from forcereg.net.module import Net
from tests.layers.nets import apply, gradcheck, layer_error, layer_net, noise, run


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(1, -1, *(1,) * (x.dim() - 2)) if values.dim() else values


def with_blob(kind: str, param: str, shape: tuple[int, ...], values: Tensor) -> Net:
    net = layer_net(kind, param, shape).double()
    with torch.no_grad():
        net.params["l"][0].copy_(values)
    return net


SHAPES = [(3, 4), (2, 3, 4), (2, 3, 4, 2), (2, 3, 1, 2, 2)]


# -- PReLU


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("shared", [False, True], ids=["per_channel", "shared"])
def test_prelu(shape: tuple[int, ...], shared: bool) -> None:
    x = noise(*shape)
    slope = noise(*(() if shared else shape[1:2]), seed=1)
    net = with_blob("PReLU", f"prelu_param {{ channel_shared: {str(shared).lower()} }}", shape, slope)
    expected = x.clamp(min=0) + per_channel(slope, x) * x.clamp(max=0)
    torch.testing.assert_close(run(net, x)[0], expected)
    assert x.abs().min() > 1e-3
    assert gradcheck(net, x.requires_grad_())


def test_prelu_at_zero() -> None:
    x = torch.zeros(1, 2, requires_grad=True)
    net = layer_net("PReLU", "", (1, 2))
    run(net, x)[0].sum().backward()
    (slope,) = net.params["l"]
    assert x.grad.tolist() == [[0.25, 0.25]] and slope.grad.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("kind", "param", "expected"),
    [
        ("PReLU", "", [0.25] * 3),
        ("PReLU", "prelu_param { channel_shared: true }", 0.25),
        ("PReLU", "prelu_param { filler { type: 'constant' value: 0.5 } }", [0.5] * 3),
        ("PReLU", "prelu_param { filler {} }", [0.0] * 3),
        ("SymmetricRectify", "", [0.0] * 3),
        ("SymmetricRectify", "symmetric_rectify_param { channel_shared: true }", 0.0),
        ("SymmetricRectify", "symmetric_rectify_param { filler { value: 0.5 } }", [0.5] * 3),
    ],
)
def test_initial_values(kind: str, param: str, expected: object) -> None:
    ((blob,),) = (layer_net(kind, param, (2, 3, 4)).params["l"],)
    assert blob.tolist() == expected


# -- SymmetricRectify


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("shared", [False, True], ids=["per_channel", "shared"])
def test_symmetric_rectify(shape: tuple[int, ...], shared: bool) -> None:
    x = noise(*shape)
    threshold = noise(*(() if shared else shape[1:2]), seed=1).abs()
    param = f"symmetric_rectify_param {{ channel_shared: {str(shared).lower()} }}"
    net = with_blob("SymmetricRectify", param, shape, threshold)
    t = per_channel(threshold, x)
    torch.testing.assert_close(run(net, x)[0], torch.where(x > t, x - t, torch.where(x < -t, x + t, 0.0)))
    assert (x.abs() - t).abs().min() > 1e-3
    assert gradcheck(net, x.requires_grad_())


def test_negative_thresholds_become_zero_in_the_blob() -> None:
    net = with_blob("SymmetricRectify", "", (1, 3), torch.tensor([-0.5, -0.0, 0.5]))
    x = torch.tensor([[-2.0, 0.25, 0.25]]).double().requires_grad_()
    (y,) = run(net, x)
    assert y.tolist() == [[-2, 0.25, 0]]
    y.sum().backward()
    (threshold,) = net.params["l"]
    assert threshold.tolist() == [0, 0, 0.5]
    assert x.grad.tolist() == [[1, 1, 0]] and threshold.grad.tolist() == [1, -1, 0]


def test_no_gradient_where_the_output_is_zero() -> None:
    net = with_blob("SymmetricRectify", "", (1, 4), torch.tensor([0.5, 0.5, 0.5, 0.0]))
    x = torch.tensor([[-0.5, 0.5, 0.25, 0.0]]).double().requires_grad_()
    run(net, x)[0].sum().backward()
    assert not x.grad.any() and not net.params["l"][0].grad.any()


@pytest.mark.parametrize("shared", [False, True], ids=["per_channel", "shared"])
def test_thre_decay_is_subtracted_once_per_backward(shared: bool) -> None:
    x, grads = noise(3, 4, 2), {}
    for decay in (0, 0.25):
        param = f"symmetric_rectify_param {{ thre_decay: {decay} channel_shared: {str(shared).lower()} }}"
        net = with_blob("SymmetricRectify", param, (3, 4, 2), torch.tensor(0.3))
        for _ in range(2):  # two sub-batches
            (run(net, x)[0] * noise(3, 4, 2, seed=1)).sum().backward()
        grads[decay] = net.params["l"][0].grad
    torch.testing.assert_close(grads[0.25], grads[0] - 0.5)


def test_thre_decay_leaves_the_bottom_alone() -> None:
    x = noise(2, 3).requires_grad_()
    net = with_blob("SymmetricRectify", "symmetric_rectify_param { thre_decay: 5 }", (2, 3), torch.tensor(0.1))
    (y,) = run(net, x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, (y != 0).double())


def test_symmetric_rectify_takes_no_blobs_from_the_net_file() -> None:
    text = layer_error("SymmetricRectify", "blobs { shape { dim: 3 } data: 1 data: 1 data: 1 }", (2, 3))
    assert text.startswith("takes no blobs from the net file; remove them")


@pytest.mark.parametrize("kind", ["PReLU", "SymmetricRectify"])
def test_channels_are_needed(kind: str) -> None:
    assert layer_error(kind, "", (3,)) == "bottom [3] must have at least 2 axes (N, C, ...)"


# -- Sparsify


def test_sparsify_without_threshold_adds_the_sign_to_the_gradient() -> None:
    x = torch.tensor([[-2.0, 0.0, 3.0]], requires_grad=True)
    (y,) = apply("Sparsify", "sparsify_param { coef: 0.25 }", x)
    assert torch.equal(y, x)
    (y * torch.tensor([[1.0, 2.0, 4.0]])).sum().backward()
    assert x.grad.tolist() == [[0.75, 2, 4.25]]


def test_sparsify_with_threshold_passes_gradients_where_the_output_is_not_zero() -> None:
    x = torch.tensor([[-2.0, -0.5, -0.25, 0.0, 0.5, 0.75]], requires_grad=True)
    (y,) = apply("Sparsify", "sparsify_param { thre: 0.5 coef: 0.25 }", x)
    assert y.tolist() == [[-1.5, 0, 0, 0, 0, 0.25]]
    y.backward(torch.full_like(y, 2))
    assert x.grad.tolist() == [[1.75, 0, 0, 0, 0, 2.25]]


@pytest.mark.parametrize("param", ["", "sparsify_param { thre: 0.3 }"], ids=["identity", "soft_threshold"])
def test_sparsify_without_penalty_has_the_plain_gradient(param: str) -> None:
    assert gradcheck(layer_net("Sparsify", param, (3, 4)), noise(3, 4).requires_grad_())


def test_the_penalty_is_not_weighted_by_the_loss() -> None:
    x = noise(2, 3).requires_grad_()
    (y,) = apply("Sparsify", "sparsify_param { coef: 0.5 }", x)
    (y.sum() * 0).backward()
    torch.testing.assert_close(x.grad, 0.5 * x.detach().sign())


def test_sparsify_passes_nan_on() -> None:
    (y,) = apply("Sparsify", "sparsify_param { thre: 0.5 coef: 1 }", torch.tensor([[math.nan]]))
    assert y.isnan().all()


@pytest.mark.parametrize(
    ("param", "message"),
    [
        ("thre: -1", "thre is -1; expected 0 or more"),
        ("coef: -0.5", "coef is -0.5; expected 0 or more"),
        ("coef: nan", "coef is nan; expected 0 or more"),
    ],
)
def test_bad_sparsify(param: str, message: str) -> None:
    assert layer_error("Sparsify", f"sparsify_param {{ {param} }}", (2, 3)) == message
